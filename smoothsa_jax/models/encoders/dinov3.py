"""DINOv3's vision transformer. Positions rotate queries and keys (RoPE), so any grid fits."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.vit import PatchTransformer, ViTBlock
from smoothsa_jax.models.layers.basic import add_bias, uniform
from smoothsa_jax.parts import check_whole

EPSILON = 1e-5
ROPE_THETA = 100.0

Rotation = tuple[Float[np.ndarray, "S 1 D"], Float[np.ndarray, "S 1 D"]]


def axial_rotation(grid: tuple[int, int], prefix: int, head_size: int) -> Rotation:
    """Cosines and sines with which `rotate` rotates the tokens of a grid.

    The `prefix` tokens in front of the grid are not rotated. The coordinates of patch centers span
    [-1, 1] along either axis, for any grid. A quarter of a head's channels rotates with y, at
    wavelengths from 1 towards `ROPE_THETA`, the next quarter with x; the second half repeats both.
    """
    y, x = np.meshgrid(*(2 * (np.arange(side) + 0.5) / side - 1 for side in grid), indexing="ij")
    frequencies = ROPE_THETA ** -(np.arange(head_size // 4) / (head_size // 4))
    centres = np.stack([y.ravel(), x.ravel()], axis=-1)  # row by row, like patches
    angles = (2 * np.pi * centres[:, :, None] * frequencies).reshape(len(centres), -1)
    angles = np.tile(np.pad(angles, ((prefix, 0), (0, 0))), 2)[:, None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Float[Array, "B S C"], rotation: Rotation, num_heads: int) -> Float[Array, "B S C"]:
    """Rotate channel i of each head with channel i + D / 2."""
    cosine, sine = (part.astype(x.dtype) for part in rotation)
    heads = x.reshape(*x.shape[:2], num_heads, -1)
    first, second = jnp.split(heads, 2, axis=-1)
    turned = heads * cosine + jnp.concatenate([-second, first], axis=-1) * sine
    return turned.reshape(x.shape)


class RotaryBlock(ViTBlock):
    """A block that rotates queries and keys by position; keys have no bias."""

    def __init__(self, width: int, num_heads: int, swiglu: int | None, *, rngs: nnx.Rngs):
        super().__init__(width, num_heads, swiglu, qkv_bias=False, epsilon=EPSILON, rngs=rngs)
        bias = uniform(width**-0.5)
        self.query_bias = nnx.Param(bias(rngs.params(), (width,)))
        self.value_bias = nnx.Param(bias(rngs.params(), (width,)))

    def __call__(self, x: Float[Array, "B S C"], rotation: Rotation) -> Float[Array, "B S C"]:
        query, key, value = self.project(x)
        query = rotate(add_bias(query, self.query_bias[...]), rotation, self.num_heads)
        key = rotate(key, rotation, self.num_heads)
        return self.update(x, query, key, add_bias(value, self.value_bias[...]))


class DINOv3(PatchTransformer):
    """A DINOv3 vision transformer, random until weights are loaded (interop/encoder_weights.py).

    Args:
        image_size: H, W of the input in pixels.
        width: C.
        depth: number of blocks.
        num_heads: number of attention heads.
        patch: size of a patch in pixels.
        registers: number of register tokens, after the class token.
        swiglu: whether the MLP is gated, as in ViT-S+ and ViT-H+.
        resize: factor by which the input is resized first, as in `ViT`.

    Raises:
        UserError: the resized image does not divide into patches, or the number of channels per
            head is not a multiple of 4.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        width: int,
        depth: int,
        num_heads: int,
        patch: int,
        registers: int,
        swiglu: bool = False,
        resize: float,
        rngs: nnx.Rngs,
    ):
        check_whole("model.encoder.depth", depth)
        check_whole("model.encoder.num_heads", num_heads)
        if width % (4 * num_heads):
            raise UserError(
                f"model.encoder.width is {width} with num_heads {num_heads}: DINOv3 needs a "
                "multiple of 4 channels per head"
            )
        super().__init__(
            image_size,
            width=width,
            num_heads=num_heads,
            patch=patch,
            registers=registers,
            resize=resize,
            positions=False,
            rngs=rngs,
        )
        gated = 4 * width if swiglu else None
        self.blocks = nnx.List(
            [RotaryBlock(width, num_heads, gated, rngs=rngs) for _ in range(depth)]
        )
        self.head_size = width // num_heads

    def encode(
        self, x: Float[Array, "B S C"], also: tuple[str, ...]
    ) -> tuple[Float[Array, "B S C"], dict[str, Float[Array, "B S C"]]]:
        del also
        rotation = axial_rotation(self.grid, x.shape[1] - self.num_tokens, self.head_size)
        for block in self.blocks:
            x = block(x, rotation)
        return x, {}
