"""Transformer layers: of the transitions, and of decoders that attend to slots.

The warmer's layer differs from all of them, and is in `initializers.py`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from smoothsa_jax.models.layers.attention import KeysValues, MultiHeadAttention
from smoothsa_jax.models.layers.basic import EPSILON, MLP, dropout, layer_norm, split_key


class PostNormLayer(nnx.Module):
    """Self-attention, cross-attention, feed-forward; each normalized after its residual.

    The layer is bias-free, with a GELU feed-forward of width 4 E. With a dropout key, dropout acts
    on the attention weights, inside the feed-forward and on each residual branch.
    """

    def __init__(self, width: int, num_heads: int, dropout_rate: float = 0.0, *, rngs: nnx.Rngs):
        self.dropout_rate = dropout_rate
        self.self_attention = MultiHeadAttention(width, num_heads, rngs=rngs)
        self.cross_attention = MultiHeadAttention(width, num_heads, rngs=rngs)
        self.feed_forward = MLP((width, 4 * width, width), bias=False, rngs=rngs)
        self.norm_self = layer_norm(width, bias=False, rngs=rngs)
        self.norm_cross = layer_norm(width, bias=False, rngs=rngs)
        self.norm_feed_forward = layer_norm(width, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B N E"],
        memory: KeysValues,
        *,
        mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B N E"]:
        """Update the valid entries of `x`.

        Args:
            x: the tokens.
            memory: the result of `cross_attention.remember`.
            mask: the valid entries of `x`; only these are attended to.
            dropout_key: random key of dropout; None: no dropout.

        Returns:
            The updated tokens.
        """
        rate = self.dropout_rate
        keys = [None] * 6 if dropout_key is None else list(split_key(dropout_key, 6))
        update = self.self_attention(x, key_mask=mask, dropout_rate=rate, dropout_key=keys[0])
        x = self.norm_self(x + dropout(update, rate, keys[1]))
        update = self.cross_attention(x, memory, dropout_rate=rate, dropout_key=keys[2])
        x = self.norm_cross(x + dropout(update, rate, keys[3]))
        update = self.feed_forward(x, rate, keys[4])
        return self.norm_feed_forward(x + dropout(update, rate, keys[5]))


NORMS = ("pre", "post")


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each with a residual and a LayerNorm.

    With `memory_size`, cross-attention to a memory, which is not normalized, stands in between
    (SAVi's general block).

    Args:
        width: E.
        num_heads: number of attention heads.
        norm: where the LayerNorms are: "pre", in front of each branch; or "post", after its
            residual.
        activation: "gelu" or "relu".
        bias: whether attention, feed-forward and LayerNorms have biases.
        attention_bias: whether attention has; None: as `bias`.
        norm_stream: with the norm "pre", whether the first LayerNorm replaces the stream, and so
            also enters the residual branch, as in the first layer of STEVE's predictor.
        dropout_rate: with a dropout key, of the attention weights, of the hidden units and of each
            branch.
        query_scale: "multiply" or "divide"; see `MultiHeadAttention`.
        attention_start: initial values of the attention; see `MultiHeadAttention`.
        qkv_size: width of all heads together; None: E.
        mlp_size: hidden width of the feed-forward; None: 4 E.
        memory_size: width of the memory; None: no cross-attention.
        norm_epsilon: of every LayerNorm.
        start: initial values of the feed-forward; see `linear`.
        out_gain: factor of the initial projections that add to the stream.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        norm: str,
        activation: str,
        bias: bool,
        attention_bias: bool | None = None,
        norm_stream: bool = False,
        dropout_rate: float = 0.0,
        query_scale: str = "multiply",
        attention_start: str = "torch",
        qkv_size: int | None = None,
        mlp_size: int | None = None,
        memory_size: int | None = None,
        norm_epsilon: float = EPSILON,
        start: str = "torch",
        out_gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.is_pre, self.dropout_rate = norm == "pre", dropout_rate
        self.norm_stream = norm_stream
        of_attention = {
            "qkv_size": qkv_size,
            "bias": bias if attention_bias is None else attention_bias,
            "start": attention_start,
            "out_gain": out_gain,
            "query_scale": query_scale,
            "rngs": rngs,
        }
        of_norm = {"bias": bias, "epsilon": norm_epsilon, "rngs": rngs}
        crosses = memory_size is not None
        self.self_attention = MultiHeadAttention(width, num_heads, **of_attention)
        self.cross_attention = (
            MultiHeadAttention(width, num_heads, memory_size=memory_size, **of_attention)
            if crosses
            else None
        )
        sizes = (width, mlp_size or 4 * width, width)
        self.feed_forward = MLP(sizes, bias=bias, activation=activation, start=start, rngs=rngs)
        if out_gain != 1.0:
            self.feed_forward.out.kernel[...] = out_gain * self.feed_forward.out.kernel[...]
        self.norm_self = layer_norm(width, **of_norm)
        self.norm_cross = layer_norm(width, **of_norm) if crosses else None
        self.norm_feed_forward = layer_norm(width, **of_norm)

    def __call__(
        self,
        x: Float[Array, "B N E"],
        memory: Float[Array, "B S C"] | None = None,
        *,
        mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B N E"]:
        """Update the valid entries of `x`.

        Args:
            x: the tokens.
            memory: what cross-attention reads.
            mask: the valid entries of `x`; only these are attended to.
            dropout_key: random key of dropout; None: no dropout.
        """
        rate = self.dropout_rate
        keys = [None] * 6 if dropout_key is None else list(split_key(dropout_key, 4))
        if dropout_key is not None and self.cross_attention is not None:
            keys = list(split_key(dropout_key, 6))
        look = lambda x: self.self_attention(  # noqa: E731
            x, key_mask=mask, dropout_rate=rate, dropout_key=keys[0]
        )
        if self.norm_stream:
            x = self.norm_self(x)
            x = x + dropout(look(x), rate, keys[1])
        else:
            x = self._add(x, look, self.norm_self, keys[1])
        if self.cross_attention is not None:
            cross = self.cross_attention
            read = lambda x: cross(  # noqa: E731
                x, cross.remember(memory), dropout_rate=rate, dropout_key=keys[4]
            )
            x = self._add(x, read, self.norm_cross, keys[5])
        think = lambda x: self.feed_forward(x, rate, keys[2])  # noqa: E731
        return self._add(x, think, self.norm_feed_forward, keys[3])

    def of_first(
        self,
        x: Float[Array, "B N E"],
        *,
        mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B 1 E"]:
        """Update the first entry alone, as a call would; the layer has no memory."""
        rate, attention = self.dropout_rate, self.self_attention
        keys = [None] * 4 if dropout_key is None else list(split_key(dropout_key, 4))
        seen = self.norm_self(x) if self.is_pre or self.norm_stream else x
        memory = attention.remember(seen)
        update = attention(seen[:, :1], memory, mask, rate, keys[0])
        x = (seen if self.norm_stream else x)[:, :1] + dropout(update, rate, keys[1])
        x = x if self.is_pre else self.norm_self(x)
        think = lambda x: self.feed_forward(x, rate, keys[2])  # noqa: E731
        return self._add(x, think, self.norm_feed_forward, keys[3])

    def _add(self, x, branch, norm, dropout_key):
        """Add a branch, with its LayerNorm in front or after the sum."""
        if self.is_pre:
            return x + dropout(branch(norm(x)), self.dropout_rate, dropout_key)
        return norm(x + dropout(branch(x), self.dropout_rate, dropout_key))


BIASES = ("none", "all_but_attention", "all")
AROUND = ("attention", "norm", "none")


class PreNormLayer(nnx.Module):
    """Self-attention, cross-attention, feed-forward of width 4 E; each after a LayerNorm.

    Args:
        width: E.
        num_heads: number of attention heads.
        norm_self: whether self-attention has its own LayerNorm. The first layer of the random AR
            decoder does not: its input is normalized as a whole, including the residual branch.
        around: what precedes cross-attention: self-"attention"; or, in layers whose entries do not
            see each other, the "norm" alone, which is added to the stream, or "none".
        norm_stream: whether that LayerNorm replaces the stream, and so also enters the residual
            branch, as in the first layer of SLATE's and SPOT's decoder.
        causal: whether self-attention sees earlier entries alone.
        biases: which parts have them: "none", "all_but_attention" or "all"; with any, LayerNorms
            do.
        activation: "gelu" or "relu".
        start: initial values, "torch" or "xavier".
        feed_forward_start: of the feed-forward; None: as `start`.
        out_gain: factor of the initial projections that add to the stream, with "xavier".
        query_scale: "multiply" or "divide"; see `MultiHeadAttention`.
        dropout_rate: with a dropout key, of attention weights and of each branch (STEVE).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        norm_self: bool = True,
        *,
        around: str = "attention",
        norm_stream: bool = False,
        causal: bool = False,
        biases: str = "none",
        activation: str = "gelu",
        start: str = "torch",
        feed_forward_start: str | None = None,
        out_gain: float = 1.0,
        query_scale: str = "multiply",
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.norm_stream, self.dropout_rate = norm_stream, dropout_rate
        bias = biases != "none"
        attention = {"bias": biases == "all", "start": start, "out_gain": out_gain, "rngs": rngs}
        attention["query_scale"] = query_scale
        own = around == "attention"
        self.self_attention = (
            MultiHeadAttention(width, num_heads, causal=causal, **attention) if own else None
        )
        self.cross_attention = MultiHeadAttention(width, num_heads, **attention)
        self.feed_forward = MLP(
            (width, 4 * width, width),
            bias=bias,
            activation=activation,
            start=feed_forward_start or start,
            rngs=rngs,
        )
        if out_gain != 1.0:
            self.feed_forward.out.kernel[...] = out_gain * self.feed_forward.out.kernel[...]
        has_norm = norm_self and around != "none"
        self.norm_self = layer_norm(width, bias=bias, rngs=rngs) if has_norm else None
        self.norm_cross = layer_norm(width, bias=bias, rngs=rngs)
        self.norm_feed_forward = layer_norm(width, bias=bias, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B M E"],
        memory: Float[Array, "B N E"],
        *,
        memory_mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B M E"]:
        """The new tokens.

        Args:
            x: the tokens.
            memory: what cross-attention reads.
            memory_mask: true = valid.
            dropout_key: random key of dropout; None: no dropout.
        """
        keys = [None] * 5 if dropout_key is None else list(split_key(dropout_key, 5))
        x = self._look_around(x, *keys[:2])
        return self._read(x, self.cross_attention.remember(memory), memory_mask, *keys[2:])

    def extend(
        self,
        x: Float[Array, "B 1 E"],
        cache: KeysValues,
        place: Int[Array, ""],
        memory: KeysValues,
        *,
        memory_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B 1 E"], KeysValues]:
        """The new token of one place of a causal layer, and the cache with its key and value.

        Args:
            x: the token.
            cache: keys and values of the earlier places, as `self_attention.extend` takes them.
            place: its number, from 0.
            memory: the result of `cross_attention.remember`.
            memory_mask: true = valid.
        """
        normed = x if self.norm_self is None else self.norm_self(x)
        update, cache = self.self_attention.extend(normed, cache, place)
        x = (normed if self.norm_stream else x) + update
        return self._read(x, memory, memory_mask), cache

    def with_weights(
        self,
        x: Float[Array, "B M E"],
        memory: Float[Array, "B N E"],
        *,
        memory_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B M E"], Float[Array, "B M N"]]:
        """The new tokens, and the weights of cross-attention."""
        x, memory = self._look_around(x), self.cross_attention.remember(memory)
        update, weights = self.cross_attention.with_weights(
            self.norm_cross(x), memory, key_mask=memory_mask
        )
        return self._feed_forward(x + update), weights

    def _look_around(self, x, weights_key=None, key=None):
        normed = x if self.norm_self is None else self.norm_self(x)
        if self.self_attention is None:
            return x if self.norm_self is None else x + normed
        rate = self.dropout_rate
        update = self.self_attention(normed, dropout_rate=rate, dropout_key=weights_key)
        return (normed if self.norm_stream else x) + dropout(update, rate, key)

    def _read(self, x, memory, memory_mask, weights_key=None, key=None, last_key=None):
        rate = self.dropout_rate
        update = self.cross_attention(
            self.norm_cross(x), memory, memory_mask, dropout_rate=rate, dropout_key=weights_key
        )
        return self._feed_forward(x + dropout(update, rate, key), last_key)

    def _feed_forward(self, x, key=None):
        update = self.feed_forward(self.norm_feed_forward(x))
        return x + dropout(update, self.dropout_rate, key)


def copied_layers(num_layers: int, *sizes: int, rngs: nnx.Rngs, **settings: Any) -> nnx.List:
    """Return layers as `torch.nn.TransformerEncoder` has them: they start as copies of one.

    Args:
        num_layers: number of layers.
        *sizes: width and number of heads of an `EncoderLayer`.
        rngs: keys of the initial values.
        **settings: further ones of it.
    """
    key, settings = rngs.params(), {"activation": "relu", "bias": True, **settings}
    layers = range(num_layers)
    return nnx.List([EncoderLayer(*sizes, rngs=nnx.Rngs(key), **settings) for _ in layers])


def run_copied_layers(
    layers: Sequence[EncoderLayer],
    x: Float[Array, "B M E"],
    mask: Bool[Array, "B M"] | None,
    keys: Key[Array, "B"] | None,
) -> Float[Array, "B M E"]:
    """Return the tokens after all layers.

    Args:
        layers: any number of them.
        x: the tokens.
        mask: true = valid.
        keys: of the dropout of each sample; None: no dropout.
    """
    number = len(layers)
    of_layers = [None] * number if keys is None else split_key(keys, number)
    for layer, key in zip(layers, of_layers, strict=True):
        x = layer(x, mask=mask, dropout_key=key)
    return x


def run_to_first(
    layers: Sequence[EncoderLayer],
    x: Float[Array, "B M E"],
    mask: Bool[Array, "B M"] | None,
    keys: Key[Array, "B"] | None,
) -> Float[Array, "B E"]:
    """Return the first token after all layers; the last one computes nothing else.

    Args:
        layers: at least one.
        x: the tokens.
        mask: true = valid.
        keys: of the dropout of each sample; None: no dropout.
    """
    *earlier, last = layers
    of_earlier, of_last = keys, None
    if keys is not None:
        of_earlier, of_last = split_key(keys, 2)
    x = run_copied_layers(earlier, x, mask, of_earlier)
    return last.of_first(x, mask=mask, dropout_key=of_last)[:, 0]


def causal_layers(
    width: int,
    num_heads: int,
    num_layers: int,
    *,
    norm_stream: bool,
    start: str,
    rngs: nnx.Rngs,
    **settings: Any,
) -> nnx.List:
    """Return the layers of an autoregressive decoder.

    Args:
        width: E.
        num_heads: number of attention heads.
        num_layers: number of layers.
        norm_stream: whether the first one's LayerNorm replaces the stream.
        start: "torch", where all layers start with the same values, as torch copies one layer; or
            "xavier", where the outputs of each start smaller the more layers there are.
        rngs: keys of the initial values.
        **settings: further ones of `PreNormLayer`.
    """
    key = rngs.params()
    if start == "xavier":
        settings["out_gain"] = (3 * num_layers) ** -0.5
    return nnx.List(
        [
            PreNormLayer(
                width,
                num_heads,
                causal=True,
                norm_stream=norm_stream and index == 0,
                start=start,
                rngs=nnx.Rngs(key) if start == "torch" else rngs,
                **settings,
            )
            for index in range(num_layers)
        ]
    )


def run_layers(
    layers: Sequence[PreNormLayer],
    x: Float[Array, "B M E"],
    memory: Float[Array, "B N E"],
    *,
    memory_mask: Bool[Array, "B N"] | None,
    remat: bool,
) -> tuple[Float[Array, "B M E"], Float[Array, "B M N"]]:
    """The tokens after all layers, and the weights of the last one's cross-attention.

    Args:
        layers: at least one.
        x: the tokens.
        memory: what cross-attention reads.
        memory_mask: true = valid.
        remat: whether the backward pass recomputes each layer's activations.
    """
    *layers, last = layers
    again = jax.checkpoint if remat else lambda function: function
    for layer in layers:
        x = again(lambda x, layer=layer: layer(x, memory, memory_mask=memory_mask))(x)
    return again(lambda x: last.with_weights(x, memory, memory_mask=memory_mask))(x)
