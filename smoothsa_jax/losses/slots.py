"""Losses on slots and queries; all of them ignore masked slots."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.interfaces import Scheduled
from smoothsa_jax.parts import check_above_zero, check_one_of


class Distillation:
    """Distance of the warm queries from the first frame's slots.

    From SmoothSA (docs/design.md, section 1.4).
    """

    reads = ("warm_queries", "slots", "slot_mask")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return distillation_loss(
            outputs["warm_queries"], outputs["slots"][:, 0], outputs.get("slot_mask")
        )


class SlotContrast:
    """A contrast that makes each slot resemble itself one frame earlier, unlike all other slots.

    From RandSF.Q and SlotContrast (docs/design.md, section 2.2).

    Args:
        temperature: temperature of the softmax; 0.1 in the paper.
        over: whose slots it compares: those of the whole "batch", or of each "video" on its own.
    """

    reads = ("slots", "slot_mask")
    num_frames = 2  # that it compares

    def __init__(self, *, temperature: float, over: str = "batch"):
        check_above_zero("losses.slot_contrast.temperature", temperature)
        check_one_of("losses.slot_contrast.over", over, ("batch", "video"))
        self.temperature, self.alone = temperature, over == "video"

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        slots, slot_mask = outputs["slots"], outputs.get("slot_mask")
        return slot_contrast_loss(slots, slot_mask, self.temperature, alone=self.alone)


class QueryKL:
    """Keeps the variance of drawn queries near a constant.

    The KL divergence of the Gaussian of each query from one of the same mean and this variance,
    summed over channels, averaged over slots, frames and samples. From the program of SlotFormer
    (Wu et al. 2023, arXiv 2210.05861).

    Args:
        variance: of the other Gaussian.
    """

    reads = ("kernel", "slot_mask")
    advice = {"kernel": "set model.aggregator.name='drawn_queries'"}

    def __init__(self, *, variance: float):
        check_above_zero("losses.query_kl.variance", variance)
        self.variance = variance

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        log_variance = jnp.split(outputs["kernel"], 2, axis=-1)[1]  # (B,T,N,D)
        ratio = log_variance - jnp.log(self.variance)
        divergence = 0.5 * (jnp.exp(ratio) - ratio - 1.0).sum(axis=-1)
        mask = outputs.get("slot_mask")
        if mask is None:
            return divergence.mean()
        valid = jnp.broadcast_to(mask if mask.ndim == 3 else mask[:, None], divergence.shape)
        return divergence.mean(where=valid)


def distillation_loss(
    warm_queries: Float[Array, "B N D"],
    slots: Float[Array, "B N D"],
    slot_mask: Bool[Array, "B N"] | None = None,
) -> Float[Array, ""]:
    """Return the mean squared error between queries and slots; the slots are a constant target."""
    error = jnp.mean((warm_queries - jax.lax.stop_gradient(slots)) ** 2, axis=-1)
    return error.mean() if slot_mask is None else error.mean(where=slot_mask)


def slot_contrast_loss(
    slots: Float[Array, "B T N D"],
    slot_mask: Bool[Array, "B N"] | None = None,
    temperature: float = 0.1,
    *,
    alone: bool = False,
) -> Float[Array, ""]:
    """Return the contrastive loss of slots in consecutive frames.

    For each pair of frames, the logits are the cosine similarities of all B * N slots divided by
    the temperature. The loss is the cross-entropy to the identity with a softmax over the earlier
    frame's slots, averaged over pairs and later slots. Gradient flows through both frames.

    Args:
        slots: the slots.
        slot_mask: true = valid.
        temperature: the temperature.
        alone: whether each video's N slots are compared among themselves alone.
    """
    batch, num_frames, num_slots, _ = slots.shape
    # The norm is at least 1e-12. The bound is inside the root, whose gradient at 0 is infinite.
    square = jnp.sum(slots**2, axis=-1, keepdims=True)
    unit = slots / jnp.sqrt(jnp.maximum(square, 1e-24))
    # The slots of a group are compared with each other: (T, groups, slots of a group, D).
    groups = batch if alone else 1
    unit = unit.swapaxes(0, 1).reshape(num_frames, groups, batch * num_slots // groups, -1)
    logits = jnp.einsum("tgid,tgjd->tgij", unit[:-1], unit[1:], precision="highest") / temperature
    if slot_mask is None:
        slot_mask = jnp.ones((batch, num_slots), bool)
    valid = slot_mask.reshape(groups, -1)
    logits = jnp.where(valid[None, :, :, None], logits, -jnp.inf)
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=2)
    diagonal = jnp.diagonal(log_probability, axis1=2, axis2=3)
    return -jnp.mean(jnp.where(valid, diagonal, 0.0), where=jnp.broadcast_to(valid, diagonal.shape))
