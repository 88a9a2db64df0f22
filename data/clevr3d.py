"""CLEVR3D and ObSuRF's MultiShapeNet: three views of each scene, as OSRT's program reads them.

    metadata.npz                  `camera_pos` (scenes, views, 3) and `shape` (scenes, objects)
    images/img_SCENE_VIEW.png     240x320
    masks/masks_SCENE_VIEW.png    the number of the object of every pixel; 0 is the background

All cameras look at the origin, with a focal length of 35 mm and a sensor of 32 mm. Only scenes of
at most `--max_objects` objects are taken: 6 of CLEVR3D, as in the public program.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.archives import Files
from data.clips import clip_example, read
from data.family import BadSample, Family, Job, Plan, shards_of
from data.features import NO_SEGMENT, clip_features, view_cameras
from data.pictures import labels, open_picture
from smoothsa_jax.errors import UserError

FOCAL_LENGTH, HALF_SENSOR = 0.035, 0.016  # m
PER_SHARD = 500
# Scenes of each split, and the most objects.
SCENES = {
    "clevr3d": (
        {"train": (0, 70_000), "validation": (70_000, 75_000), "test": (85_000, 100_000)},
        6,
    ),
    "obsurf_msn": (
        {"train": (0, 80_000), "validation": (80_000, 80_500), "test": (90_000, 100_000)},
        4,
    ),
}
METADATA = "metadata.npz"


class Clevr3d(Family):
    names = tuple(SCENES)
    summary = f"a folder or zip with {METADATA}, images/ and masks/, from ObSuRF's page"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--max_objects", type=int, help="leave out scenes of more objects; default: 6 or 4"
        )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of {self.name}; leave "
                "--keep out"
            )
        files, root = self._open()
        positions, counts = _metadata(files, root + METADATA)
        ranges, most = SCENES[self.name]
        most = self.options.get("max_objects") or most
        jobs = []
        for split in splits:
            first, end = ranges[split]
            chosen = [s for s in range(first, min(end, len(counts))) if counts[s] <= most]
            scenes = [(s, positions[s].tolist()) for s in chosen[: self.options.limit]]
            jobs += shards_of(split, scenes, PER_SHARD)
        return Plan(
            jobs=tuple(jobs),
            sources=(Path(self.source).resolve(),),
            features=clip_features(cameras=view_cameras()),
            metadata={
                "kind": "clips",
                "no_segment": NO_SEGMENT,
                "views": True,
                "max_objects": most,
            },
        )

    def _open(self) -> tuple[Files, str]:
        """The source, and the folder in it that holds the metadata."""
        path = Path(self.source)
        if not path.exists():
            raise UserError(f"--source={self.source} does not exist; expected {self.summary}")
        files = Files(path)
        found = [n for n in files.names() if n == METADATA or n.endswith(f"/{METADATA}")]
        if len(found) != 1:
            raise UserError(
                f"--source={self.source} has {len(found)} files {METADATA}, expected one: "
                f"{self.summary}"
            )
        return files, found[0].removesuffix(METADATA)

    def items(self, job: Job) -> Iterator[tuple[Files, str, int, list]]:
        files, root = self._open()
        for scene, positions in job.payload:
            yield files, root, scene, positions

    def example(self, item: tuple[Files, str, int, list]) -> dict[str, Any]:
        files, root, scene, positions = item
        frames, maps, cameras = [], [], []
        for view, position in enumerate(positions):
            picture = f"{root}images/img_{scene}_{view}.png"
            mask = f"{root}masks/masks_{scene}_{view}.png"
            where = f"{files.path}/{picture}"
            opened = open_picture(read(files, picture), where, self.options)
            stored = labels(read(files, mask), f"{files.path}/{mask}", self.options)
            if stored.max(initial=0) >= NO_SEGMENT:
                raise BadSample(f"{files.path}/{mask} has label {stored.max()}, expected objects")
            frames.append((where, opened))
            maps.append(stored.astype(np.uint8))
            cameras.append(camera(np.array(position, np.float64), *opened.shape))
        example = clip_example(f"{self.name}_{scene:06d}", frames, maps, self.options)
        return {**example, "cameras": np.stack(cameras).astype(np.float32)}


def camera(position: np.ndarray, height: int, width: int) -> np.ndarray:
    """The camera (4, 3) at a position, which looks at the origin."""
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    half = HALF_SENSOR / FOCAL_LENGTH
    return np.stack([position, forward, half * right, half * height / width * down])


def _metadata(files: Files, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Camera positions (scenes, views, 3), and the number of objects of each scene."""
    try:
        with np.load(io.BytesIO(read(files, name)), allow_pickle=False) as arrays:
            positions, shapes = arrays["camera_pos"], arrays["shape"]
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{files.path}/{name} cannot be used ({error}); download it again"
        ) from error
    if positions.ndim != 3 or positions.shape[2] != 3 or len(shapes) != len(positions):
        raise UserError(
            f"{files.path}/{name} has camera_pos {positions.shape} and shape {shapes.shape}, "
            "expected (scenes, views, 3) and (scenes, objects); download it again"
        )
    if not np.isfinite(positions).all() or (positions[..., :2] == 0).all(axis=-1).any():
        raise UserError(f"{files.path}/{name} has cameras above the origin; download it again")
    return positions, (shapes > 0).sum(axis=1)
