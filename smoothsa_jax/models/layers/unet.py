"""Layers of a UNet that denoises a picture and sees slots.

It is the UNet of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), as SlotDiffusion (Wu et
al. 2023, arXiv 2305.11281) has it. Pictures are channels-last.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.layers.attention import attend
from smoothsa_jax.models.layers.basic import dropout, gelu, layer_norm, linear
from smoothsa_jax.models.layers.conv import Convolution, group_norm

BLOCK_EPSILON = 1e-5  # of the GroupNorms of residual blocks; those of transformers have 1e-6
PERIOD = 10_000.0  # of the slowest wave of a step, in steps


def convolution(
    in_features: int, out_features: int, stride: int = 1, *, zero: bool = False, rngs: nnx.Rngs
) -> Convolution:
    """A 3x3 convolution with one zero on each side; `zero`: it starts at 0."""
    layer = Convolution(
        in_features, out_features, 3, stride, padding="torch", start="torch", rngs=rngs
    )
    return _zeroed(layer) if zero else layer


def _zeroed(layer):
    layer.kernel[...], layer.bias[...] = (
        jnp.zeros_like(x[...]) for x in (layer.kernel, layer.bias)
    )
    return layer


def step_waves(step: Int[Array, "B"], width: int) -> Float[Array, "B W"]:
    """Return cosines, then sines of a step, of geometric frequencies; float32."""
    half = width // 2
    rates = jnp.exp(-math.log(PERIOD) / half * jnp.arange(half, dtype=jnp.float32))
    angles = step.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class StepEmbedding(nnx.Module):
    """Waves of a step, Linear W -> 4W, SiLU, Linear."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.width = width
        self.hidden = linear(width, 4 * width, rngs=rngs)
        self.out = linear(4 * width, 4 * width, rngs=rngs)

    def __call__(self, step: Int[Array, "B"], dtype: jnp.dtype) -> Float[Array, "B S"]:
        waves = step_waves(step, self.width).astype(dtype)
        return self.out(jax.nn.silu(self.hidden(waves)))


class ResidualBlock(nnx.Module):
    """Twice GroupNorm, SiLU and a 3x3 convolution, with the step in between, plus the input.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        step_size: width of the step's embedding.
        groups: of the GroupNorms.
        dropout_rate: in front of the second convolution, in training.
        zero_start: whether the second convolution starts at 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        step_size: int,
        *,
        groups: int,
        dropout_rate: float,
        zero_start: bool,
        rngs: nnx.Rngs,
    ):
        self.dropout_rate = dropout_rate
        self.norm_in = group_norm(in_features, groups, epsilon=BLOCK_EPSILON, rngs=rngs)
        self.conv_in = convolution(in_features, out_features, rngs=rngs)
        self.step = linear(step_size, out_features, rngs=rngs)
        self.norm_out = group_norm(out_features, groups, epsilon=BLOCK_EPSILON, rngs=rngs)
        self.conv_out = convolution(out_features, out_features, zero=zero_start, rngs=rngs)
        same = in_features == out_features
        self.shortcut = None if same else linear(in_features, out_features, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B h w in"],
        step: Float[Array, "B S"],
        dropout_key: Array | None = None,
    ) -> Float[Array, "B h w out"]:
        hidden = self.conv_in(jax.nn.silu(self.norm_in(x)))
        hidden = hidden + self.step(jax.nn.silu(step))[:, None, None]
        hidden = dropout(jax.nn.silu(self.norm_out(hidden)), self.dropout_rate, dropout_key)
        return (x if self.shortcut is None else self.shortcut(x)) + self.conv_out(hidden)


class Attention(nnx.Module):
    """Multi-head attention with torch's initial values of Linear, and a bias at its output alone.

    Args:
        width: E.
        memory_size: width of what is attended to.
        num_heads: number of attention heads.
    """

    backend = CPU
    differentiated = True

    def __init__(self, width: int, memory_size: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query = linear(width, width, bias=False, rngs=rngs)
        self.key = linear(memory_size, width, bias=False, rngs=rngs)
        self.value = linear(memory_size, width, bias=False, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B M E"],
        memory: Float[Array, "B S K"],
        mask: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B M E"]:
        """Attend from `x` to the valid entries of a memory."""
        mixed = attend(
            self.query(x),
            self.key(memory),
            self.value(memory),
            self.num_heads,
            mask,
            backend=self.backend,
            differentiated=self.differentiated,
        )
        return self.out(mixed)


class GatedMLP(nnx.Module):
    """Linear to two halves of 4 E, one * gelu(other), Linear (GEGLU; arXiv 2002.05202)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.hidden = linear(width, 8 * width, rngs=rngs)
        self.out = linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... E"]:
        value, gate = jnp.split(self.hidden(x), 2, axis=-1)
        return self.out(value * gelu(gate, self.hidden.backend))


