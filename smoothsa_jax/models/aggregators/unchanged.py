"""No aggregation: the queries are the slots."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.interfaces import Aggregated


class Unchanged(nnx.Module):
    """The slots are the queries, and every token belongs to all of them in equal parts.

    For models without slots; see `initializers.Tokens`.

    Args:
        width: C of the tokens; unused.
        slot_size: D; unused.
    """

    iterates = False

    def __init__(self, width: int, slot_size: int, *, rngs: nnx.Rngs):
        del width, slot_size, rngs

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> Float[Array, "*batch M"]:
        return jnp.zeros(tokens.shape[:-1], jnp.float32)  # their number is all that counts

    def __call__(
        self,
        prepared: Float[Array, "B M"],
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: None = None,
        first: bool = True,
        iterations: int | None = None,
    ) -> Aggregated:
        """Return the queries; see `interfaces.Aggregator`."""
        del draws, first, iterations
        valid = jnp.ones(queries.shape[:2]) if slot_mask is None else slot_mask
        share = valid.astype(jnp.float32)
        share = share / share.sum(axis=1, keepdims=True)
        attention = jnp.broadcast_to(share[..., None], (*share.shape, prepared.shape[-1]))
        return Aggregated(queries, attention[None], queries[None], slot_mask)

    def draw(self, keys, sizes, training) -> None:
        """Return None: nothing is random."""
