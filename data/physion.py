"""Physion: simulated objects, of which a red one may come to touch a yellow one.

    PhysionTrainMP4s/<Scenario>_{training,readout}_MP4s/<stimulus>_img.mp4
    PhysionTrainMP4s/readout_labels.csv                              <stimulus>,True or False
    PhysionTestMP4s/<Scenario>/mp4s-redyellow/<stimulus>-redyellow_NNNN_img.mp4
    PhysionTestMP4s/labels.csv                                       <stimulus>_NNNN_img,True or ...

`physion` is the part that video models and dynamics are trained on. `physion_readout` is the part
with labels, which say whether the two touch: train and validation are the readout part, and test is
the test part. The validation splits are those of SlotFormer's program (`physion_splits.json`).
Frames are resized to 128x128 pixels once, without antialiasing, as in that program; at most the
first 200 are kept, of which it uses 150. There are no masks.

29 stimuli are listed as bad. The program drops those of the test part whose name without
"-redyellow" contains a listed name. Three listed names contain "-redyellow" and so never fit: 26
videos are dropped, and 1,174 remain. The same is done here.

The program gives a test video the scenario that its position had before the bad ones were dropped.
The list is shorter by then, so where r videos were dropped in front of a scenario, the first r of
that scenario count as the one before it: the first 26 of Dominoes as Contain, the first 13 of
Contain as Collide. Its accuracies per scenario are off, the total is right. Here the scenario is
that of the file's own folder.
"""

import csv
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data.archives import Files
from data.clips import PER_SHARD, clip_example
from data.family import Family, Job, Plan, shards_of
from data.features import NO_SEGMENT, clip_features
from data.pictures import png
from data.videos import video_frames
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, is_junk
from smoothsa_jax.inputs.physion_labels import SCENARIOS, file_of, write_labels
from smoothsa_jax.inputs.resize import resize_pixels
from smoothsa_jax.text import printable, short, text_of

SIZE = 128  # pixels of a stored frame, unless --size says otherwise
MAX_FRAMES = 200
TRAIN, TEST = "PhysionTrainMP4s", "PhysionTestMP4s"
PART = {"physion": "training", "physion_readout": "readout"}
TABLES = {"readout": f"{TRAIN}/readout_labels.csv", "test": f"{TEST}/labels.csv"}
HEADER = ["", "ground truth outcome"]
OUTCOMES = {"False": False, "True": True}
# Videos of the published splits.
COUNTS = {
    "physion": {"train": 15_200, "validation": 798},
    "physion_readout": {"train": 7_601, "validation": 404, "test": 1_174},
}
ENDING = "_img"
MARK = "-redyellow"
OF_TRAIN = re.compile(rf"(\w+)_(training|readout)_MP4s/([^/]+{ENDING})\.mp4")
OF_TEST = re.compile(rf"(\w+)/mp4s{MARK}/([^/]+{ENDING})\.mp4")


