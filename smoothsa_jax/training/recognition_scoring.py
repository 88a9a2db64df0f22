"""Recognition's scores of given weights on a split; `scoring.py` does the same for segmentation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from smoothsa_jax.devices import hosts
from smoothsa_jax.evaluation.recognition import (
    RecognitionEvaluation,
    evaluate_recognition,
    scores_of_counts,
)
from smoothsa_jax.evaluation.sample_scores import scored_by_seeds, write_sample_scores
from smoothsa_jax.evaluation.scores import summarise_seeds, write_scores
from smoothsa_jax.evaluation.whole_split import whole_split
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.training.recognition import RecognitionTraining
from smoothsa_jax.training.scoring import (
    SAMPLE_SCORES_FILE,
    SCORES_FILE,
    VALIDATION_SAMPLES,
    batches_of,
    protocol_of,
    source_of_split,
    writing_to,
)


def validation_scores(
    config: ConfigDict, training: RecognitionTraining, params: Parameters
) -> dict[str, float]:
    """Scores on part of the validation split, first evaluation seed; for choosing a checkpoint."""
    samples = config.eval.get("validation_samples", VALIDATION_SAMPLES)
    found = _evaluate(config, training, params, "validation", samples, tuple(config.eval.seeds)[:1])
    return {name: float(value[0]) for name, value in scores_of_counts(found.counts).items()}


def report(
    config: ConfigDict,
    training: RecognitionTraining,
    params: Parameters,
    step: int,
    workdir: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score weights on `eval.split` and write `scores.json` and `scores.csv` (counts); arguments and errors as of `scoring.report`."""
    settings = config.eval
    samples, seeds = settings.get("num_samples"), tuple(settings.seeds)
    say(f"scoring on the {settings.split} split, seeds {', '.join(map(str, seeds))}")
    paper = settings.get("match_paper", False)
    found = _evaluate(config, training, params, settings.split, samples, seeds, paper)
    baselines = {}
    if settings.get("baselines", True):
        head = training.state.params
        untrained = _evaluate(config, training, head, settings.split, samples, seeds[:1])
        first_seed = summarise_seeds(scores_of_counts(untrained.counts))
        baselines = {"untrained head": {name: x["mean"] for name, x in first_seed.items()}}
    scores = {
        "metrics": summarise_seeds(scores_of_counts(found.counts)),
        "baselines": baselines,
        "split": settings.split,
        "protocol": {
            **protocol_of(config, len(found.names), "slot attention"),
            "mean_over": "matches",
        },
        "step": int(step),
    }
    rows = scored_by_seeds("SmoothSA", "default", seeds, found.counts)
    if found.paper_counts is not None:
        scores["match_paper"] = {"metrics": summarise_seeds(scores_of_counts(found.paper_counts))}
        rows += scored_by_seeds("SmoothSA", "match_paper", seeds, found.paper_counts)
    if not hosts.is_primary():
        return scores
    with writing_to(workdir):
        write_sample_scores(workdir / SAMPLE_SCORES_FILE, found.names, rows)
        write_scores(workdir / SCORES_FILE, scores)
    return scores


def _evaluate(
    config: ConfigDict,
    training: RecognitionTraining,
    params: Parameters,
    split: str,
    num_samples: int | None,
    seeds: tuple[int, ...],
    match_paper: bool = False,
) -> RecognitionEvaluation:
    params, frozen = training.cast(params), training.cast_frozen

    def predict(batch: dict[str, Any], key: jax.Array, match_paper: bool) -> dict[str, jax.Array]:
        return training.predict(params, frozen, training.place(batch), key, match_paper)

    source = source_of_split(config, split, num_samples)
    own = evaluate_recognition(predict, batches_of(config, source), seeds, match_paper=match_paper)
    return whole_split(hosts.gather(own), config.eval.batch_size, len(source))
