"""Pruning: leave out redundant slots, and aggregate a frame once more with the rest.

The idea is that of DIAS (arXiv 2507.23755): redundant slots compete with informative ones for the
tokens of an object, which is then split. Its published program has no pruning, so the rule here is
ours: complete-linkage clustering of a sample's slots by cosine distance, of whose clusters the slot
with the most attention stays. It works in training, as the part `model.pruning` (`Redundancy`), and
at the inference of any model that was trained without (`Prune`).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.interfaces import Aggregated, Aggregator, Draws, Pruning, Scheduled
from smoothsa_jax.parts import (
    AUTO_PRUNE,
    PRUNE_RESTARTS,
    PRUNE_VIDEOS,
    check_flag,
    check_number,
    check_one_of,
    check_prune,
    check_whole,
)

OF_MEDIAN = 0.7  # what "auto" multiplies the median distance by
COPIES = 1e-6  # a smaller distance is one of copies, up to rounding
OFF = -1.0  # a distance below all others: no two slots are that close


class Redundancy(nnx.Module):
    """A part that prunes in training; see `interfaces.Pruning`.

    The extra aggregation runs at every step, also before `begin`, when all slots stay; otherwise a
    step would have to branch. At evaluation without `Prune`, it runs with all slots.

    Args:
        restart: where the extra aggregation starts: from the "slots" that stay, or from their
            "queries".
        iterations: J, number of iterations of the extra aggregation.
        begin: share of the steps before the first pruning. Early in training, all slots are alike.
        distance: scheduled; slots of one cluster are at most this far from each other: 1 minus the
            cosine, 0 to 2.
        relative: whether `distance` is in units of the median of a sample's pairwise distances.
            How far apart slots are depends on the model; a fixed distance above that of most slots
            leaves one slot, from which training does not recover.
    """

    scheduled = ("distance",)

    def __init__(
        self,
        *,
        restart: str = "slots",
        iterations: int = 1,
        begin: float = 0.2,
        relative: bool = False,
    ):
        check_flag("model.pruning.relative", relative)
        check_one_of("model.pruning.restart", restart, ("slots", "queries"))
        check_whole("model.pruning.iterations", iterations)
        del begin  # see `schedules`
        self.restart, self.iterations, self.relative = restart, iterations, relative

    @staticmethod
    def schedules(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schedule of the distance: off until `begin`."""
        if "distance" not in settings:  # `parts.make` refuses that
            return {}
        begin = settings.get("begin", 0.2)
        check_number("model.pruning.begin", begin, below=1.0)
        return {"distance": {"schedule": "from", "begin": begin, "value": settings["distance"]}}

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        attention: Float[Array, "B N M"],
        slot_mask: Bool[Array, "B N"] | None,
        scheduled: Scheduled,
    ) -> Int[Array, "B N"]:
        distance = scheduled.get("distance", OFF)
        if self.relative:
            # OFF stays below all distances.
            distance = jnp.where(distance < 0, OFF, distance * median_distance(slots, slot_mask))
        return owners(slots, attention, distance, slot_mask)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["distance"],
    meta_fields=["restart", "iterations", "video", "of_median"],
)
@dataclasses.dataclass(frozen=True)
class Prune:
    """How to prune at inference. Another distance does not compile anything anew.

    Attributes:
        distance: the largest distance within a cluster, as for `Redundancy`.
        restart: "slots" or "queries", as for `Redundancy`; "none": the slots that stay are decoded
            as they are; "merge": all slots are decoded, and the masks of a cluster are united.
        iterations: J, of the extra aggregation.
        video: "fixed": the slots that stay on the first frame are those of the whole video.
            "renewed": all slots take part in every frame, and each is pruned on its own.
        of_median: whether the distance is a multiple of the median of a sample's pairwise
            distances.
    """

    distance: Any
    restart: str = "slots"
    iterations: int = 1
    video: str = "fixed"
    of_median: bool = False

    @property
    def merges(self) -> bool:
        """Whether all slots are decoded, and the masks of a cluster united."""
        return self.restart == "merge"

    @property
    def renews(self) -> bool:
        """Whether each frame of a video is pruned on its own."""
        return self.video == "renewed"

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        attention: Float[Array, "B N M"],
        slot_mask: Bool[Array, "B N"] | None,
        scheduled: Scheduled,
    ) -> Int[Array, "B N"]:
        """Find clusters; see `interfaces.Pruning`."""
        del scheduled
        scale = median_distance(slots, slot_mask) if self.of_median else 1.0
        return owners(slots, attention, scale * self.distance, slot_mask)


