"""Turn an official download, or a folder of your own files, into a prepared folder.

    python -m data.prepare folder --source my_pictures --out prepared/own
    python -m data.prepare movi_c --source ~/downloads/movi_c --out prepared/movi_c
    python -m data.prepare movi_c --source gs://kubric-public/tfds/movi_c/256x256/1.0.0 \\
        --out prepared/movi_c
    python -m data.prepare movi_c --from lmdb --source ~/datasets/movi_c --out prepared/movi_c

Run the same command again to resume an interrupted preparation; a finished one is left as it is.
The number of workers does not affect the bytes written. --engine=ray makes the shards on the
machines of a Ray cluster, which share the folders (docs/datasets.md).
"""

import sys

if __name__ == "__main__":  # before the imports: what makes one of them fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("data.prepare"))

import argparse
import contextlib
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

from data import beside
from data.authors_lmdb import AuthorsLmdb
from data.families import FAMILIES, family_of
from data.family import SPLITS, Job, Options, Plan, refuse_twice
from data.finished import (
    STAGING,
    UNFINISHED,
    in_manifest,
    in_notes,
    is_there,
    manifest_of,
    only_one,
    refuse_other_samples,
    remove_notes,
    remove_unwritten,
    settings_of,
)
from data.manifest import plan_splits, say_end, write_manifest
from data.shards import shard_name
from data.workers import make_shards
from smoothsa_jax.bulk.cluster import Cluster
from smoothsa_jax.bulk.command_line import add_engine, engine_of
from smoothsa_jax.checkout import as_started
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.guard import exit_status
from smoothsa_jax.text import say


def main(arguments: Sequence[str]) -> int:
    def work() -> int:
        name, source, out, splits, workers, engine, options = read_command_line(arguments)
        try:
            with engine or contextlib.nullcontext() as cluster:
                prepare(name, source, out, splits, options, workers, cluster)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; run the same command "
                "with fewer --workers: finished shards are kept"
            ) from error
        return 0

    return exit_status(work, "stopped by Ctrl-C; the same command resumes with the next shard")


