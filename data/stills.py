"""Helpers for all families of single images: locating files, and making a sample."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.archives import Files
from data.family import BadSample, Family, Options
from data.features import NO_SEGMENT
from data.pictures import frame, label_png, shorter_side
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut

PER_SHARD = 1000  # images; about 160 MB of COCO


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with files of a download: on disk, or `prefix` inside an archive."""

    path: Path
    prefix: str = ""

    def name(self, file: str) -> str:
        """The file's name in `Files(path)`."""
        return f"{self.prefix}/{file}" if self.prefix else file

    def __str__(self) -> str:
        return f"{self.path}/{self.prefix}" if self.prefix else str(self.path)


class Stills(Family):
    """A family of single images; archives stay open between samples."""

    def __init__(self, name: str, source: str, options: Options, staging: Path | None = None):
        super().__init__(name, source, options, staging)
        self._files: dict[Path, Files] = {}
        self.left_out = LeftOut()

    def check_options(self) -> None:
        """Raise UserError for options that no family of single images has."""
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of {self.name}; leave "
                "--keep out"
            )

    @property
    def folder(self) -> Path:
        """The folder `--source`.

        Raises:
            UserError: it is not a folder.
        """
        folder = Path(self.source)
        if not folder.is_dir():
            raise UserError(
                f"--source={self.source} is not a folder; give the one that holds what was "
                "downloaded"
            )
        return folder

    def files(self, path: Path) -> Files:
        if path not in self._files:
            self._files[path] = Files(path)
        return self._files[path]

    def notes(self) -> tuple[str, ...]:
        """Lines on what was left out of the folders and archives that were listed."""
        left_out = self.left_out
        for files in self._files.values():
            left_out.merge(files.left_out)
        return tuple(left_out.lines())

    def has(self, place: Place, file: str) -> bool:
        return place.path.exists() and place.name(file) in self.files(place.path)

    def first_with(self, places: Sequence[Place], file: str) -> Place | None:
        """The first of `places` that holds `file`."""
        return next((place for place in places if self.has(place, file)), None)

    def read(self, place: Place, file: str) -> bytes:
        return self.files(place.path).read(place.name(file))

    def inside(self, place: Place) -> list[str]:
        """The names of all files of `place`, relative to it."""
        prefix = place.name("")
        names = self.files(place.path).names()
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def absent(self, place: Place, files: Sequence[str]) -> list[str]:
        """Those of `files` that `place` lacks."""
        there = set(self.inside(place))
        return [file for file in files if file not in there]

    def still(
        self, picture: bytes, segmentation: np.ndarray, where: str, name: str, **more: Any
    ) -> dict[str, Any]:
        """Make a sample from an encoded image and its labels (H,W) uint8, with the features `more`.

        Raises:
            BadSample: the image is unreadable, or differs in size from its labels.
        """
        data, height, width = frame(picture, where, self.options)
        size = self.options.size
        expected = segmentation.shape if size is None else shorter_side(*segmentation.shape, size)
        if (height, width) != tuple(expected):
            raise BadSample(
                f"{where} has {height}x{width} pixels, its labels {expected[0]}x{expected[1]} "
                "(height x width); expected the same: image and labels are not from one download, "
                "get both again"
            )
        return {
            "image": data,
            "segmentation": label_png(segmentation, self.options),
            "metadata": {"name": name, "height": height, "width": width},
            **more,
        }


def check_number(num_objects: int, where: str) -> None:
    """Raise BadSample if there are more objects than 8-bit labels."""
    if num_objects >= NO_SEGMENT:
        raise BadSample(
            f"{where} has {num_objects} objects, more than the {NO_SEGMENT - 1} that 8-bit labels "
            "allow; skip it with --skip-bad"
        )


def some(names: Sequence[str]) -> str:
    """The first few of `names`, for an error message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
