"""Your own data: a folder, zip or tar of images, videos, or subfolders with numbered frames.

    mydata/0001.jpg, mydata/cat.png ...                            stills, named after their files
    mydata/run.mp4, mydata/walk.gif, mydata/swim/frame_0001.jpg    clips, named after file or folder
    mydata/2024/IMG_01.jpg, mydata/2025/beach.jpg ...              stills, with --folders=pictures

Labels are gray or palette pictures of integers, 0 = background: `labels/cat.png` for stills and,
for clips, `labels/run/*.png`, one for each frame. Subfolders `train`, `validation` and `test` are
the splits, also below the labels. Without them, a tenth of the samples is held out for validation,
by a hash of their names: at least one, unless there is only one.

Links are followed. Preparation lists what it leaves out: hidden names, files with other endings,
broken links, links to a folder above them, empty folders, and labels without a sample. A byte of a
name that is no UTF-8 becomes `\\xe9` in the sample's name.

Pictures are taken as displayed, that is, turned as their EXIF says. Where that does not fit the
shape of the labels and the stored pixels do, these are taken. Videos are read as a player shows
them.
"""

import argparse
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.archives import ENDINGS, Files
from data.clips import PER_SHARD, clip_example, held_out_of, labelled_frame, read
from data.family import SPLITS, BadSample, Family, Job, Plan, shards_of
from data.features import NO_SEGMENT, clip_features, still_features
from data.pictures import displayed, labels, open_picture, png
from data.videos import video_frames
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, hidden, is_junk
from smoothsa_jax.inference.sources import IMAGES, VIDEOS, natural
from smoothsa_jax.inputs.media import UNKNOWN, Picture
from smoothsa_jax.text import printable

