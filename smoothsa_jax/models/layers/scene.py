"""Layers of scene representation transformers (SRT and OSRT), with their initial values."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.layers.attention import attend
from smoothsa_jax.models.layers.basic import MLP, layer_norm, linear, packed_products


class SceneAttention(nnx.Module):
    """Multi-head attention whose heads may be wider or narrower than its input.

    Only the output has a bias.

    Args:
        width: channels of what attends, and of the output.
        num_heads: number of heads.
        head_size: channels of each head.
        memory_width: channels of what it attends to; None: it attends to itself.
    """

    backend = CPU
    differentiated = True

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        head_size: int,
        memory_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        inner, self.num_heads = num_heads * head_size, num_heads
        start = {"start": "truncated", "rngs": rngs}
        project = lambda *sizes: linear(*sizes, bias=False, **start)  # noqa: E731
        own = memory_width is None
        self.packed = project(width, 3 * inner) if own else None
        self.query = None if own else project(width, inner)
        self.key_value = None if own else project(memory_width, 2 * inner)
        self.out = linear(inner, width, **start)

    def __call__(
        self,
        x: Float[Array, "B Q E"],
        memory: Float[Array, "B S C"] | None = None,
        memory_mask: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B Q E"]:
        if self.packed is not None:
            inputs = packed_products(x, self.packed.kernel[...], 3, self.backend)
        else:
            kernel = self.key_value.kernel[...]
            inputs = self.query(x), *packed_products(memory, kernel, 2, self.backend)
        mixed = attend(
            *inputs,
            self.num_heads,
            memory_mask,
            backend=self.backend,
            differentiated=self.differentiated,
        )
        return self.out(mixed)


class SceneLayer(nnx.Module):
    """Attention and a GELU feed-forward, each after a LayerNorm and with a residual.

    Args:
        width: channels of the stream.
        num_heads: number of heads.
        head_size: channels of each head.
        hidden_size: of the feed-forward.
        memory_width: channels of what it attends to, which no LayerNorm precedes; None: it attends
            to itself.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        head_size: int,
        hidden_size: int,
        memory_width: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.norm_attention = layer_norm(width, rngs=rngs)
        self.attention = SceneAttention(
            width, num_heads=num_heads, head_size=head_size, memory_width=memory_width, rngs=rngs
        )
        self.norm_feed_forward = layer_norm(width, rngs=rngs)
        self.feed_forward = MLP((width, hidden_size, width), start="xavier", rngs=rngs)
        for layer in (self.feed_forward.hidden, self.feed_forward.out):
            layer.bias[...] = 1e-6 * jax.random.normal(rngs.params(), layer.bias.shape)

    def __call__(
        self,
        x: Float[Array, "B Q E"],
        memory: Float[Array, "B S C"] | None = None,
        memory_mask: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B Q E"]:
        x = x + self.attention(self.norm_attention(x), memory, memory_mask)
        return x + self.feed_forward(self.norm_feed_forward(x))
