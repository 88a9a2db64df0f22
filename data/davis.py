"""DAVIS 2016 and 2017 at 480p: JPEG frames and label PNGs, from a zip or its folder DAVIS."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.archives import Files
from data.clips import PER_SHARD, clip_example, read, require
from data.family import BadSample, Family, Job, Plan, refuse_twice, shards_of
from data.features import NO_SEGMENT, clip_features
from data.pictures import labels
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, is_junk
from smoothsa_jax.inference.sources import natural
from smoothsa_jax.text import printable, text_of

SPLITS = {"train": "train", "validation": "val"}
FRAMES = "JPEGImages/480p"
# 2017 has a second, separately downloaded annotation of everything that moves.
LABELS = ("Annotations/480p", "Annotations_unsupervised/480p")
# 2016's own lists contain pairs of files; the 2017 download lists the sequences of 2016 too.
LISTS = {
    "davis_2016": ("ImageSets/480p", "ImageSets/2016"),
    "davis_2017": ("ImageSets/2017",),
}
ARCHIVES = {
    "davis_2016": ("DAVIS-data.zip", "DAVIS-2016-trainval-480p.zip"),
    "davis_2017": ("DAVIS-2017-trainval-480p.zip", "DAVIS-2017-Unsupervised-trainval-480p.zip"),
}


class Davis(Family):
    names = ("davis_2016", "davis_2017")
    summary = (
        "the zip of 480p (2016: DAVIS-data.zip, 2017: DAVIS-2017-trainval-480p.zip), its folder, "
        "or the folder DAVIS"
    )

    def plan(self, splits: tuple[str, ...]) -> Plan:
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of {self.name}"
            )
        path, root, lists = self._find()
        files = Files(path)
        left_out = LeftOut()
        frames = _by_sequence(files, f"{root}{FRAMES}/", left_out)
        labelling = next((d for d in LABELS if _has_folder(files, f"{root}{d}/")), None)
        if labelling is None:
            raise UserError(
                f"{path} has no annotations; looked for {' and '.join(root + d for d in LABELS)}: "
                "get the trainval download, the challenge's test sets have none"
            )
        jobs, pictures = [], {}
        for split in splits:
            name = f"{lists}/{SPLITS.get(split)}.txt"
            if name not in files:
                continue
            clips = []
            sequences = _sequences(files.read(name), f"{path}: {name}")
            for sequence in sequences[: self.options.limit]:
                if not frames.get(sequence):
                    raise UserError(
                        f"{path} has no frames of {sequence}, named by {name}; looked for "
                        f"{root}{FRAMES}/{sequence}/*.jpg: download it again"
                    )
                stems = [Path(file).stem for file in frames[sequence]]
                maps = tuple(f"{root}{labelling}/{sequence}/{stem}.png" for stem in stems)
                clips.append((sequence, path, tuple(frames[sequence]), maps))
            pictures[split] = [f"{path}: {clip[2][0]}" for clip in clips]
            wanted = (file for clip in clips for file in clip[3])
            require(files, wanted, f"the frames of {name}", self.options)
            jobs += shards_of(split, clips, PER_SHARD)
        metadata = {"kind": "clips", "no_segment": NO_SEGMENT, "annotations": labelling}
        left_out.merge(files.left_out)
        notes = tuple(left_out.lines())
        return Plan(tuple(jobs), (path,), clip_features(), metadata, pictures, notes)

    def items(self, job: Job) -> Iterator[Any]:
        files = None
        for sequence, path, frames, maps in job.payload:
            files = files or Files(path)
            yield sequence, files, frames, maps

    def example(self, item: tuple[str, Files, tuple[str, ...], tuple[str, ...]]) -> dict[str, Any]:
        sequence, files, frames, maps = item
        return clip_example(
            printable(sequence),
            ((f"{files.path}: {file}", read(files, file)) for file in frames),
            (self._labels(read(files, file), f"{files.path}: {file}") for file in maps),
            self.options,
        )

    def _labels(self, data: bytes, where: str) -> np.ndarray:
        """2016: all labeled pixels belong to the one object. 2017: 255 means no segment."""
        segmentation = labels(data, where, self.options)
        if self.name == "davis_2016":
            return (segmentation > 0).astype(np.uint8)
        if segmentation.max(initial=0) > NO_SEGMENT:
            raise BadSample(
                f"{where} has label {segmentation.max()}, expected at most {NO_SEGMENT}: download "
                "it again"
            )
        return segmentation.astype(np.uint8)

    def _find(self) -> tuple[Path, str, str]:
        """The folder or zip, the prefix of its file names, and the folder of its lists."""
        source = Path(self.source)
        if source.is_file():
            candidates = [source]
        elif source.is_dir():
            archives = [source / name for name in ARCHIVES[self.name]]
            # Prefer a folder DAVIS for hashing; its parent may contain other files.
            candidates = [source / "DAVIS", source, *archives]
        else:
            raise UserError(
                f"--source={source} does not exist; give the folder that holds the download"
            )
        looked = []
        for path in candidates:
            for root in ("", "DAVIS/") if path.suffix == ".zip" else ("",):
                for folder in LISTS[self.name]:
                    looked.append(f"{path}: {root}{folder}/train.txt")
                    if not path.exists():
                        continue
                    files = Files(path)
                    if any(f"{root}{folder}/{file}.txt" in files for file in SPLITS.values()):
                        return path, root, f"{root}{folder}"
        raise UserError(
            f"--source={source} holds no {self.name}; looked for {', '.join(looked)}, or val.txt "
            "there: download it"
        )


def _by_sequence(files: Files, folder: str, left_out: LeftOut) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in files.names():
        if not name.startswith(folder) or is_junk(name):
            continue
        sequence, _, file = name.removeprefix(folder).partition("/")
        if file.lower().endswith(".jpg") and "/" not in file:
            found.setdefault(sequence, []).append(name)
        elif "/" in file:
            left_out.add("files in sub-folders of a sequence", name)
        else:
            left_out.add_file(name)
    return {sequence: sorted(names, key=natural) for sequence, names in found.items()}


def _has_folder(files: Files, folder: str) -> bool:
    return any(name.startswith(folder) for name in files.names())


def _sequences(data: bytes, where: str) -> list[str]:
    """The sequences of a list, in order.

    Each line is the name of a sequence or, in 2016's lists, the paths of a frame and its labels:
    /JPEGImages/480p/bear/00000.jpg ....
    """
    first = [line.split()[0] for line in text_of(data, where).splitlines() if line.strip()]
    refuse_twice(first, where, "lines", "list each sequence, or frame, once")
    if not first:
        raise UserError(f"{where} is empty, expected names of sequences; download it again")
    names = [PurePosixPath(entry).parent.name if "/" in entry else entry for entry in first]
    if "" in names:
        raise UserError(
            f"{where} has the line {first[names.index('')]!r}, expected the name of a sequence, or "
            "paths such as /JPEGImages/480p/bear/00000.jpg; download it again"
        )
    return list(dict.fromkeys(names))
