"""Whether a video file ends before the place that the file itself states.

FFmpeg reads such a file without an error if it ends between two frames. Counts of frames and times
in headers would not tell either: they are often wrong, or made for another part of the video.
"""

from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"wide", b"free", b"skip", b"sidx", b"uuid")
TOLERANCE = 8  # bytes; some programs count the header of a RIFF


def is_cut(path: Path) -> bool:
    """Whether a Matroska (WebM), mp4, mov, AVI or GIF file is incomplete; other files: False."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(0)
        if start.startswith(EBML):
            return _end_of_matroska(file, size) > size
        if start.startswith(b"RIFF"):
            return _end_of_riffs(file, size) > size + TOLERANCE
        if start.startswith(b"GIF8"):
            return not _gif_ends(file)
        return _end_of_boxes(file, size) > size


def _end_of_matroska(file: BinaryIO, size: int) -> int:
    """Where the first segment ends; 0 if it does not say, as in live streams."""
    file.seek(len(EBML))
    header = _number(file)
    if header is None or header > size:
        return 0
    file.seek(header, 1)
    if file.read(len(SEGMENT)) != SEGMENT:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """A number of variable length; None if all its bits are set, which means unknown."""
    first = int.from_bytes(file.read(1), "big")
    others = 8 - first.bit_length()
    bits = 7 * (others + 1)
    value = (first << 8 * others | int.from_bytes(file.read(others), "big")) & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _end_of_riffs(file: BinaryIO, size: int) -> int:
    """Where the last of the RIFF chunks ends; a size of 0 or of all bits set is none."""
    end = 0
    while end < size and file.read(4) == b"RIFF":
        length = int.from_bytes(file.read(4), "little")
        if length in (0, 0xFFFFFFFF):
            break
        end = file.tell() + length
        file.seek(end + length % 2)
    return end


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Where the last box of an mp4 or mov ends; what follows unknown boxes is not looked at."""
    end = 0
    while end < size and len(header := file.read(16)) >= 8 and header[4:8] in BOXES:
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0: up to the end of the file
            break
        end += length
        file.seek(min(end, size))
    return end


def _gif_ends(file: BinaryIO) -> bool:
    """Whether the mark of the end follows the blocks of a GIF."""
    file.seek(10)
    _skip_palette(file, after=2)
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b",":
            file.seek(8, 1)
            _skip_palette(file)
        file.seek(1, 1)  # the kind of an extension, or the size of codes
        while length := int.from_bytes(file.read(1), "big"):
            file.seek(length, 1)
    return kind != b""


def _skip_palette(file: BinaryIO, after: int = 0) -> None:
    """Read the flags of a palette, and skip it and `after` bytes before it."""
    flags = int.from_bytes(file.read(1), "big")
    colors = 2 << (flags & 7) if flags & 0x80 else 0
    file.seek(after + 3 * colors, 1)
