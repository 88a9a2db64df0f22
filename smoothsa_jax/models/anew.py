"""Start anew in the middle of a video, at inference: all slots at a cut, or single ones.

At a cut, the slots of the scene before have nothing to follow, and all of them start from new
queries, as on a first frame. A slot that no longer explains any token starts anew by itself, and so
finds an object that enters. Where pruning has left slots out, these are free for such objects.
Training never starts anew.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Scheduled
from smoothsa_jax.parts import check_above_zero, check_number, check_one_of

SIGNALS = ("features", "error")
HISTORY = 8  # frames whose errors a new one is compared with
PATIENCE = 2  # frames that a slot may explain nothing, until it starts anew


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["threshold", "requery"],
    meta_fields=["signal"],
)
@dataclasses.dataclass(frozen=True)
class Anew:
    """When slots start anew. Other thresholds do not compile anything anew.

    Attributes:
        signal: what tells cuts. "features": the distance of a frame's features from the previous
            frame's, before the frame is processed. "error": the decoder's error of the slots that
            follow, over its mean in the last HISTORY frames. None: there are no cuts.
        threshold: a cut is where the signal exceeds it.
        requery: a slot that takes less than this share of every token, PATIENCE frames in a row,
            starts anew; None: none does.
    """

    signal: str | None
    threshold: Any = None
    requery: Any = None


class Watch(NamedTuple):
    """What is known of the frames before.

    Attributes:
        features: those of the previous frame.
        errors: the decoder's error in the last frames, the newest first, NaN where there is none;
            None with another signal.
        weak: how many frames in a row each slot has explained nothing.
        slot_mask: the slots that a first frame starts with; None: all.
        draws: the initializer's, the same at every start.
    """

    features: Float[Array, "B M C"]
    errors: Float[Array, "B H"] | None
    weak: Int[Array, "B N"]
    slot_mask: Bool[Array, "B N"] | None
    draws: Any


def anew_of(
    shot_cuts: float | None, cut_signal: str = "features", requery: float | None = None
) -> Anew | None:
    """Return what arguments of `stream` ask for; None: nothing starts anew.

    Raises:
        UserError: an argument is out of range, or has no effect.
    """
    check_one_of("cut_signal", cut_signal, SIGNALS)
    if shot_cuts is None and cut_signal != SIGNALS[0]:
        raise UserError(
            f"cut_signal={cut_signal!r} was given without shot_cuts, and does nothing alone; give "
            "shot_cuts a threshold, such as 2"
        )
    if shot_cuts is not None:
        check_above_zero("shot_cuts", shot_cuts)
    if requery is not None:
        check_number("requery", requery, above=True, below=1.0)
    if shot_cuts is None and requery is None:
        return None
    as_float = lambda x: None if x is None else float(x)  # noqa: E731
    signal = None if shot_cuts is None else cut_signal
    return Anew(signal, as_float(shot_cuts), as_float(requery))


def asked_anew(scheduled: Scheduled | None) -> Anew | None:
    """Return what was asked for at evaluation."""
    return (scheduled or {}).get("anew", {}).get("asked")


@jax.jit
def feature_distance(
    before: Float[Array, "*lead M C"], after: Float[Array, "*lead M C"]
) -> Float[Array, "*lead"]:
    """The distance of a frame's features from the previous frame's, token by token.

    This is the mean square difference between tokens in the same place, divided by the sum of both
    frames' variances over tokens. It has no unit and does not depend on the encoder's scale: 0 for
    identical frames, and about 1 for unrelated frames.
    """
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    difference = jnp.square(after - before).sum(-1).mean(-1)
    spread = sum(x.var(axis=-2).sum(-1) for x in (before, after))
    # Two frames of one plain color each have no variance, so any difference is a cut.
    return difference / jnp.maximum(spread, 1e-6)


def relative_error(errors: Float[Array, "B H"], error: Float[Array, " B"]) -> Float[Array, " B"]:
    """Return a frame's error over the mean of those before it, as far as there are some."""
    return error / jnp.nanmean(errors, axis=1)


def remembered(
    errors: Float[Array, "B H"], error: Float[Array, " B"], cut: Bool[Array, " B"]
) -> Float[Array, "B H"]:
    """Return the errors with that of a new frame, and behind a cut that alone."""
    before = jnp.where(cut[:, None], jnp.nan, errors[:, :-1])
    return jnp.concatenate([error[:, None], before], axis=1)


def first_errors(error: Float[Array, " B"]) -> Float[Array, "B H"]:
    """Return the errors after a first frame."""
    nothing = jnp.full((len(error), HISTORY), jnp.nan, jnp.float32)
    return remembered(nothing, error, jnp.ones(len(error), bool))


def explains_nothing(attention: Float[Array, "B N M"], anew: Anew) -> Bool[Array, "B N"]:
    """Tell which slots take less than the threshold of every token; none without a threshold."""
    if anew.requery is None:
        return jnp.zeros(attention.shape[:2], bool)
    return attention.astype(jnp.float32).max(axis=-1) < anew.requery


def per_sample(chosen: Bool[Array, " B"], one: Any, two: Any) -> Any:
    """Choose between two trees of (B, ...), sample by sample."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, one, two)


def of_memory(
    chosen: Bool[Array, " B"],
    one: Any,
    two: Any,
    start: Callable[[Array], Any],
    slots: Float[Array, "B N D"],
) -> Any:
    """Choose between two memories of a transition, sample by sample.

    Where a memory has its samples is the transition's affair, so it is found by trying: the axis
    that grows with the batch.

    Args:
        chosen: whether each sample has the first one.
        one: a memory.
        two: another one.
        start: makes a memory of slots.
        slots: slots of this batch.
    """
    more = jax.ShapeDtypeStruct((len(slots) + 1, *slots.shape[1:]), slots.dtype)
    own, grown = jax.eval_shape(start, slots), jax.eval_shape(start, more)

    def choose(a: Array, b: Array, like: Any, longer: Any) -> Array:
        grows = [x != y for x, y in zip(like.shape, longer.shape, strict=True)]
        if True not in grows:
            return b  # the same for all samples
        shape = [1] * a.ndim
        shape[grows.index(True)] = len(chosen)
        return jnp.where(chosen.reshape(shape), a, b)

    return jax.tree.map(choose, one, two, own, grown)
