"""Your own data: a folder, zip or tar of images, videos, or subfolders with numbered frames.

    mydata/0001.jpg, mydata/cat.png ...                            stills, named after their files
    mydata/run.mp4, mydata/walk.gif, mydata/swim/frame_0001.jpg    clips, named after file or folder

Labels are gray or palette pictures of integers, 0 = background: `labels/cat.png` for stills and,
for clips, `labels/run/*.png`, one for each frame. Subfolders `train`, `validation` and `test` are
the splits, also below the labels.

Pictures are taken as displayed, that is, turned as their EXIF says. Where that does not fit the
shape of the labels and the stored pixels do, these are taken. Videos are read as a player shows
them.
"""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.archives import ENDINGS, Files
from data.clips import PER_SHARD, clip_example, is_held_out, labelled_frame, read
from data.family import SPLITS, BadSample, Family, Job, Plan, shards_of
from data.features import NO_SEGMENT, clip_features, still_features
from data.pictures import displayed, labels, open_picture, png
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.sources import IMAGES, VIDEOS, natural
from smoothsa_jax.inference.videos import UnreadableVideo, read_video
from smoothsa_jax.inputs.media import UNKNOWN, Picture

STILLS_PER_SHARD = 1000
AS_STORED = (
    "taken as stored, not turned as the EXIF orientation says, because the labels have the shape "
    "of the stored pixels"
)
AS_DISPLAYED = (
    "turned as the EXIF orientation says; the labels' shape does not tell whether that is right: "
    "look with python -m data.show, and if labels and picture differ, remove the orientation from "
    "the file"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A sample.

    Attributes:
        kind: "still", "frames" or "video".
        files: one file, or the frames in order; full names within the source.
        labels: the label pictures in order, full names within the labels' folder; None: no labels.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    labels: tuple[str, ...] | None


class Folder(Family):
    names = ("folder",)
    summary = (
        "any folder, zip or tar of images (stills), or of videos and subfolders of numbered "
        "frames (clips), with label PNGs of the same names in its subfolder labels or in --labels"
    )

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        parser.add_argument("--labels", help="folder of the label PNGs; default SOURCE/labels")
        parser.add_argument(
            "--holdout", type=float, default=0.0, help="part of the samples for validation, by name"
        )
        parser.add_argument("--void", type=int, help="the label of pixels that are in no segment")

    def plan(self, splits: tuple[str, ...]) -> Plan:
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of a folder"
            )
        holdout = self.options.get("holdout") or 0.0
        if not 0 <= holdout < 1:
            raise UserError(f"--holdout is {holdout}; expected a part from 0 up to 1, such as 0.1")
        files, root = _open(Path(self.source), "--source")
        names = [name.removeprefix(root) for name in _visible(files) if name.startswith(root)]
        label_files, label_names, label_root = self._label_files(files, root, names)
        names = [name for name in names if not name.startswith(self._label_folders())]
        by_split = _splits(names, self.source)
        there = set(by_split)
        if holdout and there != {""}:
            raise UserError(
                f"--holdout={holdout} and the sub-folders {', '.join(sorted(there))} both define "
                "the validation split; use one of them"
            )
        entries: dict[str, list[Entry]] = {}
        for split, mine in by_split.items():
            prefix = f"{split}/" if split else ""
            found = _entries(mine, self.source)
            if not found:
                continue
            there_too = {n.removeprefix(prefix) for n in label_names if n.startswith(prefix)}
            entries[split or "train"] = [
                dataclasses.replace(
                    entry,
                    files=tuple(root + prefix + file for file in entry.files),
                    labels=self._labels_of(entry, there_too, label_root + prefix),
                )
                for entry in found
            ]
        everything = [entry for found in entries.values() for entry in found]
        if not everything:
            raise UserError(
                f"--source={self.source} has no pictures; looked for images ({', '.join(IMAGES)}), "
                f"videos ({', '.join(VIDEOS)}) and subfolders of numbered images"
            )
        stills = {entry.kind == "still" for entry in everything}
        if len(stills) > 1:
            still = next(entry for entry in everything if entry.kind == "still")
            clip = next(entry for entry in everything if entry.kind != "still")
            raise UserError(
                f"--source={self.source} has stills ({still.files[0]}) and clips ({clip.name}); "
                "expected one kind: put them into two folders, and prepare each"
            )
        metadata: dict[str, Any] = {
            "kind": "stills" if stills == {True} else "clips",
            "no_segment": NO_SEGMENT,
            "labelled": sorted(s for s, found in entries.items() if found[0].labels is not None),
        }
        if holdout:
            both = entries.pop("train")
            entries["train"] = [e for e in both if not is_held_out(e.name, holdout)]
            entries["validation"] = [e for e in both if is_held_out(e.name, holdout)]
            metadata["held_out_of_train"] = sorted(e.name for e in entries["validation"])
        jobs = []
        for split in splits:
            per_shard = STILLS_PER_SHARD if stills == {True} else PER_SHARD
            jobs += shards_of(split, entries.get(split, [])[: self.options.limit], per_shard)
        sources = [files.path]
        if label_files not in (None, files):
            sources.append(label_files.path)
        features = still_features() if stills == {True} else clip_features()
        return Plan(tuple(jobs), tuple(path.resolve() for path in sources), features, metadata)

    def items(self, job: Job) -> Iterator[tuple[Entry, Files, Files]]:
        files, _ = _open(Path(self.source), "--source")
        given = self.options.get("labels")
        label_files = _open(Path(given), "--labels")[0] if given else files
        for entry in job.payload:
            yield entry, files, label_files

    def example(self, item: tuple[Entry, Files, Files]) -> dict[str, Any]:
        entry, files, label_files = item
        maps = None
        if entry.labels is not None:
            maps = (self._labels(label_files, name) for name in entry.labels)
        if entry.kind == "still":
            ((where, picture),) = self._pictures(entry, files, label_files)
            segmentation = None if maps is None else next(maps)
            image, segmentation, height, width = labelled_frame(
                picture, segmentation, where, self.options
            )
            metadata = {"name": entry.name, "height": height, "width": width}
            return {"image": image, "segmentation": segmentation, "metadata": metadata}
        if entry.kind == "frames":
            frames = self._pictures(entry, files, label_files)
        else:
            frames = self._video_frames(files, entry.files[0])
        if maps is not None:
            frames = _as_many(frames, entry, label_files.path)
        return clip_example(entry.name, frames, maps, self.options)

    def _label_files(
        self, files: Files, root: str, names: list[str]
    ) -> tuple[Files | None, set[str], str]:
        """The labels' folder or archive, the names in it, and their prefix; None: no labels."""
        if given := self.options.get("labels"):
            found, label_root = _open(Path(given), "--labels")
        elif any(name.startswith("labels/") for name in names):
            found, label_root = files, f"{root}labels/"
        else:
            return None, set(), ""
        inside = {n.removeprefix(label_root) for n in _visible(found) if n.startswith(label_root)}
        inside = {name for name in inside if name.lower().endswith(".png")}
        if not inside:
            raise UserError(
                f"{found.path}/{label_root} has no label pictures; expected .png files with the "
                "samples' names: leave --labels out, or remove the empty folder"
            )
        return found, inside, label_root

    def _label_folders(self) -> tuple[str, ...]:
        """The prefixes of label files below the source; these files are not samples."""
        found = ["labels/"]
        if given := self.options.get("labels"):
            path, source = Path(given).resolve(), Path(self.source).resolve()
            if source in path.parents:
                found.append(f"{path.relative_to(source).as_posix()}/")
        return tuple(found)

    def _labels_of(self, entry: Entry, there: set[str], prefix: str) -> tuple[str, ...] | None:
        """The full names of a sample's label files; None if its whole split has no labels."""
        if not there:
            return None
        if entry.kind == "still":
            wanted = [f"{entry.name}.png"]
        elif entry.kind == "frames":
            wanted = [f"{entry.name}/{PurePosixPath(file).stem}.png" for file in entry.files]
        else:
            wanted = [name for name in there if str(PurePosixPath(name).parent) == entry.name]
            wanted = sorted(wanted, key=natural) or [f"{entry.name}/*.png"]
        missing = [name for name in wanted if name not in there]
        if missing and not self.options.skip_bad:
            raise UserError(
                f"the labels have no {prefix}{missing[0]} for {entry.files[0]}; expected one for "
                "each picture of a split, or none: add it, remove the picture, or skip such "
                "samples with --skip-bad"
            )
        return tuple(prefix + name for name in wanted)

    def _labels(self, files: Files, name: str) -> np.ndarray:
        where = f"{files.path}/{name}"
        values = labels(read(files, name), where, self.options).astype(np.int64)
        void = self.options.get("void")
        in_no_segment = np.zeros(values.shape, bool) if void is None else values == void
        values = np.where(in_no_segment, 0, values)
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0 or high >= NO_SEGMENT:
            raise BadSample(
                f"{where} has label {low if low < 0 else high}, expected 0 to {NO_SEGMENT - 1}: "
                "number the objects 1, 2, ..., or give the value of pixels in no segment with "
                "--void"
            )
        return np.where(in_no_segment, NO_SEGMENT, values).astype(np.uint8)

    def _pictures(
        self, entry: Entry, files: Files, label_files: Files
    ) -> Iterator[tuple[str, bytes | Picture]]:
        """The picture files of a still or clip, turned as displayed or to fit their labels."""
        for file, label in zip(entry.files, entry.labels or itertools.repeat(None), strict=False):
            where = f"{files.path}/{file}"
            picture = open_picture(read(files, file), where, self.options)
            if picture.orientation in (1, UNKNOWN):
                yield where, picture
                continue
            if label is not None:
                shape = self._labels(label_files, label).shape
                if shape == picture.displayed_shape == picture.shape:
                    self.remark(AS_DISPLAYED, file)
                elif shape == picture.shape:
                    self.remark(AS_STORED, file)
                    yield where, picture
                    continue
            yield where, displayed(picture, where)

    def _video_frames(self, files: Files, name: str) -> Iterator[tuple[str, bytes]]:
        where = f"{files.path}/{name}"
        for t, pixels in enumerate(self._decoded(files, name, where)):
            yield f"{where}, frame {t}", png(pixels)

    def _decoded(self, files: Files, name: str, where: str) -> Iterator[np.ndarray]:
        with contextlib.ExitStack() as stack:
            path = files.path / name
            if not files.path.is_dir():
                # FFmpeg reads files only. The disk of the prepared folder has space for one.
                if self.staging is not None:
                    self.staging.mkdir(parents=True, exist_ok=True)
                folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.staging))
                path = Path(folder) / f"video{PurePosixPath(name).suffix}"
                path.write_bytes(read(files, name))
            try:
                video = stack.enter_context(read_video(path, max_pixels=self.options.max_pixels))
                _check_size(video.height, video.width, where, self.options.max_pixels)
                for pixels in video:
                    _check_size(*pixels.shape[:2], where, self.options.max_pixels)
                    yield pixels
            except UnreadableVideo as error:
                raise BadSample(
                    f"{where} is not a readable video: {error.reason}; encode it again, for "
                    "example as H.264 in mp4, or skip such samples with --skip-bad"
                ) from error
        if video.missing:
            raise BadSample(
                f"{where}: {video.missing}; expected a complete video: copy it again, encode it "
                "again, or skip such samples with --skip-bad"
            )


