"""Write the predictions for one input frame by frame, with constant memory.

overlay.mp4 (or .gif; .png of a picture)   slots as colors over the frames
sheet.png                                  up to eight frames and their slots side by side
labels/000000.png, ... (or labels.png)     each pixel's slot: the values, with a palette for viewing
slots.npz                                  slots (T,N,D), slot_mask (T,N), cold (T,);
                                           see `segmentation.py`
boxes.json                                 for each frame and each slot with pixels, the slot's box
                                           and number of pixels; with --future, also which frames
                                           were predicted
reconstruction/000000.png, ...             with --reconstruct, the decoded picture of the slots (or
                                           reconstruction.png)
edited/000000.png, ...                     with --edit, that of the edited slots (or edited.png)
"""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import palette
from smoothsa_jax.inference.overlays import Excerpt, Overlay, can_write_mp4, drawn
from smoothsa_jax.inference.segmentation import Segmentation

MAX_SLOTS = 254  # the limit of an 8-bit label map


def check_num_slots(number: int) -> None:
    """Refuse more slots than label maps have room for.

    Raises:
        UserError: there are more.
    """
    if number > MAX_SLOTS:
        raise UserError(f"{number} slots are too many; label maps have room for {MAX_SLOTS} slots")


class Results(contextlib.ExitStack):
    """The files of one input, in an empty folder; a context manager, after which they are complete.

    Args:
        folder: an empty folder.
        fps: frames per second; None: the input is one picture.
    """

    def __init__(self, folder: Path, fps: float | None):
        super().__init__()
        self._folder, self._fps = folder, fps
        self.num_frames = 0

    def __enter__(self) -> "Results":
        super().__enter__()
        self._excerpt = Excerpt()
        self._overlay = None
        if self._fps is not None:
            (self._folder / "labels").mkdir()
            if can_write_mp4():
                self._overlay = self.enter_context(Overlay(self._folder, self._fps))
        self._boxes = self.enter_context(open(self._folder / "boxes.json", "w"))
        self._arrays = {
            name: self.enter_context(_GrowingArray(self._folder / f".{name}"))
            for name in ("slots", "slot_mask", "cold")
        }
        return self

    def add(
        self,
        frame: UInt8[np.ndarray, "H W 3"],
        found: Segmentation,
        decoded: Mapping[str, UInt8[np.ndarray, "h w 3"]] = MappingProxyType({}),
        predicted: bool = False,
    ) -> None:
        """Write the results for the next frame.

        Args:
            frame: the frame.
            found: its slots.
            decoded: name -> decoded picture, the same names for every frame.
            predicted: whether the frame was predicted, not seen.
        """
        number, masks = self.num_frames, found.masks
        labels = self._folder / ("labels.png" if self._fps is None else f"labels/{number:06d}.png")
        _write_labels(labels, masks)
        if self._fps is None:
            Image.fromarray(drawn(frame, masks)).save(self._folder / "overlay.png")
        elif self._overlay is not None:
            self._overlay.add(frame, masks)
        self._excerpt.add(frame, masks)
        for name, picture in decoded.items():
            file = f"{name}.png"
            if self._fps is not None:
                (self._folder / name).mkdir(exist_ok=True)
                file = f"{name}/{number:06d}.png"
            Image.fromarray(picture).save(self._folder / file)
        row = {"frame": number, "cold": bool(found.cold), "slots": boxes_of(masks)}
        row |= {"predicted": True} if predicted else {}
        if number == 0:
            size = {"height": masks.shape[0], "width": masks.shape[1]}
            self._boxes.write(json.dumps(size)[:-1] + ', "frames": [')
        self._boxes.write((",\n" if number else "\n") + json.dumps(row))
        for name, array in self._arrays.items():
            array.add(getattr(found, name))
        self.num_frames += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool | None:
        try:
            if kind is None:
                self._finish()
        finally:
            # Close every file, even if the disk is full.
            leaves = super().__exit__(kind, error, trace)
        return leaves

    def _finish(self) -> None:
        self._boxes.write("\n]}\n")
        with zipfile.ZipFile(self._folder / "slots.npz", "w") as archive:
            for name, array in self._arrays.items():
                array.move_into(archive, f"{name}.npy")
        self._excerpt.write_sheet(self._folder / "sheet.png")
        if self._fps is not None and self._overlay is None:
            self._excerpt.write_gif(self._folder / "overlay.gif", self._fps)


def boxes_of(masks: Int[np.ndarray, "H W"]) -> list[dict[str, Any]]:
    """The slot, box and number of pixels of each slot that has pixels.

    Boxes are left, top, right, bottom pixel, both ends included, as `segment` and `--boxes` expect.
    """
    number, counts = int(masks.max()) + 1, []
    for axis, size in enumerate(masks.shape):
        places = np.expand_dims(np.arange(size), 1 - axis)
        numbered = np.bincount((masks + number * places).ravel(), minlength=number * size)
        counts.append(numbered.reshape(size, number))
    in_rows, in_columns = counts
    found = []
    for slot in np.flatnonzero(in_rows.any(axis=0)).tolist():
        rows, columns = np.flatnonzero(in_rows[:, slot]), np.flatnonzero(in_columns[:, slot])
        box = [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]
        found.append({"slot": slot, "box": box, "pixels": int(in_rows[:, slot].sum())})
    return found


def _write_labels(path: Path, masks: Int[np.ndarray, "H W"]) -> None:
    picture = Image.fromarray(masks.astype(np.uint8), mode="L").convert("P")
    picture.putpalette(palette(256 + 1)[1:].tobytes())  # the colors of the overlay
    picture.save(path)


class _GrowingArray:
    """Collects arrays of one shape in a file until their number is known."""

    def __init__(self, path: Path):
        self._path = path
        self._like, self._count = np.empty(0), 0

    def __enter__(self) -> "_GrowingArray":
        self._file = open(self._path, "w+b")  # noqa: SIM115, closed in __exit__
        return self

    def add(self, array: np.ndarray) -> None:
        self._like = np.asarray(array, order="C")
        self._file.write(self._like.tobytes())
        self._count += 1

    def move_into(self, archive: zipfile.ZipFile, name: str) -> None:
        header = np.lib.format.header_data_from_array_1_0(self._like)
        header["shape"] = (self._count, *self._like.shape)
        header["fortran_order"] = False
        self._file.seek(0)
        with archive.open(name, "w", force_zip64=True) as out:
            np.lib.format.write_array_header_1_0(out, header)
            shutil.copyfileobj(self._file, out)

    def __exit__(self, *ignored: object) -> None:
        try:
            self._file.close()
        finally:
            self._path.unlink()
