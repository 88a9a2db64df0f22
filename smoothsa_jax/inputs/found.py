"""Slots that `--mode=predict --engine=ray` has found, in place of stored ones.

Clips are matched by name: that of a file without its folder and ending, with the names of samples
that the prepared folder lists (`sample_names`). So the corpus may hold more than the clips. Folders
that list names hold the first frames of each video, and the whole of each frame as a square. So the
videos may be longer and have any size.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.features import AUTO, HALF, CachedSlots, FixedViewSource
from smoothsa_jax.inputs.manifest import MANIFEST, frame_counts, sample_names
from smoothsa_jax.inputs.remote import address_of, local_folder
from smoothsa_jax.inputs.repeats import Repeats

KIND = "found"  # in the manifest's metadata
PARTS = "parts"  # the folder of the rows
OPTIONS = ("shot_cuts", "requery", "prune", "iterations")  # which change what the model finds


class _Place(NamedTuple):
    """Where the rows of a clip are.

    Attributes:
        file: the Parquet file.
        first: its first row there.
        frames: number of its rows.
    """

    file: Path
    first: int
    frames: int


def part_name(part: int, number: int) -> str:
    """The file of a part, of so many."""
    return f"part-{part:05d}-of-{number:05d}.parquet"


def is_found(folder: Path) -> bool:
    """Whether a folder was written by `--mode=predict --engine=ray`, to its end."""
    try:
        return json.loads((folder / MANIFEST).read_text())["metadata"]["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_stored(data: Mapping[str, Any], split: str) -> bool:
    """Tell whether the folder that the `data` part of a config names has slots of a split.

    What scores a run may do without: a frozen model finds them then.
    """
    named = data.get("slots")
    if not named or named == AUTO:
        return False
    if not (path := local_folder(named, data.get("cache")) / MANIFEST).is_file():
        return False
    if is_found(path.parent):
        return covers(path.parent, data, split)
    return split in json.loads(path.read_text()).get("made_of", {}).get("clips", ())


def covers(folder: Path, data: Mapping[str, Any], split: str) -> bool:
    """Whether the slots of all samples of a split were found."""
    if "folder" not in data:
        return False
    try:
        names = sample_names(local_folder(data["folder"], data.get("cache")), split)
    except UserError:
        return False
    places = _places(folder, (folder / MANIFEST).stat().st_mtime_ns)
    return all(places.get(_key(name)) for name in names)


def _key(name: str) -> str:
    last = PurePosixPath(name).name
    return last.partition(".")[0]


@functools.lru_cache(maxsize=4)
def _places(folder: Path, modified: int) -> dict[str, _Place | None]:
    """Where the rows of each clip are; None where two files have one name."""
    del modified  # a part of the cache's key
    if address := address_of(folder):
        raise UserError(
            f"data.slots {address} was found by --mode=predict, whose results are read from a "
            "folder of this machine; copy it here, and name the copy"
        )
    found: dict[str, _Place | None] = {}
    manifest = json.loads((folder / MANIFEST).read_text())
    count = len(manifest["parts"])
    for part in range(count):
        file = folder / PARTS / part_name(part, count)
        names = np.array(_read(file, ("file",))["file"].to_pylist(), object)
        if not len(names):
            continue
        # Rows of a clip follow each other.
        begins = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
        for first, end in zip(begins, [*begins[1:], len(names)], strict=True):
            key = _key(names[first])
            found[key] = None if key in found else _Place(file, int(first), int(end - first))
    return found


def _read(file: Path, columns: tuple[str, ...]) -> Any:
    """Columns of a part, as a `pyarrow.Table`."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            f"{file} needs pyarrow, which is not installed: pip install 'smoothsa_jax[ray]'"
        ) from error
    return pq.read_table(file, columns=list(columns))


_read_part = functools.lru_cache(maxsize=8)(_read)  # neighbors are often read together


