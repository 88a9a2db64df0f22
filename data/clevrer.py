"""CLEVRER: videos of colliding shapes, questions about them, annotations, and masks of proposals.

    videos/{train,val,test}/video_00000-01000/video_00000.mp4, or video_train.zip, ...
    questions/{train,val or validation,test}.json
    annotations/{train,val}/annotation_00000-01000/annotation_00000.json, or annotation_train.zip
    derender_proposals/proposal_00000.json, or derender_proposals.zip

Only the videos are needed. Their frames are resized from 480x320 to 128x128 pixels once, without
keeping the aspect and without antialiasing, as in SlotFormer's program, and all frames are kept.

* Labels are the masks that the authors' detector proposed, not truth: `labelled` in the manifest
  names the splits that have them. Where two overlap, the first one counts. Objects of one color,
  material and shape in several frames are one segment, since no video has two such objects; where
  proposals do not say these, segments are numbered frame by frame.
* `in_view` (objects, 128), `colors`, `materials`, `shapes` and `collisions` are of the annotation,
  whose objects are not those of the labels. Splits without annotations, such as test, have none.
* `entries` in the manifest are the frames at which an object enters the view, of each video: it is
  there, and was not in the frame before. null: there is no annotation.
* Three videos are damaged in the public files and have 115, 104 and 114 readable frames, which are
  kept. The annotation of the last one is damaged too, and left out.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.archives import Files
from data.clips import PER_SHARD, clip_example, read
from data.family import BadSample, Family, Job, Plan, shards_of
from data.features import NO_SEGMENT, clip_features, column
from data.pictures import png
from data.rle import decode
from data.videos import video_frames
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, is_junk
from smoothsa_jax.inputs.clevrer_questions import file_of, read_questions
from smoothsa_jax.inputs.manifest import ENTRIES
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels
from smoothsa_jax.text import short

SIZE = 128  # pixels of a stored frame, unless --size says otherwise
NUM_FRAMES = 128
VIDEOS = {"train": (0, 10_000), "validation": (10_000, 15_000), "test": (15_000, 20_000)}
PARTS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
BROKEN = (7648, 9777, 10800)
BROKEN_ANNOTATION = 10800
VIDEO = re.compile(r"video_(\d{5})\.mp4")
ANNOTATION = re.compile(r"annotation_(\d{5})\.json")
PROPOSALS = re.compile(r"proposal_(\d{5})\.json")
COLORS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
MATERIALS = ("metal", "rubber")
SHAPES = ("cube", "sphere", "cylinder")
PROPERTIES = {"color": COLORS, "material": MATERIALS, "shape": SHAPES}
FEWER = f"damaged in the public files, and kept with fewer than {NUM_FRAMES} frames"
UNKNOWN = {"object_property": (), "motion_trajectory": (), "collision": ()}
NO_ANNOTATION = "its annotation is damaged in the public files, and left out"


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video, and what belongs to it; each file is a folder or archive and a name in it."""

    number: int
    video: tuple[Path, str]
    annotation: tuple[Path, str] | None
    proposals: tuple[Path, str] | None

    @property
    def name(self) -> str:
        return f"video_{self.number:05d}"


