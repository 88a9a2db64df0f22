"""The transformer decoder layers: post-norm (transition) and pre-norm (autoregressive decoders).

The warmer's layer differs from both, and is in `initializers.py`.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.layers.attention import KeysValues, MultiHeadAttention
from smoothsa_jax.models.layers.basic import MLP, dropout, layer_norm, split_key


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


BIASES = ("none", "all_but_attention", "all")


class PreNormLayer(nnx.Module):
    """Self-attention, cross-attention, feed-forward of width 4 E; each after a LayerNorm.

    Args:
        width: E.
        num_heads: number of attention heads.
        norm_self: whether self-attention has its own LayerNorm. The first layer of the random AR
            decoder does not: its input is normalized as a whole, including the residual branch.
        norm_stream: whether that LayerNorm replaces the stream, and so also enters the residual
            branch, as in the first layer of SLATE's and SPOT's decoder.
        causal: whether self-attention sees earlier entries alone.
        biases: which parts have them: "none", "all_but_attention" or "all"; with any, LayerNorms
            do.
        activation: "gelu" or "relu".
        start: initial values, "torch" or "xavier".
        out_gain: factor of the initial projections that add to the stream, with "xavier".
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        norm_self: bool = True,
        *,
        norm_stream: bool = False,
        causal: bool = False,
        biases: str = "none",
        activation: str = "gelu",
        start: str = "torch",
        out_gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.norm_stream = norm_stream
        bias = biases != "none"
        attention = {"bias": biases == "all", "start": start, "out_gain": out_gain, "rngs": rngs}
        self.self_attention = MultiHeadAttention(width, num_heads, causal=causal, **attention)
        self.cross_attention = MultiHeadAttention(width, num_heads, **attention)
        self.feed_forward = MLP(
            (width, 4 * width, width),
            bias=bias,
            activation=activation,
            start=start,
            rngs=rngs,
        )
        if out_gain != 1.0:
            self.feed_forward.out.kernel[...] = out_gain * self.feed_forward.out.kernel[...]
        self.norm_self = layer_norm(width, bias=bias, rngs=rngs) if norm_self else None
        self.norm_cross = layer_norm(width, bias=bias, rngs=rngs)
        self.norm_feed_forward = layer_norm(width, bias=bias, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B M E"],
        memory: Float[Array, "B N E"],
        *,
        memory_mask: Bool[Array, "B N"] | None = None,
    ) -> Float[Array, "B M E"]:
        x, memory = self._look_around(x), self.cross_attention.remember(memory)
        x = x + self.cross_attention(self.norm_cross(x), memory, key_mask=memory_mask)
        return self._feed_forward(x)

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

    def _look_around(self, x):
        if self.norm_self is None:
            return x + self.self_attention(x)
        normed = self.norm_self(x)
        return (normed if self.norm_stream else x) + self.self_attention(normed)

    def _feed_forward(self, x):
        return x + self.feed_forward(self.norm_feed_forward(x))


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