def prune_of(
    prune: float | str | None,
    restart: str = "slots",
    iterations: int = 1,
    video: str = "fixed",
    prefix: str = "",
) -> Prune | None:
    """Return what settings of inference ask for; None: no pruning.

    Args:
        prune: None, a distance from 0 to 2, or "auto": OF_MEDIAN times the median of a sample's
            pairwise distances.
        restart: see `Prune`.
        iterations: see `Prune`.
        video: see `Prune`.
        prefix: in front of the settings' names in messages, such as "eval.".

    Raises:
        UserError: a setting is out of range.
    """
    if prune is not None:
        check_prune(f"{prefix}prune", prune)
    check_one_of(f"{prefix}prune_restart", restart, PRUNE_RESTARTS)
    check_whole(f"{prefix}prune_iterations", iterations)
    check_one_of(f"{prefix}prune_video", video, PRUNE_VIDEOS)
    if prune is None:
        return None
    automatic = prune == AUTO_PRUNE
    distance = OF_MEDIAN if automatic else float(prune)
    return Prune(distance, restart, iterations, video, automatic)


def pruning_of(settings: Mapping[str, Any]) -> Prune | None:
    """Return the pruning of an evaluation.

    Args:
        settings: the `eval` part of a config.

    Raises:
        UserError: a setting is out of range.
    """
    return prune_of(*pruning_settings(settings), prefix="eval.")


