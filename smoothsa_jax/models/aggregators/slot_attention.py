"""Slot attention (Locatello et al. 2020, arXiv 2006.15055) with its published variants.

The defaults are those of SmoothSA (docs/design.md, section 1.1). Conventions of other programs:

    SAVi and the inverted-attention paper (flax linen)
        epsilon=1e-8, activation="relu", gru="linen", norm_epsilon=1e-6, start="lecun"
    the original (Keras)
        epsilon=1e-8, epsilon_in="weights", activation="relu", norm_epsilon=1e-3, start="glorot"
    OSRT
        epsilon=1e-8, epsilon_in="weights", activation="relu", start="truncated", zero_bias=False
    STEVE
        epsilon=1e-8, epsilon_in="weights", activation="relu", start="xavier", last_mlp=False
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Aggregated, Sizes
from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    EPSILON,
    GRUS,
    MLP,
    GRUCell,
    check_start,
    drop_branch,
    layer_norm,
    linear,
    split_key,
)
from smoothsa_jax.models.layers.competition import (
    EPSILON_IN,
    mix_tokens,
    mix_tokens_by_heads,
    truncated,
)
from smoothsa_jax.parts import (
    check_above_zero,
    check_dropout,
    check_flag,
    check_heads,
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
        later: number of iterations on every later frame; None: as on the first.
        gradient: what the gradient passes through. "full": all iterations. "last": the last one
            only, so the queries get none (Chang et al. 2022). "last_and_queries": the last one,
            and from there straight to the queries (bi-level truncation: BO-QSA, SmoothSA).
        extra_iteration: with a gradient of the last iteration only, whether that one comes on top
            of the others, as in the programs of Chang et al. and of DINOSAUR.
        epsilon: keeps the average over tokens finite; 1e-5 in SmoothSA, 1 in BO-QSA.
        epsilon_in: "sum": added to each slot's sum of weights. "weights": added to every weight
            before they are summed, as in the original and in DINOSAUR (1e-8).
        state: what the GRU updates: the "slots"; or the "normalized" ones that the queries are made
            of, as in the programs of VideoSAUR and SlotContrast.
        qkv_size: Q, width of queries, keys and values; None: D.
        num_heads: number of heads. With several, each has its own softmax over slots, and a Linear
            layer takes all of them to the width of one (SAVi).
        gru: which biases the GRU has, those of "torch" (and Keras) or of flax "linen".
        norm_epsilon: of every LayerNorm; 1e-5 in torch, 1e-6 in flax linen, 1e-3 in Keras.
        mlp_ratio: hidden width of the MLP, as a multiple of D; 0: no MLP.
        mlp_size: hidden width of the MLP, in place of `mlp_ratio`; 0: no MLP.
        last_mlp: whether the MLP also follows the last iteration of a frame; not in STEVE (arXiv
            2205.14065).
        activation: "gelu" or "relu", of the MLP.
        dropout_rate: in training, of the MLP's hidden units.
        mlp_drop_rate: in training, probability that a sample goes without the MLP of an iteration
            (stochastic depth; 0.2 in BO-QSA).
        start: initial values: those of "torch"; or, with an orthogonal GRU, "xavier" (SPOT),
            "lecun" (flax linen) or "glorot" (Keras); or "truncated" with torch's GRU (OSRT).
        attention_start: of the projections to queries and keys; None: as `start`.
        zero_bias: whether the biases of GRU and MLP start at 0; with "torch".
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        first: int,
        later: int | None,
        gradient: str = "full",
        extra_iteration: bool = False,
        epsilon: float = 1e-5,
        epsilon_in: str = "sum",
        state: str = "slots",
        qkv_size: int | None = None,
        num_heads: int = 1,
        gru: str = "torch",
        norm_epsilon: float = EPSILON,
        mlp_ratio: float = 4.0,
        mlp_size: int | None = None,
        last_mlp: bool = True,
        activation: str = "gelu",
        dropout_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        start: str = "torch",
        attention_start: str | None = None,
        zero_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        path = "model.aggregator"
        check_whole(f"{path}.first", first)
        if later is not None:
            check_whole(f"{path}.later", later)
        check_one_of(f"{path}.gradient", gradient, GRADIENTS)
        check_flag(f"{path}.extra_iteration", extra_iteration)
        check_above_zero(f"{path}.epsilon", epsilon)
        check_one_of(f"{path}.epsilon_in", epsilon_in, EPSILON_IN)
        check_one_of(f"{path}.state", state, ("slots", "normalized"))
        if qkv_size is not None:
            check_whole(f"{path}.qkv_size", qkv_size)
        inner = qkv_size or slot_size
        check_heads(f"{path}.num_heads", num_heads, inner, f"the width {inner} of its queries")
        check_one_of(f"{path}.gru", gru, GRUS)
        check_above_zero(f"{path}.norm_epsilon", norm_epsilon)
        check_number(f"{path}.mlp_ratio", mlp_ratio)
        if mlp_size is not None:
            check_whole(f"{path}.mlp_size", mlp_size, least=0)
        check_flag(f"{path}.last_mlp", last_mlp)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_dropout(f"{path}.mlp_drop_rate", mlp_drop_rate)
        check_start(f"{path}.start", start)
        if attention_start is not None:
            check_start(f"{path}.attention_start", attention_start)
        check_flag(f"{path}.zero_bias", zero_bias)
        if extra_iteration and gradient == "full":
            raise UserError(
                f"{path}.extra_iteration is True, but the gradient passes through all iterations; "
                f"set --config.{path}.gradient=last or last_and_queries"
            )
        extra = int(extra_iteration)
        self.first, self.later = first + extra, (later or first) + extra
        self.gradient = gradient
        self.averages = {"epsilon": epsilon, "epsilon_in": epsilon_in}
        self.num_heads, self.normalized = num_heads, state == "normalized"
        self.dropout_rate, self.mlp_drop_rate = dropout_rate, mlp_drop_rate
        self.last_mlp = last_mlp
        hidden = round(mlp_ratio * slot_size) if mlp_size is None else mlp_size
        of_queries = attention_start or start
        norm = lambda size: layer_norm(size, epsilon=norm_epsilon, rngs=rngs)  # noqa: E731
        self.norm_features = norm(width)
        self.norm_slots = norm(slot_size)
        self.norm_mlp = norm(slot_size) if hidden else None
        self.query = linear(slot_size, inner, bias=False, start=of_queries, rngs=rngs)
        self.key = linear(width, inner, bias=False, start=of_queries, rngs=rngs)
        self.value = linear(width, inner, bias=False, start=start, rngs=rngs)
        updates = inner // num_heads
        of_gru = {"form": gru, "start": start, "zero_bias": zero_bias, "rngs": rngs}
        self.gru = GRUCell(slot_size, updates, **of_gru)
        sizes = (slot_size, hidden, slot_size)
        of_mlp = {"zero_bias": zero_bias, "activation": activation, "start": start, "rngs": rngs}
        self.mlp = MLP(sizes, **of_mlp) if hidden else None
        self.out = linear(inner, updates, start=start, rngs=rngs) if num_heads > 1 else None

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> KeysValues:
        """Return keys and values (*batch, M, Q)."""
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
        (B,N,M) are those of the last iteration, before the softmax over slots. With several heads,
        the attention is their mean, and the extra `head_attention` (B,I,H,N,M) has them all.
        """
        num_iterations = iterations or (self.first if first else self.later)
        keys = [None] * num_iterations
        if draws is not None:
            keys = split_key(draws, num_iterations)
        slots, states, attentions, logits = queries, [], [], None
        for iteration in range(num_iterations):
            is_last = iteration == num_iterations - 1
            if is_last:
                slots = truncated(slots, queries, self.gradient)
            inputs, with_mlp = (slots, *prepared, slot_mask), self.last_mlp or not is_last
            slots, attention, logits = self._iterate(*inputs, keys[iteration], with_mlp)
            states.append(slots)
            attentions.append(attention)
        attention, extras = jnp.stack(attentions), {"attention_logits": logits}
        if self.num_heads > 1:
            extras = {"head_attention": attention.swapaxes(0, 1)}
            attention = attention.mean(axis=2)
        return Aggregated(slots, attention, jnp.stack(states), slot_mask, extras)

    def _iterate(self, slots, keys, values, slot_mask, dropout_key=None, with_mlp=True):
        normed = self.norm_slots(slots)
        inputs = self.query(normed), keys, values, slot_mask
        if self.num_heads == 1:
            mixed, attention, logits = mix_tokens(*inputs, **self.averages)
        else:
            settings = {"num_heads": self.num_heads, **self.averages}
            mixed, attention, logits = mix_tokens_by_heads(*inputs, **settings)
            mixed = self.out(mixed)
        slots = self.gru(mixed, normed if self.normalized else slots)
        if self.mlp is not None and with_mlp:
            update = self.mlp(self.norm_mlp(slots), self.dropout_rate, dropout_key)
            slots = slots + drop_branch(update, self.mlp_drop_rate, dropout_key)
        return slots, attention, logits

    def draw(self, keys, sizes: Sizes, training: bool) -> Array | None:
        """Return the keys (B,T) of dropout and stochastic depth; None: neither."""
        if not training or not (self.dropout_rate or self.mlp_drop_rate):
            return None
        found = jax.random.split(keys[0], sizes.batch * sizes.frames)
        return found.reshape(sizes.batch, sizes.frames)
