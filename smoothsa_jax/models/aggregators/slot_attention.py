"""Slot attention with bi-level truncation (method section 1.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import MLP, GRUCell, layer_norm, linear


class SlotAttention(nnx.Module):
    """Slots compete for the tokens: a softmax over slots, an average over tokens, a GRU.

    Args:
        feature_size: C, width of the encoded features.
        slot_size: D.
        truncate: bi-level truncation: gradient reaches the parameters of the last iteration only, and the
            queries directly.
    """

    def __init__(
        self,
        feature_size: int,
        slot_size: int,
        *,
        truncate: bool = True,
        rngs: nnx.Rngs,
    ):
        self.truncate = truncate
        self.norm_features = layer_norm(feature_size, rngs=rngs)
        self.norm_slots = layer_norm(slot_size, rngs=rngs)
        self.norm_mlp = layer_norm(slot_size, rngs=rngs)
        self.query = linear(slot_size, slot_size, bias=False, rngs=rngs)
        self.key = linear(feature_size, slot_size, bias=False, rngs=rngs)
        self.value = linear(feature_size, slot_size, bias=False, rngs=rngs)
        self.gru = GRUCell(slot_size, rngs=rngs)
        self.mlp = MLP((slot_size, 4 * slot_size, slot_size), zero_bias=True, rngs=rngs)

    def __call__(
        self,
        encoded: Float[Array, "B M C"],
        queries: Float[Array, "B N D"],
        num_iterations: int,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N M"]]:
        """Runs `num_iterations` (static) iterations.

        Returns:
            The slots, and the last iteration's attention: softmax over slots, before it is renormalised over
            tokens; float32.
        """
        return self.iterate(self.remember(encoded), queries, num_iterations, slot_mask)

    def remember(self, encoded: Float[Array, "... M C"]) -> KeysValues:
        """Keys and values (..., M, D), of any leading axes: of all frames of a clip at once."""
        normed = self.norm_features(encoded)
        return self.key(normed), self.value(normed)

    def iterate(
        self,
        memory: KeysValues,
        queries: Float[Array, "B N D"],
        num_iterations: int,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N M"]]:
        """As a call, on what `remember` gives."""
        slots = queries
        for iteration in range(num_iterations):
            if self.truncate and iteration == num_iterations - 1:
                # Equal to the slots; its gradient is the identity with respect to the queries.
                slots = jax.lax.stop_gradient(slots) + (queries - jax.lax.stop_gradient(queries))
            slots, attention = self._iterate(slots, *memory, slot_mask)
        return slots, attention

    def _iterate(self, slots, keys, values, slot_mask):
        query = self.query(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
        logits = jnp.einsum("bnd,bmd->bnm", query, keys).astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        attention = jax.nn.softmax(logits, axis=1)
        weights = attention / (attention.sum(axis=-1, keepdims=True) + 1e-5)
        slots = self.gru(jnp.einsum("bnm,bmd->bnd", weights.astype(values.dtype), values), slots)
        return slots + self.mlp(self.norm_mlp(slots)), attention