def _open(path: Path, option: str) -> tuple[Files, str]:
    """Open a folder or archive; also return the prefix of all names, an archive's top folder."""
    if not path.exists():
        raise UserError(f"{option}={path} does not exist; give a folder, or a .zip or .tar")
    files = Files(path)
    if files.is_sequential:
        raise UserError(
            f"{option}={path} is a compressed tar, whose files cannot be read one by one; unpack "
            "it, or make a zip of it"
        )
    if path.is_dir():
        return files, ""
    stem = path.name.removesuffix(next(end for end in ENDINGS if path.name.endswith(end)))
    names = _visible(files)
    return files, f"{stem}/" if names and all(n.startswith(f"{stem}/") for n in names) else ""


def _visible(files: Files) -> list[str]:
    return [
        name
        for name in files.names()
        if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    ]


def _splits(names: list[str], source: str) -> dict[str, list[str]]:
    """Group names by split, without the split's prefix; under "" if there are no split folders."""
    there = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in names)]
    if not there:
        return {"": names}
    outside = [n for n in names if n.split("/")[0] not in there and _is_picture(n)]
    if outside:
        raise UserError(
            f"--source={source} has {outside[0]} beside the splits {', '.join(there)}; expected "
            f"all below one of {', '.join(SPLITS)}: move or rename it"
        )
    return {
        split: [n.removeprefix(f"{split}/") for n in names if n.startswith(f"{split}/")]
        for split in there
    }