class Clevrer(Family):
    names = ("clevrer",)
    summary = (
        "a folder with videos/ (or video_train.zip, ...) and, as far as wanted, questions/, "
        "annotations/ and derender_proposals/"
    )
    lists_names = True

    def plan(self, splits: tuple[str, ...]) -> Plan:
        source = Path(self.source)
        if not source.is_dir():
            raise UserError(
                f"--source={source} is not a folder; give the one that holds what was downloaded"
            )
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of CLEVRER; all are "
                "kept: leave --keep out"
            )
        left_out, notes = LeftOut(), []
        proposals, places = self._numbered(("derender_proposals",), PROPOSALS, left_out)
        jobs, pictures, beside, looked = [], {}, {}, []
        sources = set(places)
        annotated, labelled = [], []
        for split in splits:
            videos, of_videos = self._numbered(_places("video", split), VIDEO, left_out)
            looked += _places("video", split)
            if not videos:
                continue
            annotations, mine = self._numbered(_places("annotation", split), ANNOTATION, left_out)
            sources |= {*mine, *of_videos}
            self._check_range(videos, split)
            first, end = VIDEOS[split]
            annotated += [split] if annotations else []
            labelled += [split] if any(first <= k < end for k in proposals) else []
            numbers = sorted(videos)[: self.options.limit]
            clips = [
                Clip(
                    number,
                    videos[number],
                    self._of(number, annotations, split, "annotation"),
                    self._of(number, proposals, split, "proposals") if split in labelled else None,
                )
                for number in numbers
            ]
            jobs += shards_of(split, clips, PER_SHARD)
            pictures[split] = [f"{path}: {file}" for path, file in (c.video for c in clips)]
            if len(videos) != end - first:
                notes.append(f"{split} has {len(videos)} of its {end - first} videos")
            if questions := self._questions(split, numbers, videos, notes):
                path, beside[file_of(split)] = questions
                sources.add(path)
            for what, there in (("annotations", annotations), ("proposals", split in labelled)):
                if not there and not (split == "test" and what == "annotations"):
                    notes.append(f"{split} has no {what}")
        if not jobs:
            raise UserError(
                f"--source={source} holds no videos of CLEVRER; looked for video_NNNNN.mp4 in "
                f"{', '.join(looked)}, each a folder or a zip: download them"
            )
        return Plan(
            jobs=tuple(jobs),
            sources=tuple(sorted(sources)),
            features=clip_features(
                in_view=column(np.int32, NUM_FRAMES),
                colors=column(np.int32),
                materials=column(np.int32),
                shapes=column(np.int32),
                collisions={"frame": column(np.int32), "objects": column(np.int32, 2)},
            ),
            metadata={
                "kind": "clips",
                "no_segment": NO_SEGMENT,
                "labelled": labelled,
                "labels": "proposals of the authors' detector, not truth",
                "annotated": annotated,
                **{f"{key}s": list(values) for key, values in PROPERTIES.items()},
            },
            pictures=pictures,
            notes=(*left_out.lines(), *notes),
            beside=beside,
        )

    def _numbered(
        self, places: tuple[str, ...], pattern: re.Pattern, left_out: LeftOut
    ) -> tuple[dict[int, tuple[Path, str]], list[Path]]:
        """Numbered files of the first of several places below --source that has some.

        Returns:
            number -> the folder or archive, and the file's name in it; and these places.
        """
        for place in places:
            for path in (Path(self.source) / place, Path(self.source) / f"{place}.zip"):
                if not path.is_dir() and not path.is_file():
                    continue
                files, found = Files(path), {}
                for name in files.names():
                    match = pattern.fullmatch(PurePosixPath(name).name)
                    if is_junk(name):
                        continue
                    if not match:
                        left_out.add_file(f"{place}/{name}")
                    elif (number := int(match[1])) in found:
                        raise UserError(
                            f"{path} has {found[number][1]} and {name}; expected each number "
                            "once: remove one"
                        )
                    else:
                        found[number] = (path, name)
                left_out.merge(files.left_out)
                if found:
                    return found, [path]
        return {}, []

    def _check_range(self, videos: dict[int, tuple[Path, str]], split: str) -> None:
        first, end = VIDEOS[split]
        for number, (path, name) in videos.items():
            if not first <= number < end:
                raise UserError(
                    f"{path} has {name}, but the videos of {split} are {first:05d} to "
                    f"{end - 1:05d}; move it to the split that it belongs to"
                )

    def _of(
        self, number: int, files: dict[int, tuple[Path, str]], split: str, what: str
    ) -> tuple[Path, str] | None:
        """The file of a video among those of its split, all of which have one."""
        if not files or number in files:
            return files.get(number)
        if number == BROKEN_ANNOTATION and what == "annotation":
            return None
        if self.options.skip_bad:
            return next(iter(files.values()))[0], f"{what} of video_{number:05d}"  # not there
        raise UserError(
            f"--source={self.source} has no {what} of video_{number:05d}, but of other videos of "
            f"{split}; download them again, or skip such videos with --skip-bad"
        )

    def _questions(
        self, split: str, numbers: list[int], videos: dict[int, tuple[Path, str]], notes: list[str]
    ) -> tuple[Path, bytes] | None:
        """The file of a split's questions, and what is stored of it."""
        names = [f"{folder}{part}.json" for folder in ("questions/", "") for part in PARTS[split]]
        path = next((p for name in names if (p := Path(self.source) / name).is_file()), None)
        if path is None:
            notes.append(f"{split} has no questions; looked for {', '.join(names)}")
            return None
        data = path.read_bytes()
        questions, is_known = read_questions(data, str(path))
        if not is_known and split != "test":
            raise UserError(
                f"{path} has no answers, which those of {split} have; download it again"
            )
        there = {f"video_{number:05d}" for number in videos}
        lacking = sorted({question.video for question in questions} - there)
        if lacking and not self.options.skip_bad:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise UserError(
                f"--source={self.source} has no {', '.join(lacking[:3])}{more}, named by {path}; "
                "download the videos again, or skip such questions with --skip-bad"
            )
        if lacking:
            notes.append(
                f"left out: questions about videos of {split} that are not there ({len(lacking)})"
            )
        kept = {f"video_{number:05d}" for number in numbers}
        records = [
            {
                "scene_index": record["scene_index"],
                "video_filename": record["video_filename"],
                "questions": [_without_programs(entry) for entry in record["questions"]],
            }
            for record in json.loads(data)
            if Path(record["video_filename"]).stem in kept
        ]
        if not records:
            notes.append(f"{path} has no questions about the videos of {split}")
            return None
        lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
        return path, f"[{lines}]\n".encode()

    def items(self, job: Job) -> Iterator[Clip]:
        yield from job.payload

    def example(self, item: Clip) -> dict[str, Any]:
        path, file = item.video
        is_broken = item.number in BROKEN
        size = self.options.size or SIZE
        frames = [
            png(resize_pixels(pixels, (size, size), "plain_bilinear"))
            for pixels in video_frames(
                self._opened(path), file, self.staging, self.options.max_pixels, is_broken
            )
        ]
        if is_broken and len(frames) < NUM_FRAMES:
            self.remark(FEWER, file)
        labels = None
        if item.proposals is not None:
            where = f"{item.proposals[0]}/{item.proposals[1]}"
            labels = _segments(self._json(item.proposals), len(frames), size, where)
        clip = clip_example(
            item.name,
            ((f"{path}/{file}, frame {t}", frame) for t, frame in enumerate(frames)),
            labels,
            dataclasses.replace(self.options, size=None),  # they have that size
        )
        return {**clip, **self._annotation(item, len(frames))}

    def facts(self, example: Mapping[str, Any]) -> dict[str, Any]:
        in_view = example["in_view"]
        if not len(in_view):
            return {ENTRIES: None}
        entered = (np.diff(in_view, axis=1) > 0).any(axis=0)
        return {ENTRIES: (np.flatnonzero(entered) + 1).tolist()}

    def _annotation(self, item: Clip, num_frames: int) -> dict[str, Any]:
        if item.annotation is None:
            return _annotated(UNKNOWN, 0, "")
        where = f"{item.annotation[0]}/{item.annotation[1]}"
        try:
            return _annotated(self._json(item.annotation), num_frames, where)
        except BadSample:
            if item.number != BROKEN_ANNOTATION:
                raise
            self.remark(NO_ANNOTATION, item.annotation[1])
            return _annotated(UNKNOWN, 0, where)

    def _json(self, place: tuple[Path, str]) -> Any:
        data = read(self._opened(place[0]), place[1])
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadSample(
                f"{place[0]}/{place[1]} is not valid json ({error}); download it again, or skip "
                "such videos with --skip-bad"
            ) from error

    def _opened(self, path: Path) -> Files:
        if not hasattr(self, "_archives"):
            self._archives: dict[Path, Files] = {}
        return self._archives.setdefault(path, Files(path))


