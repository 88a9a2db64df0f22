"""YouTube-VIS 2019, 2021 and 2022, and HQ-YTVIS: frames in zips or folders, masks in a JSON file.

Masks are drawn in annotation order, later ones over earlier ones; the k-th annotation of a video is
label k. Videos without annotations are left out. The public files differ:

* 2022: train, valid and test. The ground truth of valid and test is a separate JSON file
  (`validation_gt.zip` or `gt.json`, `test_gt.json`).
* 2019 and 2021: only train has public ground truth. A tenth of it, chosen by a hash of the video's
  id, is `validation`; with `--holdout_last=300` its last 300 videos are, in the order of the JSON,
  as in VideoSAUR's program and SlotContrast's.
* HQ-YTVIS: three JSON files for the frames of 2019's train.

A video is named after the folder of its frames, without the folders that hold all videos.
"""

import argparse
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.archives import Files
from data.big_json import box_of, category_names, entries, is_id, sizes_of
from data.clips import PER_SHARD, clip_example, is_held_out, read, require
from data.family import BadSample, Family, Job, Plan, refuse_twice, shards_of
from data.features import NO_SEGMENT, categories, clip_features, table
from data.rle import decode, fill
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut
from smoothsa_jax.text import printable, short

HELD_OUT_OF_TRAIN = ("ytvis_2019", "ytvis_2021")  # their validation
HELD_OUT = 0.1
PARTS = {"train": "train", "validation": "valid", "test": "test"}  # split -> name in the downloads
# Possible places of the annotations, best first: a file, one in a zip, or any JSON of a zip.
JSONS = {
    "train": ("train/instances.json", "train/train.json", "train.json", "instances.json"),
    "validation": (
        "valid/gt.json",
        "gt.json",
        "validation_gt.zip",
        "validation_gt.json",
        "valid/instances.json",
        "valid.json",
    ),
    "test": ("test/test_gt.json", "test_gt.json"),
}
HQ_JSONS = {
    "train": ("ytvis_hq-train.json", "train.json"),
    "validation": ("ytvis_hq-val.json", "val.json"),
    "test": ("ytvis_hq-test.json", "test.json"),
}
HQ_FRAMES = ("", "train", "train.zip", "train_all_frames", "train_all_frames.zip")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video of the JSON.

    Attributes:
        container: the folder or archive that holds `files`; their names are relative to it.
        categories: of each annotation; None: the JSON does not list it.
        annotations: the JSON texts, compressed to unpack only one video's at a time.
    """

    name: str
    container: Path
    files: tuple[str, ...]
    height: int
    width: int
    categories: tuple[int | None, ...]
    annotations: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class _Track:
    """An annotation: one object throughout its video."""

    id: Any
    category_id: Any
    is_seen: bool
    text: bytes


@dataclasses.dataclass(frozen=True)
class _Annotations:
    """A parsed JSON file; its clips do not have the place of their frames yet.

    Attributes:
        names: of the categories.
        videos: names of all videos, in the order of the file.
    """

    file: str
    path: Path
    names: list[str]
    videos: list[str]
    clips: list[Clip]
    without_mask: list[str]


class YoutubeVis(Family):
    names = ("ytvis_2022", "ytvis_2021", "ytvis_2019", "ytvis_hq")
    summary = (
        "the folder of train.zip, valid.zip, ... or of their unpacked contents; ytvis_hq: of its "
        "three json files, with --frames for those of YouTube-VIS 2019"
    )

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        parser.add_argument(
            "--frames",
            help="ytvis_hq: folder or zip of YouTube-VIS 2019's frames; default --source",
        )
        # Left out unless given: folders prepared without it have no such setting.
        parser.add_argument(
            "--holdout_last",
            type=int,
            default=argparse.SUPPRESS,
            metavar="N",
            help="ytvis_2019, ytvis_2021: validation is the last N videos of train's json, in "
            "place of a tenth by a hash",
        )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        source = Path(self.source)
        if not source.is_dir():
            raise UserError(
                f"--source={source} is not a folder; give the one that holds what was downloaded"
            )
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of {self.name}"
            )
        if self.options.get("frames") and self.name != "ytvis_hq":
            raise UserError(
                f"--frames is for ytvis_hq only; the frames of {self.name} are looked for in "
                "--source: leave it out"
            )
        if self.options.get("holdout_last") is not None and not self._is_held_out_of_train():
            raise UserError(
                f"--holdout_last is for {' and '.join(HELD_OUT_OF_TRAIN)}; {self.name} has a "
                "validation split of its own: leave it out"
            )
        # The metadata cover all splits found, so that splits can be prepared one at a time.
        found = {}
        for split in self._public_splits():
            part = self._part(source, split, split in splits)
            if part is not None:
                found[split] = part
        if not found:
            wanted = ", ".join(name for s in self._public_splits() for name in self._json_names(s))
            raise UserError(
                f"--source={source} holds no annotations of {self.name}; looked for {wanted}, in "
                f"{source} and its train.zip, valid.zip, test.zip"
            )
        names = next(iter(found.values())).names
        for part in found.values():
            if part.names != names:
                raise UserError(
                    f"{part.file} has other categories than {next(iter(found.values())).file}; "
                    "expected the json files of one release: download them together"
                )
        clips = {split: part.clips for split, part in found.items()}
        metadata = {
            "kind": "clips",
            "categories": names,
            "no_segment": NO_SEGMENT,
            "without_annotation": {s: len(part.without_mask) for s, part in found.items()},
        }
        if self._is_held_out_of_train():
            both, held_out = clips["train"], self._held_out(found["train"])
            clips = {
                "train": [clip for clip in both if clip.name not in held_out],
                "validation": [clip for clip in both if clip.name in held_out],
            }
            metadata["held_out_of_train"] = sorted(clip.name for clip in clips["validation"])
        jobs, sources, pictures, left_out = [], {}, {}, LeftOut()
        for split in splits:
            mine = clips.get(split, [])[: self.options.limit]
            if not mine:
                continue
            part = found.get(split, found["train"] if "train" in found else None)
            for name in part.without_mask:
                left_out.add(f"videos without a mask in {part.file}", name)
            container, prefix = self._frames(source, split, mine, part.file)
            mine = [
                dataclasses.replace(
                    c, container=container, files=tuple(prefix + file for file in c.files)
                )
                for c in mine
            ]
            require(
                Files(container), (file for c in mine for file in c.files), part.file, self.options
            )
            jobs += shards_of(split, mine, PER_SHARD)
            pictures[split] = [f"{container}/{clip.files[0]}" for clip in mine]
            frames = container / prefix if container.is_dir() else container
            sources |= {part.path: None, frames: None}
        features = clip_features(categories=categories(names), bboxes=table(np.float32, 4))
        return Plan(
            tuple(jobs),
            tuple(sources),
            features,
            metadata,
            pictures,
            notes=tuple(left_out.lines()),
        )

    def items(self, job: Job) -> Iterator[Clip]:
        yield from job.payload

    def example(self, item: Clip) -> dict[str, Any]:
        files = self._opened(item.container)
        annotations = [json.loads(zlib.decompress(text)) for text in item.annotations]
        where = f"{item.container}, video {item.name}"
        height, width = sizes_of(item.height, item.width, self.options.max_pixels, where)
        item = dataclasses.replace(item, height=height, width=width)
        for k, annotation in enumerate(annotations):
            if len(annotation["segmentations"]) != len(item.files):
                raise BadSample(
                    f"{where}: annotation {k} has {len(annotation['segmentations'])} masks, the "
                    f"video {len(item.files)} frames; expected equal numbers: the json is damaged, "
                    "download it again"
                )
            if item.categories[k] is None:
                raise BadSample(
                    f"{where}: annotation {k} has the category_id {annotation['category_id']!r}, "
                    "which the json does not list; add it to its categories"
                )
        if len(annotations) >= NO_SEGMENT:
            raise BadSample(
                f"{where} has {len(annotations)} annotations, expected at most {NO_SEGMENT - 1}"
            )
        example = clip_example(
            item.name,
            ((f"{files.path}: {file}", read(files, file)) for file in item.files),
            (_draw(item, annotations, t, where) for t in range(len(item.files))),
            self.options,
        )
        return {
            **example,
            "categories": list(item.categories),
            "bboxes": _boxes(item, annotations, where),
        }

    def _opened(self, path: Path) -> Files:
        if not hasattr(self, "_archives"):
            self._archives: dict[Path, Files] = {}
        return self._archives.setdefault(path, Files(path))

    def _is_held_out_of_train(self) -> bool:
        return self.name in HELD_OUT_OF_TRAIN

    def _held_out(self, train: _Annotations) -> set[str]:
        """The names of the videos of train that are validation."""
        last = self.options.get("holdout_last")
        if last is None:
            return {name for name in train.videos if is_held_out(name, HELD_OUT)}
        if not 0 < last < len(train.videos):
            raise UserError(
                f"--holdout_last is {last}, but {train.file} has {len(train.videos)} videos; "
                f"expected 1 to {len(train.videos) - 1}"
            )
        return set(train.videos[-last:])

    def _public_splits(self) -> tuple[str, ...]:
        return ("train",) if self._is_held_out_of_train() else tuple(PARTS)

    def _json_names(self, split: str) -> tuple[str, ...]:
        return (HQ_JSONS if self.name == "ytvis_hq" else JSONS)[split]

    def _part(self, source: Path, split: str, wanted: bool) -> _Annotations | None:
        """The annotations of a split; None if the split was not downloaded."""
        without = None
        for name in self._json_names(split):
            for path, member in _places(source, name):
                file = f"{path}: {member}" if member else str(path)
                try:
                    data = Files(path).read(member) if member else path.read_bytes()
                except OSError as error:
                    raise UserError(f"{path} cannot be read: {error.strerror}") from error
                found = _annotations(data, file, path, self.options.skip_bad)
                if found is not None:
                    return found
                without = without or file
        if without is None or not wanted:
            return None
        more = (
            "; the ground truth of 2022 is in validation_gt.zip on the same page: put it beside "
            "this file, or prepare --split=train"
            if split == "validation"
            else "; get the annotations from the same page"
        )
        raise UserError(
            f"{without} has no annotations, expected the ground truth in it or in one of "
            f"{', '.join(self._json_names(split))}{more}"
        )

    def _frames(
        self, source: Path, split: str, clips: list[Clip], asked_by: str
    ) -> tuple[Path, str]:
        """Find the folder or archive of the frames, and the prefix of their names in it."""
        if self.name == "ytvis_hq":
            root = Path(self.options.get("frames") or source)
            candidates = [root / name if name else root for name in HQ_FRAMES]
            option = "--frames"
        else:
            part = PARTS[split] if split in self._public_splits() else "train"
            candidates = [
                source / part,
                source / f"{part}.zip",
                source / f"{part}_all_frames",
                source / f"{part}_all_frames.zip",
                source,
            ]
            option = "--source"
        # Probe the first frames of several videos, since a single one might be missing.
        probes = [clip.files[0] for clip in clips[:50]]
        best, place = 0, None
        looked = []
        for path in candidates:
            looked.append(str(path))
            if not (path.is_dir() or path.is_file() and path.suffix == ".zip"):
                continue
            files = Files(path)
            for prefix in _prefixes(path):
                count = sum(prefix + probe in files for probe in probes)
                if count > best:
                    best, place = count, (path, prefix)
        if place is None:
            raise UserError(
                f"the frames that {asked_by} names, such as {probes[0]}, are missing; looked for "
                f"[.../]JPEGImages/{probes[0]} in {', '.join(looked)}: download them, and give "
                f"their folder as {option}"
            )
        return place


def _prefixes(path: Path) -> list[str]:
    names = ["", *(f"{name}/" for name in (*PARTS.values(), "train_all_frames", path.stem))]
    return list(dict.fromkeys([f"{name}JPEGImages/" for name in names] + names))


def _places(source: Path, name: str) -> Iterator[tuple[Path, str | None]]:
    """Yield the places of a JSON file of this name: on disk, or a member of an archive."""
    path = source / name
    if path.is_file():
        if path.suffix != ".zip":
            yield path, None
        else:
            for member in Files(path).names():
                if member.endswith(".json") and not member.startswith("__MACOSX/"):
                    yield path, member
    folder, _, file = name.rpartition("/")
    if folder and (archive := source / f"{folder}.zip").is_file():
        files = Files(archive)
        for member in (name, file):
            if member in files:
                yield archive, member


def _annotations(data: bytes, file: str, path: Path, skip_bad: bool) -> _Annotations | None:
    """Read clips in video order, each with its annotations in file order; None: no annotations.

    Annotations are parsed one at a time: hundreds of MB of JSON would be several GB as Python
    lists.
    """
    found: dict[str, list[Any]] = {"videos": [], "categories": []}
    of_video: dict[Any, list[_Track]] = {}
    keys = set()
    for key, value, text in entries(data, file):
        keys.add(key)
        if key in found and text:
            found[key].append(value)
        elif key == "annotations" and text:
            _check(value, ("video_id", "category_id"), key, file)
            of_video.setdefault(value["video_id"], []).append(_track(value, text, file))
    if not found.keys() <= keys:
        raise UserError(
            f"{file} has {', '.join(sorted(keys)) or 'nothing'}, expected videos, categories "
            "and annotations as in YouTube-VIS; give its own json"
        )
    if not of_video:
        return None
    names = category_names(found["categories"], file)
    try:
        places = {number: place for place, number in enumerate(sorted(names))}
    except TypeError as error:
        raise UserError(
            f"{file} has numbers and texts as category ids; expected one kind: number them anew"
        ) from error
    for video in found["videos"]:
        _check(video, ("id",), "videos", file)
        files = video.get("file_names")
        if not (isinstance(files, list) and files and all(isinstance(f, str) for f in files)):
            raise UserError(
                f"{file}: the video {video['id']} has the file_names {short(files)}, expected a "
                "list of names; download it again"
            )
    refuse_twice(
        (video["id"] for video in found["videos"]),
        file,
        "video ids",
        "number them anew where sets were joined, or download it again",
    )
    root = _root_of(found["videos"])
    clips, without_mask, videos = [], [], []
    for video in found["videos"]:
        tracks = of_video.pop(video["id"], [])
        refuse_twice(
            (track.id for track in tracks if track.id is not None),
            f"{file}: the video {video['id']}",
            "annotation ids",
            "remove one of each",
        )
        for track in tracks:
            if track.category_id not in places and not skip_bad:
                raise UserError(
                    f"{file}: an annotation of the video {video['id']} has the category_id "
                    f"{track.category_id!r}, which the file does not list; add it to its "
                    "categories, or skip such videos with --skip-bad"
                )
        clip = _clip(video, tracks, places, root)
        videos.append(clip.name)
        if any(track.is_seen for track in tracks):
            clips.append(clip)
        else:
            without_mask.append(clip.name)
    if of_video:
        raise UserError(
            f"{file} has annotations of {len(of_video)} videos that it does not list, such as id "
            f"{next(iter(of_video))}; download it again"
        )
    if not clips:
        raise UserError(
            f"{file} has annotations without a single mask, expected some in segmentations; "
            "download it again"
        )
    refuse_twice(
        (clip.name for clip in clips),
        file,
        "video names (folders of their frames)",
        "give each video a folder of its own",
    )
    ordered = [names[number] for number in places]
    return _Annotations(file, path, ordered, videos, clips, without_mask)


def _check(entry: Any, keys: Sequence[str], what: str, file: str) -> None:
    """Raise UserError if an entry is no object with these ids."""
    found = entry if isinstance(entry, dict) else {}
    if bad := [key for key in keys if not is_id(found.get(key))]:
        raise UserError(
            f"{file} differs from YouTube-VIS's json: one of its {what} has the {bad[0]} "
            f"{short(found.get(bad[0]))} ({short(entry)}), expected a number; download it again"
        )


def _track(annotation: dict[str, Any], text: str, file: str) -> _Track:
    masks = annotation.get("segmentations")
    if not isinstance(masks, list):
        raise UserError(
            f"{file}: an annotation of the video {annotation['video_id']} has the segmentations "
            f"{short(masks)}, expected a list with a mask for each frame; download it again"
        )
    return _Track(
        annotation["id"] if is_id(annotation.get("id")) else None,
        annotation["category_id"],
        any(rle is not None for rle in masks),
        zlib.compress(text.encode(), 1),
    )


def _root_of(videos: list[dict[str, Any]]) -> str:
    """The folder in which the folders of all videos are; "." in the official downloads."""
    above = {str(PurePosixPath(video["file_names"][0]).parent.parent) for video in videos}
    try:
        return os.path.commonpath(above) or "."
    except ValueError:  # no videos; some paths are absolute
        return "."


def _clip(video: dict[str, Any], tracks: list[_Track], places: dict[Any, int], root: str) -> Clip:
    files = tuple(video["file_names"])
    folder = str(PurePosixPath(files[0]).parent)
    name = str(video["id"]) if folder == "." else folder.removeprefix(f"{root}/")
    return Clip(
        name=printable(name),
        container=Path(),
        files=files,
        height=video.get("height"),
        width=video.get("width"),
        categories=tuple(places.get(track.category_id) for track in tracks),
        annotations=tuple(track.text for track in tracks),
    )


def _draw(clip: Clip, annotations: list[Any], t: int, where: str) -> np.ndarray:
    segmentation = np.zeros((clip.height, clip.width), np.uint8)
    for k, annotation in enumerate(annotations):
        if annotation["segmentations"][t] is not None:
            segmentation[_mask(clip, annotation, k, t, where)] = k + 1
    return segmentation


def _mask(clip: Clip, annotation: dict[str, Any], k: int, t: int, where: str) -> np.ndarray:
    """Decode one mask; the format allows polygons in place of run lengths."""
    shapes = annotation["segmentations"][t]
    draw = fill if isinstance(shapes, list) else decode
    return draw(shapes, (clip.height, clip.width), f"{where}, frame {t}, annotation {k}")


def _boxes(clip: Clip, annotations: list[Any], where: str) -> np.ndarray:
    """Boxes (objects, frames, 4): ymin, xmin, ymax, xmax in 0..1; from masks if not stored."""
    boxes = np.zeros((len(annotations), len(clip.files), 4), np.float32)
    scale = np.array([clip.height, clip.width] * 2)
    for k, annotation in enumerate(annotations):
        stored = annotation.get("bboxes") or [None] * len(clip.files)
        if not isinstance(stored, list) or len(stored) != len(clip.files):
            raise BadSample(
                f"{where}: annotation {k} has the bboxes {short(stored)}, expected a list with one "
                f"for each of the {len(clip.files)} frames; download the json again"
            )
        for t, rle in enumerate(annotation["segmentations"]):
            if rle is None:
                continue
            if stored[t]:
                told = f"{where}, frame {t}, annotation {k}"
                left, top, width, height = box_of(stored[t], told)
                boxes[k, t] = np.array([top, left, top + height, left + width]) / scale
            elif (mask := _mask(clip, annotation, k, t, where)).any():
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                corners = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
                boxes[k, t] = np.array(corners) / scale
    return boxes
