"""Build the report of a workdir."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.read import (
    RECORD,
    BrokenCheckpoint,
    Checkpoint,
    read_checkpoint,
    steps_found,
)
from smoothsa_jax.checkpoints.sources import start_elsewhere
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.answers import AnswerEvaluator
from smoothsa_jax.evaluation.masks import WORDS, Scoring
from smoothsa_jax.evaluation.pictures import contact_sheet
from smoothsa_jax.evaluation.scores import (
    cell,
    headline,
    is_loss,
    leading_metric,
    scores_rows,
    title_of,
)
from smoothsa_jax.evaluation.split import Batch, scored
from smoothsa_jax.files import atomic_file
from smoothsa_jax.models.build import cold_start
from smoothsa_jax.models.parameters import Parameters
from smoothsa_jax.report import answers, figures
from smoothsa_jax.report.clips import WARM, Clip, Observer, clips
from smoothsa_jax.report.curves import Curve, curves
from smoothsa_jax.report.page import Picture, Section, page
from smoothsa_jax.report.ranking import Ranking, best_first, rank
from smoothsa_jax.report.records import Records, read_records
from smoothsa_jax.report.stages import Stage, stage
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.discovery import scoring_of
from smoothsa_jax.training.evaluating import (
    batches_of,
    restored,
    slots_of,
    source_of_split,
    without_untrained,
)
from smoothsa_jax.training.step import build_training

FOLDER, PAGE = "report", "index.html"
NUM_CLIPS = 4  # first samples of the split, shown with their masks
NUM_CLOSE = 2  # of these, samples shown with attention and trajectories
NUM_RANKED = 4  # best samples, and as many worst samples


def report(
    workdir: Path,
    choose_config: Callable[[ConfigDict], ConfigDict] = lambda stored: stored,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write `report/index.html`, a self-contained page, and its pictures as PNG files.

    Args:
        workdir: workdir of a trained and scored run of a slot model, or of one that answers
            questions.
        choose_config: given the checkpoint's config, returns the config to use, as for
            `training.evaluating.evaluate_run`.
        say: called with one line for each stage.

    Returns:
        The path of the page.

    Raises:
        UserError: the log, checkpoint or scores are missing; the run trained a recognition head;
            matplotlib is missing; or the report cannot be written.
    """
    figures.check_matplotlib()
    checkpoint, config = restored(workdir, choose_config)
    task = build_task(config)
    if isinstance(task.evaluator, AnswerEvaluator):
        return _of_answers(workdir, checkpoint, config, say)
    if reason := getattr(task, "no_segments", ""):
        raise UserError(f"{workdir} holds a model of the task {config.task!r}, which {reason}")
    if "decoder" not in config.model:
        sources = [x.source for x in config.companions.values() if x.get("source")]
        raise UserError(
            f"{workdir} holds a model of the task {config.task!r}, and a report shows slots; give "
            f"the workdir of the slot model that it was trained on: {', '.join(sources)}"
        )
    records = read_records(workdir, converted=RECORD in checkpoint.progress)
    config = _as_scored(config, records)
    metric = leading_metric(records.scores)
    labelled = not is_loss(metric)
    model_scores = records.by_sample[0]
    ranking = rank(model_scores.per_sample[metric], NUM_RANKED, lowest_first=not labelled)

    checkpoint = _scored_checkpoint(workdir, checkpoint, records, say)
    say(f"looking at samples of the {config.eval.split} split with {checkpoint.path}")
    observer, params = Observer(config), jax.device_put(checkpoint.weights)
    ranked = [number for number, _ in (*ranking.best, *ranking.worst)]
    found = clips(
        lambda batch, key: observer(params, batch, key),
        _batches(config),
        model_scores.seed,
        {*range(min(NUM_CLIPS, len(model_scores.per_sample[metric]))), *ranked},
    )
    if not labelled:
        found = {number: dataclasses.replace(clip, labels=None) for number, clip in found.items()}
    say("looking at the first batch with the weights of each checkpoint")
    batch = next(_batches(config))
    key = jax.random.fold_in(jax.random.key(model_scores.seed), 0)
    scoring = scoring_of(config.eval)
    stages = [
        stage(step, observer(weights, batch, key), batch, scoring, labelled)
        for step, weights in _weights_through_training(workdir, config, checkpoint.weights, say)
    ]
    last = observer(params, batch, key)["states"]
    say("drawing")
    folder = workdir / FOLDER
    shown = [found[number] for number in sorted(found) if number < NUM_CLIPS]
    sections = [
        _scores(config.title, records, stages, metric),
        *([_training(records)] if records.log else []),
        _masks(shown, folder),
        _warmer(last, batch, stages, records, config),
        _attention(shown[:NUM_CLOSE]),
        _trajectories(shown[:NUM_CLOSE]),
        _ranked(ranking, found, metric, folder),
    ]
    subtitle = (
        f"{workdir}, step {checkpoint.step} of {config.train.num_steps}; "
        f"{cold_start(config.model)} queries, evaluation seed {model_scores.seed}"
    )
    text = page(f"{config.name}: {headline(records.scores)}", subtitle, sections)
    return _write(folder, text, sections)


