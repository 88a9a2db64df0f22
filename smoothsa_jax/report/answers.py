"""The report of a run of the task `answers`: its scores, and some questions with their clips."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from smoothsa_jax.checkpoints.read import Checkpoint, restore_state
from smoothsa_jax.evaluation.answers import MODEL
from smoothsa_jax.evaluation.pictures import enlarge
from smoothsa_jax.evaluation.scores import scores_rows
from smoothsa_jax.evaluation.split import scored
from smoothsa_jax.inputs.questions import clips_of
from smoothsa_jax.losses.answers import ANSWER_LOGITS, CHOICE_LOGITS
from smoothsa_jax.report.page import Picture, Section
from smoothsa_jax.report.records import Records
from smoothsa_jax.training.evaluating import (
    batches_of,
    params_of,
    slots_of,
    source_of_split,
    untrained,
)
from smoothsa_jax.training.step import build_training

OF_KIND = 2  # questions of each kind that are shown, as far as the first batch has them
MOST = 16  # questions in all
MOST_FRAMES = 8
SIDE, GAP = 110, 4  # pixels: frames are enlarged to about this size, with gaps in between


def sections_of(
    config: ConfigDict,
    checkpoint: Checkpoint,
    records: Records,
    say: Callable[[str], None],
) -> list[Section]:
    """Return the parts of the page that only this task has.

    Args:
        config: the config that the scores were made with.
        checkpoint: the scored one.
        records: of the run.
        say: called with one line for each stage.
    """
    say(f"answering questions of the {config.eval.split} split with {checkpoint.path}")
    training = untrained(build_training(config))
    frozen = restore_state({"frozen": training.frozen}, checkpoint, only="frozen/")["frozen"]
    training = dataclasses.replace(training, frozen=frozen)
    params, slots = params_of(checkpoint, training), slots_of(config, training.task)
    source = source_of_split(config, slots, config.eval.split, config.eval.num_samples)
    batch = next(batches_of(config, source))
    key = jax.random.fold_in(jax.random.key(int(config.eval.seeds[0])), 0)
    outputs = training.predict(params, training.cast_frozen, training.place(batch), key)
    outputs = jax.device_get(outputs)
    pictures = [
        Picture(f"question_{number:03d}", caption, png)
        for number, caption, png in _shown(
            config, source.questions, batch, outputs, records.scores["protocol"].get("threshold")
        )
    ]
    return [_scores(config.title, records), _questions(pictures)]


def _scores(title: str, records: Records) -> Section:
    protocol = records.scores["protocol"]
    ahead = protocol.get("predicted")
    seen = f"{protocol['observed']} observed frames" + f" and {ahead} predicted ones" * bool(ahead)
    text = (
        f"Right answers in %, of {protocol['num_samples']} questions of the "
        f"{records.scores['split']} split, from slots of {seen}, after {records.scores['step']} "
        "training steps. The first column is the mean over kinds of questions."
    )
    return Section("Scores", text, [], scores_rows(title, records.scores))


def _questions(pictures: list[Picture]) -> Section:
    text = (
        "What was observed, the question, the right answer, and the model's, with the probability "
        "that it gives to it."
    )
    return Section("Questions", text, pictures)


def _shown(
    config: ConfigDict,
    questions: Any,
    batch: Mapping[str, np.ndarray],
    outputs: Any,
    threshold: float | None,
):
    """Yield number, caption and picture of some questions of a batch, by kind.

    Args:
        threshold: of two answers, the second is given if its probability is above this. None: the
            most probable one is given.
    """
    kinds, clips = np.asarray(batch["kind"]), clips_of(questions)
    found = 0
    for kind in range(len(config.model.kinds)):
        for b in [b for b in scored(batch) if kinds[b] == kind][:OF_KIND]:
            if found < MOST:
                found += 1
                video = clips[int(batch["clip"][b])]["video"]
                yield b, _caption(config, questions, batch, outputs, b, threshold), _strip(video)


def _caption(
    config: ConfigDict,
    questions: Any,
    batch: Mapping[str, np.ndarray],
    outputs: Any,
    b: int,
    threshold: float | None,
) -> str:
    kind = config.model.kinds[int(batch["kind"][b])].replace("_", " ")
    of_words = lambda ids: " ".join(config.model.words[i] for i in ids if i)  # noqa: E731
    text = questions.text(b) if hasattr(questions, "text") else of_words(batch["question"][b])
    front, answer = f"{kind}: {text} ", int(batch["answer"][b])
    if answer >= 0:
        logits = np.where(batch["allowed"][b], outputs[f"{MODEL}.{ANSWER_LOGITS}"][b], -np.inf)
        share = np.exp(logits - logits.max())
        share = share / share.sum()
        said = int(logits.argmax() if threshold is None else share[-1] > threshold)
        names = config.model.answers
        verdict = "right" if said == answer else "wrong"
        return (
            f"{front}Answer: {names[answer]}. Model: {names[said]} ({100 * share[said]:.0f} %), "
            f"{verdict}."
        )
    rows = []
    taken = outputs[f"{MODEL}.{CHOICE_LOGITS}"][b] > 0
    for k, label in enumerate(batch["choice_answers"][b]):
        if label >= 0:
            words = "yes" if taken[k] else "no"
            verdict = "right" if taken[k] == (label > 0) else "wrong"
            rows.append(f"{of_words(batch['choices'][b, k])}: {words}, {verdict}")
    return front + "; ".join(rows)


def _strip(video: np.ndarray) -> bytes:
    """Draw frames (T,H,W,3) side by side."""
    video = video[:: -(-len(video) // MOST_FRAMES)]
    frames = enlarge(video, max(1, round(SIDE / video.shape[1])))
    framed = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(framed), axis=1)[:, :-GAP]).save(file, "PNG")
    return file.getvalue()