class PictureTransformer(nnx.Module):
    """One pre-norm transformer layer over the positions of a picture, which attend to slots.

    Args:
        width: E, channels of the picture.
        slot_size: D.
        groups: of the GroupNorm.
        num_heads: number of attention heads.
        zero_start: whether the last layer starts at 0.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        groups: int,
        num_heads: int,
        zero_start: bool,
        rngs: nnx.Rngs,
    ):
        self.norm = group_norm(width, groups, rngs=rngs)
        self.project_in = linear(width, width, rngs=rngs)
        self.norm_self = layer_norm(width, rngs=rngs)
        self.self_attention = Attention(width, width, num_heads, rngs=rngs)
        self.norm_cross = layer_norm(width, rngs=rngs)
        self.cross_attention = Attention(width, slot_size, num_heads, rngs=rngs)
        self.norm_feed_forward = layer_norm(width, rngs=rngs)
        self.feed_forward = GatedMLP(width, rngs=rngs)
        out = linear(width, width, rngs=rngs)
        self.project_out = _zeroed(out) if zero_start else out

    def __call__(
        self,
        picture: Float[Array, "B h w E"],
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
    ) -> Float[Array, "B h w E"]:
        normed = self.norm(picture)
        x = self.project_in(normed.reshape(len(normed), -1, normed.shape[-1]))
        seen = self.norm_self(x)
        x = x + self.self_attention(seen, seen)
        x = x + self.cross_attention(self.norm_cross(x), slots, slot_mask)
        x = x + self.feed_forward(self.norm_feed_forward(x))
        return picture + self.project_out(x).reshape(picture.shape)


class Level(nnx.Module):
    """Residual blocks of one resolution, each followed by a transformer if the level has them.

    Args:
        in_features: channels of the input of each block.
        width: channels of the output of each block.
        transformers: how many blocks a transformer follows, counted from the first.
        slot_size: D.
        num_heads: of the transformers.
        block: settings of the blocks.
        resample: "down": a 3x3 convolution of stride 2 at the end; "up": every pixel becomes 2x2,
            then a 3x3 convolution; None: neither.
    """

    def __init__(
        self,
        in_features: Sequence[int],
        width: int,
        step_size: int,
        *,
        transformers: int,
        slot_size: int,
        num_heads: int,
        groups: int,
        dropout_rate: float,
        zero_start: bool,
        resample: str | None,
        rngs: nnx.Rngs,
    ):
        of_both = {"groups": groups, "zero_start": zero_start, "rngs": rngs}
        blocks, found = [], []
        for number, features in enumerate(in_features):
            block = ResidualBlock(features, width, step_size, dropout_rate=dropout_rate, **of_both)
            blocks.append(block)
            if number < transformers:
                layer = PictureTransformer(width, slot_size, num_heads=num_heads, **of_both)
                found.append(layer)
        self.blocks, self.transformers = nnx.List(blocks), nnx.List(found)
        stride = 2 if resample == "down" else 1
        self.resample = None if resample is None else convolution(width, width, stride, rngs=rngs)

    def step(
        self,
        number: int,
        x: Float[Array, "B h w in"],
        embedded: Float[Array, "B S"],
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        dropout_key: Array | None,
    ) -> Float[Array, "B h w out"]:
        """Apply a block and its transformer."""
        x = self.blocks[number](x, embedded, dropout_key)
        if number < len(self.transformers):
            x = self.transformers[number](x, slots, slot_mask)
        return x


def twice_as_large(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B H W C"]:
    """Make 2x2 pixels of each; an odd size lacks the last row or column, as in torch's nearest."""
    for axis, side in zip((1, 2), size, strict=True):
        x = jnp.repeat(x, 2, axis=axis, total_repeat_length=2 * x.shape[axis])
        x = jax.lax.slice_in_dim(x, 0, side, axis=axis)
    return x
