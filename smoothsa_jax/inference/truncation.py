"""Whether a video file ends before the place that the file itself states.

For mp4 and mov, `decoding.py` compares times; the containers here state a size in bytes.
"""

from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
TOLERANCE = 8  # bytes; some programs count the header of a RIFF


def is_cut(path: Path) -> bool:
    """Whether a Matroska (WebM), AVI or GIF file is incomplete; other files: False."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(12)
        file.seek(0)
        if start.startswith(EBML):
            return _end_of_matroska(file) > size
        if start.startswith(b"RIFF"):
            return _end_of_riffs(file) > size + TOLERANCE
        if start.startswith(b"GIF8"):
            file.seek(max(0, size - 64))
            return not file.read().rstrip(b"\0\r\n ").endswith(b";")
    return False


def _end_of_matroska(file: BinaryIO) -> int:
    """Where the first segment ends; 0 if it does not say, as in live streams."""
    file.seek(len(EBML))
    header = _number(file)
    file.seek(header or 0, 1)
    if header is None or file.read(len(SEGMENT)) != SEGMENT:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """A number of variable length; None if all its bits are set, which means unknown."""
    first = file.read(1)[0]
    others = 8 - first.bit_length()
    bits = 7 * (others + 1)
    value = int.from_bytes(bytes([first]) + file.read(others), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _end_of_riffs(file: BinaryIO) -> int:
    """Where the last of the RIFF chunks ends; a size of 0 or of all bits set is none."""
    end = 0
    while file.read(4) == b"RIFF":
        length = int.from_bytes(file.read(4), "little")
        if length in (0, 0xFFFFFFFF):
            break
        end = file.tell() + length
        file.seek(end + length % 2)
    return end
