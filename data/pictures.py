"""Encoded pictures: kept as they were downloaded where every reader takes them alike, else written again losslessly."""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.family import BadSample, Options
from smoothsa_jax.inputs.colours import rgb_of
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels

Image.MAX_IMAGE_PIXELS = None  # our own limit is told in our own words
ORIENTATION = 0x0112  # of EXIF


def frame(data: bytes, where: str, options: Options) -> tuple[bytes, int, int]:
    """A colour picture: its encoded bytes, height and width.

    JPEG and PNG of 8 bit RGB stay the bytes they are, unless `options` ask for another size or no compression. Grey, palette, CMYK and 16 bit pictures become RGB of 8 bit,
    transparency is laid on black, and a rotation that EXIF asks for is carried out; these are written as PNG.

    Raises:
        BadSample: damaged, of another format, or larger than `options.max_pixels`.
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
    """The integers (H,W) of a label picture as stored: grey values, whatever alpha they have, or places in the palette.

    Raises:
        BadSample: damaged, too large, or a picture of colours.
    """
    segmentation, mode = _segmentation(data, where, options)
    if segmentation.ndim != 2:
        raise BadSample(
            f"{where} has mode {mode}, expected a label map: one integer a pixel, grey or with a palette"
        )
    return segmentation


def colours(data: bytes, where: str, options: Options) -> np.ndarray:
    """The pixels (H,W,3) of a label picture whose colours tell segments apart.

    Raises:
        BadSample: damaged, too large, or not of 8 bit RGB.
    """
    segmentation, mode = _segmentation(data, where, options)
    if segmentation.ndim != 3:
        raise BadSample(f"{where} has mode {mode}, expected labels as RGB colours of 8 bit")
    return segmentation


def labels_or_colours(data: bytes, where: str, options: Options) -> np.ndarray:
    """`labels` (H,W) or `colours` (H,W,3), whichever the picture has.

    Raises:
        BadSample: damaged, too large, or neither.
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
        f"{where} has mode {picture.mode}, expected labels: one integer a pixel, or RGB colours of 8 bit"
    )


def without_alpha(data: bytes, where: str, options: Options) -> bytes:
    """The encoded picture, with its colours as stored: transparency is dropped, not laid on black as `frame` does.

    Raises:
        BadSample: damaged, or too large.
    """
    picture = _open(data, where, options)
    return png(np.asarray(picture)[..., :3]) if picture.mode == "RGBA" else data


def label_png(segmentation: np.ndarray, options: Options) -> bytes:
    """A label map (H,W) of uint8 as PNG, resized as its frame is."""
    if options.size is not None:
        segmentation = resize_labels(segmentation, shorter_side(*segmentation.shape, options.size))
    return png(segmentation, options.uncompressed)


def shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width, scaled so that the shorter of them is `size` pixels."""
    shorter = min(height, width)
    return max(1, round(height * size / shorter)), max(1, round(width * size / shorter))


def png(pixels: np.ndarray, uncompressed: bool = False) -> bytes:
    """RGB (H,W,3) or grey (H,W) of uint8 as PNG; without compression it is decoded several times as fast."""
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
                f"{where} has {picture.width}x{picture.height} pixels, more than {options.max_pixels}; "
                "raise --max_pixels if it is a picture that you want"
            )
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadSample(
            f"{where} is no readable picture ({error}); download it again, or leave such samples out with --skip-bad"
        ) from error
    return picture
