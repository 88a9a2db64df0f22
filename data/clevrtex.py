"""ClevrTex: train on `full`, validate on `outd` or `camo`, test on a held-out part of `full`.

The label map is the scene's `_flat.png`. If it holds integers (palette or gray), 0 is background
and the other values become 1, 2, ... in ascending order. If it holds colors, black is background
and the others become 1, 2, ... in the order in which they first appear, row by row. The images'
alpha channel is dropped, as in the official loader.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.clips import is_held_out
from data.family import SPLITS, Job, Plan, refuse_twice, shards_of
from data.features import NO_SEGMENT, still_features
from data.pictures import labels_or_colours, without_alpha
from data.stills import PER_SHARD, Place, Stills, check_number, some
from smoothsa_jax.errors import UserError

NUM_FULL, NUM_PARTS = 50_000, 5
HOLDOUT = 0.1
SETS = ("full", "outd", "camo")
ENDINGS = (".tar.gz", ".tgz", ".tar")
TWICE = "expected each scene once: remove one, or download the archives again"
# Limit of bytes held for scenes whose image or labels have not arrived yet, in a sequential tar.
MAX_WAITING = 1 << 30
COMPARED = 1 << 16  # bytes at each end of an archive


class Clevrtex(Stills):
    names = ("clevrtex",)
    summary = (
        "a folder with clevrtex_full_part1.tar.gz to part5 (train, and test: the held-out part) "
        "and clevrtex_outd.tar.gz or, with --variant=camo, clevrtex_camo.tar.gz (validation), or "
        "their unpacked contents"
    )

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        parser.add_argument(
            "--variant",
            choices=SETS[1:],
            default=SETS[1],
            help="the set for validation: outd, as in the authors' program, or camo",
        )
        parser.add_argument(
            "--holdout",
            type=float,
            default=HOLDOUT,
            help="part of full for test, by name; 0 trains on all of full, as the authors do",
        )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        self.check_options()
        variant = self.options.get("variant", SETS[1])
        if not 0 <= self.holdout < 1:
            raise UserError(
                f"--holdout is {self.holdout}; expected a part from 0 up to 1, such as {HOLDOUT}"
            )
        jobs: list[Job] = []
        sources: list[Path] = []
        looked_for: list[str] = []
        for split in SPLITS:
            if split not in splits or (split == "test" and not self.holdout):
                continue
            which = variant if split == "validation" else SETS[0]
            paths = self._paths(which, looked_for)
            jobs += self._jobs(split, which, paths)
            sources += paths
        if not jobs:
            raise UserError(
                f"--source={self.source} has nothing of {self.name} for {' or '.join(splits)}; "
                f"looked for {', '.join(dict.fromkeys(looked_for))}"
            )
        return Plan(
            jobs=tuple(jobs),
            sources=tuple(dict.fromkeys(sources)),
            features=still_features(),
            metadata={
                "kind": "stills",
                "no_segment": NO_SEGMENT,
                "validation": variant,
                "test": f"{self.holdout} of full, by the SHA-256 of a scene's name",
                "held_out": [
                    name
                    for name in (scene_name(SETS[0], i) for i in range(NUM_FULL))
                    if is_held_out(name, self.holdout)
                ],
            },
            notes=self.notes(),
        )

    @property
    def holdout(self) -> float:
        return self.options.get("holdout", HOLDOUT)

    def _is_wanted(self, split: str, name: str) -> bool:
        return split == "validation" or is_held_out(name, self.holdout) == (split == "test")

    def _paths(self, which: str, looked_for: list[str]) -> list[Path]:
        """Where a set is: a folder, or its archives; empty if the source has nothing of it.

        Raises:
            UserError: some of its archives are missing.
        """
        stem = self.folder / f"clevrtex_{which}"
        looked_for.append(str(stem))
        if stem.is_dir():
            return [stem]
        parts = [f"_part{n}" for n in range(1, NUM_PARTS + 1)] if which == SETS[0] else [""]
        found, missing = [], []
        for part in parts:
            candidates = [stem.with_name(f"{stem.name}{part}{ending}") for ending in ENDINGS]
            looked_for.append(str(candidates[0]))
            path = next((p for p in candidates if p.exists()), None)
            if path is None:
                missing.append(candidates[0].name)
            else:
                found.append(path)
        if found and missing and self.options.limit is None:
            raise UserError(
                f"--source={self.source} has {len(found)} of the {len(parts)} archives of {which}; "
                f"{some(missing)} missing: download the others too, or take a part with --limit"
            )
        return found

    def _jobs(self, split: str, which: str, paths: list[Path]) -> list[Job]:
        """Make one job per compressed tar, which is only readable in order, or one job per shard.

        With --limit, all compressed tars are one job, because the samples are counted across them.
        """
        limit = self.options.limit
        _refuse_same(paths)
        if any(self.files(path).is_sequential for path in paths):
            groups = [tuple(paths)] if limit is not None else [(path,) for path in paths]
            return [Job(split, (which, group), limit) for group in groups]
        scenes = [
            (Place(path), name, *files)
            for path in paths
            for name, files in self._scenes(path, which).items()
            if self._is_wanted(split, name)
        ]
        where = ", ".join(map(str, paths))
        refuse_twice((scene[1] for scene in scenes), where, "scenes", TWICE)
        return shards_of(split, sorted(scenes, key=lambda scene: scene[1])[:limit], PER_SHARD)

    def _scenes(self, path: Path, which: str) -> dict[str, tuple[str, str]]:
        """Map the name of each scene to its image file and label file."""
        halves: dict[str, dict[bool, str]] = {}
        for file in self.files(path).names():
            if (half := half_of(file, which)) is not None:
                name, is_flat = half
                if other := halves.setdefault(name, {}).get(is_flat):
                    raise UserError(f"{path} has {other} and {file}, one scene twice; {TWICE}")
                halves[name][is_flat] = file
        _check_scenes(path, which, len(halves), [n for n, h in halves.items() if len(h) != 2])
        return {name: (half[False], half[True]) for name, half in halves.items()}

    def items(self, job: Job) -> Iterator[Any]:
        if not isinstance(job.payload[0], str):
            for place, name, image, flat in job.payload:
                yield name, f"{place}/{image}", _reader(self, place, image, flat)
            return
        which, paths = job.payload
        found: set[str] = set()
        for path in paths:
            for name, file, image, flat in self._pairs(path, which, job.split):
                if len(found) == job.num_items:
                    return
                if name in found:
                    raise UserError(f"{path} has the scene {name} a second time; {TWICE}")
                found.add(name)
                yield name, f"{path}: {file}", lambda pair=(image, flat): pair

    def _pairs(self, path: Path, which: str, split: str) -> Iterator[tuple[str, str, bytes, bytes]]:
        """Yield image and labels of a split's scenes, as soon as both are read from the tar."""
        waiting: dict[str, tuple[bool, str, bytes]] = {}
        num_scenes = num_waiting = 0
        for file, data in self.files(path).in_order():
            half = half_of(file, which)
            if half is None:
                continue
            name, is_flat = half
            num_scenes += not is_flat
            if not self._is_wanted(split, name):
                continue
            if name not in waiting:
                waiting[name] = (is_flat, file, data)
                num_waiting += len(data)
                if num_waiting > MAX_WAITING:
                    raise UserError(
                        f"{path} has images and labels too far apart to read it in one pass; "
                        f"unpack it in {path.parent}, and move the archive away"
                    )
                continue
            was_flat, other, before = waiting.pop(name)
            num_waiting -= len(before)
            yield (name, file, data, before) if was_flat else (name, other, before, data)
        _check_scenes(path, which, num_scenes, list(waiting))

    def example(self, item: tuple[str, str, Callable[[], tuple[bytes, bytes]]]) -> dict[str, Any]:
        name, where, read = item
        image, flat = read()
        stored = labels_or_colours(flat, f"{where}, its labels {name}_flat.png", self.options)
        picture = without_alpha(image, where, self.options)
        return self.still(picture, labels_of(stored, where), where, name)


