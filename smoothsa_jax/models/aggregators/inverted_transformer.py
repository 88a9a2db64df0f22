"""Transformers whose slots compete for tokens: from a plain transformer to slot attention.

After "Inverted-Attention Transformers can Learn Object Representations" (UniReps 2023), which has
no public program. Its variants are settings:

    TF             inverted=False, renormalize="none"
    TF-Inv         inverted=True, renormalize="mean"
    TF-Inv-GRU     and update="gru"
    SA without GRU TF-Inv with share=("attention", "gru", "mlp"), no biases, no output projection
    SA             and update="gru": the same function as `slot_attention` in linen's conventions
    in OSRT        TF-Inv with renormalize="layernorm", normalize_qk=True
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.aggregators.slot_attention import GRADIENTS
from smoothsa_jax.models.interfaces import Aggregated, Sizes
from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    GRUS,
    MLP,
    GRUCell,
    check_start,
    layer_norm,
    linear,
)
from smoothsa_jax.models.layers.competition import mix_tokens, truncated
from smoothsa_jax.parts import (
    check_above_zero,
    check_flag,
    check_number,
    check_one_of,
    check_whole,
)

SHARED = ("attention", "gru", "mlp")
UPDATES = ("residual", "gru")
RENORMALIZE = ("mean", "layernorm", "none")


class SlotToToken(nnx.Module):
    """The attention of one layer: normalized slots attend to normalized tokens, with one head.

    Args:
        width: C of the tokens.
        slot_size: D.
        inner: Q, width of queries, keys and values.
        updates: width of the update.
        inverted: whether the softmax is over slots; otherwise over tokens.
        epsilon: of the mean over tokens; None: a sum.
        norm_update: whether a LayerNorm follows.
        normalize_qk: whether queries and keys are normalized.
        bias: whether the projections have biases.
        output_projection: whether there is one; otherwise the update is Q wide.
        norm_epsilon: of every LayerNorm.
        start: initial values; see `linear`.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        inner: int,
        updates: int,
        inverted: bool,
        epsilon: float | None,
        norm_update: bool,
        normalize_qk: bool,
        bias: bool,
        output_projection: bool,
        norm_epsilon: float,
        start: str,
        rngs: nnx.Rngs,
    ):
        self.inverted, self.epsilon = inverted, epsilon
        of_linear = {"bias": bias, "start": start, "rngs": rngs}
        norm = lambda size, bias: layer_norm(  # noqa: E731
            size, bias=bias, epsilon=norm_epsilon, rngs=rngs
        )
        self.norm_slots = norm(slot_size, True)
        self.query = linear(slot_size, inner, **of_linear)
        self.key = linear(width, inner, **of_linear)
        self.value = linear(width, inner, **of_linear)
        self.query_norm = norm(inner, False) if normalize_qk else None
        self.key_norm = norm(inner, False) if normalize_qk else None
        self.out = linear(inner, updates, **of_linear) if output_projection else None
        self.update_norm = norm(updates, True) if norm_update else None

    def remember(self, tokens: Float[Array, "*batch M C"]) -> KeysValues:
        """Return keys and values (*batch, M, Q) of normalized tokens."""
        key = self.key(tokens)
        return (key if self.key_norm is None else self.key_norm(key)), self.value(tokens)

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        remembered: KeysValues,
        slot_mask: Bool[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B N U"], Float[Array, "B N M"], Float[Array, "B N M"]]:
        """Return the update, the attention and its logits; see `mix_tokens`."""
        query = self.query(self.norm_slots(slots))
        query = query if self.query_norm is None else self.query_norm(query)
        settings = {"inverted": self.inverted, "epsilon": self.epsilon}
        update, *maps = mix_tokens(query, *remembered, slot_mask, **settings)
        update = update if self.out is None else self.out(update)
        return (update if self.update_norm is None else self.update_norm(update)), *maps


class InvertedTransformer(nnx.Module):
    """Layers in which slots attend to tokens and then pass through an MLP.

    In each layer, every slot gets an update from the tokens, as a residual or by a GRU, and then
    the residual of a pre-norm MLP. Slots do not attend to each other, and no LayerNorm follows.

    Args:
        width: C of the tokens.
        slot_size: D.
        first: number of layers on the first frame.
        later: number of layers on every later frame, which are the first ones; None: as on the
            first frame.
        share: which weights all layers share, of "attention", "gru" and "mlp" (each with its
            LayerNorms); the others are of each layer. Where all are shared, layers are iterations,
            and there may be any number.
        inverted: whether the softmax is over slots; otherwise over tokens.
        update: "residual" or "gru", which gets the slots as they are before their LayerNorm.
        renormalize: what is done to the sum over tokens: divided by the sum of its weights
            ("mean"); or a LayerNorm after the output projection ("layernorm"); or "none".
        normalize_qk: whether a LayerNorm without bias follows the projections to queries and keys.
        bias: whether the projections of the attention have biases.
        output_projection: whether a Linear layer follows the attention.
        mlp_ratio: hidden width of the MLP, as a multiple of D; 2 in the paper.
        activation: "gelu" or "relu", of the MLP.
        gradient: as for `slot_attention`: "full", "last" or "last_and_queries".
        epsilon: added to the sum of the weights of a mean; 1e-8 in SAVi's program.
        norm_epsilon: of every LayerNorm; 1e-6 in flax linen.
        gru: which biases a GRU has; "torch" or "linen".
        start: initial values; see `linear`. "lecun" in flax linen.
        qkv_size: Q, width of queries, keys and values; None: D.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        first: int,
        later: int | None,
        share: Sequence[str],
        inverted: bool,
        update: str,
        renormalize: str,
        bias: bool,
        output_projection: bool,
        mlp_ratio: float,
        activation: str,
        gradient: str,
        epsilon: float,
        norm_epsilon: float,
        gru: str,
        start: str,
        normalize_qk: bool = False,
        qkv_size: int | None = None,
        rngs: nnx.Rngs,
    ):
        path = "model.aggregator"
        check_whole(f"{path}.first", first)
        if later is not None:
            check_whole(f"{path}.later", later)
        _check_share(f"{path}.share", share)
        for key, flag in (
            ("inverted", inverted),
            ("bias", bias),
            ("output_projection", output_projection),
            ("normalize_qk", normalize_qk),
        ):
            check_flag(f"{path}.{key}", flag)
        check_one_of(f"{path}.update", update, UPDATES)
        check_one_of(f"{path}.renormalize", renormalize, RENORMALIZE)
        check_number(f"{path}.mlp_ratio", mlp_ratio, above=True)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_one_of(f"{path}.gradient", gradient, GRADIENTS)
        check_above_zero(f"{path}.epsilon", epsilon)
        check_above_zero(f"{path}.norm_epsilon", norm_epsilon)
        check_one_of(f"{path}.gru", gru, GRUS)
        check_start(f"{path}.start", start)
        if qkv_size is not None:
            check_whole(f"{path}.qkv_size", qkv_size)
        inner = qkv_size or slot_size
        updates = slot_size if output_projection else inner
        if update == "residual" and updates != slot_size:
            raise UserError(
                f"{path}.qkv_size is {inner}, but slots of size {slot_size} cannot be added to "
                f"updates of that width; set --config.{path}.output_projection=True, or update=gru"
            )
        self.first, self.later, self.gradient = first, later or first, gradient
        self.any_iterations = all(
            name in share for name in SHARED if update == "gru" or name != "gru"
        )
        most = max(self.first, self.later)
        number = {name: 1 if name in share else most for name in SHARED}
        of_attention = {
            "inner": inner,
            "updates": updates,
            "inverted": inverted,
            "epsilon": epsilon if renormalize == "mean" else None,
            "norm_update": renormalize == "layernorm",
            "normalize_qk": normalize_qk,
            "bias": bias,
            "output_projection": output_projection,
            "norm_epsilon": norm_epsilon,
            "start": start,
            "rngs": rngs,
        }
        of_gru = {"form": gru, "start": start, "rngs": rngs}
        hidden = max(1, round(mlp_ratio * slot_size))
        of_mlp = {"activation": activation, "start": start, "zero_bias": True, "rngs": rngs}
        self.norm_features = layer_norm(width, epsilon=norm_epsilon, rngs=rngs)
        self.attention = nnx.List(
            [SlotToToken(width, slot_size, **of_attention) for _ in range(number["attention"])]
        )
        num_grus = number["gru"] if update == "gru" else 0
        grus = [GRUCell(slot_size, updates, **of_gru) for _ in range(num_grus)]
        self.gru = nnx.List(grus) if grus else None
        self.norm_mlp = nnx.List(
            [layer_norm(slot_size, epsilon=norm_epsilon, rngs=rngs) for _ in range(number["mlp"])]
        )
        self.mlp = nnx.List(
            [MLP((slot_size, hidden, slot_size), **of_mlp) for _ in range(number["mlp"])]
        )

    def prepare(self, tokens: Float[Array, "*batch M C"]) -> list[KeysValues]:
        """Return keys and values (*batch, M, Q), once or for each layer."""
        normed = self.norm_features(tokens)
        return [attention.remember(normed) for attention in self.attention]

    def __call__(
        self,
        prepared: list[KeysValues],
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: None = None,
        first: bool = True,
        iterations: int | None = None,
    ) -> Aggregated:
        """Run the layers; see `interfaces.Aggregator`.

        The returned attention is that before `renormalize`. The extra `attention_logits` (B,N,M)
        are those of the last layer. With a softmax over tokens, that is the extra `token_attention`
        (B,I,N,M), and the attention is each slot's share of it, token by token.

        Raises:
            UserError: there are `iterations` to run, but each layer has weights of its own.
        """
        del draws
        number = self.first if first else self.later
        if iterations is not None:
            check_any_iterations(self, "inverted_transformer")
            number = iterations
        slots, states, attentions, of_tokens = queries, [], [], []
        for layer in range(number):
            if layer == number - 1:
                slots = truncated(slots, queries, self.gradient)
            remembered = _of_layer(prepared, layer)
            attention = _of_layer(self.attention, layer)
            update, weights, logits = attention(slots, remembered, slot_mask)
            slots = (
                slots + update if self.gru is None else _of_layer(self.gru, layer)(update, slots)
            )
            slots = slots + _of_layer(self.mlp, layer)(_of_layer(self.norm_mlp, layer)(slots))
            if not attention.inverted:
                of_tokens.append(weights)
                logits, weights = _shares(logits, slot_mask)
            states.append(slots)
            attentions.append(weights)
        extras = {"attention_logits": logits}
        if of_tokens:
            extras["token_attention"] = jnp.stack(of_tokens, axis=1)
        return Aggregated(slots, jnp.stack(attentions), jnp.stack(states), slot_mask, extras)

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> None:
        """Return None: nothing is random."""
        del keys, sizes, training


def check_any_iterations(aggregator: nnx.Module, name: str) -> None:
    """Refuse to prune with an aggregator that has a fixed number of iterations.

    Raises:
        UserError: its layers have weights of their own.
    """
    if not getattr(aggregator, "any_iterations", True):
        raise UserError(
            f"model.aggregator.name={name!r} has layers with weights of their own, which cannot "
            "aggregate a frame once more for a number of iterations; prune with "
            "prune_restart=none or merge, or set model.aggregator.share=('attention','gru','mlp')"
        )


def _of_layer(parts: Sequence, layer: int):
    """Return a layer's own part, or the one that all share."""
    return parts[layer] if len(parts) > 1 else parts[0]


def _shares(logits, slot_mask):
    """Return log-probabilities of tokens given slots, and their softmax over slots."""
    found = jax.nn.log_softmax(logits, axis=2)
    if slot_mask is not None:
        found = jnp.where(slot_mask[:, :, None], found, -jnp.inf)
    return found, jax.nn.softmax(found, axis=1)


def _check_share(key: str, share: Sequence[str]) -> None:
    is_list = isinstance(share, list | tuple)
    wrong = [name for name in share if name not in SHARED] if is_list else [share]
    if wrong:
        raise UserError(
            f"{key} is {share!r}; expected a list of {', '.join(SHARED)}, or () for layers with "
            f"weights of their own; set --config.{key}=\"('gru',)\", for example"
        )
