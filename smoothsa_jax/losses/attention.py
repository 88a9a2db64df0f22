"""Losses of slot attention: to its own last iteration, and to the masks of a teacher."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.losses.matching import assign, segment_iou
from smoothsa_jax.models.interfaces import Scheduled
from smoothsa_jax.parts import check_one_of

# Which aggregation's last attention is the target -> the model's output.
TARGETS = {"first": "first_attention", "extra": "extra_attention"}
# What the student's slots compete with -> the model's output.
STUDENT = {"logits": "attention_logits", "attention": "first_attention"}


class AttentionDistillation:
    """Cross-entropy of the first iteration's attention to the last one's, on the first frame.

    The attention of the first iteration, a softmax over slots already, serves as logits of another
    softmax over slots, as in the program of DIAS (arXiv 2507.23755); so the loss never gets near 0.
    No gradient flows into the last iteration.

    Args:
        of: the last iteration "first" of the aggregation; or of the "extra" one after pruning, over
            the slots that remain.
    """

    def __init__(self, *, of: str = "first"):
        check_one_of("losses.attention_distillation.of", of, TARGETS)
        self._target = TARGETS[of]
        self.reads = tuple({"first_attention", self._target, "slot_mask"})

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        first, last = outputs["first_attention"][:, 0], outputs[self._target][:, -1]
        mask = outputs.get("slot_mask") if self._target == "extra_attention" else None
        return attention_distillation_loss(first, last, mask)


def attention_distillation_loss(
    first: Float[Array, "B N h w"],
    last: Float[Array, "B N h w"],
    slot_mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, ""]:
    """Return the cross-entropy of `first`, as logits over slots, to the probabilities `last`.

    Args:
        first: attention of the first iteration.
        last: attention of the last iteration; a constant.
        slot_mask: the slots over which the logits compete; None: all.
    """
    logits = first.astype(jnp.float32)
    if slot_mask is not None:
        logits = jnp.where(slot_mask[:, :, None, None], logits, -jnp.inf)
    log_probability = jax.nn.log_softmax(logits, axis=1)
    target = jax.lax.stop_gradient(last)
    # A masked slot has no attention, and minus infinity times 0 is no number.
    return -jnp.where(target > 0, target * log_probability, 0.0).sum(axis=1).mean()


class AttentionMatch:
    """Cross-entropy of a student's slot attention to the segments of a teacher's decoder.

    The teacher's and the student's slots are matched by the intersection over union of their
    segments on the first frame. From SPOT (Kakogeorgiou et al. 2024, arXiv 2312.00648, section
    3.2). No gradient flows through the matching or into the teacher.

    Args:
        on: "logits": the student's logits before the softmax over slots, as in SPOT's program.
            "attention": its attention, which then passes through a second softmax, as in the
            re-implementation by SmoothSA's author.
    """

    def __init__(self, *, on: str = "logits"):
        check_one_of("losses.attention_match.on", on, STUDENT)
        self._student = STUDENT[on]
        self.reads = ("teacher.masks", self._student)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        teacher, student = outputs["teacher.masks"][:, 0], outputs[self._student]
        if self._student == "first_attention":
            student = student[:, -1]
        tokens = lambda x: x.reshape(*x.shape[:2], -1)  # noqa: E731
        return attention_match_loss(tokens(student), tokens(teacher))


def attention_match_loss(
    student: Float[Array, "B N M"], teacher: Float[Array, "B N M"]
) -> Float[Array, ""]:
    """Return the loss of student logits under a teacher's masks.

    Args:
        student: the student's logits, or values that serve as logits. A masked slot has logits of
            minus infinity.
        teacher: the teacher's masks.
    """
    num_slots = student.shape[1]
    labels = jnp.argmax(teacher, axis=1)
    slots = match_segments(jnp.argmax(student, axis=1), labels, num_slots)
    wanted = jnp.take_along_axis(slots, labels, axis=1)
    log_probability = jax.nn.log_softmax(student.astype(jnp.float32), axis=1)
    found = jnp.take_along_axis(log_probability, wanted[:, None], axis=1)
    # A token whose slot of the teacher got a masked slot has nothing to learn from.
    valid = jnp.isfinite(found)
    return -jnp.where(valid, found, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def match_segments(
    student: Int[Array, "B M"], teacher: Int[Array, "B M"], num_slots: int
) -> Int[Array, "B N"]:
    """Return the student's slot of every teacher slot, in the matching of the largest total IoU.

    A teacher slot without a token gets any slot that is left; its row of costs is constant.

    Args:
        student: each token's slot in the student.
        teacher: each token's slot in the teacher.
        num_slots: N.
    """
    masks = (jax.nn.one_hot(x, num_slots, dtype=jnp.float32) for x in (teacher, student))
    return jax.lax.stop_gradient(assign(segment_iou(*masks)))
