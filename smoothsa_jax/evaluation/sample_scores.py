"""`scores.csv`: the scores of every sample, in addition to the means in `scores.json`."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smoothsa_jax.evaluation.scores import DECIMALS, UNSEEN
from smoothsa_jax.files import atomic_file

COLUMNS = ["sample", "name", "method", "protocol", "seed"]  # and the metrics


class Scored(NamedTuple):
    """The scores of all samples of a split, by method, protocol and evaluation seed."""

    method: str
    protocol: str
    seed: int
    per_sample: Mapping[str, np.ndarray]  # name -> (samples,)


def scored_by_seeds(
    method: str, protocol: str, seeds: Sequence[int], per_sample: Mapping[str, np.ndarray]
) -> list[Scored]:
    """Make one entry per seed from name -> (seeds, samples)."""
    return [
        Scored(method, protocol, seed, {name: x[i] for name, x in per_sample.items()})
        for i, seed in enumerate(seeds)
    ]


def write_sample_scores(
    path: str | os.PathLike, names: Sequence[str], scored: Iterable[Scored]
) -> None:
    """Write one line for each sample of each entry, atomically; undefined scores are empty.

    Equal scores give identical bytes.

    Args:
        path: the file.
        names: the samples' names, or "". Each line also has the sample's index in the split.
        scored: the entries.
    """
    scored = list(scored)
    metrics = [name for name in scored[0].per_sample if not name.startswith(UNSEEN)]
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *metrics])
        for method, protocol, seed, per_sample in scored:
            for i, name in enumerate(names):
                # A baseline has no slots to count.
                found = [per_sample.get(metric) for metric in metrics]
                values = ["" if x is None else _cell(x[i]) for x in found]
                writer.writerow([i, name, method, protocol, seed, *values])


def read_sample_scores(path: str | os.PathLike) -> list[Scored]:
    """Read the entries of such a file in order; undefined scores are NaN.

    Raises:
        OSError: the file is unreadable.
        ValueError: the file has another format.
    """
    with open(path, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    fixed, metrics = head[:5], head[5:]
    if fixed != COLUMNS or any(len(row) != len(head) for row in rows):
        raise ValueError(f"expected lines of {', '.join(COLUMNS)} and metrics")
    found: dict[tuple[str, str, int], list[list[str]]] = {}
    for _, _, method, protocol, seed, *values in rows:
        found.setdefault((method, protocol, int(seed)), []).append(values)
    return [
        Scored(
            *of,
            dict(
                zip(
                    metrics,
                    np.array([[float(x or "nan") for x in row] for row in values]).T,
                    strict=True,
                )
            ),
        )
        for of, values in found.items()
    ]


def _cell(value: float) -> str:
    return f"{round(float(value), DECIMALS) + 0.0:g}" if math.isfinite(value) else ""
