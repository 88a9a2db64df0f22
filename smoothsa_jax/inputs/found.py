"""Slots that `--mode=predict --engine=ray` has found, in place of stored ones.

Clips are matched by name: that of a file without its folder and ending, with the names of samples
that the prepared folder lists (`sample_names`). So the corpus may hold more than the clips.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.inputs.features import AUTO, HALF, CachedSlots, FixedViewSource
from smoothsa_jax.inputs.manifest import MANIFEST, fingerprint, sample_names

KIND = "found"  # in the manifest's metadata


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
    if not named or named == AUTO or not (path := expanded(named) / MANIFEST).is_file():
        return False
    if is_found(path.parent):
        return covers(path.parent, data, split)
    return split in json.loads(path.read_text()).get("made_of", {}).get("clips", ())


def covers(folder: Path, data: Mapping[str, Any], split: str) -> bool:
    """Whether the slots of all samples of a split were found."""
    if "folder" not in data:
        return False
    try:
        names = sample_names(expanded(data["folder"]), split)
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
    import pyarrow.parquet as pq

    del modified  # a part of the cache's key
    found: dict[str, _Place | None] = {}
    manifest = json.loads((folder / MANIFEST).read_text())
    count = len(manifest["parts"])
    for part in range(count):
        file = folder / "parts" / f"part-{part:05d}-of-{count:05d}.parquet"
        names = np.array(pq.read_table(file, columns=["file"])["file"].to_pylist(), object)
        if not len(names):
            continue
        # Rows of a clip follow each other.
        begins = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
        for first, end in zip(begins, [*begins[1:], len(names)], strict=True):
            key = _key(names[first])
            found[key] = None if key in found else _Place(file, int(first), int(end - first))
    return found


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
        UserError: something else is read, the names of samples are unknown, or a clip was not
            found, is there twice, has another number of frames, or is not square: training sees
            the largest square, and predict the whole picture.
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
        prepared = expanded(data["folder"])
        places = _places(folder, (folder / MANIFEST).stat().st_mtime_ns)
        self._clips = []
        for name in sample_names(prepared, split)[: len(source)]:
            if (place := places.get(_key(name))) is None:
                why = "names two files so" if _key(name) in places else "has none"
                raise UserError(
                    f"clip {name} of {prepared}: data.slots {folder} {why}; predict the videos "
                    "that were prepared"
                )
            self._clips.append(place)
        self._ends = np.cumsum([place.frames for place in self._clips])
        made_of = json.loads((folder / MANIFEST).read_text())["made_of"]
        self.made_of = {key: made_of[key] for key in ("model", "image_size")}
        self.made_of["weights"] = made_of["digest"]
        self._read = {"slots": (HALF, ()), "slot_mask": (np.dtype("u1"), ())}
        self._check_first()

    matched_by_name = True  # for `tasks.stored`, which cannot compare the clips' bytes

    @property
    def folder(self) -> Path:
        return self._root

    def fingerprint(self) -> str | None:
        return fingerprint(self._root, self._split) or str(self._root)

    def _check_first(self) -> None:
        import pyarrow.parquet as pq

        for file in dict.fromkeys(place.file for place in self._clips):
            table = pq.read_table(file, columns=["height", "width"])
            height, width = (table[name].to_numpy() for name in ("height", "width"))
            for place in self._clips:
                if place.file == file and height[place.first] != width[place.first]:
                    raise UserError(
                        f"data.slots {self._root} was found in frames of {width[place.first]}x"
                        f"{height[place.first]} pixels, of which training sees the largest square; "
                        "predict square videos, or store the slots with python -m data.store"
                    )

    def _frames(
        self, index: int, which: Sequence[int], read: Mapping[str, Any]
    ) -> dict[str, Shaped[np.ndarray, "T ..."]]:
        place, names = self._clips[index], list(read)
        table = _read_part(place.file, tuple(names)).slice(place.first, place.frames)
        if len(which) and max(which) >= place.frames:
            raise UserError(
                f"clip {index} has frame {max(which)} in the prepared folder, and {place.frames} "
                f"frames in data.slots {self._root}; predict the videos that were prepared"
            )
        found = {}
        for name in names:
            array, shape = table[name].combine_chunks(), [len(table)]
            while hasattr(array.type, "list_size"):
                shape.append(array.type.list_size)
                array = array.flatten()
            found[name] = array.to_numpy(zero_copy_only=False).reshape(shape)[list(which)]
        found["slots"] = found["slots"].astype(HALF)
        return found


@functools.lru_cache(maxsize=8)
def _read_part(file: Path, names: tuple[str, ...]) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(file, columns=list(names))


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
