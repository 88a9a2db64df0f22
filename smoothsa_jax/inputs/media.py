"""How picture and video files become RGB pixels, the same in data preparation and inference.

* Orientation: one of the eight of EXIF, from a picture's EXIF or a video's display matrix. Stored
  pixels are those of the file, displayed pixels those that a viewer or player shows.
* Color: gray, palette, CMYK and 16-bit pictures become 8-bit RGB; transparency, also that of a
  single color (PNG's tRNS), is composited on black.
* Stream: the video that a player shows, never a cover picture.

Label maps are read elsewhere (`data/pictures.py`), and so are prepared records (`encoded.py`).
"""

import contextlib
import dataclasses
import io
import os
import threading
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from smoothsa_jax.errors import UserError

MAX_PIXELS = 200_000_000  # of a picture or frame; the largest cameras of phones have as many
ORIENTATION = 0x0112  # EXIF tag
UNKNOWN = 0  # the orientation if the EXIF is damaged; such pictures are not turned
TRANSPOSED, ROWS, COLUMNS = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)  # orientations that do this
METHODS = {  # from stored to displayed pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails
LOOKED_AT = 1000  # packets, to tell a film from a single picture
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "tiff", "webp", "jpeg2000")
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ignore WebM's alpha

_limit_is_off = threading.Lock()  # Pillow's limit is the same for all threads


class Unreadable(Exception):  # noqa: N818, its message is part of an error line
    """The reason why a file is unusable."""


class TooLarge(Unreadable):
    """A picture or frame has too many pixels."""


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raise TooLarge if a picture has more than `max_pixels`."""
    if height * width > max_pixels:
        raise TooLarge(f"it has {width}x{height} pixels, more than {max_pixels}")


# ------------------------------------------------------------------------------------- orientation


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H,W,...) into displayed pixels; `orientation` is a number of EXIF."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in ROWS:
        pixels = pixels[::-1]
    if orientation in COLUMNS:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(image: Image.Image) -> int:
    """The orientation noted in a picture's EXIF, from 1 to 8; `UNKNOWN` if that is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of many kinds, and cameras write strange EXIF
        return UNKNOWN
    return found if isinstance(found, int) and found in range(1, 9) else 1


def orientation_of_matrix(matrix: np.ndarray) -> int:
    """The orientation that is nearest to a display matrix.

    Args:
        matrix: the 9 integers of a video track's header. A pixel in column p and row q is displayed
            in column a * p + c * q and row b * p + d * q; `matrix` begins with a, b, u, c, d.
    """
    a, b, _, c, d = map(int, matrix[:5])
    if a * d == b * c:  # nothing could be displayed; players ignore such a matrix
        return 1
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    rows, columns = (b < 0, c < 0) if transposed else (d < 0, a < 0)
    numbers = ((1, 2), (4, 3)), ((5, 6), (8, 7))
    return numbers[transposed][rows][columns]


# ----------------------------------------------------------------------------------------- pictures


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture file.

    Attributes:
        data: the file's contents.
        image: its stored pixels.
        orientation: of EXIF, 1 to 8, or `UNKNOWN`.
        is_plain: it is a JPEG or PNG that every reader decodes alike: 8-bit RGB and upright, with
            neither transparency nor further frames.
        is_animated: it has further frames, or a TIFF further pages, which are not read.
    """

    data: bytes
    image: Image.Image
    orientation: int
    is_plain: bool
    is_animated: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the stored pixels."""
        return self.image.height, self.image.width

    @property
    def displayed_shape(self) -> tuple[int, int]:
        """Height and width of the displayed pixels."""
        return self.shape[::-1] if self.orientation in TRANSPOSED else self.shape

    def stored(self) -> UInt8[np.ndarray, "H W 3"]:
        """The stored pixels in RGB; raises Unreadable for unknown color spaces."""
        return rgb(self.image)

    def displayed(self) -> UInt8[np.ndarray, "H W 3"]:
        """The displayed pixels in RGB; raises Unreadable for unknown color spaces."""
        return turned(rgb(self.image), self.orientation)


def opened(source: bytes | str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture, given by its contents or its path; of an animation, the first frame.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: the file is damaged, not a picture, or `TooLarge`.
    """
    try:
        # Pillow scrambles turned TIFFs that it maps from a file into memory.
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with _open(data) as image:
            check_size(image.height, image.width, max_pixels)
            is_deep = _correct_transparency(image)
            # The further pictures of an MPO are a camera's previews.
            is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
            orientation = orientation_of(image)
            image.load()
            if image.format == "TIFF" and orientation in METHODS:  # Pillow has turned it
                back = {6: 8, 8: 6}.get(orientation, orientation)
                image = image.transpose(METHODS[back])
                return Picture(data, image, orientation, False, is_animated)
            is_plain = (
                image.format in ("JPEG", "PNG")
                and image.mode == "RGB"
                and orientation == 1
                and "transparency" not in image.info
                and not is_deep
                and not is_animated
            )
            return Picture(data, image, orientation, is_plain, is_animated)
    except (Unreadable, FileNotFoundError):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("it has no known format") from error
    # Pillow raises many exceptions for truncated files and for files that are not pictures.
    except Exception as error:
        raise Unreadable(_first_line(error)) from error


def _open(data: bytes) -> Image.Image:
    """Open a picture without Pillow's own limit of pixels; `opened` has another."""
    with _limit_is_off:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _correct_transparency(image: Image.Image) -> bool:
    """Scale the transparent color of a PNG, before it is loaded, as Pillow scales its pixels.

    Returns:
        Whether Pillow reduces 16-bit colors to 8 bits.
    """
    is_unread_png = image.format == "PNG" and getattr(image, "tile", None)
    raw = image.tile[0][3] if is_unread_png else None
    color = image.info.get("transparency")
    if raw in ("L;2", "L;4") and isinstance(color, int):
        image.info["transparency"] = color * {"L;2": 85, "L;4": 17}[raw]
    if raw == "RGB;16B" and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)
    return raw == "RGB;16B"


def rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Convert an image of any mode to RGB, without turning it.

    Raises:
        Unreadable: the mode cannot be converted, the image is damaged, or floats are outside 0..1.
    """
    try:
        _correct_transparency(image)  # if it is not loaded yet
        image.load()
        color = image.info.get("transparency")
        if image.mode == "F":
            return np.repeat(from_floats(np.asarray(image))[..., None], 3, axis=-1)
        if image.mode.startswith("I"):  # 16 bit, even if Pillow stores it as 32
            values = np.asarray(image).astype(np.int64)
            grey = np.clip(values // 256 if values.max(initial=0) > 255 else values, 0, 255)
            if isinstance(color, int):
                grey[values == color] = 0
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
        if image.has_transparency_data:
            return on_black(image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))
    except UserError as error:
        raise Unreadable(str(error)) from error
    except Exception as error:  # see `opened`
        raise Unreadable(f"mode {image.mode}: {_first_line(error)}") from error


def on_black(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """Composite an image of mode RGBA on black."""
    black = Image.new("RGBA", image.size, "black")
    return np.asarray(Image.alpha_composite(black, image).convert("RGB"))


def from_floats(array: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    """Convert floats in 0..1 to 0..255.

    Raises:
        UserError: a value is not finite, or outside 0..1.
    """
    if not np.isfinite(array).all():
        raise UserError(
            f"a picture has {int((~np.isfinite(array)).sum())} values that are not finite (NaN or "
            "infinite); remove them first"
        )
    low, high = float(array.min(initial=0)), float(array.max(initial=0))
    if low < 0 or high > 1:
        raise UserError(
            f"a picture of floats has values from {low:g} to {high:g}, expected 0..1; divide by "
            "255, or give uint8"
        )
    return np.rint(array * 255).astype(np.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ------------------------------------------------------------------------------------------- videos


def file_name(path: str | os.PathLike) -> str:
    """Name a file for FFmpeg, which would read `12:30.mp4` as the name of a protocol."""
    return f"file:{Path(path).absolute()}"


def open_video(path: str | os.PathLike) -> av.container.InputContainer:
    """Open a video file; a playlist in it cannot lead to the network."""
    return av.open(file_name(path), options={"protocol_whitelist": "file"})


def film_of(container: av.container.InputContainer, path: str | os.PathLike) -> av.VideoStream:
    """The video stream that a player shows.

    Streams with several frames come first, then those marked as default, then the first one.

    Raises:
        Unreadable: there is none, or its codec is not supported.
    """
    if not container.streams.video:
        raise Unreadable("it holds no video")
    films = [stream for stream in container.streams.video if not stream.disposition & COVERS]
    if films and not (films := [stream for stream in films if stream.codec_context is not None]):
        raise Unreadable("its codec is not supported")
    # Many programs store the cover of a song as a video of one frame.
    may_be_cover = any(stream.codec_context.name in PICTURE_CODECS for stream in films)
    if len(films) > 1 or (may_be_cover and container.streams.audio):
        several = _with_several_frames(path, {stream.index for stream in films})
        films.sort(
            key=lambda s: (
                s.index not in several,
                s.index not in several and s.codec_context.name in PICTURE_CODECS,
                not s.disposition & Disposition.default,
            )
        )
        if may_be_cover and container.streams.audio and not several:
            films = [s for s in films if s.codec_context.name not in PICTURE_CODECS]
    if not films:
        raise Unreadable("it holds a cover picture, and no video")
    return films[0]


def _with_several_frames(path: str | os.PathLike, streams: set[int]) -> set[int]:
    """Which of the streams hold more than one frame, judged from the first packets."""
    found = dict.fromkeys(streams, 0)
    with open_video(path) as container, contextlib.suppress(av.FFmpegError):
        packets = container.demux([container.streams[index] for index in sorted(streams)])
        for _, packet in zip(range(LOOKED_AT), packets, strict=False):
            found[packet.stream.index] += packet.size > 0
            if min(found.values()) > 1:
                break
    return {index for index, count in found.items() if count > 1}


def decoder_of(stream: av.VideoStream) -> av.VideoCodecContext:
    """The decoder of a stream: one that decodes transparency, if there is any."""
    own = stream.codec_context
    other = ALPHA_DECODERS.get(own.name)
    if stream.metadata.get("alpha_mode") == "1" and other in av.codecs_available:
        decoder = av.CodecContext.create(other, "r")
        decoder.extradata = own.extradata
        return decoder
    return own


def pixels_of(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """The displayed pixels of a frame in RGB."""
    layout = frame.format
    if layout.has_palette or any(component.is_alpha for component in layout.components):
        pixels = on_black(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return turned(pixels, _orientation_of_frame(frame))


def _orientation_of_frame(frame: av.VideoFrame) -> int:
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV before 19 does not know some data, and cannot list the rest then
        return {90: 8, 180: 3, 270: 6}.get(frame.rotation % 360, 1)
    if matrix is None:
        return 1
    return orientation_of_matrix(np.frombuffer(bytes(matrix), np.int32))
