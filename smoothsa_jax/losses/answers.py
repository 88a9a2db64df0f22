"""Losses of answers to questions (SlotFormer's Aloe, Wu et al. 2023, arXiv 2210.05861)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.losses.dynamics import masked_mean
from smoothsa_jax.models.interfaces import Scheduled

ANSWER_LOGITS, CHOICE_LOGITS = "answer_logits", "choice_logits"  # outputs of a readout
# The same of the R readouts beside the model, (B,R,A) and (B,R,K).
BESIDE_ANSWERS, BESIDE_CHOICES = f"beside.{ANSWER_LOGITS}", f"beside.{CHOICE_LOGITS}"


class Answer:
    """Cross-entropy over the answers that a question may have.

    It is the mean over the questions of the batch that have an answer and no choices; 0 if there
    are none.
    """

    reads = (ANSWER_LOGITS,)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del scheduled
        return answer_loss(outputs[ANSWER_LOGITS], batch["answer"], batch["allowed"])


class Choice:
    """Binary cross-entropy of whether a choice is right.

    It is the mean over all choices of the batch, so that questions with more of them weigh more; 0
    if there are none.
    """

    reads = (CHOICE_LOGITS,)
    advice = {CHOICE_LOGITS: "set model.readout.choice_length"}

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del scheduled
        return choice_loss(outputs[CHOICE_LOGITS], batch["choice_answers"])


class Beside:
    """The same losses of the readouts that are trained beside the model, summed over them."""

    reads = (BESIDE_ANSWERS,)
    advice = {BESIDE_ANSWERS: "name some in model.beside"}

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del scheduled
        of_answers = jax.vmap(lambda x: answer_loss(x, batch["answer"], batch["allowed"]), 1)
        total = of_answers(outputs[BESIDE_ANSWERS]).sum()
        if BESIDE_CHOICES in outputs:
            of_choices = jax.vmap(lambda x: choice_loss(x, batch["choice_answers"]), 1)
            total = total + of_choices(outputs[BESIDE_CHOICES]).sum()
        return total


def answer_loss(
    logits: Float[Array, "B A"], answer: Int[Array, "B"], allowed: Bool[Array, "B A"]
) -> Float[Array, ""]:
    """Return the mean cross-entropy of the questions that have an answer, -1: none."""
    has_one = answer >= 0
    # Without an answer, all are allowed: a row of minus infinities would have no gradient.
    logits = jnp.where(allowed | ~has_one[:, None], logits, -jnp.inf)
    right = jnp.take_along_axis(
        jax.nn.log_softmax(logits, axis=-1), jnp.maximum(answer, 0)[:, None], axis=-1
    )[:, 0]
    return masked_mean(-jnp.where(has_one, right, 0.0), has_one)


def choice_loss(logits: Float[Array, "B K"], right: Int[Array, "B K"]) -> Float[Array, ""]:
    """Return the mean binary cross-entropy of choices: 1 right, 0 wrong, -1 there is none."""
    there = right >= 0
    of_label = jnp.where(right > 0, logits, -logits)
    return masked_mean(jnp.where(there, -jax.nn.log_sigmoid(of_label), 0.0), there)
