"""Multi-head attention that can return its weights and honours a mask over its keys."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.layers import dropout, linear, uniform


def attend(
    query: Float[Array, "B Q E"],
    key: Float[Array, "B S E"],
    value: Float[Array, "B S E"],
    num_heads: int,
    *,
    key_mask: Bool[Array, "B S"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q S"]]:
    """Scaled dot-product attention.

    Args:
        key_mask: true = valid; the others get a logit of minus infinity. At least one key of every
            sample has to be valid.
        dropout_rate: applied to the weights where `dropout_key` is given.

    Returns:
        The mixed values, and the weights averaged over heads (before dropout). A caller that leaves
        the weights unused pays nothing for them: XLA removes the average.
    """
    batch, num_queries, width = query.shape
    split = lambda x: x.reshape(batch, -1, num_heads, width // num_heads)  # noqa: E731
    logits = jnp.einsum("bqhd,bshd->bhqs", split(query), split(key))
    logits = logits * (width // num_heads) ** -0.5
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(value.dtype)
    dropped = dropout(weights, dropout_rate, dropout_key)
    mixed = jnp.einsum("bhqs,bshd->bqhd", dropped, split(value))
    return mixed.reshape(batch, num_queries, width), weights.mean(axis=1)


class MultiHeadAttention(nnx.Module):
    """Bias-free multi-head attention, with torch's initial values (method section 5).

    The three input projections are packed in one (E, 3 E) kernel, which starts Xavier-uniform as a whole.
    """

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        xavier = uniform((6.0 / (4 * width)) ** 0.5)
        self.in_projection = nnx.Param(xavier(rngs.params(), (width, 3 * width)))
        self.out = linear(width, width, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B Q E"],
        memory: Float[Array, "B S E"] | None = None,
        *,
        key_mask: Bool[Array, "B S"] | None = None,
        dropout_rate: float = 0.0,
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, "B Q E"], Float[Array, "B Q S"]]:
        """Attends from `x` to `memory`, or to `x` itself; see `attend` for the rest."""
        kernel, width = self.in_projection[...], x.shape[-1]
        if memory is None:
            query, key, value = jnp.split(x @ kernel, 3, axis=-1)
        else:
            query = x @ kernel[:, :width]
            key, value = jnp.split(memory @ kernel[:, width:], 2, axis=-1)
        mixed, weights = attend(
            query,
            key,
            value,
            self.num_heads,
            key_mask=key_mask,
            dropout_rate=dropout_rate,
            dropout_key=dropout_key,
        )
        return self.out(mixed), weights
