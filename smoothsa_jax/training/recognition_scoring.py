"""Recognition's scores of given weights on a split; `scoring.py` does the same for segmentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.recognition import evaluate_recognition, scores_of_counts
from smoothsa_jax.evaluation.scores import summarise_seeds, write_scores
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.training.recognition import RecognitionTraining
from smoothsa_jax.training.scoring import SCORES_FILE, VALIDATION_SAMPLES, batches_of_split


def validation_scores(
    config: ConfigDict, training: RecognitionTraining, params: Parameters
) -> dict[str, float]:
    """Scores on part of the validation split, first evaluation seed; for choosing a checkpoint."""
    samples = config.eval.get("validation_samples", VALIDATION_SAMPLES)
    counts = _counts(config, training, params, "validation", samples, tuple(config.eval.seeds)[:1])
    return {name: float(value[0]) for name, value in scores_of_counts(counts).items()}


def report(
    config: ConfigDict,
    training: RecognitionTraining,
    params: Parameters,
    step: int,
    workdir: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score weights on `eval.split` and write `scores.json`; arguments and errors as of `scoring.report`."""
    settings = config.eval
    samples, seeds = settings.get("num_samples"), tuple(settings.seeds)
    say(f"scoring on the {settings.split} split, seeds {', '.join(map(str, seeds))}")
    counts = _counts(config, training, params, settings.split, samples, seeds)
    untrained = _counts(config, training, training.state.params, settings.split, samples, seeds[:1])
    first_seed = summarise_seeds(scores_of_counts(untrained))
    scores = {
        "metrics": summarise_seeds(scores_of_counts(counts)),
        "baselines": {"untrained head": {name: x["mean"] for name, x in first_seed.items()}},
        "split": settings.split,
        "protocol": {
            "seeds": seeds,
            "num_samples": counts["num_matches"].shape[-1],
            "num_frames": settings.get("num_frames"),
            "batch_size": settings.batch_size,
            "queries": config.model.initializer.name,
            "masks": "slot attention",
            "mean_over": "matches",
            "match_paper": settings.get("match_paper", False),
        },
        "step": int(step),
    }
    try:
        write_scores(workdir / SCORES_FILE, scores)
    except OSError as error:
        raise UserError(
            f"scores cannot be written to {workdir}: {error.strerror}; mend that and use --mode=evaluate"
        ) from error
    return scores


def _counts(
    config: ConfigDict,
    training: RecognitionTraining,
    params: Parameters,
    split: str,
    num_samples: int | None,
    seeds: tuple[int, ...],
) -> dict[str, np.ndarray]:
    def predict(batch: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        return training.predict(params, training.frozen, training.place(batch), key)

    return evaluate_recognition(predict, batches_of_split(config, split, num_samples), seeds)
