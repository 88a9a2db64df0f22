"""COCO 2017: `coco` (panoptic; things are objects, stuff is background) and `coco_instances`."""

import dataclasses
import fcntl
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.archives import DAMAGE
from data.big_json import entries
from data.family import SPLITS, BadSample, Job, Plan, shards_of
from data.features import NO_SEGMENT, categories, column, still_features
from data.pictures import colours
from data.shards import CHUNK
from data.stills import PER_SHARD, Place, Stills, check_number, some
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file

YEAR_SPLITS = {"train": "train2017", "validation": "val2017"}
KINDS = {"coco": "panoptic", "coco_instances": "instances"}
ARCHIVES = {
    "panoptic": "panoptic_annotations_trainval2017",
    "instances": "annotations_trainval2017",
}
CROWD = ("ignore", "segment")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of the JSON; `annotations` holds JSON texts in file order."""

    name: str
    file: str
    height: int
    width: int
    annotations: tuple[str, ...]


class Coco(Stills):
    names = tuple(KINDS)
    summary = (
        "a folder with train2017.zip, val2017.zip and panoptic_annotations_trainval2017.zip "
        "(coco) or annotations_trainval2017.zip (coco_instances), or their unpacked contents"
    )

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        parser.add_argument(
            "--crowd",
            choices=CROWD,
            default=CROWD[0],
            help="groups of objects (iscrowd): in no segment, or each a segment",
        )

    @property
    def kind(self) -> str:
        return KINDS[self.name]

    def plan(self, splits: tuple[str, ...]) -> Plan:
        self.check_options()
        jobs: list[Job] = []
        sources: list[Path] = []
        names: list[str] | None = None
        looked_for: list[str] = []
        for split in SPLITS:
            if split not in splits or split not in YEAR_SPLITS:
                continue
            stem = YEAR_SPLITS[split]
            image_places = self._image_places(stem)
            looked_for += [str(place.path) for place in image_places]
            images = next((p for p in image_places if p.path.exists()), None)
            if images is None:
                continue
            file = f"{self.kind}_{stem}.json"
            annotations = self._annotations(file)
            found, categories_found = self._read(annotations, file)
            if names is not None and names != list(categories_found.values()):
                raise UserError(
                    f"{annotations}/{file} has other categories than train's; download both again, "
                    "from one release"
                )
            names = list(categories_found.values())
            found = found[: self.options.limit]
            if absent := self.absent(images, [entry.file for entry in found]):
                raise UserError(
                    f"{images} lacks {len(absent)} of the {len(found)} images that {file} names: "
                    f"{some(absent)}; download it again, and unpack all of it"
                )
            payload = {"images": images, "annotations": annotations, "categories": categories_found}
            for job in shards_of(split, found, PER_SHARD):
                jobs.append(dataclasses.replace(job, payload={**payload, "entries": job.payload}))
            sources += [images.path, *self._files_read(annotations, stem)]
        if not jobs:
            raise UserError(
                f"--source={self.source} has no images of {self.name} for {' or '.join(splits)} "
                f"(there is no test); looked for {', '.join(looked_for) or 'nothing'}"
            )
        return Plan(
            jobs=tuple(jobs),
            sources=tuple(dict.fromkeys(sources)),
            features=still_features(categories=categories(names), bboxes=column(np.float32, 4)),
            metadata={
                "kind": "stills",
                "categories": names,
                "no_segment": NO_SEGMENT,
                "labelling": f"{self.kind} annotations of 2017",
            },
        )

    def _image_places(self, stem: str) -> list[Place]:
        folder = self.folder
        return [
            Place(folder / stem),
            Place(folder / "images" / stem),
            Place(folder / f"{stem}.zip", stem),
        ]

    def _annotations(self, file: str) -> Place:
        """The place of a JSON file and of the label maps next to it."""
        folder, archive = self.folder, ARCHIVES[self.kind]
        places = [
            Place(folder / "annotations"),
            Place(folder / archive / "annotations"),
            Place(folder),
            Place(folder / f"{archive}.zip", "annotations"),
        ]
        place = self.first_with(places, file)
        if place is None:
            looked_for = ", ".join(f"{place}/{file}" for place in places)
            raise UserError(
                f"--source={self.source} has images but not {file}; looked for {looked_for}: "
                f"download {archive}.zip"
            )
        return place

    def _files_read(self, annotations: Place, stem: str) -> list[Path]:
        """The files to hash for the manifest, apart from the images."""
        path = annotations.path
        if path.is_file():
            return [path]
        files = [path / f"{self.kind}_{stem}.json"]
        if self.kind == "panoptic":
            files += [place.path for place in _map_places(path, stem) if place.path.exists()][:1]
        return files

    def _read(self, place: Place, file: str) -> tuple[list[Entry], dict[int, str]]:
        """The annotated images in file order, and the names of the object categories by id."""
        where = f"{place}/{file}"
        images: dict[int, dict[str, Any]] = {}
        texts: dict[int, list[str]] = {}
        names: dict[int, str] = {}
        try:
            for key, entry, text in entries(self.read(place, file), where):
                if key == "images":
                    wanted = ("id", "file_name", "height", "width")
                    images[entry["id"]] = {k: entry[k] for k in wanted}
                elif key == "annotations":
                    if (
                        "segments_info" if self.kind == "panoptic" else "segmentation"
                    ) not in entry:
                        raise UserError(
                            f"{where} holds no {self.kind} annotations; expected the file of this "
                            f"name from {ARCHIVES[self.kind]}.zip"
                        )
                    texts.setdefault(entry["image_id"], []).append(text)
                elif key == "categories" and entry.get("isthing", 1):
                    names[entry["id"]] = entry["name"]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is not a COCO 2017 annotation file: an entry of {key} lacks {error}; "
                "download it again"
            ) from error
        if not texts:
            raise UserError(
                f"{where} has no annotations for its {len(images)} images; download "
                f"{ARCHIVES[self.kind]}.zip (files named image_info hold none)"
            )
        if unknown := sorted(map(str, texts.keys() - images.keys())):
            raise UserError(
                f"{where} has annotations of {len(unknown)} images that it does not list: "
                f"{some(unknown)}; download it again"
            )
        # Instance files have no entry for images without objects; panoptic files list every image.
        listed = [i for i in images if self.kind == "instances" or i in texts]
        found = [
            Entry(
                Path(images[i]["file_name"]).stem,
                images[i]["file_name"],
                images[i]["height"],
                images[i]["width"],
                tuple(texts.get(i, ())),
            )
            for i in listed
        ]
        return found, names

    def items(self, job: Job) -> Iterator[Any]:
        maps = None
        if self.kind == "panoptic":
            maps = self._maps(job.payload["annotations"], YEAR_SPLITS[job.split])
        for entry in job.payload["entries"]:
            yield job.payload["images"], maps, job.payload["categories"], entry

    def _maps(self, annotations: Place, stem: str) -> Place:
        """The folder of label maps; a zip within the zip is copied out once for all processes."""
        name = f"panoptic_{stem}"
        if annotations.path.is_dir():
            places = _map_places(annotations.path, stem)
            place = next((place for place in places if place.path.exists()), None)
            if place is None:
                raise UserError(
                    f"{annotations} has {name}.json, but the label maps are missing; looked for "
                    f"{', '.join(str(place.path) for place in places)}: unpack "
                    f"{ARCHIVES['panoptic']}.zip again"
                )
            return place
        inner = annotations.name(f"{name}.zip")
        unpacked = annotations.name(f"{name}")
        if inner in self.files(annotations.path):
            return Place(copy_out(annotations.path, inner, self.staging / f"{name}.zip"), name)
        if any(file.startswith(f"{unpacked}/") for file in self.files(annotations.path).names()):
            return Place(annotations.path, unpacked)
        raise UserError(f"{annotations.path} has no {inner} with the label maps; download it again")

    def example(self, item: tuple[Place, Place | None, dict[int, str], Entry]) -> dict[str, Any]:
        images, maps, names, entry = item
        where = f"{images}/{entry.file}"
        draw = self._panoptic if self.kind == "panoptic" else self._instances
        places = {key: index for index, key in enumerate(names)}
        try:
            segmentation, objects = draw(maps, entry, where, names)
            rows = [places[segment["category_id"]] for segment in objects]
            boxes = [_box(segment["bbox"], entry) for segment in objects]
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise BadSample(
                f"{where}: its {self.kind} annotation is unusable: {type(error).__name__} {error}; "
                "download the annotations again"
            ) from error
        return self.still(
            self.read(images, entry.file),
            segmentation,
            where,
            entry.name,
            categories=rows,
            bboxes=np.array(boxes, np.float32).reshape(-1, 4),
        )

    def _is_left_out(self, segment: dict[str, Any]) -> bool:
        return bool(segment["iscrowd"]) and self.options.get("crowd", CROWD[0]) == "ignore"

    def _panoptic(
        self, maps: Place, entry: Entry, where: str, things: dict[int, str]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Labels (H,W) from the ids encoded in the label map's colors, and the objects in order."""
        annotation = json.loads(entry.annotations[0])
        name = annotation["file_name"]
        pixels = colours(self.read(maps, name), f"{maps}/{name}", self.options).astype(np.int64)
        ids = pixels @ np.array([1, 256, 256**2])
        _check_size(ids.shape, entry, f"{maps}/{name}")
        values = {0: NO_SEGMENT}
        objects = []
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in things:
                values[segment["id"]] = 0
            elif self._is_left_out(segment):
                values[segment["id"]] = NO_SEGMENT
            else:
                objects.append(segment)
                values[segment["id"]] = len(objects)
        check_number(len(objects), where)
        known = np.array(sorted(values))
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        if (unknown := ids[known[place] != ids]).size:
            raise BadSample(
                f"{maps}/{name} has the id {unknown[0]}, which its json does not list; the two are "
                "not from one download: get both again"
            )
        return np.array([values[i] for i in known], np.uint8)[place], objects

    def _instances(
        self, maps: None, entry: Entry, where: str, things: dict[int, str]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Labels (H,W), drawn in annotation order: later objects cover earlier ones."""
        shape = (entry.height, entry.width)
        segmentation = np.zeros(shape, np.uint8)
        objects = []
        for annotation in map(json.loads, entry.annotations):
            label = NO_SEGMENT
            if not self._is_left_out(annotation):
                objects.append(annotation)
                check_number(len(objects), where)
                label = len(objects)
            shapes = annotation["segmentation"]
            draw = rle.decode if isinstance(shapes, dict) else rle.fill
            segmentation[draw(shapes, shape, f"{where}, annotation {annotation['id']}")] = label
        return segmentation, objects


def _map_places(annotations: Path, stem: str) -> list[Place]:
    """Where users unpack the label maps: next to their JSON, or next to its folder."""
    name = f"panoptic_{stem}"
    return [
        Place(annotations / name),
        Place(annotations.parent / name),
        Place(annotations / f"{name}.zip", name),
    ]


def copy_out(archive: Path, inner: str, target: Path) -> Path:
    """Copy a file of a zip to `target`; other processes that need it wait for the first one.

    Raises:
        UserError: the archive is damaged, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".{target.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                with atomic_file(target) as partial, open(partial, "wb") as file:
                    with zipfile.ZipFile(archive) as outer, outer.open(inner) as stream:
                        shutil.copyfileobj(stream, file, CHUNK)
    except DAMAGE as error:
        raise UserError(
            f"{archive}: {inner} cannot be copied to {target.parent}: {error}; download it again, "
            "unless the disk is full"
        ) from error
    return target


def _box(box: list[float], entry: Entry) -> list[float]:
    """Convert x, y, width, height in pixels to ymin, xmin, ymax, xmax in 0..1."""
    x, y, width, height = box
    return [
        y / entry.height,
        x / entry.width,
        (y + height) / entry.height,
        (x + width) / entry.width,
    ]


def _check_size(shape: tuple[int, ...], entry: Entry, where: str) -> None:
    if shape != (entry.height, entry.width):
        raise BadSample(
            f"{where} has {shape[0]}x{shape[1]} pixels, its json says {entry.height}x{entry.width} "
            "(height x width); download the annotations again"
        )
