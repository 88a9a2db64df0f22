"""Make the shards of a prepared folder, in processes of this machine or as tasks of a Ray cluster.

Where they are made affects no byte.
"""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.families import family_of
from data.family import BadSample, Family, Job, Options, Plan
from data.finished import STAGING, UNFINISHED, write_note
from data.shards import serializer, write_shard
from smoothsa_jax.bulk import pieces
from smoothsa_jax.bulk.cluster import Cluster
from smoothsa_jax.text import say

# Each worker process has its own copies.
_family: Family
_serialize: Any


def make_shards(
    name: str,
    source: str,
    options: Options,
    plan: Plan,
    out: Path,
    missing: dict[str, Job],
    workers: int,
    num_done: int,
    cluster: Cluster | None = None,
) -> None:
    """Make the shards `missing`, with a progress bar, and write a note on each.

    Args:
        workers: number of processes.
        num_done: number of shards that are finished.
        cluster: makes them, in place of processes of this machine.

    Raises:
        UserError: a source, sample or disk is unusable. Finished shards are kept.
    """
    if num_done:
        say(
            f"{num_done} of {num_done + len(missing)} shards are finished; continuing with the rest"
        )
    total = sum(job.num_items or 0 for job in missing.values()) or None
    with tqdm(total=total, unit=" samples", desc=name, smoothing=0.1) as bar:
        setting = (name, source, options, out / UNFINISHED / STAGING, plan.features)
        if cluster is None:
            notes = _here(setting, out, missing, workers)
        else:
            notes = _on_ray(setting, out, missing)
        with contextlib.closing(notes):
            for note in notes:
                bar.update(note["num_examples"] + len(note["skipped"]))


def _on_ray(setting: tuple, out: Path, missing: dict[str, Job]) -> Iterator[dict[str, Any]]:
    """Make the shards as tasks of a Ray cluster."""
    work = f"{MakeShard.__module__}:{MakeShard.__name__}"
    with pieces.marked(f"--out={out}", out / UNFINISHED) as mark:
        yield from pieces.in_tasks(work, (out, *setting), list(missing.items()), mark)


class MakeShard:
    """Makes a shard of a file's name and its job, in a worker of Ray."""

    def __init__(self, out: Path, *setting: Any):
        self._out = out
        _start(*setting)

    def __call__(self, piece: tuple[str, Job]) -> dict[str, Any]:
        return _make(self._out, *piece)


def _here(
    setting: tuple, out: Path, missing: dict[str, Job], workers: int
) -> Iterator[dict[str, Any]]:
    """Make the shards in processes of this machine."""
    if workers == 1 or len(missing) < 2:
        _start(*setting)
        for file, job in missing.items():
            yield _make(out, file, job)
        return
    # Forking a process with threads, which TFDS and JAX start, may deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(missing)), context, _start, setting)
    try:
        futures: list[Future] = [
            pool.submit(_make, out, file, job) for file, job in missing.items()
        ]
        for future in as_completed(futures):
            yield future.result()
    finally:
        # After an error or Ctrl-C, finish the shards in progress, but start no others.
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
    """In a worker, leave Ctrl-C to the parent, and exit if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _make(out: Path, file: str, job: Job) -> dict[str, Any]:
    """Write one shard and its note."""
    skipped: list[str] = []
    frames: list[int] = []
    names: list[str] = []
    remarks: dict[str, list[str]] = {}
    facts: dict[str, list[Any]] = {}
    _family.sources_read.clear()
    records = _records(job, skipped, frames, names, remarks, facts)
    written = write_shard(out / file, records)  # fills the lists
    return write_note(
        out,
        file,
        job,
        written,
        frames=frames,
        skipped=skipped,
        remarks={text: [len(files), files[0]] for text, files in remarks.items()},
        sources=[dataclasses.astuple(source) for source in _family.sources_read],
        # Elsewhere, planning has checked that they are unique.
        names=names if job.num_items is None else [],
        **({"sample_names": names} if _family.lists_names else {}),
        **facts,
    )


def _records(
    job: Job,
    skipped: list[str],
    frames: list[int],
    names: list[str],
    remarks: dict[str, list[str]],
    facts: dict[str, list[Any]],
) -> Iterable[bytes]:
    """Yield the records of a shard.

    Note skipped samples, the number of frames of each clip, the samples' names, the files that need
    each remark, and the family's facts of each sample.
    """
    for item in _family.items(job):
        _family.remarks.clear()
        try:
            example = _family.example(item)
            record = _serialize(example)
        except BadSample as error:
            if not _family.options.skip_bad:
                raise
            skipped.append(str(error))
            continue
        names.append(example["metadata"]["name"])
        if "video" in example:
            frames.append(len(example["video"]))
        for name, fact in _family.facts(example).items():
            facts.setdefault(name, []).append(fact)
        for text, file in _family.remarks:
            remarks.setdefault(text, []).append(file)
        yield record