def _places(what: str, split: str) -> tuple[str, ...]:
    """Where the files of a split may lie below --source, best first."""
    parts = PARTS[split]
    return tuple([f"{what}s/{part}" for part in parts] + [f"{what}_{part}" for part in parts])


def _without_programs(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key != "program"}
    if "choices" in kept:
        kept["choices"] = [_without_programs(choice) for choice in kept["choices"]]
    return kept


def _annotated(values: Any, num_frames: int, where: str) -> dict[str, Any]:
    """What is stored of an annotation.

    Raises:
        BadSample: the annotation has another form.
    """
    try:
        properties, trajectory = values["object_property"], values["motion_trajectory"]
        collisions = values["collision"]
        objects = {entry["object_id"]: k for k, entry in enumerate(properties)}
        in_view = np.zeros((len(objects), NUM_FRAMES), np.int32)
        for t, entry in enumerate(trajectory):
            for one in entry["objects"]:
                in_view[objects[one["object_id"]], t] = bool(one["inside_camera_view"])
        hits = [[objects[k] for k in entry["object_ids"]] for entry in collisions]
        found = {
            f"{key}s": np.array([names.index(entry[key]) for entry in properties], np.int32)
            for key, names in PROPERTIES.items()
        }
        frames = np.array([entry["frame_id"] for entry in collisions], np.int32)
        pairs = np.array(hits, np.int32).reshape(len(hits), 2)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadSample(
            f"{where} is not an annotation of CLEVRER ({type(error).__name__}: {error}); download "
            "it again, or skip such videos with --skip-bad"
        ) from error
    _check_length(len(trajectory), num_frames, where)
    return {"in_view": in_view, **found, "collisions": {"frame": frames, "objects": pairs}}


