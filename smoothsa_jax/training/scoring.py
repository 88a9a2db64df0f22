"""Scores of given weights on a split, with the baselines and the pictures that belong to a report."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.pictures import animation, contact_sheet
from smoothsa_jax.evaluation.protocol import Evaluation, evaluate, evaluate_baselines
from smoothsa_jax.evaluation.sample_scores import Scored, scored_by_seeds, write_sample_scores
from smoothsa_jax.evaluation.scores import build_scores, mean_over_samples, write_scores
from smoothsa_jax.evaluation.whole_split import whole_split
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.loader import Source, evaluation_batches
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.training.step import Training

SCORES_FILE = "scores.json"
SAMPLE_SCORES_FILE = "scores.csv"
PICTURES_FOLDER = "pictures"
WHOLE_CLIPS = -1  # as eval.num_frames: each clip with all of its frames
NUM_PICTURES = 8  # unless eval.num_pictures says otherwise
VALIDATION_SAMPLES = 32  # unless eval.validation_samples says otherwise


def validation_scores(
    config: ConfigDict, training: Training, params: Parameters
) -> dict[str, float]:
    """Mean of each metric on part of the validation split, first evaluation seed; for choosing a checkpoint."""
    samples = config.eval.get("validation_samples", VALIDATION_SAMPLES)
    found = _evaluate(config, training, params, "validation", samples, tuple(config.eval.seeds)[:1])
    return {name: float(value[0]) for name, value in mean_over_samples(found.scores).items()}


def report(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    step: int,
    workdir: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score weights on `eval.split`; write `scores.json`, `scores.csv` and pictures.

    Args:
      training: of this config; its initial state is the untrained baseline.
      params: the trained parameters.
      step: training steps behind them.
      say: called with a line for each stage.

    Returns:
      the content of `scores.json`.

    Raises:
      UserError: a file cannot be written, labels do not fit, ...
    """
    settings = config.eval
    samples, pictures = settings.get("num_samples"), settings.get("num_pictures", NUM_PICTURES)
    say(f"scoring on the {settings.split} split, seeds {', '.join(map(str, settings.seeds))}")
    paper, seeds = settings.get("match_paper", False), tuple(settings.seeds)
    found = _evaluate(config, training, params, settings.split, samples, seeds, paper, pictures)
    rows = scored_by_seeds("SmoothSA", "default", seeds, found.scores)
    if found.paper_scores is not None:
        rows += scored_by_seeds("SmoothSA", "match_paper", seeds, found.paper_scores)
    baselines = {}
    if settings.get("baselines", True):
        say("scoring the baselines")
        baselines = _baselines(config, training, samples)
        rows += [Scored(name, "default", seeds[0], x) for name, x in baselines.items()]
    protocol = {
        **protocol_of(config, len(found.names), "decoder attention"),
        "background_column_always": settings.get("background_column_always", False),
    }
    scores = build_scores(
        found.scores,
        baselines,
        split=settings.split,
        protocol=protocol,
        step=step,
        paper_per_sample=found.paper_scores,
    )
    if not hosts.is_primary():
        return scores
    with writing_to(workdir):
        write_sample_scores(workdir / SAMPLE_SCORES_FILE, found.names, rows)
        write_scores(workdir / SCORES_FILE, scores)
        for number, sample in enumerate(found.samples):
            clip = (sample["video"], sample["segmentations"], sample["masks"])
            contact_sheet(*clip, workdir / PICTURES_FOLDER / f"{settings.split}_{number:02d}.png")
            if len(sample["video"]) > 1:
                animation(*clip, workdir / PICTURES_FOLDER / f"{settings.split}_{number:02d}.gif")
    return scores


def protocol_of(config: ConfigDict, num_samples: int, masks: str) -> dict[str, Any]:
    """How a split is scored, for `scores.json`."""
    settings = config.eval
    return {
        "seeds": tuple(settings.seeds),
        "num_samples": num_samples,
        "num_frames": settings.get("num_frames"),
        "batch_size": settings.batch_size,
        "queries": config.model.initializer.name,
        "masks": masks,
        "match_paper": settings.get("match_paper", False),
    }


@contextlib.contextmanager
def writing_to(workdir: Path) -> Iterator[None]:
    """Within it a disk that is full, or alike, is told in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"scores cannot be written to {workdir}: {error.strerror}; mend that and use --mode=evaluate"
        ) from error


def _baselines(
    config: ConfigDict, training: Training, num_samples: int | None
) -> dict[str, dict[str, np.ndarray]]:
    """Scores of the samples, by the name of the baseline."""
    split, seed = config.eval.split, config.eval.seeds[0]
    untrained = _evaluate(config, training, training.state.params, split, num_samples, (seed,))
    source = source_of_split(config, split, num_samples)
    parts = hosts.gather(
        evaluate_baselines(
            batches_of(config, source),
            training.grid,
            _features(training),
            with_boxes=config.data.get("boxes", False),
        )
    )
    whole = whole_split(parts, config.eval.batch_size, len(source))
    return {"untrained model": {name: x[0] for name, x in untrained.scores.items()}, **whole}


def _evaluate(
    config: ConfigDict,
    training: Training,
    params: Parameters,
    split: str,
    num_samples: int | None,
    seeds: tuple[int, ...],
    match_paper: bool = False,
    keep_samples: int = 0,
) -> Evaluation:
    params, frozen = training.cast(params), training.cast_frozen

    def predict(batch: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        return training.predict(params, frozen, training.place(batch), key)

    source = source_of_split(config, split, num_samples)
    own = evaluate(
        predict,
        batches_of(config, source),
        training.grid,
        seeds,
        match_paper=match_paper,
        background_column_always=config.eval.get("background_column_always", False),
        keep_samples=keep_samples,
    )
    found = whole_split(hosts.gather(own), config.eval.batch_size, len(source))
    return dataclasses.replace(found, samples=found.samples[:keep_samples])


def source_of_split(config: ConfigDict, split: str, num_samples: int | None) -> Source:
    """The samples that a split is scored on.

    Raises:
      UserError: there is no such split, or an option does not fit.
    """
    # What is set for training only does not reach the evaluation.
    for_training = ("num_samples", "keep", "features")
    data = {key: value for key, value in config.data.items() if key not in for_training}
    options = {"num_slots": config.model.slot_attention.num_slots, "num_samples": num_samples}
    frames = config.eval.get("num_frames")
    if frames is not None:
        options["num_frames"] = None if frames == WHOLE_CLIPS else frames
    return build_dataset(data, split, **options)


def batches_of_split(
    config: ConfigDict, split: str, num_samples: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """The batches that a split is scored on."""
    return batches_of(config, source_of_split(config, split, num_samples))


def batches_of(config: ConfigDict, source: Source) -> Iterator[dict[str, np.ndarray]]:
    """The batches of a split that this process scores."""
    return evaluation_batches(
        source,
        config.eval.batch_size,
        fill_lengths=config.eval.get("num_frames") == WHOLE_CLIPS,
        num_threads=config.train.get("num_threads", 1),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _features(training: Training) -> Callable[[dict[str, Any]], jax.Array]:
    extract, arrays = jax.jit(training.features), (training.state.params, training.frozen)
    return lambda batch: extract(*arrays, training.place(batch)["video"])
