"""PASCAL VOC: `voc` has the objects of VOC2012 and VOC2007; `voc_trainaug` adds those of SBD."""

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import scipy.io

from data.family import SPLITS, BadSample, Job, Plan, refuse_twice, shards_of
from data.features import NO_SEGMENT, categories, still_features
from data.pictures import labels
from data.stills import PER_SHARD, Place, Stills, check_number, some
from smoothsa_jax.errors import UserError
from smoothsa_jax.text import printable, text_of

# In the order of the values in SegmentationClass, starting at 1.
CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
ARCHIVES = {
    "VOC2012": ("VOCtrainval_11-May-2012",),
    "VOC2007": ("VOCtrainval_06-Nov-2007", "VOCtest_06-Nov-2007"),
}
# The year of each split, and the name of its image list.
LISTS = {
    "train": ("VOC2012", "trainval"),
    "validation": ("VOC2007", "trainval"),
    "test": ("VOC2007", "test"),
}
LIST_FOLDER = "ImageSets/Segmentation"
SBD = "benchmark_RELEASE/dataset"
SBD_ARCHIVES = ("benchmark.tgz", "benchmark.tar.gz", "benchmark.tar")


class Voc(Stills):
    names = ("voc", "voc_trainaug")
    summary = (
        "a folder with VOCtrainval_11-May-2012.tar (train), VOCtrainval_06-Nov-2007.tar "
        "(validation), VOCtest_06-Nov-2007.tar (test, optional), or the unpacked VOCdevkit; "
        "voc_trainaug: also SBD's benchmark.tgz, or its benchmark_RELEASE"
    )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        self.check_options()
        jobs: list[Job] = []
        sources: list[Path] = []
        looked_for: list[str] = []
        pictures: dict[str, list[str]] = {}
        augmented = self.name == "voc_trainaug"
        for split in SPLITS:
            if split not in splits:
                continue
            year, which = LISTS[split]
            if augmented and split == "train":
                which = "train"
            file = f"{LIST_FOLDER}/{which}.txt"
            places = self._places(year)
            looked_for += [f"{place}/{file}" for place in places]
            place = self.first_with(places, file)
            if place is None:
                continue
            names = self._names(place, which)[: self.options.limit]
            pictures[split] = [f"{place}/{_image(name)}" for name in names]
            jobs += shards_of(split, [("voc", place, name) for name in names], PER_SHARD)
            sources.append(place.path)
            if augmented and split == "train":
                more, path = self._augmented(place, names)
                jobs += more
                sources.append(path)
        if not jobs:
            raise UserError(
                f"--source={self.source} has nothing of {self.name} for {' or '.join(splits)}; "
                f"looked for {', '.join(looked_for)}"
            )
        return Plan(
            jobs=tuple(jobs),
            sources=tuple(dict.fromkeys(sources)),
            features=still_features(categories=categories(CLASSES)),
            metadata={"kind": "stills", "categories": CLASSES, "no_segment": NO_SEGMENT},
            pictures=pictures,
            notes=self.notes(),
        )

    def _places(self, year: str) -> list[Place]:
        """Possible places of a year: unpacked, in one or more folders, or in its archives."""
        folder, inside = self.folder, f"VOCdevkit/{year}"
        return [
            Place(folder / inside),
            Place(folder / year),
            *(Place(folder / name / inside) for name in ARCHIVES[year]),
            *(Place(folder / f"{name}.tar", inside) for name in ARCHIVES[year]),
        ]

    def _names(self, place: Place, which: str) -> list[str]:
        """Read an image list, and check that all files of its images exist."""
        file = f"{LIST_FOLDER}/{which}.txt"
        names = self._list(place, which)
        if not names:
            raise UserError(
                f"{place}/{file} is empty: no annotations; download {place.path.name} again"
            )
        refuse_twice(names, f"{place}/{file}", "names", "list each image once")
        files = [
            file
            for name in names
            for file in (_image(name), _map("Object", name), _map("Class", name))
        ]
        if absent := self.absent(place, files):
            raise UserError(
                f"{place} lacks {len(absent)} of the {len(files)} files that {file} names: "
                f"{some(absent)}; download it again, and unpack all of it"
            )
        return names

    def _augmented(self, voc: Place, names: list[str]) -> tuple[list[Job], Path]:
        """Make jobs for SBD's objects; also return the path that they read.

        Images of VOC2012's training list and held-out images are left out.
        """
        folder = self.folder
        places = [
            Place(folder / SBD),
            Place(folder / "benchmark" / SBD),
            *(Place(folder / name, SBD) for name in SBD_ARCHIVES),
        ]
        place = next((p for p in places if p.path.exists()), None)
        if place is None:
            raise UserError(
                f"--source={self.source} has no SBD; looked for {', '.join(map(str, places))}: "
                "download benchmark.tgz"
            )
        left_out = set(self._list(voc, "trainval"))
        other = self.first_with(self._places("VOC2007"), f"{LIST_FOLDER}/val.txt")
        left_out |= set(self._list(other, "val")) if other else set()
        left = None if self.options.limit is None else self.options.limit - len(names)
        if left == 0:
            return [], place.path
        if self.files(place.path).is_sequential:
            return [Job("train", ("sbd", place, voc, frozenset(left_out), left), left)], place.path
        ids = [
            PurePosixPath(name).stem
            for name in self.files(place.path).names()
            if _is_map_of_sbd(place, name)
        ]
        ids = [name for name in ids if name not in left_out]
        if not ids:
            raise UserError(
                f"{place}/inst has no *.mat, the objects of SBD; download benchmark.tgz again"
            )
        items = [("sbd", place, voc, name) for name in ids[:left]]
        return shards_of("train", items, PER_SHARD), place.path

    def _list(self, place: Place, which: str) -> list[str]:
        file = f"{LIST_FOLDER}/{which}.txt"
        return text_of(self.read(place, file), f"{place}/{file}").split()

    def items(self, job: Job) -> Iterator[Any]:
        if job.payload[0] != "sbd":
            for kind, place, *rest in job.payload:
                if kind == "voc":
                    yield place, rest[0], None
                else:
                    voc, name = rest
                    yield voc, name, (f"{place}/inst/{name}.mat", self._reader(place, name))
            return
        _, place, voc, left_out, left = job.payload
        found = 0
        for file, data in self.files(place.path).in_order():
            name = PurePosixPath(file).stem
            if not _is_map_of_sbd(place, file) or name in left_out:
                continue
            if found == left:
                return
            found += 1
            yield voc, name, (f"{place.path}: {file}", lambda data=data: data)
        if not found:
            raise UserError(
                f"{place.path} has no {SBD}/inst/*.mat, the objects of SBD; download benchmark.tgz "
                "again"
            )

    def _reader(self, place: Place, name: str) -> Any:
        return lambda: self.read(place, f"inst/{name}.mat")

    def example(self, item: tuple[Place, str, Any]) -> dict[str, Any]:
        place, name, sbd = item
        where = f"{place}/{_image(name)}"
        if sbd is None:
            objects, classes = (
                labels(
                    self.read(place, _map(kind, name)),
                    f"{place}/{_map(kind, name)}",
                    self.options,
                )
                for kind in ("Object", "Class")
            )
            segmentation, found = objects_of(objects, classes, f"{place}/{_map('Object', name)}")
        else:
            file, read = sbd
            segmentation, found = objects_of_sbd(read(), file)
        picture = self.read(place, _image(name))
        return self.still(picture, segmentation, where, printable(name), categories=found)


