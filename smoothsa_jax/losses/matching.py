"""A loss between the masks of a teacher and those of a student, whose slots have other orders."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from optax.assignment import hungarian_algorithm

from smoothsa_jax.models.interfaces import Scheduled
from smoothsa_jax.parts import check_one_of

# What the student's slots compete with -> the model's output.
STUDENT = {"logits": "logits", "attention": "first_attention"}


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
        self.reads = ("teacher.masks", self._student, "slot_mask")

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
    return -found.mean()


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
    masks = [jax.nn.one_hot(x, num_slots, dtype=jnp.float32) for x in (teacher, student)]
    common = jnp.einsum("bmk,bmn->bkn", *masks, precision="highest")
    sizes = [mask.sum(axis=1) for mask in masks]
    union = sizes[0][:, :, None] + sizes[1][:, None, :] - common
    iou = common / jnp.maximum(union, 1.0)

    def one(iou: Float[Array, "N N"]) -> Int[Array, " N"]:
        rows, columns = hungarian_algorithm(-iou)
        return jnp.zeros(num_slots, jnp.int32).at[rows].set(columns.astype(jnp.int32))

    return jax.lax.stop_gradient(jax.vmap(one)(iou))