class FoundSlots(CachedSlots):
    """Like `CachedSlots`, of a folder that `--mode=predict --engine=ray` has written.

    It has "slots" and the slot mask. A mask is true for slots in use on all frames of a window.

    Args:
        source: a source of clips of a prepared folder.
        folder: the folder of results.
        split: of the clips.
        data: the `data` part of the config, for the names of its samples.
        reads: what is read; "slots" alone is there.
        with_pixels: whether samples also have "video".

    Raises:
        UserError: something else is read, options have changed what the model finds, the names of
            samples are unknown, or a clip was not found, is there twice, or has fewer frames.
    """

    def __init__(
        self,
        source: FixedViewSource,
        folder: Path,
        split: str,
        data: Mapping[str, Any],
        reads: Sequence[str] = ("slots",),
        with_pixels: bool = False,
    ):
        self._source, self._split, self._root = source, split, folder
        self._with_pixels = with_pixels
        if others := [name for name in reads if name != "slots"]:
            raise UserError(
                f"data.slots {folder} has no {others[0]}, which is read; it was found by "
                "--mode=predict, which keeps slots: store them with python -m data.store"
            )
        if "folder" not in data:
            raise UserError(
                f"data.slots {folder} was found by --mode=predict, and its clips are matched by "
                "the names of a prepared folder, which this data set has not; store the slots with "
                "python -m data.store"
            )
        prepared = local_folder(data["folder"], data.get("cache"))
        places = _places(folder, (folder / MANIFEST).stat().st_mtime_ns)
        names, counts = sample_names(prepared, split), frame_counts(prepared, split)
        self._found = []
        for name, frames in list(zip(names, counts, strict=True))[: len(source)]:
            place = places.get(_key(name))
            if why := _misfit(_key(name) in places, place, int(frames)):
                raise UserError(
                    f"clip {name} of {prepared}: data.slots {folder} {why}; predict the videos as "
                    "they were prepared, or store the slots with python -m data.store"
                )
            self._found.append(place._replace(frames=int(frames)))
        self._clips = Repeats(np.array([place.frames for place in self._found]))
        manifest = json.loads((folder / MANIFEST).read_text())
        made_of = manifest["made_of"]
        _refuse_options(made_of, folder)
        self.made_of = {key: made_of[key] for key in ("model", "image_size")}
        self.made_of["weights"] = made_of["digest"]
        hashes = "".join(part["sha256"] for part in manifest["parts"])
        self._fingerprint = hashlib.sha256(hashes.encode()).hexdigest()
        self._read = {"slots": (HALF, ()), "slot_mask": (np.dtype("u1"), ())}

    matched_by_name = True  # for `tasks.stored`, which cannot compare the clips' bytes

    @property
    def folder(self) -> Path:
        return self._root

    def fingerprint(self) -> str:
        return self._fingerprint

    def _refuse_full_disk(self) -> None:
        """Do nothing: the folder is one of this machine."""

    def _frames(
        self, index: int, which: Sequence[int], read: Mapping[str, Any]
    ) -> dict[str, Shaped[np.ndarray, "T ..."]]:
        place, names = self._found[index], list(read)
        table = _read_part(place.file, tuple(names)).slice(place.first, place.frames)
        found = {}
        for name in names:
            array, shape = table[name].combine_chunks(), [len(table)]
            while hasattr(array.type, "list_size"):
                shape.append(array.type.list_size)
                array = array.flatten()
            found[name] = array.to_numpy(zero_copy_only=False).reshape(shape)[list(which)]
        found["slots"] = found["slots"].astype(HALF)
        return found


def _misfit(is_there: bool, place: _Place | None, frames: int) -> str:
    """Why the rows of a clip are not those of a prepared clip of so many frames; "": they are."""
    if place is None:
        return "names two files so" if is_there else "has none"
    if place.frames < frames:
        return f"has {place.frames} frames of it, and {frames} were prepared"
    return ""


def _refuse_options(made_of: Mapping[str, Any], folder: Path) -> None:
    """Refuse slots that the model finds with options of predict alone."""
    changed = [key for key in OPTIONS if made_of.get(key) is not None]
    if made_of.get("num_slots") != made_of["model"].get("num_slots"):
        changed.append("num_slots")
    if changed:
        key = changed[0]
        raise UserError(
            f"data.slots {folder} was found with {key}={made_of[key]}, which training does not "
            "use; predict without it, or store the slots with python -m data.store"
        )


def opened(
    source: FixedViewSource,
    folder: Path,
    split: str,
    data: Mapping[str, Any],
    reads: Sequence[str],
    with_pixels: bool = False,
) -> CachedSlots:
    """Open the folder of `data.slots`, whoever has written it.

    Raises:
        UserError: as for `CachedSlots` and `FoundSlots`.
    """
    if is_found(folder):
        return FoundSlots(source, folder, split, data, reads, with_pixels)
    return CachedSlots(source, folder, split, reads, with_pixels)
