"""MultiShapeNet-hard: the frames of a TFDS build of kubric, with ten views of a scene in a record.

A record has `cameras/camera_0` to `camera_9`, each with `color_image` and `instance_image`. It is
given by its rays, `ray_origins` and `ray_directions` of every pixel, or by its matrices,
`intrinsics/K` and `extrinsics/{R,t}` (world to camera). Both become the four vectors of
smoothsa_jax/inputs/cameras.py, in world coordinates. Instances 1 to 34 become labels 0 to 33: 1 is
the background, and so are the few pixels of 0, as in the public program.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data import tfrecords
from data.builds import TfdsBuild, find_build
from data.clips import clip_example
from data.examples import Values
from data.family import BadSample, Job, Plan
from data.features import NO_SEGMENT, clip_features, view_cameras
from data.pictures import labels
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import cameras as pinhole

# The name of the build, and names that programs have given to its folder.
BUILDS = ("kubric_frames", "multi_shapenet_frames", "multi_shapenet")
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
LAST = 34  # the largest instance
NO_DISTORTION = 1e-6


class MsnHard(TfdsBuild):
    names = ("msn_hard",)
    summary = (
        "a folder of TFDS TFRecord files, or "
        "gs://kubric-public/tfds/kubric_frames/multi_shapenet_conditional/2.8.0"
    )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        tfrecords.check_address(self.source)
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of {self.name}; leave "
                "--keep out"
            )
        folder, info = find_build(self.source, *BUILDS)
        names = {name: split for name, split in SPLIT_NAMES.items() if split in splits}
        jobs = self.shards(folder, info, names)
        return Plan(
            jobs=jobs,
            sources=(),
            features=clip_features(cameras=view_cameras()),
            metadata={"kind": "clips", "no_segment": NO_SEGMENT, "views": True},
        )

    def items(self, job: Job) -> Iterator[tuple[str, bytes]]:
        return self.records(job)

    def example(self, item: tuple[str, bytes]) -> dict[str, Any]:
        where, record = item
        values = Values(record, where, "MultiShapeNet-hard")
        found = {
            int(match[1])
            for name in values.names()
            if (match := re.fullmatch(r"cameras/camera_(\d+)/color_image", name))
        }
        if not found or found != set(range(len(found))):
            raise BadSample(
                f"{where} has the views {sorted(found)}, expected camera_0, camera_1, ...: is it "
                "the build multi_shapenet_conditional?"
            )
        views = [f"cameras/camera_{k}" for k in range(len(found))]
        maps = [self._labels(values, view, where) for view in views]
        frames = [
            (f"{where}, view {k}", values.joined(f"{view}/color_image"))
            for k, view in enumerate(views)
        ]
        cameras = [
            _camera(values, view, maps[k].shape, f"{where}, view {k}")
            for k, view in enumerate(views)
        ]
        name = values.joined("scene_name").decode(errors="replace")
        example = clip_example(name, frames, maps, self.options)
        return {**example, "cameras": np.stack(cameras).astype(np.float32)}

    def _labels(self, values: Values, view: str, where: str) -> np.ndarray:
        stored = labels(values.joined(f"{view}/instance_image"), f"{where}, {view}", self.options)
        return (np.clip(stored.astype(np.int64), 1, LAST) - 1).astype(np.uint8)


def _camera(values: Values, view: str, size: tuple[int, int], what: str) -> np.ndarray:
    """The camera (4, 3) of a view of `size` (height, width)."""
    rays = [
        next((n for n in (f"{view}/{key}", f"{view}/{key}/value") if n in values), None)
        for key in ("ray_origins", "ray_directions")
    ]
    if all(rays):
        return pinhole.fit(*(_rays(values.joined(name), size, what) for name in rays), what)
    bent = [f"{view}/intrinsics/distortion/{key}" for key in ("radial", "tangential")]
    numbers = [values.numbers(key) for key in bent if key in values]
    if any(np.abs(found).max(initial=0) > NO_DISTORTION for found in numbers):
        raise BadSample(f"{what} has a lens with distortion, expected a pinhole camera")
    turn = _numbers(values, f"{view}/extrinsics/R", 9).reshape(3, 3)
    shift = _numbers(values, f"{view}/extrinsics/t", 3)
    if "pose/R" in values:  # of the frame in the scene: X_scene = R X_frame + t
        turn = turn @ _numbers(values, "pose/R", 9).reshape(3, 3).T
        shift = shift - turn @ _numbers(values, "pose/t", 3)
    matrix = _numbers(values, f"{view}/intrinsics/K", 9).reshape(3, 3)
    return pinhole.from_matrices(matrix, turn, shift, *size)


def _numbers(values: Values, name: str, count: int) -> np.ndarray:
    found = values.numbers(name).astype(np.float64)
    if found.size != count or not np.isfinite(found).all():
        raise BadSample(f"{name} has {found.size} numbers, expected {count} finite ones")
    return found


def _rays(data: bytes, size: tuple[int, int], what: str) -> np.ndarray:
    """Rays (H, W, 3) of float32 as TFDS stores them: packed, or as they are."""
    expected = 12 * size[0] * size[1]
    if len(data) != expected:
        try:
            data = zlib.decompress(data)
        except zlib.error as error:
            raise BadSample(f"the rays of {what} cannot be unpacked: {error}") from error
    if len(data) != expected:
        raise BadSample(
            f"the rays of {what} have {len(data)} bytes, its picture {size[0]}x{size[1]} pixels"
        )
    return np.frombuffer(data, np.float32).reshape(*size, 3)
