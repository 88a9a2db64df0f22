"""Turn an official download into a prepared folder.

    python -m data.prepare movi_c --source ~/downloads/movi_c --out prepared/movi_c
    python -m data.prepare movi_c --source gs://kubric-public/tfds/movi_c/256x256/1.0.0 --out prepared/movi_c
    python -m data.prepare movi_c --from lmdb --source ~/datasets/movi_c --out prepared/movi_c

The same command goes on where an interrupted one was, and says so where there is nothing left to do. The number of
workers changes no byte.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.authors_lmdb import AuthorsLmdb
from data.clevrtex import Clevrtex
from data.coco import Coco
from data.davis import Davis
from data.family import SPLITS, BadSample, Family, Job, Options, Plan, Source
from data.folder import Folder
from data.movi import Movi
from data.shards import (
    PARTIAL,
    Shard,
    read_json,
    serializer,
    sha256_of,
    shard_name,
    size_of,
    write_description,
    write_shard,
)
from data.voc import Voc
from data.ytvis import YoutubeVis
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.evaluation.atomic import atomic_file
from smoothsa_jax.inputs.manifest import MANIFEST

FORMAT = 1  # of prepared folders; another number is refused
UNFINISHED = ".unfinished"  # what is known of finished shards, until the folder is whole
SETTINGS = "settings.json"  # in it: what two runs have to agree in
STAGING = "staging"  # in it: what had to be unpacked
FAMILIES: tuple[type[Family], ...] = (Movi, Coco, Voc, Clevrtex, YoutubeVis, Davis, Folder)
TOOLS = ("tensorflow-datasets", "array-record", "pillow", "numpy")

# Each worker process has its own.
_family: Family
_serialize: Any


def main(arguments: Sequence[str]) -> int:
    try:
        name, source, out, splits, workers, options = read_command_line(arguments)
        prepare(name, source, out, splits, options, workers)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            "error: a worker process was killed, for want of memory perhaps; run the same command with fewer --workers: "
            "what is finished stays",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror or error}; mend that, then run the same command",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; the same command goes on with the next shard", file=sys.stderr)
        return 130
    return 0


def read_command_line(
    arguments: Sequence[str],
) -> tuple[str, str, Path, tuple[str, ...], int, Options]:
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
        prog="python -m data.prepare",
        parents=[early],
        description=__doc__,
        epilog=f"data sets, and what --source is:\n{summaries}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="which data set; see below")
    parser.add_argument("--source", required=True, help="what was downloaded")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--split", choices=SPLITS, help="only this one; default all there are")
    parser.add_argument("--limit", type=int, help="samples of each split at most")
    parser.add_argument("--size", type=int, help="resize the shorter side to so many pixels")
    parser.add_argument("--keep", default="", help="further annotations, joined by commas")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out samples that cannot be read"
    )
    parser.add_argument(
        "--max_pixels", type=int, default=Options.max_pixels, help="refuse larger pictures"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    name = next((a for a in arguments if not a.startswith("-")), None)
    if name is not None and name not in known and not {"-h", "--help"} & set(arguments):
        raise UserError(
            f"{name!r} is no data set{' in LMDB' if origin else ''}; choose one of {', '.join(known)}"
            f"{did_you_mean(name, known)}"
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
        extra=tuple(own),
    )
    splits = (given.split,) if given.split else SPLITS
    return given.name, given.source, given.out, splits, given.workers, options


def prepare(
    name: str,
    source: str,
    out: Path,
    splits: tuple[str, ...] = SPLITS,
    options: Options = Options(),  # noqa: B008, it is frozen
    workers: int = 1,
) -> None:
    """Writes the prepared folder `out`; see the module.

    Raises:
        UserError: a bad source, sample, folder or disk. What is finished stays.
    """
    family = family_of(name, options)(name, source, options, out / UNFINISHED / STAGING)
    plan = family.plan(splits)
    if not plan.jobs:
        raise UserError(
            f"--source={source} has nothing of {name} for {' or '.join(splits)}; check --source and --split"
        )
    if Path(source).is_dir() and Path(source).resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"--out={out} lies inside --source={source}; use a folder beside it")
    with _only_one(out):
        for stray in out.glob(f".*{PARTIAL}"):  # of a run that was killed
            stray.unlink()
        wanted = _shards(name, plan)
        settings = _settings(name, options, plan)
        manifest = _finished(out, settings)
        known = {**_in_manifest(manifest), **_in_notes(out, settings)}
        _refuse_other_samples(known, wanted, source, out, options)
        missing = {file: job for file, job in wanted.items() if not _is_there(out, file, known)}
        if manifest and not missing and set(plan_splits(plan)) <= set(manifest["splits"]):
            print(f"{out} is prepared already; python -m data.check {out} verifies it")
            return
        _run(name, source, options, plan, out, missing, workers, len(wanted) - len(missing))
        known |= _in_notes(out, settings)
        _write_manifest(out, name, settings, plan, {file: known[file] for file in wanted}, manifest)
        _remove_notes(out, wanted)
    _say_end(out)


def family_of(name: str, options: Options) -> type[Family]:
    if options.get("from") == "lmdb":
        return AuthorsLmdb
    return next(family for family in FAMILIES if name in family.names)


def plan_splits(plan: Plan) -> list[str]:
    return [split for split in SPLITS if any(job.split == split for job in plan.jobs)]


def _shards(name: str, plan: Plan) -> dict[str, Job]:
    counts = {split: sum(job.split == split for job in plan.jobs) for split in SPLITS}
    index = dict.fromkeys(SPLITS, 0)
    shards = {}
    for job in plan.jobs:
        shards[shard_name(name, job.split, index[job.split], counts[job.split])] = job
        index[job.split] += 1
    return shards


# ------------------------------------------------------------------------------------------------------------- workers


def _run(
    name: str,
    source: str,
    options: Options,
    plan: Plan,
    out: Path,
    missing: dict[str, Job],
    workers: int,
    num_done: int,
) -> None:
    if num_done:
        print(
            f"{num_done} of {num_done + len(missing)} shards are finished; going on with the others"
        )
    total = sum(job.num_items or 0 for job in missing.values()) or None
    with tqdm(total=total, unit=" samples", desc=name, smoothing=0.1) as bar:
        for note in _results(name, source, options, plan.features, out, missing, workers):
            bar.update(note["num_examples"] + len(note["skipped"]))


def _results(
    name: str,
    source: str,
    options: Options,
    features: dict[str, Any],
    out: Path,
    missing: dict[str, Job],
    workers: int,
) -> Iterator[dict[str, Any]]:
    setting = (name, source, options, out / UNFINISHED / STAGING, features)
    if workers == 1 or len(missing) < 2:
        _start(*setting)
        for file, job in missing.items():
            yield _make(out, file, job)
        return
    # Forking a process that has threads, as TFDS and JAX start them, may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start, setting)
    try:
        futures: list[Future] = [
            pool.submit(_make, out, file, job) for file, job in missing.items()
        ]
        for future in as_completed(futures):
            yield future.result()
    finally:
        # After an error or Ctrl-C: shards that are being made are finished, no further one is begun.
        pool.shutdown(wait=True, cancel_futures=True)


def _start(
    name: str, source: str, options: Options, staging: Path, features: dict[str, Any]
) -> None:
    global _family, _serialize
    if multiprocessing.parent_process() is not None:
        _live_with_parent()
    _family = family_of(name, options)(name, source, options, staging)
    _serialize = serializer(features)


def _live_with_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when it is killed, before the next run begins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def digest_of(job: Job) -> str:
    """Tells apart the samples that shards are made of; the same wherever the download lies."""
    return hashlib.sha256(json.dumps(_plain(job)).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return sorted([_plain(key), _plain(entry)] for key, entry in value.items())
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Path):
        return value.name
    text = value if isinstance(value, str) else repr(value)
    return text.rsplit("/", 1)[-1] if text.startswith("/") or "://" in text else text


def _make(out: Path, file: str, job: Job) -> dict[str, Any]:
    """Writes one shard, and beside the folder's other notes what is known of it."""
    skipped: list[str] = []
    frames: list[int] = []
    _family.sources_read.clear()
    num_examples, num_bytes, sha256 = write_shard(out / file, _records(job, skipped, frames))
    note = {
        "file": file,
        "job": digest_of(job),
        "file_size": (out / file).stat().st_size,
        "num_examples": num_examples,
        "num_bytes": num_bytes,
        "sha256": sha256,
        "frames": frames,
        "skipped": skipped,
        "sources": [dataclasses.astuple(source) for source in _family.sources_read],
    }
    with atomic_file(out / UNFINISHED / f"{file}.json") as path:
        path.write_text(json.dumps(note))
    return note


