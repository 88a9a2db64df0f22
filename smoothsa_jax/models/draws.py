"""All the randomness of a forward pass, as one explicit value."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@flax.struct.dataclass
class Draws:
    """What is random in a forward pass. None turns a draw off, as at evaluation.

    Attributes:
        cold_noise: standard normal, for the cold-start samples; on at evaluation too.
        query_noise: standard normal, added to the warm queries in training.
        visible: the tokens that the random autoregressive decoder sees. Its self-attention is unmasked, so the
            first k tokens of a random permutation are, up to the order in which sums run, the same as this mask
            in grid order (method section 1.3).
        slot_offset: for every frame after the first, how many frames ago the slots are taken: 1 .. i.
        feature_offset: likewise for the features: 0 .. i-1. None: 1 and 0 throughout.
        dropout: keys of the transition's dropout, one for each sample.
    """

    cold_noise: Float[Array, "B N D"]
    query_noise: Float[Array, "B N D"] | None = None
    visible: Bool[Array, "B T M"] | None = None
    slot_offset: Int[Array, "B T-1"] | None = None
    feature_offset: Int[Array, "B T-1"] | None = None
    dropout: Key[Array, "B"] | None = None


def sample_evaluation_draws(key: Array, batch_size: int, num_slots: int, slot_size: int) -> Draws:
    """Only the cold-start noise, which stays on at evaluation (method section 1.2)."""
    return Draws(cold_noise=jax.random.normal(key, (batch_size, num_slots, slot_size)))


def sample_training_draws(
    key: Array,
    batch_size: int,
    num_slots: int,
    slot_size: int,
    num_frames: int,
    num_tokens: int,
    history: int,
) -> Draws:
    """Draws everything that is random in a training step (method sections 1.2, 1.3 and 2.1).

    Args:
        history: the transition's bound dt.
    """
    cold, query, visible, slot, feature, dropout = jax.random.split(key, 6)
    shape = (batch_size, num_slots, slot_size)
    # Frame t (counted from 0) looks back on at most t, and at most dt - 1 frames of slots.
    available = jnp.minimum(jnp.arange(1, num_frames), history - 1)
    offsets = (batch_size, num_frames - 1)
    return Draws(
        cold_noise=jax.random.normal(cold, shape),
        query_noise=jax.random.normal(query, shape),
        visible=sample_visible(visible, (batch_size, num_frames), num_tokens),
        slot_offset=jax.random.randint(slot, offsets, 1, available + 1),
        feature_offset=jax.random.randint(feature, offsets, 0, available),
        dropout=jax.random.split(dropout, batch_size),
    )


def sample_visible(
    key: Array, batch_shape: tuple[int, ...], num_tokens: int
) -> Bool[Array, "*batch M"]:
    """The first k of a random permutation of the tokens, drawn for every frame.

    With probability 0.5 k is uniform on {0 .. M-2}, else it is floor(0.1 M) - 1 (24 of 256 tokens).
    """
    order, uniform, coin = jax.random.split(key, 3)
    rank = jax.random.uniform(order, (*batch_shape, num_tokens)).argsort(-1).argsort(-1)
    num_visible = jnp.where(
        jax.random.bernoulli(coin, 0.5, batch_shape),
        jax.random.randint(uniform, batch_shape, 0, num_tokens - 1),
        max(int(0.1 * num_tokens) - 1, 0),
    )
    return rank < num_visible[..., None]
