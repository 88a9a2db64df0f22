"""Score masks against labels: the evaluator of discovery, and its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from smoothsa_jax.evaluation import baselines
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import (
    METRICS,
    check_numbers,
    contingency_from_counts,
    score_batch,
    score_counts,
)
from smoothsa_jax.evaluation.scores import mean_over_samples
from smoothsa_jax.evaluation.slots import correlation_of_counts, count_slots, num_slots
from smoothsa_jax.evaluation.split import Batch, Measured, num_frames_of, scored

WORDS = {"decoder": "decoder attention", "aggregator": "slot attention"}  # in scores.json
SOURCES = {"decoder": "masks", "aggregator": "attention"}  # eval.masks -> the model's output


class MaskEvaluator:
    """An evaluator that resizes masks to the labels and scores whole clips; see `Evaluator`.

    Where slots were pruned, it also counts them; see `slots.py`.

    Args:
        source: which masks to score: those of the "decoder" or the "aggregator".
        background_column_always: see `metrics.score_batch`.
        pruning: how slots were pruned, for `scores.json`; None: they were not.
    """

    metrics = METRICS
    paper_differs = False

    def __init__(
        self,
        source: str = "decoder",
        background_column_always: bool = False,
        pruning: Mapping[str, Any] | None = None,
    ):
        self._output = SOURCES[source]
        self._background, self._counts_slots = background_column_always, pruning is not None
        self.outputs = (self._output, "slot_mask")
        self.protocol = {
            "masks": WORDS[source],
            "background_column_always": background_column_always,
            **(pruning or {}),
        }

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Count the pixels of each pair of segments.

        Raises:
            UserError: the labels are not valid.
        """
        labels = np.asarray(batch["segmentations"])
        check_numbers(labels, "labels")
        labels = labels.astype(np.uint8, copy=False)
        masks, mask = outputs[self._output], outputs.get("slot_mask")
        mask = batch.get("slot_mask") if mask is None else mask  # a model may narrow it
        found = counted_masks(masks, labels, mask, batch.get("num_frames"))
        tables = {"counts": found.counts}
        if self._counts_slots:
            tables["slots"] = num_slots(mask, batch.get("num_frames"))
        return Measured(tables, found.segments)

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        rows = [
            score_counts(
                contingency_from_counts(counts[None]),
                match_paper=match_paper,
                background_column_always=self._background,
            )
            for counts in tables["counts"]
        ]
        found = {name: np.array([row[name][0] for row in rows]) for name in METRICS}
        return found | (count_slots(tables) if "slots" in tables else {})

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return mean_over_samples(per_sample) | correlation_of_counts(per_sample)


def evaluate_baselines(
    batches: Iterable[Batch],
    features: Callable[[Batch], Any] | None = None,
    *,
    with_boxes: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Score the baselines that need no weights, on the same clips and with the same metrics.

    Args:
        batches: as for `split.evaluate`.
        features: batch -> (B,T,h,w,C), the frozen features; None: skip that baseline.
        with_boxes: whether to score the first frame's boxes; needs batch["boxes"].
        seed: seed of k-means.

    Returns:
        baseline -> metric -> (samples,) float64. The baselines are "first boxes kept still",
        "k-means on features" and "k-means on RGB".
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
                    tokens[b][:length], segments, size, seed
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
