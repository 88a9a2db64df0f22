"""Rows of the arena: what a finished run leaves in benchmarks/recorded/arena.jsonl."""

import base64
import itertools
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smoothsa_jax.evaluation.sample_scores import read_sample_scores

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
ROWS_FILE = ROOT / "benchmarks" / "recorded" / "arena.jsonl"
# The key of a run; the rest of a row are results.
KEY = ("system", "data", "words", "ablation", "overrides", "seed", "steps")
DEFAULT_SYSTEM = "smoothsa"  # needs no word
FULL = "full"  # the ablation that changes nothing
LEADING = ("fg_ari", "ari", "mbo", "miou")  # metrics of the first columns
LEAD = LEADING[0]  # the one that ranks, and is kept of single samples
IN_CURVES = (*LEADING, "count_error", "psnr")
# Scores of the same run by another protocol, in a row's `scores`.
OTHERS = ("plain", "pruned")  # the same model, with other settings of evaluation
BY_PROTOCOL = ("match_paper", *OTHERS)
PLAIN = {"eval.prune": None, "eval.num_slots": None}  # the settings of "plain"
KMEANS, BLOCKS = "k-means on features", "block pattern"


def key_of(row: Mapping[str, Any]) -> str:
    """Return the key of a run, as a text that is equal for equal runs."""
    return json.dumps({name: row[name] for name in KEY}, sort_keys=True)


def seeds_apart(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each kind of run, in the order of their training seeds.

    Of rows with the same key, the newest counts.
    """
    groups: dict[str, list[Row]] = {}
    for row in {key_of(row): row for row in rows}.values():
        groups.setdefault(kind_of(row), []).append(row)
    return [sorted(group, key=lambda row: row["seed"]) for group in groups.values()]


def kind_of(row: Mapping[str, Any]) -> str:
    """Return what runs have in common that differ in nothing but their training seed."""
    return json.dumps({name: row[name] for name in KEY if name != "seed"}, sort_keys=True)


def read_rows(path: Path) -> list[Row]:
    """Return all rows in the order they were written, without a line that was cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append_row(path: Path, row: Row) -> None:
    """Append a row, safe against a crash right after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        # A line that a kill cut short must not swallow this one.
        file.seek(0)
        text = file.read()
        begin = b"\n" if text and not text.endswith(b"\n") else b""
        file.write(begin + json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def packed(segments: Sequence[np.ndarray]) -> Row:
    """Return the first and the last frame of segments (T,H,W), for a row; see `unpacked`."""
    frames = np.stack([x[[0, -1] if len(x) > 1 else [0]] for x in segments]).astype(np.uint8)
    data = base64.b85encode(zlib.compress(frames.tobytes(), 9)).decode()
    return {"shape": list(frames.shape), "data": data}


def unpacked(found: Row) -> np.ndarray:
    """Return the segments (samples, 1 or 2, H, W) of `packed`."""
    data = zlib.decompress(base64.b85decode(found["data"]))
    return np.frombuffer(data, np.uint8).reshape(found["shape"])


def clips_of(folder: Path, title: str) -> dict[str, Any]:
    """Return `clips` and, if scored, `baseline_clips` of a row, from a run's `scores.csv`.

    Args:
        folder: of the run.
        title: of the run's config.
    """

    def rounded(values: np.ndarray) -> list[float | None]:
        return [round(x, 4) + 0.0 if math.isfinite(x) else None for x in values.tolist()]

    own: list[np.ndarray] = []
    baselines: dict[str, Any] = {}
    for method, protocol, _, per_sample in read_sample_scores(folder / "scores.csv"):
        if LEAD not in per_sample:
            continue
        if method == title and protocol == "default":
            own.append(per_sample[LEAD])
        elif method in (KMEANS, BLOCKS):
            baselines[method] = {LEAD: rounded(per_sample[LEAD])}
    # Of several evaluation seeds, a sample has the mean.
    found: dict[str, Any] = {"clips": {LEAD: rounded(np.mean(own, axis=0))} if own else {}}
    return found | ({"baseline_clips": baselines} if baselines else {})


def curve_of(log: Sequence[Row]) -> list[Row]:
    """Return the points of a learning curve, from the rows of a `log.jsonl`."""
    begins, points = "validation/", []
    for row, seconds in zip(log, _times(log), strict=True):
        found = {name.removeprefix(begins): x for name, x in row.items() if name.startswith(begins)}
        scores = {name: round(x, 4) for name in IN_CURVES if (x := found.get(name)) is not None}
        if scores:
            points.append({"step": row["step"], "seconds": seconds, "scores": scores})
    return points


def training_seconds(log: Sequence[Row]) -> float | None:
    """Return the time of the training steps, from the speeds in a `log.jsonl`.

    Compilation, scoring and pauses do not count.
    """
    times = _times(log)
    return times[-1] if times else None


def _times(log: Sequence[Row]) -> list[float | None]:
    """Return the time of training up to each row; None where no row has a speed."""
    lasted, last = [], 0
    for row in log:
        speed = row.get("steps_per_second")
        lasted.append((row["step"] - last, (row["step"] - last) / speed if speed else None))
        last = row["step"]
    timed = sum(steps for steps, seconds in lasted if seconds is not None)
    if not timed:
        return [None for _ in lasted]
    # Rows without a speed (the first, and those after a pause) count with the mean of the others.
    mean = sum(seconds or 0.0 for _, seconds in lasted) / timed
    each = [steps * mean if seconds is None else seconds for steps, seconds in lasted]
    return [round(total, 3) for total in itertools.accumulate(each)]
