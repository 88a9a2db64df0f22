"""Follow a model through training: the same samples with the weights of each checkpoint."""

import dataclasses
from typing import NamedTuple

import numpy as np

from smoothsa_jax.evaluation.masks import Scoring
from smoothsa_jax.evaluation.metrics import contingency
from smoothsa_jax.evaluation.scores import mean_over_samples
from smoothsa_jax.evaluation.split import Batch, num_frames_of, scored
from smoothsa_jax.report.distances import around_the_warmer


class Stage(NamedTuple):
    """Distances and scores after `step` training steps.

    Attributes:
        step: number of training steps done.
        distances: "before the warmer" and "after the warmer"; see `around_the_warmer`.
        scores: metric -> mean over the samples; empty without labels.
    """

    step: int
    distances: dict[str, float]
    scores: dict[str, float]


def stage(step: int, found: dict, batch: Batch, scoring: Scoring, labelled: bool = True) -> Stage:
    """Compute the stage of one batch; padding of the batch does not count.

    Args:
        step: number of training steps done.
        found: what an `Observer` found in the batch.
        batch: the samples.
        scoring: how the masks were scored; only whole clips are scored here.
        labelled: whether the samples have labels to score against.
    """
    rows = scored(batch)
    states = {name: x[rows] for name, x in found["states"].items()}

    scoring = dataclasses.replace(scoring, per_frame=False)

    def scores_of(b: int) -> dict[str, float]:
        length = num_frames_of(batch, b)
        labels = scoring.sized(np.asarray(batch["segmentations"][b])[:length])
        return scoring.scores(contingency(found["masks"][b][None, :length], labels[None]))

    every = [scores_of(b) for b in rows] if labelled else []
    names = scoring.metrics if labelled else ()
    scores = {name: np.array([of_sample[name] for of_sample in every]) for name in names}
    return Stage(
        step,
        around_the_warmer(states, np.asarray(batch["slot_mask"])[rows]),
        {name: float(x) for name, x in mean_over_samples(scores).items()},
    )
