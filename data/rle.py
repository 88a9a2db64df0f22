"""Masks as run lengths, as COCO and YouTube-VIS store them, compressed and not."""

from typing import Any

import numpy as np

from data.family import BadSample


def decode_rle(rle: dict[str, Any], where: str) -> np.ndarray:
    """A mask (H,W) of bool.

    Args:
        rle: `size`: height and width; `counts`: lengths of runs down the columns, zeros first: a list, or COCO's string.
        where: what to call it in an error.

    Raises:
        BadSample: it is no such thing, or its runs do not fill its size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, str | bytes):
            counts = _uncompressed(counts.encode() if isinstance(counts, str) else counts)
        lengths = np.array(counts, np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadSample(
            f"{where}: the mask is no run-length encoding ({error!r}); expected size and counts: download it again"
        ) from error
    if height < 1 or width < 1 or lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise BadSample(
            f"{where}: the mask's runs cover {lengths.sum()} pixels, expected its size "
            f"{height}x{width} = {height * width}: the json is damaged, download it again"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape((height, width), order="F")


def _uncompressed(text: bytes) -> list[int]:
    """COCO's string: 5 bits a character, lowest first, of each length; from the fourth on less the one two before."""
    counts: list[int] = []
    value = shift = 0
    for place, character in enumerate(text):
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {chr(character)!r} at place {place}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("it is cut off")
    return counts
