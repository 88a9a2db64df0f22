"""Random access to the records of one split of a prepared folder (ArrayRecord shards)."""

import bisect
import itertools
import json
import threading
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.remote import (
    address_of,
    available,
    local_folder,
    missing,
    refuse_full_disk,
)

PREPARE = "python -m data.prepare NAME --source PATH --out"
# Without this option, every read would also fetch the megabytes that follow.
READER_OPTIONS = "readahead_buffer_size:0"


class NoSuchSplit(UserError):
    """A prepared folder lacks a split."""


class Records:
    """The records of a split as bytes, by index over all of its shards.

    Each process opens a shard when it first reads it, so an instance can be sent to worker
    processes, which open their own. Reading from several threads is safe. Shards of a bucket are
    copied to this machine when they are first read; see `inputs.remote`.

    Args:
        folder: a prepared folder with dataset_info.json, or the address of one in a bucket.
        split: one of the splits listed there.
        cache: the folder for copies of shards; None: in the user's cache.

    Attributes:
        folder: on this machine.

    Raises:
        NoSuchSplit: the folder has other splits.
        UserError: the folder, its description or a shard is missing, or cannot be copied.
    """

    def __init__(self, folder: str | Path, split: str, cache: str | Path | None = None):
        self.folder = local_folder(folder, cache)
        dataset, splits = _described(self.folder)
        address = address_of(self.folder)
        shown = address or self.folder  # as its user knows it
        if split not in splits:
            found = ", ".join(sorted(splits)) or "none"
            prepare = f"{PREPARE} {shown} --split {split}"
            raise NoSuchSplit(
                f"{shown} has no split {split!r}; it has: {found}; choose one of them (for scores: "
                "--config.eval.split) or "
                + ("copy a folder there that has it" if address else f"prepare it: {prepare}")
            )
        lengths = splits[split]
        self._files = [
            self.folder / f"{dataset}-{split}.array_record-{i:05d}-of-{len(lengths):05d}"
            for i in range(len(lengths))
        ]
        self._ends = list(itertools.accumulate(lengths))
        if lacks := missing(self.folder, self._names()):
            more = f" and {len(lacks) - 1} more" if len(lacks) > 1 else ""
            prepare = f"prepare it again: {PREPARE} {shown}"
            raise UserError(
                f"{shown} lacks {lacks[0]}{more}, of {len(lengths)} shards of split {split!r}; "
                + ("copy the whole folder there again" if address else prepare)
            )
        self._open()

    def refuse_full_disk(self, number: int) -> None:
        """Refuse a disk without room for copies of the first `number` records.

        Raises:
            UserError: it has no room, or the bucket cannot be listed.
        """
        last = bisect.bisect_left(self._ends, number)
        refuse_full_disk(self.folder, self._names()[: last + 1])

    def _names(self) -> list[str]:
        return [file.name for file in self._files]

    def _open(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Open files and locks cannot move between processes.
        return {key: self.__dict__[key] for key in ("folder", "_files", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        """Record `index`.

        Raises:
            IndexError: the index is not in 0..len - 1.
            UserError: the shard is shorter than described, or the record is damaged. The message
                names the file.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        shard = bisect.bisect_right(self._ends, index)
        position = index - (self._ends[shard - 1] if shard else 0)
        reader = self._reader(shard)
        try:
            (record,) = reader.read([position])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"record {position} of {self._files[shard]} cannot be read: "
                f"{_one_line(error)}; delete the file and {self._again()}"
            ) from error
        return record

    def _again(self) -> str:
        """How a deleted shard is made anew."""
        if address := address_of(self.folder):
            return f"run the same command, which copies it from {address}"
        return f"prepare it again: {PREPARE} {self.folder}"

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            # Not under the lock: threads copy several shards at once.
            available(self.folder, self._files[shard].name)
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = self._checked_reader(shard)
            return self._readers[shard]

    def _checked_reader(self, shard: int) -> Any:
        file = self._files[shard]
        expected = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
        try:
            reader = ArrayRecordReader(str(file), READER_OPTIONS)
            found = reader.num_records()
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{file} cannot be opened: {_one_line(error)}; delete it and {self._again()}"
            ) from error
        # A truncated file opens as one without records.
        if found != expected:
            raise UserError(
                f"{file} holds {found} whole records, dataset_info.json says {expected}: it is "
                f"truncated or from another preparation; delete it and {self._again()}"
            )
        return reader


def _described(folder: Path) -> tuple[str, dict[str, list[int]]]:
    """The data set's name, and for each split the number of records in every shard."""
    file = folder / "dataset_info.json"
    if not file.is_file():
        what = "has no dataset_info.json" if folder.is_dir() else "is not a folder"
        raise UserError(
            f"data.folder {folder} {what}; expected a prepared folder: make it with {PREPARE} "
            f"{folder}, or correct data.folder"
        )
    try:
        info = json.loads(file.read_text())
        splits = {
            split["name"]: [int(length) for length in split.get("shardLengths", ())]
            for split in info.get("splits", ())
        }
        return info["name"], splits
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({_one_line(error)}); prepare it again: {PREPARE} {folder}"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