def _is_picture(name: str) -> bool:
    return name.lower().endswith((*IMAGES, *VIDEOS))


def _entries(names: list[str], source: str) -> list[Entry]:
    """The samples, in natural order of their names."""
    entries: dict[str, Entry] = {}
    folders: dict[str, list[str]] = {}

    def add(entry: Entry) -> None:
        if other := entries.get(entry.name):
            raise UserError(
                f"--source={source} has {other.files[0]} and {entry.files[0]}, both named "
                f"{entry.name}; expected one name for each sample: rename one"
            )
        entries[entry.name] = entry

    for name in names:
        path = PurePosixPath(name)
        if name.lower().endswith(VIDEOS):
            add(Entry(str(path.with_suffix("")), "video", (name,), None))
        elif name.lower().endswith(IMAGES):
            if "/" in name:
                folders.setdefault(str(path.parent), []).append(name)
            else:
                add(Entry(path.stem, "still", (name,), None))
    for folder, frames in folders.items():
        for name in frames:
            if not PurePosixPath(name).stem[-1:].isdecimal():
                raise UserError(
                    f"--source={source} has {name}, expected a number at its end: a sub-folder is "
                    "a clip of numbered frames; put stills into the folder itself"
                )
        stems = [PurePosixPath(name).stem for name in frames]
        if len(set(stems)) < len(stems):
            twice = next(stem for stem in stems if stems.count(stem) > 1)
            raise UserError(
                f"--source={source} has several files {folder}/{twice}.*; expected one for each "
                "frame: remove the others"
            )
        add(Entry(folder, "frames", tuple(sorted(frames, key=natural)), None))
    return [entries[name] for name in sorted(entries, key=natural)]


def _as_many(
    frames: Iterator[tuple[str, bytes | Picture]], entry: Entry, path: Path
) -> Iterator[tuple[str, bytes | Picture]]:
    """Yield the same frames; raise BadSample if there are more or fewer frames than labels."""
    count, found = len(entry.labels), 0
    for found, frame in enumerate(frames, 1):
        if found > count:
            break
        yield frame
    if found != count:
        there = f"more than {count}" if found > count else str(found)
        raise BadSample(
            f"{entry.files[0]} has {there} frames, {path} has {count} labels for it "
            f"({entry.labels[0]} ...); expected one for each frame"
        )


def _check_size(height: int, width: int, where: str, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadSample(
            f"{where} has {width}x{height} pixels, more than {max_pixels}; raise --max_pixels if "
            "you want this video"
        )