def _of_answers(
    workdir: Path, checkpoint: Checkpoint, config: ConfigDict, say: Callable[[str], None]
) -> Path:
    """Write the page of a run that answers questions."""
    records = read_records(workdir, converted=RECORD in checkpoint.progress)
    config = _as_scored(config, records)
    checkpoint = _scored_checkpoint(workdir, checkpoint, records, say)
    scores, *rest = answers.sections_of(config, checkpoint, records, say)
    say("drawing")
    sections = [scores, *([_training(records)] if records.log else []), *rest]
    subtitle = f"{workdir}, step {checkpoint.step} of {config.train.num_steps}"
    text = page(f"{config.name}: {headline(records.scores)}", subtitle, sections)
    return _write(workdir / FOLDER, text, sections)


def _write(folder: Path, text: str, sections: list[Section]) -> Path:
    """Write a page and its pictures, the page last."""
    path = folder / PAGE
    try:
        for section in sections:
            for picture in section.pictures:
                with atomic_file(folder / f"{picture.name}.png") as temporary:
                    temporary.write_bytes(picture.png)
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; fix that") from error
    return path


def _as_scored(config: ConfigDict, records: Records) -> ConfigDict:
    """Return the config that `scores.csv` was made with, for the same samples and queries."""
    config = config.copy_and_resolve_references().unlock()
    protocol = records.scores["protocol"]
    config.eval.split = records.scores["split"]
    names = ("num_samples", "num_frames", "windows", "window_rest", "batch_size")
    for name in (*names, *(field.name for field in dataclasses.fields(Scoring))):
        if name in protocol:  # losses have no masks, earlier scores no windows
            config.eval[name] = protocol[name]
    if "masks" in protocol:
        masks = next(name for name, words in WORDS.items() if words == protocol["masks"])
        config.eval.masks = masks
    return config


def _scored_checkpoint(
    workdir: Path, newest: Checkpoint, records: Records, say: Callable[[str], None]
) -> Checkpoint:
    """Return the checkpoint that was scored, or the newest if it no longer exists."""
    step = records.scores["step"]
    if step == newest.step:
        return newest
    try:
        return read_checkpoint(workdir, step)
    except BrokenCheckpoint as reason:
        say(
            f"warning: scores are of step {step}, whose checkpoint is not usable ({reason}); "
            f"pictures are of step {newest.step}"
        )
        return newest


def _batches(config: ConfigDict) -> Iterator[Batch]:
    settings = config.eval
    num_slots = slots_of(config, build_task(config))
    return batches_of(
        config, source_of_split(config, num_slots, settings.split, settings.num_samples)
    )


def _weights_through_training(
    workdir: Path, config: ConfigDict, newest: Parameters, say: Callable[[str], None]
) -> Iterator[tuple[int, Parameters]]:
    """Yield step and weights: the initial ones, then those of each intact checkpoint.

    The initial ones are left out where they come from a source and not from the seed.
    """
    first = build_training(config).state.params
    if elsewhere := start_elsewhere(config.weights, first):
        say(without_untrained("step 0", elsewhere))
    else:
        yield 0, {**newest, **first}
    for step in reversed(steps_found(workdir)):
        try:
            yield step, jax.device_put(read_checkpoint(workdir, step).weights)
        except BrokenCheckpoint as reason:
            say(f"warning: the checkpoint of step {step} is not usable ({reason}); left out")


# ------------------------------------------------------------------------------ parts of the page


def _scores(title: str, records: Records, stages: list[Stage], metric: str) -> Section:
    protocol = records.scores["protocol"]
    unit = "without labels: losses, lower is better" if is_loss(metric) else "in %"
    text = (
        f"On {_samples(protocol['num_samples'])} of the {records.scores['split']} split, {unit}, "
        f"after {records.scores['step']} training steps.{_more_of(protocol)}"
    )
    png = figures.scores(
        curves(records.log, "validation/"),
        stages,
        best_first(records.by_sample, metric),
        metric,
        title,
    )
    caption = (
        "Left: over the course of training. Right: the samples of each method, sorted by score."
    )
    return Section(
        "Scores", text, [Picture("scores", caption, png)], scores_rows(title, records.scores)
    )


