"""The attention of slots to tokens: a softmax over slots ("inverted") or over tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

EPSILON_IN = ("sum", "weights")


def mix_tokens(
    query: Float[Array, "B N E"],
    key: Float[Array, "B M E"],
    value: Float[Array, "B M E"],
    slot_mask: Bool[Array, "B N"] | None = None,
    *,
    inverted: bool = True,
    epsilon: float | None,
    epsilon_in: str = "sum",
) -> tuple[Float[Array, "B N E"], Float[Array, "B N M"], Float[Array, "B N M"]]:
    """Mix the values of the tokens for each slot, with one head.

    Args:
        query: of the slots, not yet multiplied by E**-0.5.
        key: of the tokens.
        value: of the tokens.
        slot_mask: true = valid.
        inverted: whether slots compete for each token, by a softmax over slots. Otherwise the
            softmax is over tokens.
        epsilon: keeps the mean over tokens finite; None: values are summed with the weights as they
            are.
        epsilon_in: "sum": epsilon is added to each slot's sum of weights. "weights": to every
            weight before they are summed.

    Returns:
        The mixed values, the attention before the mean over tokens, and its logits, float32.
    """
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("bnd,bmd->bnm", query, key).astype(jnp.float32)
    if slot_mask is not None and inverted:
        logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
    attention = jax.nn.softmax(logits, axis=1 if inverted else 2)
    if slot_mask is not None and not inverted:
        attention = jnp.where(slot_mask[:, :, None], attention, 0.0)
    if epsilon is None:
        weights = attention
    elif epsilon_in == "sum":
        weights = attention / (attention.sum(axis=-1, keepdims=True) + epsilon)
    else:
        weights = attention + epsilon
        weights = weights / weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bnm,bmd->bnd", weights.astype(value.dtype), value)
    return mixed, attention, logits


def mix_tokens_by_heads(
    query: Float[Array, "B N E"],
    key: Float[Array, "B M E"],
    value: Float[Array, "B M E"],
    slot_mask: Bool[Array, "B N"] | None = None,
    *,
    num_heads: int,
    **settings,
) -> tuple[Float[Array, "B N E"], Float[Array, "B H N M"], Float[Array, "B H N M"]]:
    """Mix with several heads, which lie side by side; see `mix_tokens`."""
    parts = [x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value)]
    of_head = lambda *parts: mix_tokens(*parts, slot_mask, **settings)  # noqa: E731
    mixed, *maps = jax.vmap(of_head, in_axes=2, out_axes=(2, 1, 1))(*parts)
    return mixed.reshape(query.shape), *maps


def truncated(
    slots: Float[Array, "B N D"], queries: Float[Array, "B N D"], gradient: str
) -> Float[Array, "B N D"]:
    """Return what enters the last iteration: the same values, with another gradient.

    Args:
        slots: the slots after all iterations but the last.
        queries: where the slots started.
        gradient: "full", "last" or "last_and_queries".
    """
    if gradient == "full":
        return slots
    slots = jax.lax.stop_gradient(slots)
    if gradient == "last":
        return slots
    return slots + (queries - jax.lax.stop_gradient(queries))