STILLS_PER_SHARD = 1000
FOLDERS = ("video", "pictures")
HELD_OUT = 0.1
# Names that other programs give to labels and splits.
LIKE_LABELS = ("labels", "label", "masks", "mask", "annotations", "segmentations")
LIKE_SPLITS = ("training", "val", "valid", "dev", "eval", "testing")
AS_STORED = (
    "taken as stored, not turned as the EXIF orientation says, because the labels have the shape "
    "of the stored pixels"
)
FIRST_FRAME = (
    "read as a single picture, the first of its frames or pages; for a clip, convert it to .gif or "
    ".mp4"
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
            "--holdout",
            type=float,
            help=f"part of the samples for validation, by name; default {HELD_OUT}, or none if "
            "there are sub-folders for splits; 0 keeps all for train",
        )
        parser.add_argument(
            "--folders",
            choices=FOLDERS,
            default=argparse.SUPPRESS,  # folders prepared without this option stay valid
            help="how to treat pictures in subfolders: as the frames of a video (the default), or "
            "each by itself",
        )
        parser.add_argument("--void", type=int, help="the label of pixels that are in no segment")

    def plan(self, splits: tuple[str, ...]) -> Plan:
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of a folder"
            )
        left_out, notes = LeftOut(), []
        files, root = _open(Path(self.source), "--source")
        names = [n.removeprefix(root) for n in _visible(files, left_out) if n.startswith(root)]
        label_files, label_names, label_root = self._label_files(files, root, names, left_out)
        names = self._without_labels(files, names, left_out)
        by_split = _splits(names, self.source, left_out)
        holdout = self._holdout(set(by_split))
        entries: dict[str, list[Entry]] = {}
        for split, mine in by_split.items():
            prefix = f"{split}/" if split else ""
            alone = self.options.get("folders") == "pictures"
            found = _entries(mine, self.source, prefix, left_out, alone)
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
        used = {name for entry in everything for name in entry.labels or ()}
        for name in sorted(label_names - {name.removeprefix(label_root) for name in used}):
            left_out.add("label pictures without a sample", label_root + name)
        for listed in {id(f): f for f in (files, label_files) if f is not None}.values():
            left_out.merge(listed.left_out)
        if not everything:
            told = "".join(f"; {line}" for line in left_out.lines())
            raise UserError(
                f"--source={self.source} has no pictures; looked for images ({', '.join(IMAGES)}), "
                f"videos ({', '.join(VIDEOS)}) and subfolders of numbered images{told}"
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
        }
        if holdout:
            both = entries.pop("train")
            held_out = held_out_of([entry.name for entry in both], holdout)
            entries["train"] = [entry for entry in both if entry.name not in held_out]
            entries["validation"] = [entry for entry in both if entry.name in held_out]
            metadata["held_out_of_train"] = sorted(held_out)
            notes.append(_told_of_holdout(len(held_out), len(both), holdout))
        elif set(by_split) != {""} and "validation" not in entries:
            notes.append(
                "there is no validation split: put samples for it into the sub-folder validation "
                "of --source, beside train"
            )
        metadata["labelled"] = sorted(
            s for s, e in entries.items() if e and e[0].labels is not None
        )
        notes += _doubts(by_split, files)
        jobs = []
        for split in splits:
            per_shard = STILLS_PER_SHARD if stills == {True} else PER_SHARD
            jobs += shards_of(split, entries.get(split, [])[: self.options.limit], per_shard)
        sources = [files.path]
        if label_files not in (None, files):
            sources.append(label_files.path)
        features = still_features() if stills == {True} else clip_features()
        return Plan(
            tuple(jobs),
            tuple(path.resolve() for path in sources),
            features,
            metadata,
            notes=(*left_out.lines(), *notes),
            settled={"holdout": holdout},
        )

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

    def _holdout(self, there: set[str]) -> float:
        """The part to hold out, given the sub-folders that are splits."""
        given = self.options.get("holdout")
        if given is None:
            return HELD_OUT if there == {""} else 0.0
        if not 0 <= given < 1:
            raise UserError(f"--holdout is {given}; expected a part from 0 up to 1, such as 0.1")
        if given and there != {""}:
            raise UserError(
                f"--holdout={given} and the sub-folders {', '.join(sorted(there))} both define "
                "the validation split; use one of them"
            )
        return given

    def _label_files(
        self, files: Files, root: str, names: list[str], left_out: LeftOut
    ) -> tuple[Files | None, set[str], str]:
        """The labels' folder or archive, the names in it, and their prefix; None: no labels."""
        if given := self.options.get("labels"):
            found, label_root = _open(Path(given), "--labels")
            inside = [name for name in _visible(found, left_out) if name.startswith(label_root)]
        elif any(name.startswith("labels/") for name in names):
            found, label_root = files, f"{root}labels/"
            inside = [root + name for name in names if name.startswith("labels/")]
        else:
            return None, set(), ""
        pictures = set()
        for name in inside:
            if name.lower().endswith(".png"):
                pictures.add(name.removeprefix(label_root))
            else:
                left_out.add("files of the labels that are not .png", name)
        if not pictures:
            raise UserError(
                f"{found.path}/{label_root} has no label pictures; expected .png files with the "
                "samples' names: leave --labels out, or remove the empty folder"
            )
        return found, pictures, label_root

    def _without_labels(self, files: Files, names: list[str], left_out: LeftOut) -> list[str]:
        """The names that are not below labels/, nor in the folder --labels."""
        given = self.options.get("labels")
        source, labels = (Path(os.path.realpath(p)) for p in (self.source, given or self.source))

        @functools.cache
        def is_of_labels(folder: PurePosixPath) -> bool:
            place = Path(os.path.realpath(files.path / folder))
            return labels == place or labels in place.parents

        looks = bool(given) and files.path.is_dir() and labels not in (source, *source.parents)
        kept = []
        for name in names:
            if looks and is_of_labels(PurePosixPath(name).parent):
                continue
            if not name.startswith("labels/"):
                kept.append(name)
            elif given:
                left_out.add("files in labels/, since --labels names another folder", name)
        return kept

    def _labels_of(self, entry: Entry, there: set[str], prefix: str) -> tuple[str, ...] | None:
        """The full names of a sample's label files; None if its whole split has no labels."""
        if not there:
            return None
        # Not the sample's name: that of the file may hold bytes which are no text.
        stem = str(PurePosixPath(entry.files[0]).with_suffix(""))
        if entry.kind == "still":
            wanted = [f"{stem}.png"]
        elif entry.kind == "frames":
            wanted = [str(PurePosixPath(file).with_suffix(".png")) for file in entry.files]
        else:
            wanted = [name for name in there if str(PurePosixPath(name).parent) == stem]
            wanted = sorted(wanted, key=natural) or [f"{stem}/*.png"]
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
            if picture.is_animated:
                self.remark(FIRST_FRAME, file)
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
        frames = video_frames(files, name, self.staging, self.options.max_pixels)
        for t, pixels in enumerate(frames):
            yield f"{where}, frame {t}", png(pixels)


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
    ending = next(end for end in ENDINGS if path.name.lower().endswith(end))
    stem = path.name[: -len(ending)]
    names = _visible(files, LeftOut())
    return files, f"{stem}/" if names and all(n.startswith(f"{stem}/") for n in names) else ""


