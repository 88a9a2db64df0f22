"""Score masks against labels: the evaluator of discovery, and its baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from smoothsa_jax.evaluation import baselines
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import (
    COUNT_METRICS,
    FOREGROUND_METRICS,
    METRICS,
    Contingency,
    check_numbers,
    contingency,
    contingency_from_counts,
    count_segments,
    score_counts,
)
from smoothsa_jax.evaluation.scores import mean_over_samples
from smoothsa_jax.evaluation.slots import (
    correlation_of_counts,
    count_slots,
    mean_over_frames,
    num_slots,
)
from smoothsa_jax.evaluation.split import Batch, Measured, num_frames_of, scored
from smoothsa_jax.inputs.resize import resize_labels

WORDS = {"decoder": "decoder attention", "aggregator": "slot attention"}  # in scores.json
PER_FRAME = "image_"  # begins the names of scores of single frames
ITERATIONS = "iterations"  # an output of models whose samples may stop iterating
SOURCES = {"decoder": "masks", "aggregator": "attention"}  # eval.masks -> the model's output


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How masks are compared with labels. The attributes are settings of `eval`.

    Attributes:
        background_column_always: see `metrics.score_batch`.
        score_at: height and width in pixels at which masks and labels are compared, to which labels
            are resized (nearest-exact); None: the size of the labels.
        per_frame: also score each frame by itself. A sample's `image_ari` is the mean of `ari` over
            its frames with true pixels, and so on. SlotContrast's and VideoSAUR's programs report
            such scores, as means over the frames of all samples.
        foreground: also score mBO and mIoU without the background; see `metrics.score_counts`.
        skip_frames: how many frames at the start of each clip are not scored. SAVi's paper leaves
            out the first one, whose boxes are given.
        count_segments: also compare the number of segments found with the true number; see
            `metrics.count_segments`.
    """

    background_column_always: bool = False
    score_at: int | None = None
    per_frame: bool = False
    foreground: bool = False
    skip_frames: int = 0
    count_segments: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the scores."""
        names = METRICS + (FOREGROUND_METRICS if self.foreground else ())
        names += tuple(PER_FRAME + name for name in names if self.per_frame)
        return names + (COUNT_METRICS if self.count_segments else ())

    def sized(self, segments: np.ndarray) -> np.ndarray:
        """Resize labels, or masks as labels are, (..., H, W) to the size of the comparison."""
        if self.score_at is None:
            return segments
        return resize_labels(segments, (self.score_at, self.score_at))

    def kept(self, frames: np.ndarray) -> np.ndarray:
        """Return the frames (T, ...) of a clip that are scored."""
        return frames[self.skip_frames :]

    def scores(self, counts: Contingency, match_paper: bool = False) -> dict[str, float]:
        """Score one sample.

        Args:
            counts: of each of its frames; without `per_frame` they may be of the whole sample.
            match_paper: see `metrics.score_batch`.
        """
        options = {
            "match_paper": match_paper,
            "background_column_always": self.background_column_always,
            "of_foreground": self.foreground,
        }
        whole = score_counts(counts.together(), **options)
        found = {name: float(values[0]) for name, values in whole.items()}
        if self.count_segments:
            found |= {n: float(x[0]) for n, x in count_segments(counts.together()).items()}
        if self.per_frame:
            means = mean_over_samples(score_counts(counts, **options))
            found |= {PER_FRAME + name: float(value) for name, value in means.items()}
        return found


class MaskEvaluator:
    """An evaluator that resizes masks to the labels and scores whole clips; see `Evaluator`.

    Where slots were pruned, it also counts them; see `slots.py`. Where samples may stop iterating,
    it tells how many iterations they had.

    Args:
        source: which masks to score: those of the "decoder" or the "aggregator".
        scoring: how masks are compared with labels.
        pruning: how slots were pruned, for `scores.json`; None: they were not.
        halts: whether samples may stop iterating, so that there is an output `iterations` (B,T).
    """

    paper_differs = False

    def __init__(
        self,
        source: str = "decoder",
        scoring: Scoring = Scoring(),  # noqa: B008, it is frozen
        pruning: Mapping[str, Any] | None = None,
        halts: bool = False,
    ):
        self._output, self._scoring = SOURCES[source], scoring
        self._counts_slots = pruning is not None
        self.metrics = scoring.metrics
        self.outputs = (self._output, "slot_mask", *[ITERATIONS] * halts)
        self.protocol = {
            "masks": WORDS[source],
            **dataclasses.asdict(scoring),
            **(pruning or {}),
        }

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Count the pixels of each pair of segments.

        Raises:
            UserError: the labels are not valid.
        """
        labels = np.asarray(batch["segmentations"])
        check_numbers(labels, "labels")
        labels = self._scoring.sized(labels.astype(np.uint8, copy=False))
        masks, mask = outputs[self._output], outputs.get("slot_mask")
        mask = batch.get("slot_mask") if mask is None else mask  # a model may narrow it
        options = self._scoring.per_frame, self._scoring.skip_frames
        found = counted_masks(masks, labels, mask, batch.get("num_frames"), *options)
        tables = {"counts": found.counts}
        if self._counts_slots:
            tables["slots"] = num_slots(mask, batch.get("num_frames"))
        if ITERATIONS in self.outputs:
            used = outputs[ITERATIONS]
            tables[ITERATIONS] = mean_over_frames(used, batch.get("num_frames"))
        return Measured(tables, found.segments)

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        counts = tables["counts"] if self._scoring.per_frame else tables["counts"][:, None]
        rows = [self._scoring.scores(contingency_from_counts(x), match_paper) for x in counts]
        found = {name: np.array([row[name] for row in rows]) for name in self.metrics}
        whole = {**tables, "counts": counts.sum(axis=1)}
        found |= count_slots(whole) if "slots" in tables else {}
        iterations = {name: x for name, x in tables.items() if name == ITERATIONS}
        return found | {name: x.astype(np.float64) for name, x in iterations.items()}

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return mean_over_samples(per_sample) | correlation_of_counts(per_sample)


def evaluate_baselines(
    batches: Iterable[Batch],
    features: Callable[[Batch], Any] | None = None,
    *,
    with_boxes: bool = True,
    scoring: Scoring = Scoring(),  # noqa: B008, it is frozen
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Score the baselines that need no weights, on the same clips and with the same metrics.

    Args:
        batches: as for `split.evaluate`.
        features: batch -> (B,T,h,w,C), the frozen features; None: skip that baseline.
        with_boxes: whether to score the first frame's boxes; needs batch["boxes"].
        scoring: how masks are compared with labels.
        seed: seed of k-means.

    Returns:
        baseline -> metric -> (samples,) float64. The baselines are "first boxes kept still",
        "k-means on features", "k-means on RGB" and "block pattern".
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
            masks["block pattern"] = baselines.block_pattern(segments, length, size)
            for baseline, mask in masks.items():
                pair = [scoring.sized(scoring.kept(x)) for x in (mask, labels)]
                counts = contingency(*(x if scoring.per_frame else x[None] for x in pair))
                per_metric = found.setdefault(baseline, {name: [] for name in scoring.metrics})
                for name, score in scoring.scores(counts).items():
                    per_metric[name].append(score)
    return {
        baseline: {name: np.array(values) for name, values in per_metric.items()}
        for baseline, per_metric in found.items()
    }
