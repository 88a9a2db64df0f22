"""Labels of Physion's videos (Bear et al. 2021, arXiv 2106.08261): does red touch yellow?

`python -m data.prepare physion_readout` puts them beside the videos, one file per split: a list of
{name, scenario, contact}. Every video has one question, without words.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.inputs.manifest import sample_names
from smoothsa_jax.inputs.records import NoSuchSplit

SCENARIOS = ("Collide", "Contain", "Dominoes", "Drape", "Drop", "Link", "Roll", "Support")
ANSWERS = ("no", "yes")


def file_of(split: str) -> str:
    """The name of a split's labels in a prepared folder."""
    return f"labels-{split}.json"


def write_labels(labels: Iterable[tuple[str, str, bool]]) -> bytes:
    """The contents of a file of labels, from each video's name, scenario and contact."""
    lines = [
        json.dumps({"name": name, "scenario": scenario, "contact": contact})
        for name, scenario, contact in labels
    ]
    return ("[" + ",\n".join(lines) + "]\n").encode()


class PhysionLabels:
    """A random-access source of the questions of a split of a prepared folder, one per video.

    A sample has the arrays of all questions about clips: question (0,) int32, since there are no
    words; answer () int32, 1 if red touches yellow; allowed (2,) bool; kind () int32, the scenario;
    clip () int32.

    Args:
        folder: a prepared folder of `physion_readout`.
        split: "train", "validation" or "test".

    Attributes:
        words: none.
        answers: no, yes.
        kinds: the scenarios, each that of the file's own folder.
        is_labelled: true.

    Raises:
        UserError: the folder has no labels of the split, or they are damaged.
    """

    words: tuple[str, ...] = ()
    answers, kinds, is_labelled = ANSWERS, SCENARIOS, True

    def __init__(self, folder: str | Path, split: str):
        folder = expanded(folder)
        path = folder / file_of(split)
        if not path.is_file():
            raise NoSuchSplit(
                f"{folder} has no {path.name}; expected a folder made with python -m data.prepare "
                "physion_readout, since the other part of Physion has no labels"
            )
        try:
            found = {
                record["name"]: (SCENARIOS.index(record["scenario"]), int(record["contact"]))
                for record in json.loads(path.read_text())
            }
            labels = [found[name] for name in sample_names(folder, split)]
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}: {error}); prepare the folder again"
            ) from error
        self._labels = np.array(labels, np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        kind, answer = self._labels[index]
        return {
            "question": np.zeros(0, np.int32),
            "answer": answer,
            "allowed": np.ones(len(ANSWERS), bool),
            "kind": kind,
            "clip": np.array(index, np.int32),
        }
