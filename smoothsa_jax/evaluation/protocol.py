"""Scoring a model over a split (method section 7), and the baselines on the same clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation import baselines
from smoothsa_jax.evaluation.masks import masks_from_attention
from smoothsa_jax.evaluation.metrics import METRICS, score_batch

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    scores: name -> (seeds, samples) float64, NaN = sample left out of this metric's mean.
    seeds: the evaluation seeds, in the order of the first axis.
    samples: the first few samples, each {"video" (T,H,W,3), "segmentations" (T,H,W),
        "masks" (T,H,W)}, the masks predicted with the first seed.
    """

    scores: dict[str, np.ndarray]
    seeds: tuple[int, ...]
    samples: list[dict[str, np.ndarray]]


def evaluate(
    predict: Callable[[Batch, jax.Array], Mapping[str, jax.Array]],
    batches: Iterable[Batch],
    grid: tuple[int, int],
    seeds: Sequence[int] = (0,),
    *,
    match_paper: bool = False,
    background_column_always: bool = False,
    keep_samples: int = 0,
) -> Evaluation:
    """Run every seed over the whole split once and score each sample.

    Queries are random at evaluation. The key of batch i under seed s is
    `fold_in(key(s), i)`, so scores depend on seed and batching, and on nothing else.
    Segmentation uses the decoder attention, upsampled to the size of the labels.

    Args:
        predict: (batch, key) -> outputs with "decoder_attention" (B, T, N, M).
        batches: each with "video", "segmentations" and optionally "slot_mask" (B, N), which keeps
            masked slots out of the masks, and "valid" (B,) bool, false for samples that only fill
            up the last batch; they are not scored. "valid" is not shown to `predict`.
        grid: (h, w) of the tokens.
        seeds: evaluation seeds, at least one.
        match_paper, background_column_always: passed to `metrics.score_batch`.
        keep_samples: how many of the first samples to keep for pictures.

    Raises:
        UserError: no seed, no sample, or labels that do not fit the predictions.
    """
    seeds = tuple(int(seed) for seed in seeds)
    if not seeds:
        raise UserError("eval.seeds is empty: expected at least one seed, for example (0,)")
    found: list[dict[str, list[np.ndarray]]] = [{name: [] for name in METRICS} for _ in seeds]
    samples: list[dict[str, np.ndarray]] = []

    def score(index: int, batch: Batch, masks: jax.Array) -> None:
        valid = _valid(batch)
        masks, labels = np.asarray(masks)[valid], np.asarray(batch["segmentations"])[valid]
        scores = score_batch(
            masks,
            labels,
            match_paper=match_paper,
            background_column_always=background_column_always,
        )
        for name in METRICS:
            found[index][name].append(scores[name])
        if index == 0 and len(samples) < keep_samples:
            video = np.asarray(batch["video"])[valid]
            for b in range(min(len(masks), keep_samples - len(samples))):
                samples.append({"video": video[b], "segmentations": labels[b], "masks": masks[b]})

    # Scored one step late: the device works on the next prediction while the host counts pixels.
    waiting = None
    for i, batch in enumerate(batches):
        inputs = {name: value for name, value in batch.items() if name != "valid"}
        size = tuple(batch["segmentations"].shape[-2:])
        for index, seed in enumerate(seeds):
            outputs = predict(inputs, jax.random.fold_in(jax.random.key(seed), i))
            masks = masks_from_attention(
                outputs["decoder_attention"], grid, size, batch.get("slot_mask")
            )
            if waiting is not None:
                score(*waiting)
            waiting = (index, batch, masks)
    if waiting is None:
        raise UserError("the split has no batch: found 0 samples, expected at least 1")
    score(*waiting)
    stacked = {name: np.stack([np.concatenate(f[name]) for f in found]) for name in METRICS}
    return Evaluation(stacked, seeds, samples)


def evaluate_baselines(
    batches: Iterable[Batch],
    grid: tuple[int, int],
    features: Callable[[Batch], Any] | None = None,
    *,
    with_boxes: bool = True,
    match_paper: bool = False,
    background_column_always: bool = False,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """The baselines that need no weights, on the same clips and with the same metrics.

    Args:
        batches, grid, match_paper, background_column_always: as for `evaluate`.
        features: batch -> (B, T, M, C), the frozen features; None leaves that baseline out.
        with_boxes: whether to score the first frame's boxes (needs batch["boxes"]).
        seed: of k-means.

    Returns:
        baseline -> metric -> (samples,) float64; the baselines are "first boxes kept still",
        "k-means on features", "k-means on RGB".
    """
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for batch in batches:
        valid = np.flatnonzero(_valid(batch))
        inputs = {name: value for name, value in batch.items() if name != "valid"}
        labels, video = np.asarray(batch["segmentations"]), np.asarray(batch["video"])
        size = labels.shape[-2:]
        tokens = None if features is None else np.asarray(features(inputs))
        masks: dict[str, list[np.ndarray]] = {}
        for b in valid:
            number = baselines.num_true_segments(labels[b])
            if with_boxes:
                boxes = np.asarray(batch["boxes"])[b]
                still = baselines.boxes_kept_still(boxes, size)
                masks.setdefault("first boxes kept still", []).append(still)
            if tokens is not None:
                by_feature = baselines.kmeans_on_features(tokens[b], number, grid, size, seed)
                masks.setdefault("k-means on features", []).append(by_feature)
            by_colour = baselines.kmeans_on_rgb(video[b], number, seed)
            masks.setdefault("k-means on RGB", []).append(by_colour)
        for baseline, clips in masks.items():
            scores = score_batch(
                np.stack(clips),
                labels[valid],
                match_paper=match_paper,
                background_column_always=background_column_always,
            )
            per_metric = found.setdefault(baseline, {name: [] for name in METRICS})
            for name in METRICS:
                per_metric[name].append(scores[name])
    return {
        baseline: {name: np.concatenate(values) for name, values in per_metric.items()}
        for baseline, per_metric in found.items()
    }


def _valid(batch: Batch) -> np.ndarray:
    if "valid" not in batch:
        return np.ones(len(batch["segmentations"]), bool)
    return np.asarray(batch["valid"], bool)