def _refuse_same(paths: list[Path]) -> None:
    """Raise UserError if two archives are the same download, by their size and both ends."""
    known: dict[tuple[int, bytes, bytes], Path] = {}
    for path in paths if len(paths) > 1 else []:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = file.read(COMPARED)
            file.seek(max(0, size - COMPARED))
            key = (size, first, file.read(COMPARED))
        if other := known.get(key):
            raise UserError(f"{other} and {path} are the same archive; {TWICE}")
        known[key] = path


def scene_name(which: str, index: int) -> str:
    return f"CLEVRTEX_{which}_{index:06d}"


def half_of(file: str, which: str) -> tuple[str, bool] | None:
    """The scene's name and whether the file is its label map; None for other files."""
    match = re.fullmatch(rf"(CLEVRTEX_{which}_\d{{6}})(_flat)?\.png", file.rsplit("/", 1)[-1])
    return (match[1], match[2] is not None) if match else None


def labels_of(stored: np.ndarray, where: str) -> np.ndarray:
    """Convert integers (H,W) or colors (H,W,3) to labels (H,W) uint8; see the module for the order.

    Raises:
        BadSample: there are more objects than 8-bit labels.
    """
    packed = stored.astype(np.int64)
    if stored.ndim == 3:
        packed = packed @ np.array([256**2, 256, 1])
    values, first, inverse = np.unique(packed, return_index=True, return_inverse=True)
    order = np.argsort(first) if stored.ndim == 3 else np.arange(len(values))
    objects = [i for i in order if values[i] != 0]
    check_number(len(objects), where)
    label = np.zeros(len(values), np.uint8)
    label[objects] = np.arange(1, len(objects) + 1)
    return label[inverse.reshape(packed.shape)]


def _reader(
    family: Clevrtex, place: Place, image: str, flat: str
) -> Callable[[], tuple[bytes, bytes]]:
    return lambda: (family.read(place, image), family.read(place, flat))


def _check_scenes(path: Path, which: str, num_scenes: int, halves: list[str]) -> None:
    if not num_scenes:
        raise UserError(
            f"{path} holds no scene named {scene_name(which, 0)}.png or the like; is it another "
            f"data set? Download clevrtex_{which} again"
        )
    if halves:
        raise UserError(
            f"{path} has {len(halves)} scenes with only one of image and labels (NAME.png, "
            f"NAME_flat.png): {some(halves)}; download it again, and unpack all of it: all parts "
            "of full into one folder"
        )
