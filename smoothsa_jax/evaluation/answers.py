"""Score answers to questions: by kind of question, by answer, and by choice.

The rows beside the model's are the readouts that were trained beside it, and the model itself with
other slots. A choice is taken if its logit is above 0. Of two answers, the second is given above a
threshold, which is chosen on the validation split, for each row by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothsa_jax.evaluation.scores import UNSEEN
from smoothsa_jax.evaluation.split import Batch, Measured
from smoothsa_jax.losses.answers import ANSWER_LOGITS, CHOICE_LOGITS

MODEL = "model"  # the row of the trained readout, in names of outputs
RIGHT, ACCURACY, QUESTIONS, OPTIONS = "right", "accuracy", "question_accuracy", "option_accuracy"
KIND, CLIP = "kind", "clip"  # of each question, beside what is right
OF_ANSWER = "accuracy_of"  # begins the names of scores of the questions with one right answer
MOST_ANSWERS = 64  # of which each has a score of its own
# Of two answers, the second one is given if its probability is above a threshold. Published scores
# of Physion have the best of these on the test set.
THRESHOLDS, THRESHOLD = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65), 0.5
_ANSWER, _YES = f"{UNSEEN}answer", f"{UNSEEN}yes"
_OF_PAPER = f"{UNSEEN}yes_of_paper"  # in its place where the paper chooses the threshold


class AnswerEvaluator:
    """An evaluator of answers; see `Evaluator`.

    `accuracy` is the mean over kinds of questions, `question_accuracy` that over all questions. Of
    a question with choices all have to be right; `option_accuracy` counts single choices.

    Args:
        kinds: names of the kinds of questions.
        answers: the list of answers.
        rows: names of the rows beside the model's, as outputs and tables have them.
        has_choices: whether some questions have choices.
        protocol: further facts for `scores.json`.
        thresholds: of two answers, a row gives the second if its probability is above this.

    Attributes:
        fits_on_validation: whether `fitted` chooses something: thresholds of two answers.
        best_of_paper: by which metric the paper has the best checkpoint of the scored split; None:
            it has the newest one.
    """

    paper_differs = False
    needs_labels = False

    def __init__(
        self,
        *,
        kinds: Sequence[str],
        answers: Sequence[str],
        rows: Sequence[str],
        has_choices: bool,
        protocol: Mapping[str, Any],
        thresholds: Mapping[str, float] = MappingProxyType({}),
    ):
        self._thresholds, self._given = dict(thresholds), dict(protocol)
        self.fits_on_validation = len(answers) == 2 and not has_choices
        self.best_of_paper = QUESTIONS if self.fits_on_validation else None
        self._kinds, self._answers = tuple(kinds), tuple(answers)
        self._has_choices, self.rows = has_choices, tuple(rows)
        own = (ACCURACY, QUESTIONS, *((OPTIONS,) if has_choices else ()))
        self.metrics = (*own, *(f"{ACCURACY}/{kind}" for kind in self._kinds))
        names = (ANSWER_LOGITS, *((CHOICE_LOGITS,) if has_choices else ()))
        self.outputs = tuple(f"{row}.{name}" for row in (MODEL, *self.rows) for name in names)
        self.protocol: dict[str, Any] = {"accuracy": "mean over kinds of questions", **protocol}
        if self.fits_on_validation:
            self.protocol["threshold"] = self._thresholds.get(MODEL, THRESHOLD)
            beside = {row: x for row, x in self._thresholds.items() if row != MODEL}
            self.protocol |= {"thresholds_beside": beside} if beside else {}

    def fitted(
        self, scores: Mapping[str, np.ndarray], rows: Mapping[str, Mapping[str, np.ndarray]]
    ) -> "AnswerEvaluator":
        """Return an evaluator with the thresholds that are best on a split.

        Args:
            scores: what `per_sample` returned of the model for all questions of that split: name ->
                (seeds, samples).
            rows: the same of other rows, by row.
        """
        return AnswerEvaluator(
            kinds=self._kinds,
            answers=self._answers,
            rows=self.rows,
            has_choices=self._has_choices,
            protocol=self._given,
            thresholds={row: self._best(x) for row, x in {MODEL: scores, **rows}.items()},
        )

    def _best(self, per_sample: Mapping[str, np.ndarray]) -> float:
        """Return the best threshold; of several, the one that is nearest to the middle."""
        of_thresholds = _right_at(per_sample[_YES], per_sample[_ANSWER])
        scores = [self.means({**per_sample, RIGHT: x})[ACCURACY].mean() for x in of_thresholds]
        pairs = zip(scores, THRESHOLDS, strict=True)
        return max(pairs, key=lambda x: (x[0], -abs(x[1] - THRESHOLD)))[1]

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Answer every question, on the device."""
        tables = {"kind": np.asarray(batch["kind"]), "answer": np.asarray(batch["answer"])}
        if "clip" in batch:
            tables["clip"] = np.asarray(batch["clip"])
        if self._has_choices:
            tables["choice_answers"] = np.asarray(batch["choice_answers"])
        for row in (MODEL, *self.rows):
            chosen, last = _chosen(outputs[f"{row}.{ANSWER_LOGITS}"], batch["allowed"])
            tables[f"{row}.chosen"], tables[f"{row}.last"] = chosen, last
            if self._has_choices:
                tables[f"{row}.taken"] = outputs[f"{row}.{CHOICE_LOGITS}"] > 0
        return Measured(tables)

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        """Return the scores (samples,), those of other rows with "row/" in front."""
        found = {}
        for row in (MODEL, *self.rows):
            front = "" if row == MODEL else f"{row}/"
            taken = tables.get(f"{row}.taken")
            chosen, yes = tables[f"{row}.chosen"], tables[f"{row}.last"]
            if self.fits_on_validation:
                chosen = (yes > self._thresholds.get(row, THRESHOLD)).astype(int)
            own = self.of_questions(tables, chosen, taken)
            if self.fits_on_validation:
                own[_OF_PAPER if match_paper else _YES] = np.asarray(yes, np.float64)
            found |= {f"{front}{name}": x for name, x in own.items()}
        return found

    def of_questions(
        self,
        questions: Mapping[str, np.ndarray],
        chosen: np.ndarray,
        taken: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the values (samples,) of which `means` makes scores.

        Args:
            questions: "kind" and "answer" (samples,), "choice_answers" (samples,K), and "clip"
                (samples,) where it is known.
            chosen: (samples,), the answer given to each; or, of decimals, how probably it is right,
                and NaN where there is none.
            taken: (samples,K), the choices taken; None: there are none.
        """
        kind, answer = (np.asarray(questions[name]) for name in ("kind", "answer"))
        shares = np.issubdtype(np.asarray(chosen).dtype, np.floating)
        right = np.asarray(chosen if shares else chosen == answer, np.float64)
        found = {RIGHT: right, KIND: kind.astype(np.float64)}
        if CLIP in questions:
            found[CLIP] = np.asarray(questions[CLIP]).astype(np.float64)
        found[_ANSWER] = answer.astype(np.float64)
        if self._has_choices:
            labels = np.asarray(questions["choice_answers"])
            there = labels >= 0
            hit = there & (np.asarray(taken) == (labels > 0))
            number = there.sum(axis=1)
            of_choices = answer < 0
            found[RIGHT] = np.where(of_choices, hit.sum(axis=1) == number, right)
            found[f"{UNSEEN}options"] = np.where(of_choices, number, 0).astype(np.float64)
            found[f"{UNSEEN}options_right"] = np.where(of_choices, hit.sum(axis=1), 0.0)
        return found

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the scores (...) of values (..., samples)."""
        right = np.asarray(per_sample[RIGHT], np.float64)
        kind, answer = per_sample[KIND], per_sample[_ANSWER]
        if _OF_PAPER in per_sample:  # the best threshold of the scored split, as published
            every = _right_at(per_sample[_OF_PAPER], answer)
            best = every.mean(axis=-1).argmax(axis=0)
            right = np.take_along_axis(every, best[None, ..., None], axis=0)[0]
        defined = ~np.isnan(right)
        of_kinds = {
            f"{ACCURACY}/{name}": _mean(right, defined & (kind == k))
            for k, name in enumerate(self._kinds)
        }
        found = {ACCURACY: _over(of_kinds.values()), QUESTIONS: _mean(right, defined)}
        # A rule for some kinds of questions has no score of all of them.
        found = {name: np.where(defined.all(axis=-1), x, np.nan) for name, x in found.items()}
        found |= of_kinds
        if self._has_choices:
            number, hits = (per_sample[f"{UNSEEN}{x}"] for x in ("options", "options_right"))
            found[OPTIONS] = _share(hits, number, np.ones_like(defined))
            for k, name in enumerate(self._kinds):
                found[f"{OPTIONS}/{name}"] = _share(hits, number, kind == k)
        if len(self._answers) <= MOST_ANSWERS:
            for a, name in enumerate(self._answers):
                found[f"{OF_ANSWER}/{name}"] = _mean(right, defined & (answer == a))
        return found


def _right_at(yes: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Return what is right at each of `THRESHOLDS`, (thresholds, ..., samples).

    Args:
        yes: (..., samples), the probability of the second of two answers.
        answer: (..., samples).
    """
    return np.stack([(yes > threshold) == answer for threshold in THRESHOLDS]).astype(np.float64)


@jax.jit
def _chosen(logits: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the most probable answer that is allowed (B,), and the probability of the last one."""
    some = jnp.asarray(allowed)
    some = some | ~some.any(axis=1, keepdims=True)
    logits = jnp.where(some, logits, -jnp.inf)
    return logits.argmax(axis=-1), jax.nn.softmax(logits, axis=-1)[:, -1]


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the mean (...) over the samples of (..., samples) at these places; NaN: of none."""
    return _share(np.where(where, values, 0.0), where.astype(np.float64), where)


def _share(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    total = np.where(where, whole, 0.0).sum(axis=-1)
    of_part = np.where(where, part, 0.0).sum(axis=-1)
    return np.where(total > 0, of_part / np.maximum(total, 1.0), np.nan)


def _over(scores: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean of scores (...), of those that are defined."""
    every = np.stack(list(scores), axis=-1)
    return _mean(every, ~np.isnan(every))


def majority_of(
    questions: Iterable[Mapping[str, np.ndarray]], num_kinds: int, num_answers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what is right most often in each kind of questions.

    Args:
        questions: of the training split.
        num_kinds: number of kinds.
        num_answers: number of answers.

    Returns:
        The answer (kinds,), and whether choices are right (kinds,).
    """
    answers, choices = np.zeros((num_kinds, num_answers)), np.zeros((num_kinds, 2))
    for question in questions:
        if (answer := int(question["answer"])) >= 0:
            answers[int(question["kind"]), answer] += 1
        labels = np.asarray(question.get("choice_answers", -1))
        choices[int(question["kind"])] += [(labels == 0).sum(), (labels == 1).sum()]
    return answers.argmax(axis=1), choices.argmax(axis=1) > 0