def _more_of(protocol: Mapping[str, Any]) -> str:
    """Say what a protocol has on that is off by default."""
    text = ""
    if protocol.get("windows"):
        text += f" Each sample is a window of {protocol['windows']} frames of a video."
    if protocol.get("score_at"):
        side = protocol["score_at"]
        text += f" Masks and labels are compared at {side}x{side} pixels."
    if skipped := protocol.get("skip_frames"):
        text += f" The first {f'{skipped} frames' if skipped > 1 else 'frame'} of each is left out."
    if protocol.get("per_frame"):
        text += " Scores named image are means over single frames, the others are of whole clips."
    return text


def _samples(count: int) -> str:
    return f"{count} sample{'s' * (count != 1)}"


def _training(records: Records) -> Section:
    found = curves(records.log)
    terms = {name: found[name] for name in found if name.split("/")[0] == "loss"}
    others = {name: found[name] for name in ("grad_norm", "learning_rate") if name in found}
    last = records.log[-1]["step"]
    caption = "Thin: the logged steps. Thick: their moving average."
    picture = Picture("losses", caption, figures.losses(terms, others))
    return Section("Training", f"{len(records.log)} rows of the log, up to step {last}.", [picture])


def _masks(shown: list[Clip], folder: Path) -> Section:
    pictures = [
        Picture(f"masks_{clip.number:03d}", f"Sample {clip.number}.", _sheet(clip, folder))
        for clip in shown
    ]
    text = (
        "Frames, true segments and predicted masks. Each slot keeps the color of the segment that "
        "it matches best."
    )
    if shown[0].labels is None:
        text = "Frames and predicted masks, a color for each slot."
    return Section("Masks over time" if len(shown[0].video) > 1 else "Masks", text, pictures)


def _sheet(clip: Clip, folder: Path) -> bytes:
    path = folder / f".{clip.number}.png"
    try:
        contact_sheet(clip.video, clip.labels, {"masks": clip.masks}, path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _warmer(
    states: dict[str, np.ndarray],
    batch: Batch,
    stages: list[Stage],
    records: Records,
    config: ConfigDict,
) -> Section:
    rows = scored(batch)
    states = {name: x[rows] for name, x in states.items()}
    weight = config.losses.get("distillation", {}).get("weight", 0.0)
    constant = isinstance(weight, int | float) and weight > 0
    logged = curves(records.log).get("loss/distillation") if constant else None
    distillation = Curve(logged.steps, logged.values / weight) if logged else None
    png = figures.distances(states, np.asarray(batch["slot_mask"])[rows], stages, distillation)
    now = ", ".join(f"{value:.2f} {name}" for name, value in stages[-1].distances.items())
    text = (
        "The paper's argument: queries of a first frame carry no information about it, so it needs "
        "several iterations, unless a warmer first moves them close to the slots. Distance of "
        "queries from the slots that they become, relative to the slots' norm, on the first "
        f"frames of {_samples(len(rows))}: {now}."
    )
    if WARM not in states:
        text += " This model has no warmer."
    return Section("Queries and slots", text, [Picture("distances", "", png)])


def _attention(shown: list[Clip]) -> Section:
    text = (
        "Slot attention on the first frame in each iteration: from the warm queries, as the model "
        "runs, and from the cold-start samples, which a model with a warmer was not trained on. "
        "Brightness shows the slot's share of each token."
    )
    pictures = [
        Picture(f"attention_{c.number:03d}", f"Sample {c.number}.", figures.attention(c))
        for c in shown
    ]
    return Section("Attention, iteration by iteration", text, pictures)


def _trajectories(shown: list[Clip]) -> Section:
    text = (
        "Slots as points in the plane in which they vary most. Slots have the same colors as above."
    )
    if len(shown[0].states) > 1:
        text += (
            " Dashed: what the warmer does. Solid: iterations from warm queries. Dotted: "
            "iterations without the warmer."
        )
    pictures = [
        Picture(f"trajectories_{c.number:03d}", f"Sample {c.number}.", figures.trajectories(c))
        for c in shown
    ]
    return Section("Trajectories of slots", text, pictures)


def _ranked(ranking: Ranking, found: dict[int, Clip], metric: str, folder: Path) -> Section:
    pictures = []
    for kind, rows in (("best", ranking.best), ("worst", ranking.worst)):
        for place, (number, score) in enumerate(rows, start=1):
            caption = (
                f"{kind.capitalize()} {place}: sample {number}, {title_of(metric)} "
                f"{cell(metric, score)}."
            )
            pictures.append(Picture(f"{kind}_{place}", caption, _sheet(found[number], folder)))
    text = f"By {title_of(metric)} of each sample, first evaluation seed."
    return Section("Best and worst samples", text, pictures)
