"""COCO 2017: `coco` (panoptic; things are objects, stuff is background) and `coco_instances`."""

import dataclasses
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data import rle
from data.archives import Files
from data.big_json import box_of, category_names, entries, is_id, is_whole, sizes_of
from data.family import SPLITS, BadSample, Job, Plan, refuse_twice, shards_of
from data.features import NO_SEGMENT, categories, column, still_features
from data.pictures import colours
from data.stills import PER_SHARD, Place, Stills, check_number, some
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inference.listing import is_junk
from smoothsa_jax.inference.sources import IMAGES
from smoothsa_jax.text import printable, short

YEAR_SPLITS = {"train": "train2017", "validation": "val2017"}
KINDS = {"coco": "panoptic", "coco_instances": "instances"}
ARCHIVES = {
    "panoptic": "panoptic_annotations_trainval2017",
    "instances": "annotations_trainval2017",
}
CROWD = ("ignore", "segment")
MAX_ID = 256**3 - 1  # of a panoptic segment, which is a color


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
        pictures: dict[str, list[str]] = {}
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
            found, categories_found, unlisted = self._read(annotations, file)
            if names is not None and names != list(categories_found.values()):
                raise UserError(
                    f"{annotations}/{file} has other categories than train's; download both again, "
                    "from one release"
                )
            names = list(categories_found.values())
            self._note_others(images, found, file)
            found = found[: self.options.limit]
            if absent := self.absent(images, [entry.file for entry in found]):
                raise UserError(
                    f"{images} lacks {len(absent)} of the {len(found)} images that {file} names: "
                    f"{some(absent)}; download it again, and unpack all of it"
                )
            pictures[split] = [f"{images}/{entry.file}" for entry in found]
            payload = {"images": images, "annotations": annotations, "categories": categories_found}
            payload |= {"unlisted": unlisted} if unlisted else {}
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
            pictures=pictures,
            notes=self.notes(),
        )

    def _note_others(self, images: Place, found: list[Entry], file: str) -> None:
        """Note the pictures of which a JSON file has no annotation."""
        known = {entry.file for entry in found}
        for name in self.inside(images):
            if name not in known and name.lower().endswith(IMAGES) and not is_junk(name):
                self.left_out.add(f"pictures without an annotation in {file}", name)

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

    def _read(self, place: Place, file: str) -> tuple[list[Entry], dict[Any, str], tuple[Any, ...]]:
        """Read an annotation file, and check that its ids are unique and name something.

        Returns:
            The annotated images in file order, the names of the object categories by id, and the
            ids of categories that annotations name but the file does not list.
        """
        where = f"{place}/{file}"
        wanted = "segments_info" if self.kind == "panoptic" else "segmentation"
        images: list[dict[str, Any]] = []
        texts: dict[Any, list[str]] = {}
        kinds: list[Any] = []
        ids: list[Any] = []
        used: dict[Any, str] = {}  # category id -> an annotation of it
        for key, entry, text in entries(self.read(place, file), where):
            if not text or key not in ("images", "annotations", "categories"):
                continue
            if not isinstance(entry, dict):
                raise UserError(
                    f"{where} has {short(entry)} among its {key}, expected an object; download it "
                    "again"
                )
            if key == "images":
                images.append(_image(entry, where))
            elif key == "annotations":
                if wanted not in entry:
                    raise UserError(
                        f"{where} holds no {self.kind} annotations; expected the file of this "
                        f"name from {ARCHIVES[self.kind]}.zip"
                    )
                image = _id(entry, "image_id", "an annotation", where)
                texts.setdefault(image, []).append(text)
                if "id" in entry:
                    ids.append(_id(entry, "id", "an annotation", where))
                for segment in self._segments(entry):
                    category = segment.get("category_id")
                    if is_id(category) and category not in used:
                        used[category] = f"{short(segment.get('id'))} of image {image}"
            else:
                kinds.append(entry)
        anew = "number them anew where sets were joined, or download it again"
        refuse_twice((image["id"] for image in images), where, "image ids", anew)
        refuse_twice(ids, where, "annotation ids", anew)
        names = category_names(kinds, where)
        if not texts:
            raise UserError(
                f"{where} has no annotations for its {len(images)} images; download "
                f"{ARCHIVES[self.kind]}.zip (files named image_info hold none)"
            )
        if unknown := sorted(map(str, texts.keys() - {image["id"] for image in images})):
            raise UserError(
                f"{where} has annotations of {len(unknown)} images that it does not list: "
                f"{some(unknown)}; download it again"
            )
        unlisted = tuple(number for number in used if number not in names)
        if unlisted and not self.options.skip_bad:
            raise UserError(
                f"{where} does not list {len(unlisted)} categories that annotations name, such as "
                f"{unlisted[0]!r} (annotation {used[unlisted[0]]}); add them to its categories, or "
                "skip such images with --skip-bad"
            )
        if self.kind == "panoptic":
            several = [str(image) for image, found in texts.items() if len(found) > 1]
            if several:
                raise UserError(
                    f"{where} has more than one annotation of {len(several)} images: "
                    f"{some(several)}; expected one for each: remove the others, or number images "
                    "anew where sets were joined"
                )
        # Instance files have no entry for images without objects; panoptic files list every image.
        found = [
            Entry(
                printable(Path(image["file_name"]).stem),
                image["file_name"],
                image["height"],
                image["width"],
                tuple(texts.get(image["id"], ())),
            )
            for image in images
            if self.kind == "instances" or image["id"] in texts
        ]
        refuse_twice((e.file for e in found), where, "image file names", "list each image once")
        refuse_twice(
            (entry.name for entry in found),
            where,
            "image names (file names without folder and ending)",
            "rename images, since samples are named after them",
        )
        things = {
            kind["id"]: kind["name"] for kind in kinds if _flag(kind, "isthing", where, default=1)
        }
        return found, things, unlisted

    def _segments(self, annotation: dict[str, Any]) -> list[dict[str, Any]]:
        """What has a category in an annotation; damaged entries are found when they are drawn."""
        if self.kind == "instances":
            return [annotation]
        segments = annotation["segments_info"]
        return [s for s in segments if isinstance(s, dict)] if isinstance(segments, list) else []

    def items(self, job: Job) -> Iterator[Any]:
        maps = None
        if self.kind == "panoptic":
            maps = self._maps(job.payload["annotations"], YEAR_SPLITS[job.split])
        unlisted = frozenset(job.payload.get("unlisted", ()))
        for entry in job.payload["entries"]:
            yield job.payload["images"], maps, job.payload["categories"], unlisted, entry

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
        archive = self.files(annotations.path)
        if inner in archive:
            return Place(_copy_out(archive, inner, self.staging / f"{name}.zip"), name)
        if any(file.startswith(f"{unpacked}/") for file in archive.names()):
            return Place(annotations.path, unpacked)
        raise UserError(f"{annotations.path} has no {inner} with the label maps; download it again")

    def example(
        self, item: tuple[Place, Place | None, dict[Any, str], frozenset, Entry]
    ) -> dict[str, Any]:
        images, maps, names, unlisted, entry = item
        where = f"{images}/{entry.file}"
        draw = self._panoptic if self.kind == "panoptic" else self._instances
        places = {key: index for index, key in enumerate(names)}
        size = sizes_of(entry.height, entry.width, self.options.max_pixels, where)
        entry = dataclasses.replace(entry, height=size[0], width=size[1])
        segmentation, objects = draw(maps, entry, where, names, unlisted)
        boxes = []
        for segment in objects:
            told = f"{where}, annotation {short(segment.get('id'))}"
            boxes.append(_box(box_of(segment.get("bbox"), told), entry))
        return self.still(
            self.read(images, entry.file),
            segmentation,
            where,
            entry.name,
            categories=[places[segment["category_id"]] for segment in objects],
            bboxes=np.array(boxes, np.float32).reshape(-1, 4),
        )

    def _is_left_out(self, segment: dict[str, Any], where: str) -> bool:
        """Whether a segment is a crowd that the options leave out."""
        is_crowd = _flag(segment, "iscrowd", where)
        return is_crowd and self.options.get("crowd", CROWD[0]) == "ignore"

    def _panoptic(
        self, maps: Place, entry: Entry, where: str, things: dict[Any, str], unlisted: frozenset
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Labels (H,W) from the ids encoded in the label map's colors, and the objects in order."""
        annotation = json.loads(entry.annotations[0])
        name, segments = annotation.get("file_name"), annotation["segments_info"]
        if not isinstance(name, str) or not isinstance(segments, list):
            raise BadSample(
                f"{where}: its panoptic annotation has the file_name {short(name)} and the "
                f"segments_info {short(segments)}, expected a name and a list; download the "
                "annotations again"
            )
        values = {0: NO_SEGMENT}
        objects: list[dict[str, Any]] = []
        for segment in segments:
            number = segment.get("id") if isinstance(segment, dict) else None
            if not (is_whole(number) and 0 < number <= MAX_ID) or number in values:
                raise BadSample(
                    f"{where}: its panoptic annotation has a segment with the id {short(number)}, "
                    f"expected one from 1 to {MAX_ID} that no other segment of the image has; "
                    "correct the json"
                )
            told = f"{where}, segment {number}"
            if _category(segment, unlisted, told) not in things:
                values[number] = 0
            elif self._is_left_out(segment, told):
                values[number] = NO_SEGMENT
            else:
                objects.append(segment)
                values[number] = len(objects)
        check_number(len(objects), where)
        pixels = colours(self.read(maps, name), f"{maps}/{name}", self.options).astype(np.int64)
        ids = pixels @ np.array([1, 256, 256**2])
        _check_size(ids.shape, entry, f"{maps}/{name}")
        known = np.array(sorted(values))
        place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        if (unknown := ids[known[place] != ids]).size:
            raise BadSample(
                f"{maps}/{name} has the id {unknown[0]}, which its json does not list; the two are "
                "not from one download: get both again"
            )
        return np.array([values[i] for i in known], np.uint8)[place], objects

    def _instances(
        self, maps: None, entry: Entry, where: str, things: dict[Any, str], unlisted: frozenset
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Labels (H,W), drawn in annotation order: later objects cover earlier ones."""
        shape = (entry.height, entry.width)
        segmentation = np.zeros(shape, np.uint8)
        objects: list[dict[str, Any]] = []
        for annotation in map(json.loads, entry.annotations):
            told = f"{where}, annotation {short(annotation.get('id'))}"
            category = _category(annotation, unlisted, told)
            label = NO_SEGMENT
            if not self._is_left_out(annotation, told):
                if category not in things:
                    raise BadSample(
                        f"{told} has the category_id {category!r}, which is not of things "
                        "(isthing 0); expected objects only: correct the json"
                    )
                objects.append(annotation)
                check_number(len(objects), where)
                label = len(objects)
            shapes = annotation["segmentation"]
            draw = rle.decode if isinstance(shapes, dict) else rle.fill
            segmentation[draw(shapes, shape, told)] = label
        return segmentation, objects


def _id(entry: dict[str, Any], key: str, what: str, where: str) -> Any:
    if not is_id(entry.get(key)):
        raise UserError(
            f"{where}: {what} has the {key} {short(entry.get(key))}, expected a number; download "
            "it again"
        )
    return entry[key]


def _image(entry: dict[str, Any], where: str) -> dict[str, Any]:
    wanted = ("id", "file_name", "height", "width")
    if lacking := [key for key in wanted if key not in entry]:
        raise UserError(
            f"{where} is not a COCO 2017 annotation file: an entry of images lacks "
            f"{lacking[0]!r}; download it again"
        )
    number, file = _id(entry, "id", "an image", where), entry["file_name"]
    if not isinstance(file, str) or not Path(file).stem:
        raise UserError(
            f"{where}: the image {number} has the file_name {short(file)}, expected the name of a "
            "file; download it again"
        )
    return {key: entry[key] for key in wanted}


def _category(segment: dict[str, Any], unlisted: frozenset, where: str) -> Any:
    category = segment.get("category_id")
    if not is_id(category) or category in unlisted:
        raise BadSample(
            f"{where} has the category_id {short(category)}, which the json does not list; add it "
            "to its categories"
        )
    return category


def _flag(entry: dict[str, Any], key: str, where: str, default: Any = None) -> bool:
    """Whether `key` is 1, not 0."""
    value = entry.get(key, default)
    if not is_whole(value) and not isinstance(value, bool) or value not in (0, 1):
        raise BadSample(
            f"{where} has the {key} {short(value)} in {short(entry)}, expected 0 or 1; correct the "
            "json"
        )
    return bool(value)


def _map_places(annotations: Path, stem: str) -> list[Place]:
    """Where users unpack the label maps: next to their JSON, or next to its folder."""
    name = f"panoptic_{stem}"
    return [
        Place(annotations / name),
        Place(annotations.parent / name),
        Place(annotations / f"{name}.zip", name),
    ]


def _copy_out(archive: Files, inner: str, target: Path) -> Path:
    """Copy a file of an archive to `target`; other processes that need it wait for the first one.

    Raises:
        UserError: the archive is damaged, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with atomic_file(target) as partial:
                archive.copy(inner, partial)
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
