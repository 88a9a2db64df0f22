"""Losses of held-out samples: the scores of a split without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from smoothsa_jax.evaluation.scores import LOSS, mean_over_samples
from smoothsa_jax.evaluation.split import Batch, Measured


class LossEvaluator:
    """An evaluator whose scores are the weighted losses; see `Evaluator`. Lower is better.

    Args:
        terms: names of the loss terms.
    """

    paper_differs = False

    def __init__(self, terms: Iterable[str]):
        self.metrics = self.outputs = (LOSS, *(f"{LOSS}/{name}" for name in terms))
        self.protocol = {"scores": "losses, as in training, of each sample by itself"}

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Take the losses (B,) as they are."""
        del batch
        return Measured(dict(outputs))

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        del match_paper
        return dict(tables)

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return mean_over_samples(per_sample)
