"""CLEVR with masks: the TFRecord file of the multi-object data sets, cropped to its objects.

The file is one gzipped TFRecord of 100,000 scenes of 240x320 pixels. A scene has `image`, `mask`
(11 planes: the background, then up to ten objects) and `visibility`, all of whose bytes are stored
one by one. What is written is the crop of rows 29 to 220 and columns 64 to 255, as in all programs
that report on this data. The label of a pixel is the plane with the largest value.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import tfrecords
from data.examples import Values
from data.family import SPLITS, BadSample, Job, Plan
from data.features import NO_SEGMENT, column, still_features
from data.pictures import png
from data.stills import Stills
from smoothsa_jax.errors import UserError

FILE = "clevr_with_masks_train.tfrecords"
FOLDERS = ("", "clevr_with_masks/")  # where it lies below --source
HEIGHT, WIDTH, PLANES = 240, 320, 11
ROWS, COLUMNS = slice(29, 221), slice(64, 256)
NUM_SCENES = 100_000
PER_JOB = 10_000  # scenes; every job unpacks the file from its beginning
PARTS = "70000,10000,20000"
ISA = "isa"


class Clevr(Stills):
    names = ("clevr",)
    summary = f"a folder with {FILE}"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--parts",
            default=PARTS,
            help=f"scenes of train, validation and test, in the order of the file; default {PARTS}."
            f" {ISA}: the first 100 are validation, all others train",
        )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        self.check_options()
        tfrecords.check_address(self.source)
        ranges = self._ranges()
        jobs = []
        for split in splits:
            first, end = ranges.get(split, (0, 0))
            if self.options.limit is not None:
                end = min(end, first + self.options.limit)
            for begin in range(first, end, PER_JOB):
                stop = min(begin + PER_JOB, end)
                jobs.append(Job(split, (begin, stop), stop - begin))
        return Plan(
            jobs=tuple(jobs),
            sources=(self._path().resolve(),),
            features=still_features(visibility=column(np.float32)),
            metadata={
                "kind": "stills",
                "no_segment": NO_SEGMENT,
                "parts": {split: list(ends) for split, ends in ranges.items()},
                "crop": [ROWS.start, COLUMNS.start, ROWS.stop, COLUMNS.stop],
            },
        )

    def _ranges(self) -> dict[str, tuple[int, int]]:
        """The first scene of each split, and the one behind its last."""
        given = self.options.get("parts", PARTS)
        if given == ISA:
            return {"train": (100, NUM_SCENES), "validation": (0, 100)}
        try:
            counts = [int(part) for part in given.split(",")]
        except ValueError:
            counts = []
        if not 1 <= len(counts) <= len(SPLITS) or min(counts, default=0) < 0:
            raise UserError(
                f"--parts is {given}; expected up to three numbers of scenes such as {PARTS}, or "
                f"{ISA}"
            )
        ends = np.cumsum([0, *counts]).tolist()
        pairs = zip(SPLITS, ends, ends[1:], strict=False)
        return {split: (first, end) for split, first, end in pairs if end > first}

    def items(self, job: Job) -> Iterator[tuple[int, bytes]]:
        begin, stop = job.payload
        path, found = self._path(), 0
        for record in tfrecords.read_records(path):
            if begin <= found:
                yield found, record
            found += 1
            if found == stop:
                return
        raise UserError(
            f"{path} holds {found} scenes, but --parts asks for {stop}; download it again, or give "
            "fewer in --parts"
        )

    def _path(self) -> Path:
        if tfrecords.is_remote(self.source):
            raise UserError(
                f"--source={self.source} is a bucket, whose one large file every job would fetch; "
                "download it first, with gsutil cp"
            )
        for below in FOLDERS:
            if (path := self.folder / below / FILE).is_file():
                return path
        raise UserError(
            f"--source={self.source} has no {FILE}; download it from "
            "gs://multi-object-datasets/clevr_with_masks"
        )

    def example(self, item: tuple[int, bytes]) -> dict[str, Any]:
        index, record = item
        where = f"{FILE}, scene {index}"
        values = Values(record, where, "CLEVR with masks")
        image = _pixels(values.joined("image"), (HEIGHT, WIDTH, 3), f"the image of {where}")
        planes = _pixels(values.joined("mask"), (PLANES, HEIGHT, WIDTH), f"the masks of {where}")
        segmentation = planes[:, ROWS, COLUMNS].argmax(axis=0).astype(np.uint8)
        visibility = values.numbers("visibility").astype(np.float32)
        name = f"clevr_{index:06d}"
        picture = png(np.ascontiguousarray(image[ROWS, COLUMNS]))
        return self.still(picture, segmentation, where, name, visibility=visibility)


def _pixels(data: bytes, shape: tuple[int, ...], what: str) -> np.ndarray:
    if len(data) != np.prod(shape):
        raise BadSample(
            f"{what} has {len(data)} bytes, expected {'x'.join(map(str, shape))}; download it again"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
