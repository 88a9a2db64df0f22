"""Draw a model's segmentations over pictures."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import animation, contact_sheet
from smoothsa_jax.inference.frames import Picture, as_frame, as_frames, is_picture
from smoothsa_jax.inference.segmentation import Segmentation

FORMATS = (".png", ".gif")


def draw(
    pictures: Picture | Iterable[Picture],
    found: Segmentation | Sequence[Segmentation],
    path: str | os.PathLike,
) -> None:
    """Draw the slots as colors over the pictures that were segmented.

    Args:
        pictures: the pictures passed to `segment` or `stream`.
        found: the result of `segment`, or a list of the results of `stream`.
        path: a `.png`, which shows up to eight frames side by side, or a `.gif`, which plays them.
            The file is written atomically.

    Raises:
        UserError: the suffix is another one, there is no result, or the masks do not fit the
            pictures.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(
            f"{path} ends with {Path(path).suffix!r}, expected one of {', '.join(FORMATS)}"
        )
    results = [found] if isinstance(found, Segmentation) else list(found)
    shapes = sorted({result.masks.shape for result in results})
    if len(shapes) != 1:
        raise UserError(
            f"the results have masks of shapes {', '.join(map(str, shapes)) or 'none'}, expected "
            "one shape: draw the result of one call of `segment`, or the list of results of "
            "`stream`"
        )
    masks = np.stack([result.masks for result in results])
    masks = masks.reshape(-1, *masks.shape[-2:])
    if getattr(pictures, "ndim", None) == 5:
        pictures = np.asarray(pictures).reshape(-1, *pictures.shape[2:])
    frames = as_frame(pictures)[None] if is_picture(pictures) else as_frames(pictures)
    write = animation if Path(path).suffix.lower() == ".gif" else contact_sheet
    write(frames, None, {"slots": masks}, path)
