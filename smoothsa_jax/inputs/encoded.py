"""Clips as stored in a record: encoded frames and label maps, decoded individually on use."""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from smoothsa_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncodedClip:
    """An encoded clip of T frames; a still has T = 1.

    Attributes:
        name: identifies the sample in error messages.
        frames: T encoded pictures, PNG or JPEG.
        labels: T encoded label maps, PNG; None: the sample has no labels.
        stored_name: the data set's name for the sample; "" if the data set has no names.
        categories: for the objects with labels 1, 2, ..., indices into the category names in the
            folder's description; None: the data set has no categories.
        features: all features of the record, by name, for what is read on request.
    """

    name: str
    frames: Sequence[bytes]
    labels: Sequence[bytes] | None
    stored_name: str = ""
    categories: Sequence[int] | None = None
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)


def parse_clip(record: bytes, name: str) -> EncodedClip:
    """Parse a clip from a record, which is a serialized `tf.train.Example`.

    Frames are the feature `video` (clips) or `image` (stills), labels `segmentations` or
    `segmentation`, categories `categories`. The sample's name is `metadata/name` if present, else
    `name`.

    Raises:
        UserError: the record is not such an example, has no frames, or does not have one label map
            per frame.
    """
    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's DecodeError, whose module depends on the version
        raise UserError(
            f"{name} is not a tf.train.Example ({error}); prepare the folder again"
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
    return EncodedClip(name, frames, labels, stored_name, categories, features)


def _values(features: Any, key: str) -> Sequence[bytes]:
    return features[key].bytes_list.value if key in features else ()


def decode_frames(clip: EncodedClip, which: Iterable[int]) -> UInt8[np.ndarray, "T H W 3"]:
    """Decode the frames `which` to RGB, and no others.

    Raises:
        UserError: a frame is not decodable, or the frames differ in size.
    """
    # Use the stored orientation for frames, because label maps carry no EXIF.
    mode = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    frames = []
    for t in which:
        frame = _decode(clip.frames[t], mode, f"frame {t} of {clip.name}")
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return _stack(frames, f"frames of {clip.name}")


def decode_labels(clip: EncodedClip, which: Iterable[int]) -> UInt8[np.ndarray, "T H W"]:
    """Decode the label maps of the frames `which`, and no others.

    Raises:
        UserError: a label map is not decodable, or does not have one channel of 8 bits.
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


# What to do about a record without an optional key of samples, and the feature that has it.
FEATURES = {
    "flow": ("backward_flow", "prepare it again with --keep=flow (MOVi)"),
    "depth": ("depth", "prepare it again with --keep=depth (MOVi)"),
    "cameras": ("cameras", "choose data with camera poses: scenes, msn_hard, clevr3d"),
}


def has(clip: EncodedClip, key: str) -> bool:
    """Whether a clip has an optional key of samples."""
    feature = FEATURES[key][0]
    return feature in clip.features or f"{feature}/value" in clip.features


def refuse_lacking(clip: EncodedClip, key: str) -> None:
    """Raise UserError if a clip lacks an optional key of samples."""
    if not has(clip, key):
        fix = FEATURES[key][1]
        raise UserError(
            f"{clip.name} has no {key}, which a part, a loss or the task reads; {fix}, or choose "
            "another system"
        )


def decode_depth(clip: EncodedClip, which: Iterable[int]) -> Float32[np.ndarray, "T H W"]:
    """Decode the depth maps of the frames `which`: 16 bits within the clip's range.

    Raises:
        UserError: there are none, or one is not decodable.
    """
    refuse_lacking(clip, "depth")
    pictures = clip.features["depth"].bytes_list.value
    maps = []
    for t in which:
        what = f"depth map {t} of {clip.name}"
        if t >= len(pictures):
            raise UserError(f"{what} is missing; prepare the folder again")
        depth = _decode(pictures[t], cv2.IMREAD_UNCHANGED, what)
        if depth.ndim != 2 or depth.dtype != np.uint16:
            raise UserError(
                f"{what} is {depth.dtype} of shape {depth.shape}, expected uint16 (height, width): "
                "prepare the folder again"
            )
        maps.append(depth)
    return in_range(_stack(maps, f"depth maps of {clip.name}"), _range(clip, "depth_range"))


def decode_flow(clip: EncodedClip, which: Iterable[int]) -> Float32[np.ndarray, "T H W 2"]:
    """Decode the backward flow of the frames `which`: 16 bits within the clip's range.

    Raises:
        UserError: there is none, or it is not decodable.
    """
    refuse_lacking(clip, "flow")
    what = f"the flow of {clip.name}"
    shape = tuple(clip.features["backward_flow/shape"].int64_list.value)
    try:
        data = zlib.decompress(clip.features["backward_flow/value"].bytes_list.value[0])
        flow = np.frombuffer(data, np.uint16).reshape(shape)[list(which)]
    except (zlib.error, ValueError, IndexError) as error:
        raise UserError(f"{what} cannot be decoded ({error}); prepare the folder again") from error
    return in_range(flow, _range(clip, "backward_flow_range"))


def decode_cameras(clip: EncodedClip, which: Iterable[int]) -> Float32[np.ndarray, "T 4 3"]:
    """The cameras of the frames `which`.

    Raises:
        UserError: there are none, or not one for each frame.
    """
    refuse_lacking(clip, "cameras")
    numbers = np.array(clip.features["cameras"].float_list.value, np.float32)
    if numbers.size != len(clip) * 12:
        raise UserError(
            f"{clip.name} has {numbers.size} numbers of cameras, expected 12 for each of its "
            f"{len(clip)} frames; prepare the folder again"
        )
    return numbers.reshape(-1, 4, 3)[list(which)]


def decode_boxes(clip: EncodedClip, which: Iterable[int]) -> Float32[np.ndarray, "T K 4"]:
    """The stored boxes of the objects: top, left, bottom, right in 0..1; 0: absent.

    Raises:
        UserError: there are none.
    """
    if "bboxes/value" not in clip.features:
        raise UserError(
            f"{clip.name} has no boxes of its own, and data.stored_boxes needs them; prepare MOVi "
            "from its TFRecord files, or set data.stored_boxes=False"
        )
    shape = tuple(clip.features["bboxes/shape"].int64_list.value)
    values = np.frombuffer(clip.features["bboxes/value"].bytes_list.value[0], np.float32)
    return values.reshape(shape)[:, list(which)].swapaxes(0, 1)


def in_range(values: np.ndarray, ends: Float32[np.ndarray, " 2"]) -> Float32[np.ndarray, "..."]:
    """Decode 16-bit numbers: 0 is the first end, 65535 the second."""
    return values.astype(np.float32) / 65535 * (ends[1] - ends[0]) + ends[0]


def _range(clip: EncodedClip, key: str) -> Float32[np.ndarray, " 2"]:
    name = f"metadata/{key}"
    ends = clip.features[name].float_list.value if name in clip.features else ()
    if len(ends) != 2 or not np.isfinite(ends).all():
        raise UserError(
            f"{clip.name} has the {key} {list(ends)}, expected two numbers; prepare the folder "
            "again"
        )
    return np.array(ends, np.float32)


def _decode(encoded: bytes, mode: int, what: str) -> np.ndarray:
    # OpenCV raises on an empty buffer and returns None for data that it cannot decode.
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
