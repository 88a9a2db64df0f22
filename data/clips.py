"""Helpers for all clip families: frames with labels, the held-out part, and missing files."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data.archives import Files
from data.family import BadSample, Options
from data.features import NO_SEGMENT
from data.pictures import frame, label_png, open_picture
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.media import Picture

PER_SHARD = 32  # clips; an interrupted preparation loses at most this many per worker
MAX_BYTES = 1_900_000_000  # per sample; protocol buffers are limited to 2 GiB


def labelled_frame(
    source: bytes | Picture, segmentation: np.ndarray | None, where: str, options: Options
) -> tuple[bytes, bytes, int, int]:
    """Encode a frame and its labels for storage; also return their height and width in pixels.

    Args:
        source: the encoded frame, or the same decoded.
        segmentation: (H,W) uint8; None: no pixel is in a segment.
        where: the name of the frame in error messages.
        options: decide the size and compression.

    Raises:
        BadSample: the frame is unreadable, or differs in size from its labels.
    """
    source = open_picture(source, where, options)
    picture, height, width = frame(source, where, dataclasses.replace(options, size=None))
    if segmentation is None:
        segmentation = np.full((height, width), NO_SEGMENT, np.uint8)
    if segmentation.shape != (height, width):
        raise BadSample(
            f"{where} has {height}x{width} pixels (height x width), its labels "
            f"{segmentation.shape[0]}x{segmentation.shape[1]}; expected the same: take labels of "
            "the same resolution"
        )
    maps = label_png(segmentation, options)
    if options.size is not None:
        picture, height, width = frame(source, where, options)
    return picture, maps, height, width


def clip_example(
    name: str,
    frames: Iterable[tuple[str, bytes | Picture]],
    segmentations: Iterable[np.ndarray] | None,
    options: Options,
) -> dict[str, Any]:
    """Make `video`, `segmentations` and `metadata` of a clip, reading one frame at a time.

    Args:
        name: the name of the clip.
        frames: for each frame, its name for error messages and its encoded bytes, or the same
            decoded.
        segmentations: a label map (H,W) uint8 for each frame; None: no pixel is in a segment.
        options: decide the size and compression.

    Raises:
        BadSample: a frame or its labels are unusable, or the frames differ in size.
    """
    video, maps, first, num_bytes = [], [], None, 0
    if segmentations is None:
        pairs = zip(frames, itertools.repeat(None), strict=False)
    else:
        pairs = zip(frames, segmentations, strict=True)
    for (where, source), segmentation in pairs:
        picture, label_map, height, width = labelled_frame(source, segmentation, where, options)
        first = first or (height, width)
        if (height, width) != first:
            raise BadSample(
                f"{where} has {height}x{width} pixels (height x width), the first frame of this "
                f"clip {first[0]}x{first[1]}; expected one size: split the clip in two, or resize "
                "it"
            )
        num_bytes += len(picture) + len(label_map)
        if num_bytes > MAX_BYTES:
            raise BadSample(
                f"{where}: the clip {name} has more than {MAX_BYTES / 1e9} GB; cut it into shorter "
                "ones, or use --size"
            )
        video.append(picture)
        maps.append(label_map)
    if first is None:
        raise BadSample(f"the clip {name} has no frames; expected at least one: remove it")
    metadata = {"name": name, "num_frames": len(video), "height": first[0], "width": first[1]}
    return {"video": video, "segmentations": maps, "metadata": metadata}


def is_held_out(name: str, part: float) -> bool:
    """Whether a sample belongs to the held-out part; depends on its name only."""
    return _place_of(name) < part * 2**64


def held_out_of(names: Sequence[str], part: float) -> set[str]:
    """The held-out names: those of `is_held_out`, but at least one, and not all of them.

    A further name therefore moves no other one, except the only one that was held out. Of a single
    name, none is held out.
    """
    count = sum(is_held_out(name, part) for name in names)
    count = min(max(count, 1 if part else 0), len(names) - 1)
    return set(sorted(names, key=_place_of)[:count])


def _place_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def require(files: Files, names: Iterable[str], asked_by: str, options: Options) -> None:
    """Check that all files exist before anything is written.

    With `--skip-bad` nothing is checked here; missing files are found clip by clip when read.

    Raises:
        UserError: some files are missing; the message names the first of them.
    """
    if options.skip_bad:
        return
    missing = [name for name in names if name not in files]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{files.path} has no {', '.join(missing[:3])}{more}, named by {asked_by}; download it "
            "again, or skip such clips with --skip-bad"
        )


def read(files: Files, name: str) -> bytes:
    """The contents of a file of a sample.

    Raises:
        BadSample: the file is missing or damaged.
    """
    if name not in files:
        raise BadSample(
            f"{files.path} has no {name}; download it again, or skip such samples with --skip-bad"
        )
    return files.read(name)
