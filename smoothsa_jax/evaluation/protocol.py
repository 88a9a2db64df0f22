"""Scoring a model over a split (method section 7), and the baselines on the same clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from smoothsa_jax.evaluation import baselines
from smoothsa_jax.evaluation.counting import CountedMasks, counted_masks
from smoothsa_jax.evaluation.metrics import (
    METRICS,
    check_numbers,
    contingency_from_counts,
    score_batch,
    score_counts,
)
from smoothsa_jax.evaluation.predictions import (
    Batch,
    num_frames_of,
    paper_slot_mask,
    predictions,
    scored,
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        scores: name -> (seeds, samples) float64, NaN = sample left out of this metric's mean.
        paper_scores: the same by the paper's protocol, where it was asked for.
        names: of the samples, "" where the data set has none.
        samples: the first few samples, each {"video" (T,H,W,3), "segmentations" (T,H,W),
            "masks" (T,H,W)}, the masks predicted with the first seed.
    """

    scores: dict[str, np.ndarray]
    paper_scores: dict[str, np.ndarray] | None
    names: list[str]
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

    Segmentation uses the decoder attention, upsampled to the size of the labels. Only scores are kept, so
    memory does not grow with the split.

    Args:
        predict: (batch, key) -> outputs with "decoder_attention" (B, T, N, M).
        batches: each with "video", "segmentations" and optionally "slot_mask" (B, N), which keeps
            masked slots out of the masks; "valid" (B,) bool, false for samples that only fill
            up the last batch; "num_frames" (B,), how many frames of a sample count, where others only
            fill it up; "name" (B,) of the samples.
        grid: (h, w) of the tokens.
        seeds: evaluation seeds, at least one; see `predictions`.
        match_paper: score by the paper's protocol as well: `paper_slot_mask`, and the authors' arithmetic
            (see `metrics.score_batch`).
        background_column_always: see `metrics.score_batch`.
        keep_samples: how many of the first samples to keep for pictures.

    Raises:
        UserError: no seed, no sample, or labels that do not fit the predictions.
    """

    def counts_of(batch: Batch, key: jax.Array) -> dict[bool, CountedMasks]:
        def counted(slot_mask: np.ndarray | None) -> CountedMasks:
            inputs = batch if slot_mask is None else {**batch, "slot_mask": slot_mask}
            attention = predict(inputs, key)["decoder_attention"]
            labels = np.asarray(batch["segmentations"])
            check_numbers(labels, "labels")
            labels = labels.astype(np.uint8, copy=False)
            return counted_masks(attention, grid, labels, slot_mask, batch.get("num_frames"))

        own = batch.get("slot_mask")
        found = {False: counted(own)}
        if match_paper:
            padded = None if own is None else paper_slot_mask(batch)
            same = own is None or np.array_equal(padded, own)
            found[True] = found[False] if same else counted(padded)
        return found

    protocols = (False, True) if match_paper else (False,)
    rows = {paper: [{name: [] for name in METRICS} for _ in seeds] for paper in protocols}
    names: list[str] = []
    samples: list[dict[str, np.ndarray]] = []
    for batch, number, found in predictions(counts_of, batches, seeds):
        # Only tables come to the host, and the masks that are kept.
        tables = jax.device_get({paper: counted.counts for paper, counted in found.items()})
        keeps = number == 0 and len(samples) < keep_samples
        masks = np.asarray(found[False].masks) if keeps else None
        for b in scored(batch):
            for paper in protocols:
                scores = score_counts(
                    contingency_from_counts(tables[paper][b][None]),
                    match_paper=paper,
                    background_column_always=background_column_always,
                )
                for name in METRICS:
                    rows[paper][number][name].append(scores[name][0])
            if number > 0:
                continue
            names.append(str(batch["name"][b]) if "name" in batch else "")
            if len(samples) < keep_samples:
                length = num_frames_of(batch, b)
                labels = np.asarray(batch["segmentations"][b][:length])
                video = np.asarray(batch["video"][b][:length])
                # Copies: a view would keep the whole batch.
                kept = {"video": video, "segmentations": labels, "masks": masks[b][:length]}
                samples.append({key: value.copy() for key, value in kept.items()})
    stacked = {
        paper: {name: np.stack([row[name] for row in of_seeds]) for name in METRICS}
        for paper, of_seeds in rows.items()
    }
    return Evaluation(stacked[False], stacked.get(True), names, samples)


def evaluate_baselines(
    batches: Iterable[Batch],
    grid: tuple[int, int],
    features: Callable[[Batch], Any] | None = None,
    *,
    with_boxes: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """The baselines that need no weights, on the same clips and with the same metrics.

    Args:
        batches, grid: as for `evaluate`.
        features: batch -> (B, T, M, C), the frozen features; None leaves that baseline out.
        with_boxes: whether to score the first frame's boxes (needs batch["boxes"]).
        seed: of k-means.

    Returns:
        baseline -> metric -> (samples,) float64; the baselines are "first boxes kept still",
        "k-means on features", "k-means on RGB".
    """
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for batch in batches:
        tokens = None if features is None else np.asarray(features(batch))
        for b in scored(batch):
            length = num_frames_of(batch, b)
            labels = np.asarray(batch["segmentations"][b][:length])
            video, size = np.asarray(batch["video"][b][:length]), labels.shape[-2:]
            segments = baselines.num_true_segments(labels)
            masks = {}
            if with_boxes:
                boxes = np.asarray(batch["boxes"][b][:length])
                masks["first boxes kept still"] = baselines.boxes_kept_still(boxes, size)
            if tokens is not None:
                masks["k-means on features"] = baselines.kmeans_on_features(
                    tokens[b][:length], segments, grid, size, seed
                )
            masks["k-means on RGB"] = baselines.kmeans_on_rgb(video, segments, seed)
            for baseline, mask in masks.items():
                scores = score_batch(mask[None], labels[None])
                per_metric = found.setdefault(baseline, {name: [] for name in METRICS})
                for name in METRICS:
                    per_metric[name].append(scores[name][0])
    return {
        baseline: {name: np.array(values) for name, values in per_metric.items()}
        for baseline, per_metric in found.items()
    }
