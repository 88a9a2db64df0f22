"""What all sources of generated clips share: a clip depends on (seed, split, index) only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.boxes import boxes_from_segmentation, pad_boxes, whole_frame_box
from smoothsa_jax.inputs.sprite_textures import COLOURS

# Part of a clip's seed, so that no two splits share a clip.
SPLITS = {"train": 1, "validation": 2, "test": 3}
DEFAULT_NUM_SAMPLES = {"train": 1_000_000, "validation": 128, "test": 128}


class GeneratedClips:
    """A random-access source of generated clips. A derived class makes a clip in `generate`.

    Args:
        title: what the clips show, for messages.
        image_size, num_frames, max_objects, min_objects, split, num_samples, seed, num_slots,
            boxes, background_box, palette_size, keep: see `Sprites`.
        checks: more pairs of a condition and what to say if it does not hold.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        title: str,
        *,
        image_size: int | tuple[int, int],
        num_frames: int,
        max_objects: int,
        min_objects: int,
        split: str,
        num_samples: int | None,
        seed: int,
        num_slots: int | None,
        boxes: bool,
        background_box: bool,
        palette_size: int,
        keep: bool,
        checks: Sequence[tuple[bool, str]] = (),
    ):
        if keep and num_samples is None:
            raise UserError(
                "data.keep holds every clip in memory, and the split has no end; set "
                "data.num_samples"
            )
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if num_samples is None:
            num_samples = DEFAULT_NUM_SAMPLES.get(split, 1)
        if num_slots is None:
            num_slots = max_objects + int(background_box)
        needed = max_objects + int(background_box) if boxes else 1
        all_checks = [
            (
                split in SPLITS,
                f"data split {split!r} is unknown; choose one of {', '.join(SPLITS)}",
            ),
            (
                len(size) == 2 and min(size) >= 16,
                f"data.image_size is {image_size}; {title} need a height and a width of at least "
                "16 pixels",
            ),
            (
                num_frames >= 1,
                f"data.num_frames is {num_frames}; set it to at least 1",
            ),
            (
                num_samples >= 1,
                f"data.num_samples is {num_samples}; it needs at least 1",
            ),
            (0 <= seed < 2**32, f"data.seed is {seed}; choose one in 0..{2**32 - 1}"),
            *checks,
            (
                3 <= palette_size <= len(COLOURS),
                f"data.palette_size is {palette_size}; choose one in 3..{len(COLOURS)}",
            ),
            (
                num_slots >= needed,
                f"clips have up to {needed} boxes, but the model has {num_slots} slots; set "
                f"model.num_slots to at least {needed}",
            ),
        ]
        for passes, message in all_checks:
            if not passes:
                raise UserError(message)
        self.height, self.width = size
        self.num_frames = num_frames
        self.num_slots = num_slots
        self.num_samples = num_samples
        self._seed = (seed, SPLITS[split])
        self._kept: dict[int, dict[str, np.ndarray]] | None = {} if keep else None
        self._boxes = boxes
        self._whole_frame = whole_frame_box(*size) if background_box else None

    def generate(self, rng: np.random.Generator) -> Mapping[str, Any]:
        """Make a clip: "video", "labels" (T,H,W) uint8, "count" (of its objects), and the optional
        keys of the sample."""
        raise NotImplementedError

    def random_numbers(self, index: int) -> np.random.Generator:
        """Return the generator of clip `index`, from which everything in it is drawn."""
        return np.random.default_rng([*self._seed, int(index)])

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index`, see smoothsa_jax.inputs for its keys and shapes."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"index {index} is not in 0..{self.num_samples - 1}")
        if self._kept is None:
            return self._make(index)
        if index not in self._kept:
            self._kept[index] = self._make(index)
        return dict(self._kept[index])

    def window(self, index: int) -> range:
        """The frames of sample `index`: all, since nothing is random."""
        del index
        return range(self.num_frames)

    def without_pixels(
        self, index: int, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], range]:
        """Sample `index` without "video", and its frames: all, since nothing is random."""
        sample = self[index]
        del sample["video"]
        return sample, self.window(index)

    def fixed_pixels(self, index: int, which: range) -> np.ndarray:
        """The frames of sample `index`, all of them, since nothing is random."""
        del which
        return self[index]["video"]

    def _make(self, index: int) -> dict[str, np.ndarray]:
        made = dict(self.generate(self.random_numbers(index)))
        labels, num_objects = number_by_appearance(made.pop("labels"), made.pop("count"))
        boxes = boxes_from_segmentation(labels, np.arange(1, num_objects + 1))
        if not self._boxes:
            boxes = boxes[:, : self.num_slots - int(self._whole_frame is not None)]
        boxes = pad_boxes(boxes, self.num_slots, whole_frame=self._whole_frame)
        slot_mask = np.ones(self.num_slots, dtype=bool)
        if self._boxes:
            slot_mask = boxes[0, :, 0] >= 0
        video = made.pop("video")
        return {
            "video": video,
            "segmentations": labels,
            "boxes": boxes,
            "slot_mask": slot_mask,
            **made,
        }


def appearance(labels: UInt8[np.ndarray, "T H W"], count: int) -> tuple[np.ndarray, int]:
    """New numbers 1.. of objects 1..count, in the order in which they first appear; 0: unseen.

    The order does not depend on later frames, so a longer clip keeps the numbers of a shorter one.

    Returns:
        A table (count + 1,) from old numbers to new ones, and the number of objects seen.
    """
    frames = len(labels)
    cells = labels.reshape(frames, -1) + np.arange(frames)[:, None] * (count + 1)
    pixels = np.bincount(cells.ravel(), minlength=frames * (count + 1)).reshape(frames, -1)
    present = pixels[:, 1:].T > 0  # (n, T)
    seen = present.any(axis=1)
    first = np.where(seen, present.argmax(axis=1), len(labels))
    order = np.argsort(first, kind="stable")
    table = np.zeros(count + 1, dtype=np.uint8)
    table[order + 1] = np.arange(1, count + 1)
    table[1:][~seen] = 0
    return table, int(seen.sum())


def number_by_appearance(
    labels: UInt8[np.ndarray, "T H W"], count: int
) -> tuple[UInt8[np.ndarray, "T H W"], int]:
    """Renumber labels 1.. by `appearance`, and drop unseen ones.

    Returns:
        The labels, and the number of objects seen.
    """
    table, seen = appearance(labels, count)
    return table.take(labels), seen
