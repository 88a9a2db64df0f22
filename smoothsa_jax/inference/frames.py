"""Convert the user's pictures to uint8 RGB frames."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.colours import rgb_of

Picture = Any  # a NumPy or JAX array, a PIL image, or the path of an image file


def as_frame(picture: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """Convert one picture to RGB.

    Args:
        picture: an array (H,W), (H,W,1), (H,W,3) or (H,W,4), uint8 in 0..255 or floats in 0..1; a
            PIL image of any mode; or the path of an image, which is rotated as its EXIF says. Gray
            becomes three equal channels, and transparent pictures are composited on black.

    Raises:
        UserError: the shape, type or range is wrong, a value is NaN, or the file is unreadable.
    """
    if isinstance(picture, str | os.PathLike):
        picture = _opened(picture)
    if isinstance(picture, Image.Image):
        picture = ImageOps.exif_transpose(picture)
        if picture.mode != "F":
            return rgb_of(picture)
        picture = np.asarray(picture)
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise UserError(
            f"a picture has shape {np.shape(picture)}, expected (height, width), or with 1, 3 or 4 "
            "channels last"
        )
    array = _as_uint8(array)
    if array.shape[-1] == 4:
        return rgb_of(Image.fromarray(array))
    return np.broadcast_to(array, (*array.shape[:2], 3)) if array.shape[-1] == 1 else array


def is_picture(pictures: Any) -> bool:
    """Whether the argument is one picture rather than several."""
    return isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) < 4


def as_frames(pictures: Iterable[Picture]) -> UInt8[np.ndarray, "T H W 3"]:
    """Convert pictures of one size to an array.

    Raises:
        UserError: there is no picture, or sizes differ; also as for `as_frame`.
    """
    frames = list(checked_frames(pictures))
    if not frames:
        raise UserError("no picture was given, expected at least one")
    return np.stack(frames)


def checked_frames(pictures: Iterable[Picture]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the converted pictures; raise UserError at the first one of another size."""
    size = None
    for number, picture in enumerate(pictures):
        frame = as_frame(picture)
        size = size or frame.shape[:2]
        if frame.shape[:2] != size:
            raise UserError(
                f"picture {number} has {frame.shape[0]}x{frame.shape[1]} pixels, those before it "
                f"{size[0]}x{size[1]}; bring them to one size, or pass them one by one"
            )
        yield frame


def _opened(path: str | os.PathLike) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of an image") from error
    # Pillow raises many exceptions for truncated files and for files that are not images.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as an image: {reason}") from error


def _as_uint8(array: np.ndarray) -> UInt8[np.ndarray, "H W k"]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"a picture is {array.dtype}, expected uint8 in 0..255 or floats in 0..1; convert it "
            "first"
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"a picture has {int((~np.isfinite(array)).sum())} values that are not finite (NaN or "
            "infinite); remove them first"
        )
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise UserError(
            f"a picture of floats has values from {low:g} to {high:g}, expected 0..1; divide by "
            "255, or give uint8"
        )
    return np.rint(array * 255).astype(np.uint8)
