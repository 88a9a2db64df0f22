"""Scores of a run: means over samples and seeds, `scores.json`, and a table as text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file

# Columns of the table. The leading metric orders the baselines and is printed in the last line.
TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "mse": "MSE",
    "slot_error": "slot error",
    "decoded_error": "decoded error",
    "codes_in_use": "codes in use",
    "ari": "ARI",
    "fg_ari": "FG-ARI",
    "mbo": "mBO",
    "miou": "mIoU",
    "fg_mbo": "FG-mBO",
    "fg_miou": "FG-mIoU",
    "image_ari": "image ARI",
    "image_fg_ari": "image FG-ARI",
    "image_mbo": "image mBO",
    "image_miou": "image mIoU",
    "image_fg_mbo": "image FG-mBO",
    "image_fg_miou": "image FG-mIoU",
    "top1": "top-1",
    "top3": "top-3",
    "box_iou": "box IoU",
    "ar": "AR",
    "ap": "AP",
    "accuracy": "accuracy",
    "question_accuracy": "of questions",
    "option_accuracy": "of options",
    "num_matches": "matches",
    "slots": "slots",
    "segments": "segments",
    "slots_error": "off by",
    "segments_found": "found",
    "count_error": "count error",
    "slots_correlation": "correlation",
    "one_slot": "one slot",
    "iterations": "iterations",
}
LEADING = ("fg_ari", "top1", "accuracy", "psnr", "slot_error", "loss")
OF_KINDS = "accuracy/"  # begins the names of scores of one kind of questions
COUNTS = ("num_matches",)  # numbers, not shares
ERRORS = (
    "mse",
    "slot_error",
    "decoded_error",
    "lpips",
    "count_error",
)  # of which the lowest is best
NUMBERS = (
    "psnr",
    "ssim",
    *ERRORS,
    "slots",
    "segments",
    "slots_error",
    "slots_correlation",
    "segments_found",
    "iterations",
)  # likewise, of decimals
UNSEEN = "_"  # begins the names of a sample's values that are for the means of a split alone
LOSS = "loss"  # also the beginning of a term's name, `loss/reconstruction`
DECIMALS = 6  # finer than any relevant difference, coarser than the noise of summation order


def mean_over_samples(per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean of each metric over the samples for which it is defined.

    Args:
        per_sample: name -> (..., samples) float64; NaN leaves a sample out of this metric.

    Returns:
        name -> (...), NaN if the metric is defined for no sample.

    Raises:
        UserError: there are no samples.
    """
    means = {}
    for name, values in per_sample.items():
        values = np.asarray(values, np.float64)
        if values.shape[-1] == 0:
            raise UserError("no sample to score: found 0, expected at least 1; check eval.split")
        defined = ~np.isnan(values)
        count = defined.sum(axis=-1)
        total = np.where(defined, values, 0.0).sum(axis=-1)
        means[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def summarise_seeds(per_seed: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the mean, the standard deviation and the values of all evaluation seeds.

    Args:
        per_seed: name -> (seeds,), or a number for a single seed.

    Returns:
        name -> {"mean", "std" (population; 0 for one seed), "seeds": one value per seed}.
    """
    summary = {}
    for name, seeds in per_seed.items():
        seeds = np.atleast_1d(seeds)
        summary[name] = {
            "mean": _rounded(seeds.mean()),
            "std": _rounded(seeds.std()),
            "seeds": [_rounded(value) for value in seeds],
        }
    return summary


def build_scores(
    per_sample: Mapping[str, np.ndarray],
    baselines: Mapping[str, Mapping[str, np.ndarray]],
    means: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    *,
    split: str,
    protocol: Mapping[str, Any],
    step: int,
    paper_per_sample: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return the content of `scores.json`.

    Args:
        per_sample: the model's values, name -> (seeds, samples).
        baselines: baseline -> name -> (samples,).
        means: function from values (..., samples) to metrics (...).
        split: the split that was scored.
        protocol: how it was scored (seeds, match_paper, number of samples, ...), as JSON values.
        step: the training step of the weights.
        paper_per_sample: the model's values under the paper's protocol, for the entry
            "match_paper"; None: not scored.
    """
    summary = lambda values: summarise_seeds(means(values))  # noqa: E731
    paper = {"match_paper": {"metrics": summary(paper_per_sample)}} if paper_per_sample else {}
    return {
        "metrics": summary(per_sample),
        **paper,
        "baselines": {
            baseline: {name: entry["mean"] for name, entry in summary(values).items()}
            for baseline, values in baselines.items()
        },
        "split": split,
        "protocol": dict(protocol),
        "step": int(step),
    }


def write_scores(path: str | os.PathLike, scores: Mapping[str, Any]) -> None:
    """Write `scores.json`, completely or not at all.

    Equal scores give equal bytes: keys are sorted, floats are rounded to 6 decimals, and nothing
    depends on the time or the machine.
    """
    text = json.dumps(_plain(scores), indent=2, sort_keys=True, allow_nan=False) + "\n"
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def scores_rows(title: str, scores: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of scores, in percent; losses as they are.

    Args:
        title: title of the model.
        scores: as `build_scores` returns them or as read from `scores.json`.

    Returns:
        The table's head, the model under each scored protocol, and the baselines, best first.
    """
    # Some scores are of the paper's protocol alone.
    paper = scores.get("match_paper", {}).get("metrics", {})
    titles = {name: title_of(name) for name in _ordered({**scores["metrics"], **paper})}
    rows = [["", *titles.values()], _model_row(title, scores["metrics"], titles)]
    if paper:
        rows.append(_model_row(f"{title}, match_paper", paper, titles))
    leading = leading_metric(scores)
    order = sorted(
        scores["baselines"].items(), key=lambda item: (_rank(leading, item[1][leading]), item[0])
    )
    return rows + [[key, *(cell(m, row.get(m)) for m in titles)] for key, row in order]


def scores_table(title: str, scores: Mapping[str, Any]) -> str:
    """Return the table of scores as text, in columns."""
    head, *rows = in_columns(scores_rows(title, scores))
    return "\n".join([head, "-" * len(head), *rows])


def in_columns(
    rows: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.rjust
) -> list[str]:
    """Return a line of text for each row.

    Args:
        rows: of cells.
        justify: of the columns but the first, which is on the left.
    """
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(first), *map(justify, row[1:], others)]).rstrip() for row in rows
    ]


def _model_row(name: str, metrics: Mapping[str, Any], titles: Iterable[str]) -> list[str]:
    row = [name]
    for metric in titles:
        entry = metrics.get(metric, {"mean": None, "seeds": ()})
        text = cell(metric, entry["mean"])
        if len(entry["seeds"]) > 1:
            text += f" ± {cell(metric, entry['std'])}"
        row.append(text)
    return row


def headline(scores: Mapping[str, Any]) -> str:
    """Return the score that represents a run, with its name."""
    leading = leading_metric(scores)
    return f"{title_of(leading)} {cell(leading, scores['metrics'][leading]['mean'])}"


def leading_metric(scores: Mapping[str, Any]) -> str:
    """Return the name of the score that represents a run."""
    return next(name for name in LEADING if name in scores["metrics"])


def title_of(metric: str) -> str:
    """Return a metric's name in tables and plots."""
    name = metric.removeprefix(f"{LOSS}/").removeprefix(OF_KINDS)
    return TITLES.get(metric, name.replace("_", " "))


def is_loss(metric: str) -> bool:
    """Whether a metric is a loss: lower is better, and it is no share in percent."""
    return metric.split("/")[0] == LOSS


def is_share(metric: str) -> bool:
    """Whether tables show a metric in percent."""
    return not is_loss(metric) and metric not in (*NUMBERS, *COUNTS)


def _ordered(metrics: Iterable[str]) -> list[str]:
    """The metrics of a table in its order: the known ones as in TITLES, kinds, then losses."""
    known = [name for name in TITLES if name in metrics]
    known += [name for name in metrics if name.startswith(OF_KINDS)]
    return known + sorted(name for name in metrics if is_loss(name))


def _rounded(value: float) -> float | None:
    value = float(value)
    # An undefined score is None (null). Adding 0.0 turns -0.0 into 0.0.
    return round(value, DECIMALS) + 0.0 if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return _rounded(value)
    return value


def _rank(metric: str, value: float | None) -> float:
    """A sort key that puts the best first, and undefined values last."""
    if value is None:
        return math.inf
    return value if is_loss(metric) or metric in ERRORS else -value


def cell(metric: str, value: float | None) -> str:
    """Return a value as tables show it: a share in percent, a loss or a count as it is."""
    if value is None:
        return "-"
    if is_loss(metric):
        return f"{value:.4g}"
    if metric in NUMBERS:
        return f"{value:.2f}"
    return f"{value:.0f}" if metric in COUNTS else f"{100 * value:.1f}"
