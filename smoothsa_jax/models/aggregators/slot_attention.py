"""Slot attention with bi-level truncation (docs/design.md, section 1.1)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.interfaces import Aggregated
from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import MLP, GRUCell, layer_norm, linear
from smoothsa_jax.parts import check_whole


class SlotAttention(nnx.Module):
    """Competition of slots for tokens: a softmax over slots, an average over tokens, a GRU.

    Args:
        width: C of the tokens.
        slot_size: D.
        first: number of iterations on the first frame.
        later: number of iterations on every later frame.
        truncate: whether to use bi-level truncation: the gradient passes through the last iteration
            only, and from there straight to the queries.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        first: int,
        later: int,
        truncate: bool = False,
        rngs: nnx.Rngs,
    ):
        check_whole("model.aggregator.first", first)
        check_whole("model.aggregator.later", later)
        self.first, self.later = first, later
        self.truncate = truncate
        self.norm_features = layer_norm(width, rngs=rngs)
        self.norm_slots = layer_norm(slot_size, rngs=rngs)
        self.norm_mlp = layer_norm(slot_size, rngs=rngs)
        self.query = linear(slot_size, slot_size, bias=False, rngs=rngs)
        self.key = linear(width, slot_size, bias=False, rngs=rngs)
        self.value = linear(width, slot_size, bias=False, rngs=rngs)
        self.gru = GRUCell(slot_size, rngs=rngs)
        self.mlp = MLP((slot_size, 4 * slot_size, slot_size), zero_bias=True, rngs=rngs)

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> KeysValues:
        """Return keys and values (*batch, M, D)."""
        normed = self.norm_features(tokens)
        return self.key(normed), self.value(normed)

    def __call__(
        self,
        prepared: KeysValues,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: None = None,
        first: bool = True,
    ) -> Aggregated:
        """Run the iterations; see `interfaces.Aggregator`.

        The returned attention is not yet normalized over tokens.
        """
        del draws
        num_iterations = self.first if first else self.later
        slots, states, attentions = queries, [], []
        for iteration in range(num_iterations):
            if self.truncate and iteration == num_iterations - 1:
                # Same values; the gradient with respect to the queries is the identity.
                slots = jax.lax.stop_gradient(slots) + (queries - jax.lax.stop_gradient(queries))
            slots, attention = self._iterate(slots, *prepared, slot_mask)
            states.append(slots)
            attentions.append(attention)
        return Aggregated(slots, jnp.stack(attentions), jnp.stack(states), slot_mask)

    def _iterate(self, slots, keys, values, slot_mask):
        query = self.query(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
        logits = jnp.einsum("bnd,bmd->bnm", query, keys).astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        attention = jax.nn.softmax(logits, axis=1)
        weights = attention / (attention.sum(axis=-1, keepdims=True) + 1e-5)
        slots = self.gru(jnp.einsum("bnm,bmd->bnd", weights.astype(values.dtype), values), slots)
        return slots + self.mlp(self.norm_mlp(slots)), attention

    def draw(self, keys, sizes, training) -> None:
        """Return None: nothing is random."""