def pruning_settings(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of `prune_of` that the `eval` part of a config has."""
    names = ("prune", "prune_restart", "prune_iterations", "prune_video")
    return tuple(settings[name] for name in names)


class Carry(NamedTuple):
    """What the next frame of a video starts from; see `SlotModel.follow`.

    Attributes:
        slots: slots of the previous frame, also those left out if later frames need them.
        slot_mask: the slots that take part in the next frame.
        owner: whose mask each slot's is added to, on all frames; None: it stays its own.
        watch: what `models.anew` has to know of the frames before; None: nothing starts anew.
    """

    slots: Float[Array, "B N D"]
    slot_mask: Bool[Array, "B N"] | None
    owner: Int[Array, "B N"] | None = None
    watch: Any = None


class Pruned(NamedTuple):
    """A frame after pruning.

    Attributes:
        slots: the slots, 0 where left out; with "merge" all of them, since all are decoded.
        attention: of the last iteration that ran, a softmax over the same slots.
        kept: the slots that stay.
        owner: where the tokens of each slot go: the slot that stays of its cluster.
        extra: attention of every extra iteration; None: there is no extra aggregation.
    """

    slots: Float[Array, "B N D"]
    attention: Float[Array, "B N M"]
    kept: Bool[Array, "B N"]
    owner: Int[Array, "B N"]
    extra: Float[Array, "J B N M"] | None


def prune_frame(
    pruning: Pruning | Prune,
    values: Mapping[str, Any],
    aggregator: Aggregator,
    prepared: Any,
    queries: Float[Array, "B N D"],
    found: Aggregated,
    draws: Draws,
    **more: Any,
) -> Pruned:
    """Choose the slots of a frame that stay, and aggregate it once more with them.

    Gradient flows through both aggregations, and not through the choice.

    Args:
        pruning: how.
        values: the current values of its schedules.
        aggregator: the aggregator.
        prepared: what its `prepare` returned for this frame.
        queries: where the first aggregation started.
        found: what it found.
        draws: the aggregator's draws for the extra aggregation.
        **more: other arguments of the aggregator, such as `first`.
    """
    last = found.attention[-1]
    seen = jax.lax.stop_gradient((found.slots, last))
    owner = pruning(*seen, found.slot_mask, values)
    kept = owner == jnp.arange(owner.shape[1])
    kept = kept if found.slot_mask is None else kept & found.slot_mask
    if pruning.restart == "merge":
        return Pruned(found.slots, last, kept, owner, None)
    if pruning.restart == "none":
        return Pruned(zeroed(found.slots, kept), alone(last, kept), kept, owner, None)
    start = found.slots if pruning.restart == "slots" else queries
    again = aggregator(prepared, start, kept, draws, iterations=pruning.iterations, **more)
    kept = kept if again.slot_mask is None else again.slot_mask  # may have been narrowed further
    return Pruned(zeroed(again.slots, kept), again.attention[-1], kept, owner, again.attention)


def admitted(
    prune: Prune,
    slots: Float[Array, "B N D"],
    attention: Float[Array, "B N M"],
    stays: Bool[Array, "B N"],
    valid: Bool[Array, "B N"],
) -> Bool[Array, "B N"]:
    """Tell which of the slots that pruning has left out have found something of their own.

    Those that are farther from every slot that stays than slots of one cluster may be. Of a cluster
    of new ones, the slot with the most attention comes in.

    Args:
        prune: how slots are pruned.
        slots: slots of a frame in which all have taken part.
        attention: their attention.
        stays: the slots that are in use.
        valid: those that may be.
    """
    scale = median_distance(slots, valid) if prune.of_median else jnp.ones(len(slots))
    near = jnp.where(stays[:, None], _distances(slots, valid), jnp.inf).min(axis=2)
    new = valid & ~stays & (near > (scale * prune.distance)[:, None])
    owner = owners(slots, attention, scale * prune.distance, new)
    return new & (owner == jnp.arange(owner.shape[1]))


def alone(attention: Float[Array, "B N M"], kept: Bool[Array, "B N"]) -> Float[Array, "B N M"]:
    """Return the softmax over the slots that stay, of that over all slots."""
    left = zeroed(attention, kept)
    return left / jnp.maximum(left.sum(axis=1, keepdims=True), 1e-12)


def survivors(
    slots: Float[Array, "B N D"],
    attention: Float[Array, "B N M"],
    distance: Float[Array, ""] | float,
    slot_mask: Bool[Array, "B N"] | None = None,
) -> Bool[Array, "B N"]:
    """Return the slots that stay, at least one of each sample; see `owners`."""
    owner = owners(slots, attention, distance, slot_mask)
    kept = owner == jnp.arange(owner.shape[1])
    return kept if slot_mask is None else kept & slot_mask


def owners(
    slots: Float[Array, "B N D"],
    attention: Float[Array, "B N M"],
    distance: Float[Array, "*B"] | float,
    slot_mask: Bool[Array, "B N"] | None = None,
) -> Int[Array, "B N"]:
    """Return for each slot the one of its cluster that stays.

    Clusters merge while the smallest complete linkage, the largest distance between a slot of one
    and a slot of the other, is at most `distance`. Of a cluster, the slot with the most attention
    stays; of equals, the first.

    Args:
        slots: the slots.
        attention: their attention.
        distance: of each sample, or of all. 0 merges nothing but exact copies, 2 everything, and a
            negative one nothing at all.
        slot_mask: true = valid. Masked slots are no candidates and own themselves.
    """
    batch, num_slots = slots.shape[:2]
    valid = jnp.ones((batch, num_slots), bool) if slot_mask is None else slot_mask
    distance = jnp.broadcast_to(jnp.asarray(distance, jnp.float32), (batch,))
    mass = attention.astype(jnp.float32).sum(axis=-1)

    slot = jnp.arange(num_slots)

    def merge(_, carry):
        # Masks rather than indices: gathers and scatters of a batch are slow.
        linkage, label, smallest = carry
        nearest = smallest.min(axis=1, keepdims=True)
        # The first slot of the first closest pair, and its partner.
        one = slot == jnp.argmin(smallest, axis=1, keepdims=True)
        row = jnp.where(one[:, :, None], linkage, jnp.inf).min(axis=1)
        two = slot == jnp.argmin(row, axis=1, keepdims=True)
        close = nearest <= distance[:, None]
        both = (one | two)[:, :, None]
        row = jnp.where(two | one, jnp.inf, jnp.where(both, linkage, -jnp.inf).max(axis=1))
        joined = jnp.where(one[:, :, None], row[:, None], linkage)
        joined = jnp.where(one[:, None], row[:, :, None], joined)
        joined = jnp.where(two[:, :, None] | two[:, None], jnp.inf, joined)
        linkage = jnp.where(close[..., None], joined, linkage)
        first = jnp.where(one, slot, 0).sum(axis=1, keepdims=True)
        second = jnp.where(two, slot, 0).sum(axis=1, keepdims=True)
        label = jnp.where(close & (label == second), first, label)
        return linkage, label, linkage.min(axis=2)

    linkage, label = _distances(slots, valid), jnp.broadcast_to(slot, (batch, num_slots))
    carry = linkage, label, linkage.min(axis=2)
    _, label, _ = jax.lax.fori_loop(0, num_slots - 1, merge, carry)
    together = label[:, :, None] == label[:, None]
    found = jnp.argmax(jnp.where(together, mass[:, None], -jnp.inf), axis=2)
    return jnp.where(valid, found, slot)


def median_distance(
    slots: Float[Array, "B N D"], slot_mask: Bool[Array, "B N"] | None = None
) -> Float[Array, " B"]:
    """Return the median of each sample's pairwise distances of valid slots; 0 if there is no pair.

    Args:
        slots: the slots.
        slot_mask: true = valid.
    """
    batch, num_slots = slots.shape[:2]
    valid = jnp.ones((batch, num_slots), bool) if slot_mask is None else slot_mask
    rows, columns = jnp.triu_indices(num_slots, 1)
    if not len(rows):
        return jnp.zeros(batch)
    ordered = jnp.sort(_distances(slots, valid)[:, rows, columns], axis=1)  # invalid pairs last
    count = jnp.isfinite(ordered).sum(axis=1)
    middle = jnp.stack([(count - 1) // 2, count // 2], axis=1)
    found = jnp.take_along_axis(ordered, jnp.maximum(middle, 0), axis=1).mean(axis=1)
    return jnp.where(count > 0, found, 0.0)


def united(
    maps: Float[Array, "B T N h w"], owner: Int[Array, "B T N"]
) -> Float[Array, "B T N h w"]:
    """Add up the maps of the slots of a cluster, at the place of their owner; the others get 0."""
    of_owner = jax.nn.one_hot(owner, owner.shape[-1], axis=-1, dtype=jnp.float32)
    flat = maps.reshape(*owner.shape, -1).astype(jnp.float32)
    summed = jnp.einsum("...no,...nm->...om", of_owner, flat, precision="highest")
    return summed.reshape(maps.shape)


def _distances(slots: Float[Array, "B N D"], valid: Bool[Array, "B N"]) -> Float[Array, "B N N"]:
    """Return 1 minus the cosine of each pair of valid slots, and infinity for other pairs."""
    slots = slots.astype(jnp.float32)
    unit = slots / jnp.maximum(jnp.linalg.norm(slots, axis=-1, keepdims=True), 1e-12)
    cosine = jnp.einsum("bid,bjd->bij", unit, unit, precision="highest")
    found = jnp.clip(1.0 - cosine, 0.0, 2.0)
    found = jnp.where(found < COPIES, 0.0, found)
    pairs = valid[:, :, None] & valid[:, None] & ~jnp.eye(slots.shape[1], dtype=bool)
    return jnp.where(pairs, found, jnp.inf)


def zeroed(x: Float[Array, "*B N K"], kept: Bool[Array, "*B N"]) -> Float[Array, "*B N K"]:
    """Set the rows of slots that are left out to 0."""
    return jnp.where(kept[..., None], x, 0)
