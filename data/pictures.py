"""Encoded pictures: kept if every reader decodes them alike, else rewritten losslessly."""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.family import BadSample, Options
from smoothsa_jax.inputs.colours import rgb_of
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels

Image.MAX_IMAGE_PIXELS = None  # `max_pixels` limits the size, with its own message
ORIENTATION = 0x0112  # EXIF tag


def frame(data: bytes, where: str, options: Options) -> tuple[bytes, int, int]:
    """Encode a color picture for storage; also return its height and width in pixels.

    8-bit RGB JPEG and PNG keep their bytes, unless `options` ask for another size or no
    compression. Gray, palette, CMYK and 16-bit pictures become 8-bit RGB, transparent pictures are
    composited on black, and EXIF rotation is applied; these are written as PNG.

    Raises:
        BadSample: the picture is damaged, of another format, or larger than `options.max_pixels`.
    """
    picture = _open(data, where, options)
    if (
        options.size is None
        and not options.uncompressed
        and picture.format in ("JPEG", "PNG")
        and picture.mode == "RGB"
        and picture.getexif().get(ORIENTATION, 1) == 1
        and "transparency" not in picture.info
    ):
        return data, picture.height, picture.width
    pixels = rgb_of(ImageOps.exif_transpose(picture))
    if options.size is not None:
        pixels = resize_pixels(pixels, shorter_side(pixels.shape[0], pixels.shape[1], options.size))
    return png(pixels, options.uncompressed), pixels.shape[0], pixels.shape[1]


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
    picture = _open(data, where, options)
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
    picture = _open(data, where, options)
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


def _open(data: bytes, where: str, options: Options) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > options.max_pixels:
            raise BadSample(
                f"{where} has {picture.width}x{picture.height} pixels, more than "
                f"{options.max_pixels}; raise --max_pixels if you want this picture"
            )
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadSample(
            f"{where} is not a readable picture ({error}); download it again, or skip such samples "
            "with --skip-bad"
        ) from error
    return picture