def _segments(proposals: Any, num_frames: int, size: int, where: str) -> Iterator[np.ndarray]:
    """The label map (size,size) uint8 of each frame."""
    try:
        frames = [list(entry["objects"]) for entry in proposals["frames"]]
        kinds = [[tuple(one.get(key) for key in PROPERTIES) for one in frame] for frame in frames]
        hash(tuple(map(tuple, kinds)))  # raises TypeError for lists in place of names
        masks = [[one["mask"] for one in frame] for frame in frames]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadSample(
            f"{where} is not a file of CLEVRER's proposals ({type(error).__name__}: {error}); "
            "download it again, or skip such videos with --skip-bad"
        ) from error
    _check_length(len(frames), num_frames, where)
    numbers: dict[Any, int] = {}
    for t in range(num_frames):
        labels, seen = None, []
        for k, (kind, rle) in enumerate(zip(kinds[t], masks[t], strict=True)):
            told = f"{where}, frame {t}, object {k}"
            shape = _shape(rle, told)
            if labels is None:
                labels = np.zeros(shape, np.uint8)
            seen.append(kind)
            # The second of a kind in one frame is a segment of its own.
            key = k if None in kind else (kind, seen.count(kind))
            label = numbers.setdefault(key, len(numbers) + 1)
            if label >= NO_SEGMENT:
                raise BadSample(f"{told} is segment {label}, expected at most {NO_SEGMENT - 1}")
            mask = decode(rle, labels.shape, told)
            labels[mask & (labels == 0)] = label
        yield resize_labels(np.zeros((1, 1), np.uint8) if labels is None else labels, (size, size))


def _check_length(count: int, num_frames: int, where: str) -> None:
    if count < num_frames:
        raise BadSample(
            f"{where} has {count} frames, its video {num_frames}; download it again, or skip such "
            "videos with --skip-bad"
        )


def _shape(rle: Any, where: str) -> tuple[int, int]:
    """Height and width of a mask, in pixels."""
    size = rle.get("size") if isinstance(rle, dict) else None
    if not (
        isinstance(size, list)
        and len(size) == 2
        and all(isinstance(x, int) and x > 0 for x in size)
    ):
        raise BadSample(
            f"{where}: the RLE has size {short(size)}, expected a height and a width; download the "
            "proposals again"
        )
    return size[0], size[1]