def _records(job: Job, skipped: list[str], frames: list[int]) -> Iterable[bytes]:
    """The records of a shard; notes which samples are left out, and how many frames each clip has."""
    for item in _family.items(job):
        try:
            example = _family.example(item)
            record = _serialize(example)
        except BadSample as error:
            if not _family.options.skip_bad:
                raise
            skipped.append(str(error))
            continue
        if "video" in example:
            frames.append(len(example["video"]))
        yield record


# -------------------------------------------------------------------------------------------------------------- folder


@contextlib.contextmanager
def _only_one(out: Path) -> Iterator[None]:
    try:
        (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
        handle = open(out / ".lock", "a+")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(
            f"--out={out} cannot be written: {error.strerror}; use another folder"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--out={out} is being prepared by another process; wait for it, or use another folder"
            ) from error
        except OSError:  # a file system without locks
            print(f"warning: {out} cannot be locked; prepare it once at a time", file=sys.stderr)
        try:
            yield
        finally:
            if not list((out / UNFINISHED).glob("*.array_record-*.json")):
                (out / UNFINISHED / SETTINGS).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is empty, or is needed to go on
                (out / UNFINISHED).rmdir()


def _settings(name: str, options: Options, plan: Plan) -> dict[str, Any]:
    """What decides the bytes of a sample; two preparations of one folder have to agree in it."""
    decides = ("limit", "size", "keep", "extra")
    settings = {
        "format": FORMAT,
        "dataset": name,
        "options": {key: getattr(options, key) for key in decides},
        "categories": plan.metadata.get("categories"),
    }
    return json.loads(json.dumps(settings))


def _finished(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    path = out / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    _compare(manifest, settings, out)
    return manifest


def _in_manifest(manifest: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    splits = manifest["splits"].values() if manifest else ()
    return {shard["file"]: shard for split in splits for shard in split["shards"]}


def _in_notes(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an unfinished preparation left, by file."""
    path = out / UNFINISHED / SETTINGS
    if path.is_file():
        _compare(read_json(path), settings, out)
    else:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(settings))
    notes = (read_json(p) for p in (out / UNFINISHED).glob("*.array_record-*.json"))
    return {note["file"]: note for note in notes}


def _is_there(out: Path, file: str, known: dict[str, dict[str, Any]]) -> bool:
    path = out / file
    return file in known and path.is_file() and path.stat().st_size == known[file]["file_size"]


def _refuse_other_samples(
    known: dict[str, dict[str, Any]],
    wanted: dict[str, Job],
    source: str,
    out: Path,
    options: Options,
) -> None:
    """Shards that are there already, of splits that are wanted, have to be of the same samples."""
    splits = {file.rsplit(".", 1)[0] for file in wanted}
    for file, note in known.items():
        if file.rsplit(".", 1)[0] not in splits:
            continue
        if file not in wanted or note["job"] != digest_of(wanted[file]):
            raise UserError(
                f"--out={out} holds {file}, which was made of other samples than --source={source} has now; nothing was "
                "changed: use another folder, or remove this one"
            )
        if note["skipped"] and not options.skip_bad:
            raise UserError(
                f"--out={out} holds {file}, of which {len(note['skipped'])} samples were left out; add --skip-bad, or use "
                "another folder"
            )


def _remove_notes(out: Path, wanted: dict[str, Job]) -> None:
    notes = out / UNFINISHED
    for file in wanted:
        (notes / f"{file}.json").unlink(missing_ok=True)
    shutil.rmtree(notes / STAGING, ignore_errors=True)


def _compare(there: dict[str, Any], settings: dict[str, Any], out: Path) -> None:
    for key, value in settings.items():
        found = there.get(key)
        if found == value:
            continue
        if isinstance(value, dict) and isinstance(found, dict):
            key, found, value = next(
                (f"{key}.{k}", found.get(k), value.get(k))
                for k in sorted({*found, *value})
                if found.get(k) != value.get(k)
            )
        raise UserError(
            f"--out={out} was prepared with {key} {_short(found)}, now it is {_short(value)}; nothing was changed: "
            "use another folder"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _write_manifest(
    out: Path,
    name: str,
    settings: dict[str, Any],
    plan: Plan,
    notes: dict[str, dict[str, Any]],
    before: dict[str, Any] | None,
) -> None:
    splits = dict(before["splits"]) if before else {}
    metadata = dict(before["metadata"]) if before else {}
    for key, value in json.loads(json.dumps(plan.metadata)).items():
        # What is told of each split is joined.
        both = isinstance(value, dict) and isinstance(metadata.get(key), dict)
        metadata[key] = {**metadata[key], **value} if both else value
    sources = [tuple(source.values()) for source in before["sources"]] if before else []
    for split in plan_splits(plan):
        mine = {file: note for file, note in notes.items() if file.startswith(f"{name}-{split}.")}
        splits[split] = {
            "num_examples": sum(note["num_examples"] for note in mine.values()),
            "skipped": [line for note in mine.values() for line in note["skipped"]],
            "shards": [
                {key: value for key, value in note.items() if key != "sources"}
                for note in mine.values()
            ],
        }
        sources += [tuple(source) for note in mine.values() for source in note.get("sources", ())]
    sizes = [size_of(path) for path in plan.sources]
    with tqdm(
        total=sum(sizes),
        desc="checksums of the source",
        unit="B",
        unit_scale=True,
        disable=not plan.sources,
    ) as bar:
        for path, size in zip(plan.sources, sizes, strict=True):
            sources.append((path.name, size, sha256_of(path, bar.update)))
    splits = {split: splits[split] for split in SPLITS if split in splits}
    shards = {
        split: [
            Shard(s["file"], s["num_examples"], s["num_bytes"], s["sha256"])
            for s in found["shards"]
        ]
        for split, found in splits.items()
    }
    write_description(out, name, plan.features, shards, f"{name}, prepared by smoothsa_jax")
    manifest = {
        **settings,
        "metadata": metadata,
        "versions": {tool: importlib.metadata.version(tool) for tool in TOOLS},
        "splits": splits,
        "sources": [dataclasses.asdict(Source(*source)) for source in sorted(set(sources))],
    }
    text = re.sub(r"(?<=\d,)\n\s+(?=\d)", " ", json.dumps(manifest, indent=1))  # numbers in lines
    with atomic_file(out / MANIFEST) as partial:
        partial.write_text(text)


def _say_end(out: Path) -> None:
    manifest = read_json(out / MANIFEST)
    for split, found in manifest["splits"].items():
        left_out = f", {len(found['skipped'])} left out" if found["skipped"] else ""
        size = sum(shard["num_bytes"] for shard in found["shards"])
        print(f"{split}: {found['num_examples']} samples, {size / 1e6:.1f} MB{left_out}")
        for line in found["skipped"]:
            print(f"  left out: {line}")
    print(f"{out} is prepared; python -m data.check {out} verifies it")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