def read_command_line(
    arguments: Sequence[str],
) -> tuple[str, str, Path, tuple[str, ...], int, Any, Options]:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(
        "--from",
        dest="origin",
        choices=("lmdb",),
        help="read the authors' converted LMDB files instead",
    )
    origin = early.parse_known_args(arguments)[0].origin
    families = (AuthorsLmdb,) if origin else FAMILIES
    known = {name: family for family in families for name in family.names}
    summaries = "\n".join(f"  {', '.join(f.names)}: {f.summary}" for f in (*FAMILIES, AuthorsLmdb))
    parser = argparse.ArgumentParser(
        prog=as_started("python -m data.prepare"),
        parents=[early],
        description=as_started(__doc__),
        epilog=f"data sets, and what --source is:\n{summaries}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_options(parser)
    finder = _Finder(parents=[early], add_help=False, allow_abbrev=False)
    _add_options(finder, required=False)
    name = finder.name_in(arguments)
    if name is not None and name not in known:
        raise UserError(
            f"{name!r} is not a data set{' in LMDB' if origin else ''}; choose one of "
            f"{', '.join(known)}{did_you_mean(name, known)}"
        )
    extra = argparse.ArgumentParser(add_help=False)
    if name in known:
        known[name].add_arguments(parser)
        known[name].add_arguments(extra)
    given = parser.parse_args(arguments)
    for key in ("limit", "size", "workers", "max_pixels"):
        value = getattr(given, key)
        if value is not None and value < 1:
            raise UserError(f"--{key} is {value}; expected at least 1")
    own = sorted(vars(extra.parse_known_args(arguments)[0]).items())
    own += [("from", origin)] if origin else []
    options = Options(
        limit=given.limit,
        size=given.size,
        keep=tuple(sorted(filter(None, given.keep.split(",")))),
        skip_bad=given.skip_bad,
        max_pixels=given.max_pixels,
        uncompressed=given.uncompressed,
        extra=tuple(own),
    )
    splits = (given.split,) if given.split else SPLITS
    engine = engine_of(given)
    if engine is not None and given.workers is not None:
        raise UserError(
            "--workers is the number of processes of this machine, and with --engine=ray the "
            "cores of Ray decide; leave it out"
        )
    workers = given.workers or os.cpu_count() or 1
    return given.name, given.source, given.out, splits, workers, engine, options


def _add_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options that all data sets have."""
    parser.add_argument("name", nargs=None if required else "?", help="which data set; see below")
    parser.add_argument("--source", required=required, help="the download, or your folder")
    parser.add_argument("--out", required=required, type=Path, help="the folder to write")
    parser.add_argument("--split", choices=SPLITS, help="only this split; default all")
    parser.add_argument("--limit", type=int, help="maximum number of samples per split")
    parser.add_argument("--size", type=int, help="resize the shorter side to this many pixels")
    parser.add_argument(
        "--uncompressed",
        action="store_true",
        help="pictures as PNG without compression: faster to load, several times as large",
    )
    parser.add_argument("--keep", default="", help="additional annotations, separated by commas")
    parser.add_argument("--skip-bad", action="store_true", help="skip unreadable samples")
    parser.add_argument(
        "--max_pixels",
        type=int,
        default=Options.max_pixels,
        help="refuse pictures and frames of videos with more pixels",
    )
    parser.add_argument("--workers", type=int, help="processes; default: one for each core")
    add_engine(parser)


class _Finder(argparse.ArgumentParser):
    """Finds the name of the data set before the data set's own options are known."""

    def name_in(self, arguments: Sequence[str]) -> str | None:
        try:
            return self.parse_known_args(arguments)[0].name
        except ValueError:
            return None  # the real parser reports the error

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def prepare(
    name: str,
    source: str,
    out: Path,
    splits: tuple[str, ...] = SPLITS,
    options: Options = Options(),  # noqa: B008, it is frozen
    workers: int = 1,
    cluster: Cluster | None = None,
) -> None:
    """Write the prepared folder `out`; see the module.

    Args:
        name: of the data set.
        source: the download, or a folder.
        out: the folder.
        splits: those to prepare.
        options: what can change the bytes written.
        workers: number of processes.
        cluster: makes the shards, in place of processes of this machine.

    Raises:
        UserError: a source, sample, folder or disk is unusable. Finished shards are kept.
    """
    family = family_of(name, options)(name, source, options, out / UNFINISHED / STAGING)
    plan = family.plan(splits)
    for note in plan.notes:
        say(note)
    _refuse_shared_pictures(plan)
    if not plan.jobs:
        raise UserError(
            f"--source={source} has nothing of {name} for {' or '.join(splits)}; check --source "
            "and --split"
        )
    if Path(source).is_dir() and Path(source).resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out={out} is inside --source={source}; use a folder beside it")
    with only_one(out):
        remove_unwritten(out)
        wanted = _shards(name, plan)
        settings = settings_of(name, options, plan)
        manifest = manifest_of(out, settings)
        known = {**in_manifest(manifest), **in_notes(out, settings)}
        refuse_other_samples(known, wanted, source, out, options)
        beside.refuse_other(out, plan.beside)
        missing = {file: job for file, job in wanted.items() if not is_there(out, file, known)}
        is_whole = manifest and set(plan_splits(plan)) <= set(manifest["splits"])
        if is_whole and not missing and beside.is_there(out, plan.beside, manifest):
            say(f"{out} is prepared already; python -m data.check {out} verifies it")
            return
        num_done = len(wanted) - len(missing)
        make_shards(name, source, options, plan, out, missing, workers, num_done, cluster)
        known |= in_notes(out, settings)
        beside.write(out, plan.beside)
        write_manifest(out, name, settings, plan, {file: known[file] for file in wanted}, manifest)
        remove_notes(out, wanted)
    say_end(out)


def _refuse_shared_pictures(plan: Plan) -> None:
    """Raise UserError if two samples are the same picture, within a split or across them."""
    before: dict[str, str] = {}
    for split, pictures in plan.pictures.items():
        refuse_twice(pictures, split, "samples", "list each once")
        if both := [picture for picture in pictures if picture in before]:
            raise UserError(
                f"{before[both[0]]} and {split} share {len(both)} samples, such as {both[0]}; "
                "expected each in one split: take them out of the list of one of them"
            )
        before |= dict.fromkeys(pictures, split)


def _shards(name: str, plan: Plan) -> dict[str, Job]:
    counts = {split: sum(job.split == split for job in plan.jobs) for split in SPLITS}
    index = dict.fromkeys(SPLITS, 0)
    shards = {}
    for job in plan.jobs:
        shards[shard_name(name, job.split, index[job.split], counts[job.split])] = job
        index[job.split] += 1
    return shards
