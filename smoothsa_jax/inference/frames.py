"""Convert the user's pictures to uint8 RGB frames."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import media

Picture = Any  # a NumPy or JAX array, a PIL image, or the path of an image file


def as_frame(picture: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """Convert one picture to RGB.

    Args:
        picture: an array (H,W), (H,W,1), (H,W,3) or (H,W,4), uint8 in 0..255 or floats in 0..1; a
            PIL image of any mode; or the path of an image. Images are turned and mirrored as their
            EXIF says, gray becomes three equal channels, and transparency is composited on black.

    Raises:
        UserError: the shape, type or range is wrong, a value is NaN, or the file is unreadable.
    """
    if isinstance(picture, str | os.PathLike):
        return _of_file(picture)
    if isinstance(picture, Image.Image):
        return _of_image(picture)
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
        return media.on_black(Image.fromarray(array))
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


def _of_file(path: str | os.PathLike) -> UInt8[np.ndarray, "H W 3"]:
    try:
        return media.opened(path).displayed()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the path of an image") from error
    except media.Unreadable as error:
        raise UserError(
            f"{path} cannot be read as an image: {error}; save it again, or convert it to PNG"
        ) from error


def _of_image(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    try:
        pixels = media.rgb(image)  # loads it; Pillow turns a TIFF then, and forgets its orientation
    except media.Unreadable as error:
        raise UserError(
            f"a picture cannot be read: {error}; load the image, or convert it to mode RGB, first"
        ) from error
    return media.turned(pixels, media.orientation_of(image))


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
    return media.from_floats(array)
