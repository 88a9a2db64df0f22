"""Layers of TAESD, a tiny autoencoder of pictures (Ollin Boer Bohan, `madebyollin/taesd`).

Layers have the numbers of its files, so that its weights can be read; those of the decoder are less
`DECODER_OFFSET`, because the first two are left out. Tokenizers use it without its bottleneck of
four channels (VQ-VFM-OCL, arXiv 2502.20263).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.layers.conv import Convolution

DECODER_OFFSET = 2
NUM_STRIDES = 3


def conv3(ins: int, outs: int, stride: int = 1, *, bias: bool = True, rngs: nnx.Rngs):
    """A 3x3 convolution with torch's padding and initial values."""
    return Convolution(ins, outs, 3, stride, padding="torch", bias=bias, start="torch", rngs=rngs)


class Block(nnx.Module):
    """Three 3x3 convolutions with ReLUs between them, plus the input, and a ReLU."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List([conv3(width, width, rngs=rngs) for _ in range(3)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        first, second, third = self.convs
        return jax.nn.relu(x + third(jax.nn.relu(second(jax.nn.relu(first(x))))))


class Enlarge(nnx.Module):
    """Each pixel becomes `factor`**2 equal ones."""

    def __init__(self, factor: int):
        self.factor = factor

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        if self.factor == 1:
            return x
        batch, height, width, channels = x.shape
        shape = (batch, height, self.factor, width, self.factor, channels)
        wide = jnp.broadcast_to(x[:, :, None, :, None], shape)
        return wide.reshape(batch, height * self.factor, width * self.factor, channels)


class TinyEncoder(nnx.Module):
    """Pixels -> features: layers 0 to 13 of TAESD's encoder.

    A convolution and a block, then for each stride a convolution and blocks. It sees (x + 1) / 2.

    Args:
        width: channels of all layers; 64 in TAESD.
        strides: 2, 2, 2 in TAESD.
        blocks: after each stride; 3 in TAESD.
    """

    def __init__(self, width: int, strides: tuple[int, ...], blocks: int, *, rngs: nnx.Rngs):
        layers = [conv3(3, width, rngs=rngs), Block(width, rngs=rngs)]
        for stride in strides:
            layers.append(conv3(width, width, stride, bias=False, rngs=rngs))
            layers += [Block(width, rngs=rngs) for _ in range(blocks)]
        self.layers = nnx.List(layers)

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        x = (pixels + 1.0) / 2.0
        for layer in self.layers:
            x = layer(x)
        return x


class TinyDecoder(nnx.Module):
    """Features -> pixels: layers 2 to 18 of TAESD's decoder, and 2x - 1 of what they give.

    For each stride blocks, an enlargement and a convolution; then a block and a convolution.

    Args:
        width: channels of all layers; 64 in TAESD.
        strides: 2, 2, 2 in TAESD.
        blocks: in front of each stride; 3 in TAESD.
    """

    def __init__(self, width: int, strides: tuple[int, ...], blocks: int, *, rngs: nnx.Rngs):
        layers = []
        for stride in strides:
            layers += [Block(width, rngs=rngs) for _ in range(blocks)]
            layers += [Enlarge(stride), conv3(width, width, bias=False, rngs=rngs)]
        layers += [Block(width, rngs=rngs), conv3(width, 3, rngs=rngs)]
        self.layers = nnx.List(layers)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        for layer in self.layers:
            x = layer(x)
        return 2.0 * x - 1.0
