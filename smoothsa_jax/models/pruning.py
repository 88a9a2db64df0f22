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
    check_number,
    check_one_of,
    check_prune,
    check_whole,
)

OF_MEDIAN = 0.7  # what "auto" multiplies the median distance by
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
    """

    scheduled = ("distance",)

    def __init__(self, *, restart: str = "slots", iterations: int = 1, begin: float = 0.2):
        check_one_of("model.pruning.restart", restart, ("slots", "queries"))
        check_whole("model.pruning.iterations", iterations)
        check_number("model.pruning.begin", begin, below=1.0)
        self.restart, self.iterations = restart, iterations

    @staticmethod
    def schedules(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schedule of the distance: off until `begin`."""
        if "distance" not in settings:  # `parts.make` refuses that
            return {}
        begin = settings.get("begin", 0.2)
        return {"distance": {"schedule": "from", "begin": begin, "value": settings["distance"]}}

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        attention: Float[Array, "B N M"],
        slot_mask: Bool[Array, "B N"] | None,
        scheduled: Scheduled,
    ) -> Int[Array, "B N"]:
        return owners(slots, attention, scheduled.get("distance", OFF), slot_mask)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["distance", "of_median"],
    meta_fields=["restart", "iterations", "video"],
)
@dataclasses.dataclass(frozen=True)
class Prune:
    """How to prune at inference. Another distance does not compile anything anew.

    Attributes:
        distance: the largest distance within a cluster, as for `Redundancy`.
        of_median: is added to it, times the median of a sample's pairwise distances.
        restart: "slots" or "queries", as for `Redundancy`; "none": the slots that stay are decoded
            as they are; "merge": all slots are decoded, and the masks of a cluster are united.
        iterations: J, of the extra aggregation.
        video: "fixed": the slots that stay on the first frame are those of the whole video.
            "renewed": all slots take part in every frame, and each is pruned on its own.
    """

    distance: Any
    of_median: Any
    restart: str
    iterations: int
    video: str

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
        distance = self.distance + self.of_median * median_distance(slots, slot_mask)
        return owners(slots, attention, distance, slot_mask)


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
    distance, of_median = (0.0, OF_MEDIAN) if prune == AUTO_PRUNE else (float(prune), 0.0)
    return Prune(distance, of_median, restart, iterations, video)


def pruning_of(settings: Mapping[str, Any]) -> Prune | None:
    """Return the pruning of an evaluation.

    Args:
        settings: the `eval` part of a config.

    Raises:
        UserError: a setting is out of range.
    """
    names = ("prune", "prune_restart", "prune_iterations", "prune_video")
    return prune_of(*(settings[name] for name in names), prefix="eval.")


def as_scheduled(prune: Prune | None) -> dict[str, dict[str, Any]]:
    """Return the argument `scheduled` of a model that prunes in this way at evaluation."""
    return {} if prune is None else {"pruning": {"asked": prune}}


class Carry(NamedTuple):
    """What the next frame of a video starts from; see `SlotModel.follow`.

    Attributes:
        slots: slots of the previous frame, also those left out if later frames need them.
        slot_mask: the slots that take part in the next frame.
        owner: whose mask each slot's is added to, on all frames; None: it stays its own.
    """

    slots: Float[Array, "B N D"]
    slot_mask: Bool[Array, "B N"] | None
    owner: Int[Array, "B N"] | None = None


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
        left = zeroed(last, kept)  # divided by its sum, it is the softmax over the slots that stay
        attention = left / jnp.maximum(left.sum(axis=1, keepdims=True), 1e-12)
        return Pruned(zeroed(found.slots, kept), attention, kept, owner, None)
    start = found.slots if pruning.restart == "slots" else queries
    again = aggregator(prepared, start, kept, draws, iterations=pruning.iterations, **more)
    kept = kept if again.slot_mask is None else again.slot_mask  # may have been narrowed further
    return Pruned(zeroed(again.slots, kept), again.attention[-1], kept, owner, again.attention)


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

    def of_sample(linkage, distance, mass):
        def merge(_, carry):
            linkage, label = carry
            at = jnp.argmin(linkage)
            one, two = at // num_slots, at % num_slots  # one < two, since the first minimum counts
            row = jnp.maximum(linkage[one], linkage[two])
            joined = linkage.at[one, :].set(row).at[:, one].set(row)
            joined = joined.at[two, :].set(jnp.inf).at[:, two].set(jnp.inf)
            close = linkage[one, two] <= distance
            label = jnp.where(close & (label == two), one, label)
            return jnp.where(close, joined, linkage), label

        label = jnp.arange(num_slots)
        _, label = jax.lax.fori_loop(0, num_slots - 1, merge, (linkage, label))
        together = label[:, None] == label
        return jnp.argmax(jnp.where(together, mass, -jnp.inf), axis=1)

    found = jax.vmap(of_sample)(_distances(slots, valid), distance, mass)
    return jnp.where(valid, found, jnp.arange(num_slots))


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
    # Half the squared distance of unit vectors, which is exactly 0 for copies.
    square = jnp.square(unit[:, :, None] - unit[:, None]).sum(axis=-1)
    pairs = valid[:, :, None] & valid[:, None] & ~jnp.eye(slots.shape[1], dtype=bool)
    return jnp.where(pairs, jnp.clip(0.5 * square, 0.0, 2.0), jnp.inf)


def zeroed(x: Float[Array, "*B N K"], kept: Bool[Array, "*B N"]) -> Float[Array, "*B N K"]:
    """Set the rows of slots that are left out to 0."""
    return jnp.where(kept[..., None], x, 0)