@functools.cache
def published_splits() -> dict[str, Any]:
    """The names of validation videos by part and scenario, and the bad stimuli."""
    return json.loads((Path(__file__).parent / "physion_splits.json").read_text())


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video; `file` is its name below --source."""

    scenario: str
    stimulus: str
    file: str

    @property
    def name(self) -> str:
        """Unique, whereas two scenarios may have stimuli of one name."""
        return f"{self.scenario}/{self.stimulus}"


class Physion(Family):
    names = ("physion", "physion_readout")
    summary = f"the folder that holds {TRAIN} and {TEST}, unpacked"
    lists_names = True

    def plan(self, splits: tuple[str, ...]) -> Plan:
        source = Path(self.source)
        if not source.is_dir():
            raise UserError(
                f"--source={source} is not a folder; unpack what was downloaded, and give the "
                "folder that holds it"
            )
        if self.options.keep:
            raise UserError(
                f"--keep={','.join(self.options.keep)} is not an annotation of Physion; leave "
                "--keep out"
            )
        left_out, notes = LeftOut(), []
        part = PART[self.name]
        found = {"test": self._of_test(left_out, notes)} if part == "readout" else {}
        if {"train", "validation"} & {*splits}:
            found |= self._of_train(part, left_out)
        jobs, pictures, beside, sources = [], {}, {}, set()
        for split in splits:
            clips = found.get(split, [])
            if not clips:
                continue
            if len(clips) != (count := COUNTS[self.name][split]):
                notes.append(f"{split} has {len(clips)} videos, the published one {count}")
            table = None
            if part == "readout":
                table = source / TABLES["test" if split == "test" else part]
                clips, contacts = self._labelled(clips, table, split)
                mine = [(clip.name, clip.scenario, contacts[clip.name]) for clip in clips]
                beside[file_of(split)] = write_labels(mine[: self.options.limit])
                sources.add(table)
            clips = clips[: self.options.limit]
            jobs += shards_of(split, clips, PER_SHARD)
            pictures[split] = [f"{source}/{clip.file}" for clip in clips]
            sources |= {(source / clip.file).parent for clip in clips}
        if not jobs:
            raise UserError(
                f"--source={source} has no videos of {self.name} for {' or '.join(splits)}; looked "
                f"for {TRAIN}/SCENARIO_{part}_MP4s/*{ENDING}.mp4"
                + f" and {TEST}/SCENARIO/mp4s{MARK}/*{ENDING}.mp4"
                * (part == "readout")
            )
        features = clip_features()
        features["metadata"]["scenario"] = tfds.features.Text()
        return Plan(
            jobs=tuple(jobs),
            sources=tuple(sorted(sources)),
            features=features,
            metadata={
                "kind": "clips",
                "no_segment": NO_SEGMENT,
                "labelled": [],
                "part": part,
                "scenarios": list(SCENARIOS),
            },
            pictures=pictures,
            notes=(*left_out.lines(), *notes),
            beside=beside,
        )

    def _of_train(self, part: str, left_out: LeftOut) -> dict[str, list[Clip]]:
        """The videos of train and validation."""
        held_out = published_splits()[f"{part}_validation"]
        found: dict[str, list[Clip]] = {"train": [], "validation": []}
        for match, file in self._matching(TRAIN, OF_TRAIN, left_out):
            scenario, of, stimulus = match.groups()
            if of == part:
                is_held_out = stimulus in held_out[_known(scenario, file)]
                clip = Clip(scenario, printable(stimulus), file)
                found["validation" if is_held_out else "train"].append(clip)
        return {split: sorted(clips, key=_order) for split, clips in found.items()}

    def _of_test(self, left_out: LeftOut, notes: list[str]) -> list[Clip]:
        """The videos of test, but for the bad ones."""
        kept, bad = [], published_splits()["bad_stimuli"]
        dropped = 0
        for match, file in self._matching(TEST, OF_TEST, left_out):
            scenario, stimulus = match.groups()
            _known(scenario, file)
            if is_bad(stimulus, bad):
                dropped += 1
            else:
                kept.append(Clip(scenario, printable(stimulus), file))
        if dropped:
            notes.append(f"test: {dropped} left out, by SlotFormer's list of bad stimuli")
        return sorted(kept, key=_order)

    def _matching(
        self, folder: str, pattern: re.Pattern, left_out: LeftOut
    ) -> Iterator[tuple[re.Match, str]]:
        """The videos below a folder of --source."""
        path = Path(self.source) / folder
        if not path.is_dir():
            return
        files = Files(path)
        for name in files.names():
            if is_junk(name) or f"{folder}/{name}" in TABLES.values():
                continue
            if match := pattern.fullmatch(name):
                yield match, f"{folder}/{name}"
            else:
                left_out.add_file(f"{folder}/{name}")
        left_out.merge(files.left_out)

    def _labelled(
        self, clips: list[Clip], table: Path, split: str
    ) -> tuple[list[Clip], dict[str, bool]]:
        """The videos that have a label, and the label of each by name."""
        outcomes = read_table(table)
        contacts = {
            clip.name: outcomes[key] for clip in clips if (key := _key(clip, split)) in outcomes
        }
        lacking = [clip for clip in clips if clip.name not in contacts]
        if lacking and not self.options.skip_bad:
            raise UserError(
                f"{table} has no row {_key(lacking[0], split)}, the label of {lacking[0].file} "
                f"({len(lacking)} of {len(clips)} are missing); download it again, or skip such "
                "videos with --skip-bad"
            )
        return [clip for clip in clips if clip.name in contacts], contacts

    def items(self, job: Job) -> Iterator[Clip]:
        yield from job.payload

    def example(self, item: Clip) -> dict[str, Any]:
        files = Files(Path(self.source))
        size = self.options.size or SIZE
        frames = video_frames(files, item.file, self.staging, self.options.max_pixels)
        clip = clip_example(
            item.name,
            (
                (
                    f"{item.file}, frame {t}",
                    png(resize_pixels(pixels, (size, size), "plain_bilinear")),
                )
                for t, pixels in enumerate(itertools.islice(frames, MAX_FRAMES))
            ),
            None,
            dataclasses.replace(self.options, size=None),  # they have that size
        )
        clip["metadata"]["scenario"] = item.scenario
        return clip


def is_bad(stimulus: str, bad: list[str]) -> bool:
    """Whether SlotFormer's program drops a test video, by the name of its file."""
    return any(name in stimulus.replace(MARK, "") for name in bad)


def _order(clip: Clip) -> tuple[int, str]:
    return SCENARIOS.index(clip.scenario), clip.stimulus


def _known(scenario: str, file: str) -> str:
    if scenario not in SCENARIOS:
        raise UserError(
            f"{file} is of the scenario {scenario}, expected one of {', '.join(SCENARIOS)}; move "
            "it away"
        )
    return scenario


def _key(clip: Clip, split: str) -> str:
    """The name of a video in the table of its labels."""
    if split == "test":
        return clip.stimulus.replace(MARK, "")
    return clip.stimulus.removesuffix(ENDING)


def read_table(path: Path) -> dict[str, bool]:
    """Read a table of labels: for each name, whether the red object touches the yellow one.

    Raises:
        UserError: it is missing, has another header, a name twice, or other labels than True and
            False.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; it holds the labels of the videos: download it")
    rows = csv.reader(text_of(path.read_bytes(), str(path)).splitlines())
    if (header := next(rows, [])) != HEADER:
        raise UserError(
            f"{path} begins with {short(','.join(header))}, expected {','.join(HEADER)!r}; "
            "download it again"
        )
    found: dict[str, bool] = {}
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != 2 or row[1] not in OUTCOMES:
            raise UserError(
                f"{path}, line {number} is {short(','.join(row))}, expected a name and True or "
                "False; download it again"
            )
        if row[0] in found:
            raise UserError(f"{path}, line {number} repeats {short(row[0])}; download it again")
        found[row[0]] = OUTCOMES[row[1]]
    return found
