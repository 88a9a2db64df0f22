"""Encoded pictures: kept if every reader decodes them alike, else rewritten losslessly."""

import io
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from data.family import BadSample, Options
from smoothsa_jax.inputs import media
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels


def frame(source: bytes | media.Picture, where: str, options: Options) -> tuple[bytes, int, int]:
    """Encode a color picture for storage; also return its height and width in pixels.

    The pixels are the stored ones: EXIF orientation is ignored, because the masks of the official
    data sets lie in them. `displayed` turns pictures beforehand where that is wanted.

    8-bit RGB JPEG and PNG keep their bytes, unless `options` ask for another size or no
    compression. Gray, palette, CMYK and 16-bit pictures become 8-bit RGB, and transparent pictures
    are composited on black; these are written as PNG, and so is what has an EXIF orientation, which
    other readers would apply.

    Raises:
        BadSample: the picture is damaged, of another format, or larger than `options.max_pixels`.
    """
    picture = open_picture(source, where, options)
    if options.size is None and not options.uncompressed and picture.is_plain:
        return picture.data, *picture.shape
    pixels = _converted(picture.stored, where)
    if options.size is not None:
        pixels = resize_pixels(pixels, shorter_side(pixels.shape[0], pixels.shape[1], options.size))
    return png(pixels, options.uncompressed), pixels.shape[0], pixels.shape[1]


def displayed(picture: media.Picture, where: str) -> bytes:
    """Encode the displayed pixels of a picture as PNG.

    Raises:
        BadSample: the picture's color space is unknown.
    """
    return png(_converted(picture.displayed, where))


def open_picture(source: bytes | media.Picture, where: str, options: Options) -> media.Picture:
    """Decode a picture, unless it is decoded already.

    Raises:
        BadSample: the picture is damaged, or larger than `options.max_pixels`.
    """
    if isinstance(source, media.Picture):
        return source
    try:
        return media.opened(source, options.max_pixels)
    except media.TooLarge as error:
        raise BadSample(
            f"{where} is too large: {error}; raise --max_pixels if you want this picture"
        ) from error
    except media.Unreadable as error:
        raise _not_readable(where, error) from error


def _converted(convert: Callable[[], np.ndarray], where: str) -> np.ndarray:
    try:
        return convert()
    except media.Unreadable as error:
        raise _not_readable(where, error) from error


def _not_readable(where: str, reason: media.Unreadable) -> BadSample:
    return BadSample(
        f"{where} is not a readable picture ({reason}); download it again, or skip such samples "
        "with --skip-bad"
    )


def labels(data: bytes, where: str, options: Options) -> np.ndarray:
    """Decode a label picture to integers (H,W): gray values, ignoring alpha, or palette indices.

    Raises:
        BadSample: the picture is damaged, too large, or a color picture.
    """
    segmentation, mode = _segmentation(data, where, options)
    if segmentation.ndim != 2:
        raise BadSample(
            f"{where} has mode {mode}, expected a label map: one integer per pixel, gray or with a "
            "palette"
        )
    return segmentation


def colours(data: bytes, where: str, options: Options) -> np.ndarray:
    """Decode a label picture to colors (H,W,3), each of which identifies a segment.

    Raises:
        BadSample: the picture is damaged, too large, or not 8-bit RGB.
    """
    segmentation, mode = _segmentation(data, where, options)
    if segmentation.ndim != 3:
        raise BadSample(f"{where} has mode {mode}, expected labels as 8-bit RGB colors")
    return segmentation


def labels_or_colours(data: bytes, where: str, options: Options) -> np.ndarray:
    """Decode a label picture to integers (H,W) or colors (H,W,3), whichever it has.

    Raises:
        BadSample: the picture is damaged, too large, or neither.
    """
    return _segmentation(data, where, options)[0]


def _segmentation(data: bytes, where: str, options: Options) -> tuple[np.ndarray, str]:
    picture = open_picture(data, where, options).image
    if picture.mode == "LA":  # bear/00077.png of DAVIS 2016
        picture = picture.getchannel("L")
    if picture.mode in ("RGB", "RGBA"):
        return np.asarray(picture)[..., :3], picture.mode
    if picture.mode in ("L", "P", "1", "I", "I;16"):
        return np.asarray(picture), picture.mode
    raise BadSample(
        f"{where} has mode {picture.mode}, expected labels: one integer per pixel, or 8-bit RGB "
        "colors"
    )


def without_alpha(data: bytes, where: str, options: Options) -> bytes:
    """Drop the alpha channel and keep the colors, whereas `frame` composites on black.

    Raises:
        BadSample: the picture is damaged or too large.
    """
    picture = open_picture(data, where, options).image
    return png(np.asarray(picture)[..., :3]) if picture.mode == "RGBA" else data


def label_png(segmentation: np.ndarray, options: Options) -> bytes:
    """Encode a label map (H,W) uint8 as PNG, resized like its frame."""
    if options.size is not None:
        segmentation = resize_labels(segmentation, shorter_side(*segmentation.shape, options.size))
    return png(segmentation, options.uncompressed)


def shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Scale height and width so that the shorter one is `size` pixels."""
    shorter = min(height, width)
    return max(1, round(height * size / shorter)), max(1, round(width * size / shorter))


def png(pixels: np.ndarray, uncompressed: bool = False) -> bytes:
    """Encode RGB (H,W,3) or gray (H,W) uint8 as PNG; uncompressed decodes much faster."""
    if uncompressed:
        if pixels.ndim == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        plain = (
            cv2.IMWRITE_PNG_COMPRESSION,
            0,
            cv2.IMWRITE_PNG_FILTER,
            cv2.IMWRITE_PNG_FILTER_NONE,
        )
        return cv2.imencode(".png", pixels, plain)[1].tobytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
