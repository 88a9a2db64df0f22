"""Compare the answers of evaluated runs, question by question.

    python -m benchmarks.paired runs/sprites_answers_ahead --with runs/sprites_answers
    python -m benchmarks.paired runs/ahead_0 runs/ahead_1 --with runs/answers_0 runs/answers_1
    python -m benchmarks.paired runs/ahead --with runs/ahead --row "observed frames"

Each side is the mean over its runs and their evaluation seeds of what `scores.csv` has of each
question. The rows are kinds of questions, their mean and all questions. The columns are both sides
and their difference in points of accuracy, with an interval of 95 % (see `bootstrap.difference`):
it is of samples of the clips, whose questions stay together, and of the runs of each side. A
difference whose interval holds 0 is called a tie. With --row, the second side is a row of the table
beside the model's, such as chance.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from benchmarks import bootstrap
from smoothsa_jax.config.values import from_json
from smoothsa_jax.errors import UserError, did_you_mean
from smoothsa_jax.evaluation.answers import CLIP, KIND, RIGHT
from smoothsa_jax.evaluation.sample_scores import Scored, read_sample_scores
from smoothsa_jax.guard import exit_status
from smoothsa_jax.training.evaluating import SAMPLE_SCORES_FILE

OF_KINDS, OF_ALL = "mean over kinds", "all questions"


class Answered(NamedTuple):
    """What is known of each question of a split, and which of them each run has right."""

    right: Float[np.ndarray, "runs questions"]
    kind: Int[np.ndarray, " questions"]
    clip: Int[np.ndarray, " questions"]
    kinds: tuple[str, ...]


class Difference(NamedTuple):
    """Accuracies of two sides, and the interval of their difference; all are shares."""

    name: str
    one: float
    other: float
    low: float
    high: float

    @property
    def is_tie(self) -> bool:
        return bool(self.low <= 0 <= self.high)


def answered(workdir: Path, row: str | None = None) -> Answered:
    """Read the answers of an evaluated run.

    Args:
        workdir: of the task `answers`.
        row: a row of the table beside the model's; None: the model.

    Raises:
        UserError: there are none, or they were written before they had kinds and clips.
    """
    path = workdir / SAMPLE_SCORES_FILE
    try:
        found = read_sample_scores(path)
        kinds = tuple(from_json((workdir / "config.json").read_text()).model.get("kinds", ()))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}); write it with python main.py --mode=evaluate "
            f"--workdir={workdir}"
        ) from error
    if not kinds:
        raise UserError(f"{workdir} is no run of the task 'answers'; give the workdir of one")
    methods = list(dict.fromkeys(entry.method for entry in found))
    name = methods[0] if row is None else row
    if name not in methods:
        raise UserError(
            f"{path} has no row {name!r}, only {', '.join(methods)}{did_you_mean(name, methods)}"
        )
    mine = [x for x in found if x.method == name and x.protocol == "default"]
    if any(key not in mine[0].per_sample for key in (RIGHT, KIND, CLIP)):
        raise UserError(
            f"{path} does not tell the kind and the clip of each question; write it anew with "
            f"python main.py --mode=evaluate --workdir={workdir}"
        )
    of = lambda entry, key: entry.per_sample[key]  # noqa: E731
    right = np.mean([of(entry, RIGHT) for entry in mine], axis=0)[None]
    return Answered(right, *(_whole(mine[0], key) for key in (KIND, CLIP)), kinds)


def _whole(entry: Scored, key: str) -> Int[np.ndarray, " questions"]:
    return entry.per_sample[key].astype(int)


def together(runs: Sequence[Answered], names: Sequence[str]) -> Answered:
    """Return several runs of the same questions as one.

    Raises:
        UserError: they are others.
    """
    first = runs[0]
    for run, name in zip(runs, names, strict=True):
        same = run.kinds == first.kinds and np.array_equal(run.kind, first.kind)
        if not same or not np.array_equal(run.clip, first.clip):
            raise UserError(
                f"{name} was scored on other questions than {names[0]}; evaluate both on the same "
                "split and data, with the same eval.num_samples"
            )
    return first._replace(right=np.concatenate([run.right for run in runs]))


def differences(one: Answered, other: Answered) -> list[Difference]:
    """Compare two sides, answered question by question; see the module.

    Questions that one side does not answer, NaN, are left out, and so are kinds without others.
    """
    both = np.isfinite(one.right).all(axis=0) & np.isfinite(other.right).all(axis=0)
    clips, place = np.unique(one.clip[both], return_inverse=True)
    kinds = [k for k in range(len(one.kinds)) if (one.kind[both] == k).any()]
    columns = np.searchsorted(kinds, one.kind[both])

    def table(values: np.ndarray) -> Float[np.ndarray, "clips kinds"]:
        """Sum values (questions,) over the questions of each clip and kind."""
        found = np.zeros((len(clips), len(kinds)))
        np.add.at(found, (place, columns), values)
        return found

    number = table(np.ones(both.sum()))
    sums = [np.stack([table(run[both]) for run in side.right]) for side in (one, other)]

    def accuracies(clips: Float[np.ndarray, "R clips"], rng: Any = None) -> list[np.ndarray]:
        """Return both sides' accuracies (R,rows) with these weights of clips, and of runs drawn."""
        counts, found = clips @ number, []
        for side in sums:
            runs = np.full((1, len(side)), 1 / len(side))
            if rng is not None:
                runs = bootstrap.weights(rng, len(clips), len(side))
            of_clips = np.einsum("rc,sck->rsk", clips, side, optimize=True)
            right = np.einsum("rs,rsk->rk", runs, of_clips)
            of_kinds = right / np.where(counts > 0, counts, np.nan)
            whole = right.sum(axis=1) / counts.sum(axis=1)
            found.append(np.column_stack([of_kinds, np.nanmean(of_kinds, axis=1), whole]))
        return found

    here = [side[0] for side in accuracies(np.ones((1, len(clips))))]
    rng = np.random.default_rng(0)
    drawn = accuracies(bootstrap.weights(rng, bootstrap.ROUNDS, len(clips)), rng)
    # Rounded, so that equal accuracies, summed in different orders, differ by 0.
    low, high = np.nanpercentile((drawn[0] - drawn[1]).round(12), bootstrap.ends(), axis=0)
    names = [*(one.kinds[k] for k in kinds), OF_KINDS, OF_ALL]
    return [Difference(*row) for row in zip(names, *here, low, high, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paired",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("one", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--with", dest="other", metavar="RUN", nargs="+", type=Path, required=True)
    parser.add_argument("--row", metavar="NAME", help="of the second side")

    def work() -> int:
        given = parser.parse_args(arguments)
        runs = [answered(path) for path in given.one]
        others = [answered(path, given.row) for path in given.other]
        names = [str(path) for path in (*given.one, *given.other)]
        together([*runs, *others], names)
        found = differences(
            together(runs, names[: len(runs)]), together(others, names[len(runs) :])
        )
        width = max(len(row.name) for row in found)
        print(f"{'':{width}}    one  other  difference")
        for row in found:
            apart = 100 * (row.one - row.other)
            print(
                f"{row.name:{width}}  {100 * row.one:5.1f}  {100 * row.other:5.1f}  {apart:+5.1f} "
                f"[{100 * row.low:+.1f}, {100 * row.high:+.1f}]{'  a tie' * row.is_tie}"
            )
        return 0

    return exit_status(work)


if __name__ == "__main__":
    raise SystemExit(main())
