"""What is trained and how it is scored: SmoothSA itself, or recognition on its slots."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.evaluation.metrics import METRICS
from smoothsa_jax.evaluation.recognition import RECOGNITION_METRICS
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.training import recognition_scoring, scoring
from smoothsa_jax.training.backbone import with_backbone
from smoothsa_jax.training.recognition import build_recognition, with_pretrained
from smoothsa_jax.training.step import Training, build_training


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained and how it is scored; all else of a run is the same for every task.

    Attributes:
      build: config -> the first state and the compiled functions.
      begin: (config, training, warn) -> the same with what a run that has no checkpoint yet takes from elsewhere.
      validation_scores: (config, training, params) -> {name: mean}, with a value for each of `metrics`.
      report: as `scoring.report`.
      metrics: names by which the best checkpoint can be chosen.
    """

    build: Callable[[ConfigDict], Training]
    begin: Callable[[ConfigDict, Training, Callable[[str], None]], Training]
    validation_scores: Callable[[ConfigDict, Training, Parameters], dict[str, float]]
    report: Callable[..., dict[str, Any]]
    metrics: tuple[str, ...]


def task_of(config: ConfigDict) -> Task:
    """Recognition where the config has a part of that name, else SmoothSA itself."""
    if "recognition" in config:
        return Task(
            build_recognition,
            with_pretrained,
            recognition_scoring.validation_scores,
            recognition_scoring.report,
            RECOGNITION_METRICS,
        )
    return Task(build_training, with_backbone, scoring.validation_scores, scoring.report, METRICS)
