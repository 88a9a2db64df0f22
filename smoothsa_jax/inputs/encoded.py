"""Clips as they lie in a record: encoded frames and label maps, decoded one by one when they are used."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from tensorflow_datasets.proto import tf_example_pb2

from smoothsa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncodedClip:
    """A clip of T frames, none decoded; a still has T = 1.

    Attributes:
        name: which sample it is, for messages.
        frames: T encoded pictures, PNG or JPEG.
        labels: T encoded label maps, PNG; None: the sample has none.
        stored_name: what the data set calls the sample; "" if it has no names.
        categories: of the objects with the labels 1, 2, ...: places among the names that the folder's
            description lists; None: the data set has none.
    """

    name: str
    frames: Sequence[bytes]
    labels: Sequence[bytes] | None
    stored_name: str = ""
    categories: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.frames)


def parse_clip(record: bytes, name: str) -> EncodedClip:
    """The clip in a record, which is a serialised `tf.train.Example`.

    Frames are its feature `video` (clips) or `image` (stills), labels `segmentations` or
    `segmentation`, categories `categories`. The sample is named by `metadata/name`, else by `name`.

    Raises:
        UserError: not such a record, no frame, or not one label map for each frame.
    """
    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(
            f"{name} is no tf.train.Example ({error}); prepare the folder again"
        ) from error
    stored_name = b"".join(_values(features, "metadata/name")[:1]).decode(errors="replace")
    if stored_name:
        name = f"{name} ({stored_name})"
    frames = _values(features, "video") or _values(features, "image")
    labels = _values(features, "segmentations") or _values(features, "segmentation") or None
    if not frames:
        raise UserError(
            f"{name} has no frames: found features {', '.join(sorted(features))}, expected `video` "
            "or `image`; prepare the folder with python -m data.prepare"
        )
    if labels is not None and len(labels) != len(frames):
        raise UserError(
            f"{name} has {len(frames)} frames and {len(labels)} label maps, expected one for each "
            "frame; prepare the folder again"
        )
    categories = features["categories"].int64_list.value if "categories" in features else None
    return EncodedClip(name, frames, labels, stored_name, categories)


def _values(features: Any, key: str) -> Sequence[bytes]:
    return features[key].bytes_list.value if key in features else ()


def decode_frames(clip: EncodedClip, which: Iterable[int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Frames `which` in RGB; no other frame is decoded.

    Raises:
        UserError: a frame that cannot be decoded, or frames of different sizes.
    """
    # The stored orientation counts, as for labels, which carry no EXIF.
    mode = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    frames = []
    for t in which:
        frame = _decode(clip.frames[t], mode, f"frame {t} of {clip.name}")
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return _stack(frames, f"frames of {clip.name}")


def decode_labels(clip: EncodedClip, which: Iterable[int]) -> UInt8[np.ndarray, "T H W"]:
    """Label maps of frames `which`; no other one is decoded.

    Raises:
        UserError: a label map that cannot be decoded or is not of 8 bits and one channel.
    """
    labels = []
    for t in which:
        what = f"label map {t} of {clip.name}"
        label = _decode(clip.labels[t], cv2.IMREAD_UNCHANGED, what)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise UserError(
                f"{what} is {label.dtype} of shape {label.shape}, expected uint8 (height, width): "
                "prepare the folder again"
            )
        labels.append(label)
    return _stack(labels, f"label maps of {clip.name}")


def _decode(encoded: bytes, mode: int, what: str) -> np.ndarray:
    # OpenCV raises on an empty buffer and gives None for what it cannot read.
    data = np.frombuffer(encoded, np.uint8)
    picture = cv2.imdecode(data, mode) if data.size else None
    if picture is None:
        raise UserError(
            f"{what} cannot be decoded: {len(encoded)} bytes, expected a PNG or JPEG; "
            "run python -m data.check on the folder"
        )
    return picture


def _stack(pictures: list[np.ndarray], what: str) -> np.ndarray:
    shapes = sorted({picture.shape[:2] for picture in pictures})
    if len(shapes) != 1:
        sizes = ", ".join(f"{height}x{width}" for height, width in shapes)
        raise UserError(f"{what} have sizes {sizes}, expected one; prepare the folder again")
    return np.stack(pictures)