def objects_of(
    objects: np.ndarray, classes: np.ndarray, where: str
) -> tuple[np.ndarray, list[int]]:
    """Number the objects 1..K in labels (H,W) uint8; find each category by pixel majority.

    Values without pixels are left out.

    Raises:
        BadSample: the two maps differ in size, or an object has no class.
    """
    if objects.shape != classes.shape:
        raise BadSample(
            f"{where} has {objects.shape[0]}x{objects.shape[1]} pixels, its SegmentationClass "
            f"{classes.shape[0]}x{classes.shape[1]} (height x width); download the archive again"
        )
    values = [int(v) for v in np.unique(objects) if v not in (0, NO_SEGMENT)]
    check_number(len(values), where)
    segmentation = np.where(objects == NO_SEGMENT, NO_SEGMENT, 0).astype(np.uint8)
    found = []
    for label, value in enumerate(values, 1):
        inside = objects == value
        counts = np.bincount(classes[inside], minlength=256)[1 : len(CLASSES) + 1]
        if not counts.any():
            raise BadSample(
                f"{where}: object {value} has none of the {len(CLASSES)} classes in "
                "SegmentationClass; download the archive again"
            )
        segmentation[inside] = label
        found.append(int(counts.argmax()))
    return segmentation, found


def objects_of_sbd(data: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    """Read labels (H,W) uint8 and each object's category from one of SBD's inst/*.mat files.

    Raises:
        BadSample: the file is damaged, or lacks GTinst.
    """
    try:
        content = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)
        objects = np.asarray(content["GTinst"].Segmentation)
        classes = np.atleast_1d(content["GTinst"].Categories).astype(int).reshape(-1)
    except Exception as error:  # a damaged file fails in many ways
        raise BadSample(
            f"{where} has no GTinst with Segmentation and Categories ({type(error).__name__}: "
            f"{error}); download benchmark.tgz again"
        ) from error
    check_number(len(classes), where)
    if objects.ndim != 2 or objects.max(initial=0) > len(classes):
        raise BadSample(
            f"{where} has labels up to {objects.max(initial=0)} of shape {objects.shape} for "
            f"{len(classes)} objects; download benchmark.tgz again"
        )
    if not ((classes >= 1) & (classes <= len(CLASSES))).all():
        raise BadSample(
            f"{where} has the classes {classes.tolist()}, expected 1 to {len(CLASSES)}; download "
            "benchmark.tgz again"
        )
    return objects.astype(np.uint8), [int(k) - 1 for k in classes]


def _image(name: str) -> str:
    return f"JPEGImages/{name}.jpg"


def _map(kind: str, name: str) -> str:
    return f"Segmentation{kind}/{name}.png"


def _is_map_of_sbd(place: Place, file: str) -> bool:
    path = PurePosixPath(file)
    hidden = path.name.startswith(".")  # macOS metadata
    return path.suffix == ".mat" and not hidden and str(path.parent) == place.name("inst")
