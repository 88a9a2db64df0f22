"""Slot attention (Locatello et al. 2020, arXiv 2006.15055) with its published variants.

The defaults are those of SmoothSA (docs/design.md, section 1.1).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.interfaces import Aggregated, Sizes
from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    MLP,
    GRUCell,
    check_start,
    layer_norm,
    linear,
    split_key,
)
from smoothsa_jax.parts import (
    check_above_zero,
    check_dropout,
    check_flag,
    check_number,
    check_one_of,
    check_whole,
)

GRADIENTS = ("full", "last", "last_and_queries")


class SlotAttention(nnx.Module):
    """Competition of slots for tokens: a softmax over slots, an average over tokens, a GRU.

    Args:
        width: C of the tokens.
        slot_size: D.
        first: number of iterations on the first frame.
        later: number of iterations on every later frame.
        gradient: what the gradient passes through. "full": all iterations. "last": the last one
            only, so the queries get none (Chang et al. 2022). "last_and_queries": the last one,
            and from there straight to the queries (bi-level truncation: BO-QSA, SmoothSA).
        epsilon: keeps the average over tokens finite; 1e-5 in SmoothSA, 1 in BO-QSA.
        epsilon_in: "sum": added to each slot's sum of weights. "weights": added to every weight
            before they are summed, as in the original and in DINOSAUR (1e-8).
        state: what the GRU updates: the "slots"; or the "normalized" ones that the queries are made
            of, as in the programs of VideoSAUR and SlotContrast.
        mlp_ratio: hidden width of the MLP, as a multiple of D; 0: no MLP.
        activation: "gelu" or "relu", of the MLP.
        dropout_rate: in training, of the MLP's hidden units.
        start: initial values: those of "torch", or "xavier" with an orthogonal GRU, as in SPOT.
        attention_start: of the projections to queries and keys; None: as `start`.
        zero_bias: whether the biases of GRU and MLP start at 0; with "torch".
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        first: int,
        later: int,
        gradient: str = "full",
        epsilon: float = 1e-5,
        epsilon_in: str = "sum",
        state: str = "slots",
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        dropout_rate: float = 0.0,
        start: str = "torch",
        attention_start: str | None = None,
        zero_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        path = "model.aggregator"
        check_whole(f"{path}.first", first)
        check_whole(f"{path}.later", later)
        check_one_of(f"{path}.gradient", gradient, GRADIENTS)
        check_above_zero(f"{path}.epsilon", epsilon)
        check_one_of(f"{path}.epsilon_in", epsilon_in, ("sum", "weights"))
        check_one_of(f"{path}.state", state, ("slots", "normalized"))
        check_number(f"{path}.mlp_ratio", mlp_ratio)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_start(f"{path}.start", start)
        if attention_start is not None:
            check_start(f"{path}.attention_start", attention_start)
        check_flag(f"{path}.zero_bias", zero_bias)
        self.first, self.later = first, later
        self.gradient = gradient
        self.epsilon, self.epsilon_in = epsilon, epsilon_in
        self.normalized, self.dropout_rate = state == "normalized", dropout_rate
        hidden, of_queries = round(mlp_ratio * slot_size), attention_start or start
        self.norm_features = layer_norm(width, rngs=rngs)
        self.norm_slots = layer_norm(slot_size, rngs=rngs)
        self.norm_mlp = layer_norm(slot_size, rngs=rngs) if hidden else None
        self.query = linear(slot_size, slot_size, bias=False, start=of_queries, rngs=rngs)
        self.key = linear(width, slot_size, bias=False, start=of_queries, rngs=rngs)
        self.value = linear(width, slot_size, bias=False, start=start, rngs=rngs)
        self.gru = GRUCell(slot_size, start=start, zero_bias=zero_bias, rngs=rngs)
        sizes = (slot_size, hidden, slot_size)
        of_mlp = {"zero_bias": zero_bias, "activation": activation, "start": start, "rngs": rngs}
        self.mlp = MLP(sizes, **of_mlp) if hidden else None

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> KeysValues:
        """Return keys and values (*batch, M, D)."""
        normed = self.norm_features(tokens)
        return self.key(normed), self.value(normed)

    def __call__(
        self,
        prepared: KeysValues,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: Array | None = None,
        first: bool = True,
        iterations: int | None = None,
    ) -> Aggregated:
        """Run the iterations; see `interfaces.Aggregator`.

        The returned attention is not yet normalized over tokens. The extra `attention_logits`
        (B,N,M) are those of the last iteration, before the softmax over slots.
        """
        num_iterations = iterations or (self.first if first else self.later)
        keys = [None] * num_iterations
        if draws is not None:
            keys = split_key(draws, num_iterations)
        slots, states, attentions, logits = queries, [], [], None
        for iteration in range(num_iterations):
            if iteration == num_iterations - 1:
                slots = self._last(slots, queries)
            slots, attention, logits = self._iterate(slots, *prepared, slot_mask, keys[iteration])
            states.append(slots)
            attentions.append(attention)
        extras = {"attention_logits": logits}
        return Aggregated(slots, jnp.stack(attentions), jnp.stack(states), slot_mask, extras)

    def _last(self, slots, queries):
        """Return what enters the last iteration: the same values, with another gradient."""
        if self.gradient == "full":
            return slots
        slots = jax.lax.stop_gradient(slots)
        if self.gradient == "last":
            return slots
        return slots + (queries - jax.lax.stop_gradient(queries))

    def _iterate(self, slots, keys, values, slot_mask, dropout_key=None):
        normed = self.norm_slots(slots)
        query = self.query(normed) * slots.shape[-1] ** -0.5
        logits = jnp.einsum("bnd,bmd->bnm", query, keys).astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        attention = jax.nn.softmax(logits, axis=1)
        if self.epsilon_in == "sum":
            weights = attention / (attention.sum(axis=-1, keepdims=True) + self.epsilon)
        else:
            weights = attention + self.epsilon
            weights = weights / weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum("bnm,bmd->bnd", weights.astype(values.dtype), values)
        slots = self.gru(mixed, normed if self.normalized else slots)
        if self.mlp is not None:
            slots = slots + self.mlp(self.norm_mlp(slots), self.dropout_rate, dropout_key)
        return slots, attention, logits

    def draw(self, keys, sizes: Sizes, training: bool) -> Array | None:
        """Return the keys (B,T) of dropout; None: no dropout."""
        if not training or not self.dropout_rate:
            return None
        found = jax.random.split(keys[0], sizes.batch * sizes.frames)
        return found.reshape(sizes.batch, sizes.frames)
