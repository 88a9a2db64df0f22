"""The rows of a part: what was found in each frame, and its Parquet file.

| column | content of a frame |
| --- | --- |
| file, frame | the item's name, and the number of the frame |
| height, width | of the picture, in pixels |
| slots (N,D) | float32 |
| boxes (N,4) | left, top, right, bottom pixel, both ends included; -1 of slots without pixels |
| areas (N,) | number of pixels of each slot |
| slot_mask (N,) | the slots in use |
| cold | whether the slots started from queries |
| model | checksum of the model's weights |
| masks | with masks="rle": a text for each slot, as COCO stores masks; "png": one label map |
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from smoothsa_jax.bulk.reading import Bad
from smoothsa_jax.evaluation.bilinear import interpolation_matrix
from smoothsa_jax.evaluation.pictures import palette
from smoothsa_jax.inference.results import boxes_of

MASKS = ("rle", "png")
VERSION = "2.6"  # of Parquet: the bytes do not depend on a library's default


class Segmented(NamedTuple):
    """What a model found in an item.

    Attributes:
        name: of the item.
        size: height and width of the picture.
        note: what was unreadable.
        slots: the slots.
        shares: the masks on the model's grid.
        slot_mask: the slots in use.
        cold: the frames that started from queries.
    """

    name: str
    size: tuple[int, int]
    note: str
    slots: Float[np.ndarray, "T N D"]
    shares: Float[np.ndarray, "T N h w"]
    slot_mask: Bool[np.ndarray, "T N"]
    cold: Bool[np.ndarray, " T"]


class Rows(NamedTuple):
    """The rows of an item, a frame each.

    Attributes:
        name: of the item.
        size: height and width of the picture.
        note: what was unreadable.
        slots: the slots.
        slot_mask: the slots in use.
        cold: the frames that started from queries.
        boxes: in pixels; -1 of slots without pixels.
        areas: in pixels.
        masks: of each frame, a list of texts or a PNG; None: not asked for.
    """

    name: str
    size: tuple[int, int]
    note: str
    slots: Float[np.ndarray, "T N D"]
    slot_mask: Bool[np.ndarray, "T N"]
    cold: Bool[np.ndarray, " T"]
    boxes: Int[np.ndarray, "T N 4"]
    areas: Int[np.ndarray, "T N"]
    masks: list[Any] | None

    @classmethod
    def of(cls, found: Segmented, masks: str | None) -> "Rows":
        """Bring masks to the picture's size and measure them."""
        frames, number = found.slots.shape[:2]
        boxes = np.full((frames, number, 4), -1, np.int32)
        areas = np.zeros((frames, number), np.int32)
        kept: list[Any] = []
        for t in range(frames):
            segments = segments_of(found.shares[t], found.size, found.slot_mask[t])
            for x in boxes_of(segments):
                boxes[t, x["slot"]], areas[t, x["slot"]] = x["box"], x["pixels"]
            if masks is not None:
                kept.append(_png(segments) if masks == "png" else _texts(segments, number))
        return cls(
            found.name,
            found.size,
            found.note,
            found.slots,
            found.slot_mask,
            found.cold,
            boxes,
            areas,
            None if masks is None else kept,
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """Join consecutive frames of one item."""
        arrays = ("slots", "slot_mask", "cold", "boxes", "areas")
        whole = {name: np.concatenate([getattr(x, name) for x in parts]) for name in arrays}
        masks = None if parts[0].masks is None else [m for x in parts for m in x.masks]
        return parts[0]._replace(**whole, masks=masks)


def segments_of(
    shares: Float[np.ndarray, "N h w"], size: tuple[int, int], slot_mask: Bool[np.ndarray, " N"]
) -> Int[np.ndarray, "H W"]:
    """The slot of each pixel, as `upsampling.segments_from_masks` finds it.

    In NumPy, because JAX would compile a program for every size of a picture.
    """
    h, w = shares.shape[1:]
    rows, columns = interpolation_matrix(size[0], h), interpolation_matrix(size[1], w)
    best = np.full(size, -np.inf, np.float32)
    found = np.zeros(size, np.uint8 if len(shares) <= 255 else np.int32)
    for slot in np.flatnonzero(slot_mask):  # one at a time: memory does not grow with their number
        large = rows @ shares[slot] @ columns.T
        more = large > best
        np.copyto(found, slot, where=more, casting="unsafe")
        np.maximum(best, large, out=best)
    return found


def _png(segments: Int[np.ndarray, "H W"]) -> bytes:
    picture = Image.fromarray(segments.astype(np.uint8), mode="L").convert("P")
    picture.putpalette(palette(256 + 1)[1:].tobytes())
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _texts(segments: Int[np.ndarray, "H W"], number: int) -> list[str]:
    return [encoded(segments == slot) for slot in range(number)]


def encoded(mask: Bool[np.ndarray, "H W"]) -> str:
    """The run lengths of a mask as COCO's text; `data/rle.py` describes and decodes it."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat.size and flat[0]:
        counts = [0, *counts]
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            group, value = value & 31, value >> 5
            done = value == (-1 if group & 16 else 0)
            text.append(chr(48 + group + (0 if done else 32)))
            if done:
                break
    return "".join(text)


def table_of(rows: Sequence[Rows], model: int, shape: tuple[int, int], masks: str | None) -> Any:
    """The table of a part.

    Args:
        rows: of its items.
        model: checksum of the model's weights.
        shape: number of slots and their width.
        masks: as for `Rows.of`.

    Returns:
        A `pyarrow.Table`.
    """
    import pyarrow as pa

    number, width = shape
    counts = [len(x.slots) for x in rows]

    def each(values: Sequence[Any]) -> np.ndarray:
        return np.repeat(np.asarray(values), counts)

    def stacked(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        arrays = [getattr(x, name).astype(dtype).reshape(-1, *shape) for x in rows]
        return np.concatenate(arrays) if arrays else np.zeros((0, *shape), dtype)

    def lists(name: str, shape: tuple[int, ...], dtype: type) -> Any:
        array = pa.array(stacked(name, shape, dtype).ravel())
        for length in reversed(shape):
            array = pa.FixedSizeListArray.from_arrays(array, length)
        return array

    names = [x.name for x, count in zip(rows, counts, strict=True) for _ in range(count)]
    order = [np.arange(count) for count in counts]
    sizes = [x.size for x in rows] or np.zeros((0, 2))
    columns = {
        "file": pa.array(names, pa.string()),
        "frame": pa.array(np.concatenate(order) if order else [], pa.int32()),
        "height": pa.array(each([x[0] for x in sizes]), pa.int32()),
        "width": pa.array(each([x[1] for x in sizes]), pa.int32()),
        "slots": lists("slots", (number, width), np.float32),
        "boxes": lists("boxes", (number, 4), np.int32),
        "areas": lists("areas", (number,), np.int32),
        "slot_mask": lists("slot_mask", (number,), bool),
        "cold": pa.array(stacked("cold", (), bool)),
        "model": pa.array(np.full(len(names), model, np.int64)),
    }
    if masks is not None:
        kind = pa.binary() if masks == "png" else pa.list_(pa.string(), number)
        columns["masks"] = pa.array([m for x in rows for m in x.masks], kind)
    return pa.table(columns)


def errors_table(part: int, outcomes: Sequence[Any]) -> Any:
    """The table of what could not be read, as a `pyarrow.Table`.

    `frames` is the number of frames that were readable: 0 of a file that has no rows.
    """
    import pyarrow as pa

    bad = [(x.name, x.reason, 0) for x in outcomes if isinstance(x, Bad)]
    bad += [(x.name, x.note, len(x.slots)) for x in outcomes if isinstance(x, Rows) and x.note]
    names, reasons, frames = zip(*bad, strict=True) if bad else ((), (), ())
    return pa.table(
        {
            "file": pa.array(names, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "frames": pa.array(frames, pa.int32()),
            "part": pa.array([part] * len(bad), pa.int32()),
        }
    )


def as_parquet(table: Any, about: dict[str, int]) -> bytes:
    """A table as the bytes of a Parquet file, the same for the same table.

    Args:
        table: the table.
        about: numbers to note in its schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    noted = {f"smoothsa_jax.{key}": str(value) for key, value in about.items()}
    out = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(noted), out, version=VERSION, compression="zstd")
    return out.getvalue().to_pybytes()


def noted_in(data: bytes) -> dict[str, int]:
    """The numbers that `as_parquet` has noted.

    Raises:
        ValueError: the bytes are no whole Parquet file, or one of another origin.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(pa.BufferReader(data)).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(str(error)) from error
    start = b"smoothsa_jax."
    noted = {
        k.removeprefix(start).decode(): int(v) for k, v in found.items() if k.startswith(start)
    }
    if not noted:
        raise ValueError("it was not made by --mode=predict")
    return noted