def _visible(files: Files, left_out: LeftOut) -> list[str]:
    """The files that are neither hidden nor of the kind that systems put into every folder."""
    found, hidden_ones = [], {}
    for name in files.names():
        if is_junk(name):
            continue
        if top := hidden(name):
            hidden_ones[top] = None
        else:
            found.append(name)
    for top in hidden_ones:
        left_out.add("hidden names", top)
    return found


def _splits(names: list[str], source: str, left_out: LeftOut) -> dict[str, list[str]]:
    """Group names by split, without the split's prefix; under "" if there are no split folders."""
    there = [split for split in SPLITS if any(name.startswith(f"{split}/") for name in names)]
    if not there:
        return {"": names}
    outside = [name for name in names if name.split("/")[0] not in there]
    if pictures := [name for name in outside if _is_picture(name)]:
        raise UserError(
            f"--source={source} has {pictures[0]} beside the splits {', '.join(there)}; expected "
            f"all below one of {', '.join(SPLITS)}: move or rename it"
        )
    for name in outside:
        left_out.add_file(name)
    return {
        split: [n.removeprefix(f"{split}/") for n in names if n.startswith(f"{split}/")]
        for split in there
    }


def _told_of_holdout(count: int, total: int, part: float) -> str:
    if not count:
        return "nothing is held out for validation, since there is only one sample"
    return (
        f"{count} of {total} samples are held out for validation (--holdout={part}, by a hash of "
        "their names); --holdout=0 keeps all for train"
    )


def _doubts(by_split: dict[str, list[str]], files: Files) -> list[str]:
    """Lines on names that may mean something else."""
    found = []
    for split, mine in by_split.items():
        for folder in sorted({name.split("/")[0] for name in mine if "/" in name}):
            told = f"the folder {printable(f'{split}/{folder}'.lstrip('/'))} is read as clips, not"
            if not split and _is_like_a_split(folder):
                found.append(
                    f"{told} as a split; if it is a split, rename it to one of {', '.join(SPLITS)}"
                )
            elif folder.lower() in LIKE_LABELS:
                found.append(
                    f"{told} as labels; labels/ of --source holds labels, or another folder with "
                    "--labels"
                )
    names = [name for mine in by_split.values() for name in mine if "\\" in name]
    if names and files.path.is_dir():
        found.append(
            f"{len(names)} names have a backslash, such as {printable(names[0])}, and are read as "
            "files; if it divides folders, give the zip itself, or unpack it with another program"
        )
    return found


def _is_like_a_split(folder: str) -> bool:
    return folder.lower() in (*SPLITS, *LIKE_SPLITS)


def _is_picture(name: str) -> bool:
    return name.lower().endswith((*IMAGES, *VIDEOS))


def _entries(
    names: list[str], source: str, prefix: str, left_out: LeftOut, alone: bool
) -> list[Entry]:
    """The samples, in natural order of their names.

    Args:
        names: file names, relative to the split.
        source: the source, for error messages.
        prefix: that of the names in the source.
        left_out: collects what is left out.
        alone: whether pictures in subfolders are stills, and not the frames of clips.
    """
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
            add(Entry(printable(str(path.with_suffix(""))), "video", (name,), None))
        elif name.lower().endswith(IMAGES):
            if "/" in name and not alone:
                folders.setdefault(str(path.parent), []).append(name)
            else:
                add(Entry(printable(str(path.with_suffix(""))), "still", (name,), None))
        else:
            left_out.add_file(prefix + name)
    for folder, frames in folders.items():
        for name in frames:
            if not PurePosixPath(name).stem[-1:].isdecimal():
                is_split = not prefix and _is_like_a_split(folder.split("/")[0])
                raise UserError(
                    f"--source={source} has {name}, expected a number at its end: a sub-folder is "
                    "a clip of numbered frames; for pictures, give --folders=pictures"
                    + f", or rename a split to one of {', '.join(SPLITS)}"
                    * is_split
                )
        stems = [PurePosixPath(name).stem for name in frames]
        if len(set(stems)) < len(stems):
            twice = next(stem for stem in stems if stems.count(stem) > 1)
            raise UserError(
                f"--source={source} has several files {folder}/{twice}.*; expected one for each "
                "frame: remove the others"
            )
        add(Entry(printable(folder), "frames", tuple(sorted(frames, key=natural)), None))
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
