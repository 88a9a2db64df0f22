"""Vision transformers as feature extractors: pixels -> tokens."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.encoders.pixels import grid_of
from smoothsa_jax.models.layers.attention import attend, fit_on_chip
from smoothsa_jax.models.layers.basic import (
    MLP,
    SwiGLU,
    add_bias,
    layer_norm,
    linear,
    packed_products,
)
from smoothsa_jax.parts import check_flag, check_heads, check_whole

VIT_EPSILON = 1e-6


def resized(
    images: Float[Array, "B H W 3"], size: tuple[int, int], dtype: jnp.dtype
) -> Float[Array, "B h w 3"]:
    """Resize bicubically like PyTorch: coefficient -0.75, no antialiasing.

    Products are exact in float32; another dtype rounds to it.
    """
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    for axis, side in enumerate(size, start=1):
        weights = jnp.asarray(_cubic_weights(side, images.shape[axis]), dtype)
        images = jnp.tensordot(images.astype(dtype), weights, (axis, 1), precision=precision)
        images = jnp.moveaxis(images, -1, axis)
    return images


@functools.cache
def _cubic_weights(num_out: int, num_in: int) -> Float[np.ndarray, "out in"]:
    """The weights of old pixels in new ones along one axis: four neighbors, with repeated edges."""
    a = -0.75
    half = np.float32(0.5)  # in float32, like PyTorch
    centre = (np.arange(num_out, dtype=np.float32) + half) * np.float32(num_in / num_out) - half
    first = np.floor(centre).astype(int)
    matrix = np.zeros((num_out, num_in))
    for neighbour in range(-1, 3):
        x = np.abs(centre - first - neighbour)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        place = np.clip(first + neighbour, 0, num_in - 1)
        np.add.at(matrix, (np.arange(num_out), place), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


class ViTBlock(nnx.Module):
    """Pre-norm attention and MLP (or SwiGLU), each with LayerScale if there is one.

    Args:
        width: C.
        num_heads: number of attention heads.
        swiglu: hidden width of a SwiGLU; None: an MLP of hidden width 4 * `width`.
        qkv_bias: whether query, key and value have biases.
        layer_scale: whether each branch has a learned scale.
        epsilon: epsilon of the LayerNorms.
    """

    backend = CPU
    differentiated = True

    def __init__(
        self,
        width: int,
        num_heads: int,
        swiglu: int | None = None,
        *,
        qkv_bias: bool = True,
        layer_scale: bool = True,
        epsilon: float = VIT_EPSILON,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.norm_attention = layer_norm(width, epsilon=epsilon, rngs=rngs)
        self.qkv = linear(width, 3 * width, bias=qkv_bias, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)
        scale = lambda: nnx.Param(jnp.ones(width, jnp.float32)) if layer_scale else None  # noqa: E731
        self.scale_attention = scale()
        self.norm_mlp = layer_norm(width, epsilon=epsilon, rngs=rngs)
        if swiglu is None:
            self.mlp = MLP((width, 4 * width, width), rngs=rngs)
        else:
            self.mlp = SwiGLU(width, swiglu, rngs=rngs)
        self.scale_mlp = scale()

    def __call__(self, x: Float[Array, "B S C"]) -> Float[Array, "B S C"]:
        return self.update(x, *self.project(x))

    def project(self, x: Float[Array, "B S C"]) -> list[Float[Array, "B S C"]]:
        """Compute query, key and value."""
        qkv, normed = self.qkv, self.norm_attention(x)
        found = packed_products(normed, qkv.kernel[...], 3, self.backend)
        if qkv.bias is None:
            return found
        return [add_bias(*pair) for pair in zip(found, jnp.split(qkv.bias[...], 3), strict=True)]

    def update(
        self,
        x: Float[Array, "B S C"],
        query: Float[Array, "B S C"],
        key: Float[Array, "B S C"],
        value: Float[Array, "B S C"],
    ) -> Float[Array, "B S C"]:
        """Apply attention and MLP to the tokens."""
        mixed = attend(
            query,
            key,
            value,
            self.num_heads,
            backend=self.backend,
            differentiated=self.differentiated,
        )
        x = x + _scaled(self.out(mixed), self.scale_attention)
        return x + _scaled(self.mlp(self.norm_mlp(x)), self.scale_mlp)


def _scaled(x: Float[Array, "B S C"], scale: nnx.Param | None) -> Float[Array, "B S C"]:
    return x if scale is None else scale[...] * x


class PatchTransformer(nnx.Module):
    """The common part of all vision transformers here; subclasses add `blocks`.

    Args:
        image_size: H, W of the input in pixels.
        width: C.
        num_heads: number of attention heads.
        patch: size of a patch in pixels.
        registers: number of register tokens, after the class token.
        resize: factor by which the input is resized first.
        positions: whether each patch has a learned position, which is added to its token.
        class_position: whether the class token has one, which is added to it; otherwise the class
            token includes it.
        final_norm: whether a LayerNorm follows the last block.
        position_side: side of the square grid that the positions are stored on, and from which they
            are resampled for each image as timm does; None: the grid of the image.
    """

    backend = CPU
    blocks: nnx.List
    extras: tuple[str, ...] = ()
    apply_norm = True

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        width: int,
        num_heads: int,
        patch: int,
        registers: int,
        resize: float,
        positions: bool,
        class_position: bool = False,
        final_norm: bool = False,
        position_side: int | None = None,
        rngs: nnx.Rngs,
    ):
        check_whole("model.encoder.width", width)
        check_flag("model.encoder.class_position", class_position)
        check_flag("model.encoder.final_norm", final_norm)
        check_whole("model.encoder.registers", registers, least=0)
        self.size = tuple(round(side * resize) for side in image_size)
        self.grid = grid_of(
            self.size, patch, f"data.image_size times model.encoder.resize={resize}"
        )
        self.patch = patch
        self.width = width
        self.num_heads = num_heads
        self.num_tokens = self.grid[0] * self.grid[1]
        draw = lambda shape: jax.random.normal(rngs.params(), shape, jnp.float32)  # noqa: E731
        normal = lambda shape: nnx.Param(0.02 * draw(shape))  # noqa: E731
        self.embed = linear(patch * patch * 3, width, rngs=rngs)
        self.position_grid = self.grid
        if position_side is not None:
            check_whole("model.encoder.position_side", position_side)
            self.position_grid = (position_side, position_side)
        num_places = self.position_grid[0] * self.position_grid[1]
        self.position = normal((1, num_places, width)) if positions else None
        self.class_token = normal((1, 1, width))
        self.class_position = normal((1, 1, width)) if class_position else None
        self.norm = layer_norm(width, epsilon=VIT_EPSILON, rngs=rngs) if final_norm else None
        self.num_prefix = 1 + registers
        # An array without elements cannot be saved.
        self.registers = normal((1, registers, width)) if registers else None

    def __call__(
        self, images: Float[Array, "B H W 3"], also: tuple[str, ...] = ()
    ) -> dict[str, Float[Array, "B M C"]]:
        """Return patch tokens.

        Args:
            images: normalized frames.
            also: names of other outputs to compute, among `extras`.

        Returns:
            `features`, after the last block; and, where asked for, `keys`: what the last block's
            attention compares its queries with, all heads side by side.
        """
        return fit_on_chip(
            functools.partial(self._tokens, also),
            (images,),
            num_heads=self.num_heads,
            length=self.num_tokens + self.num_prefix,
            backend=self.backend,
        )

    def _tokens(
        self, also: tuple[str, ...], images: Float[Array, "B H W 3"]
    ) -> dict[str, Float[Array, "B M C"]]:
        batch = images.shape[0]
        if images.shape[1:3] != self.size:
            images = resized(images, self.size, self.embed.kernel.dtype)
        x = self._embedded(images.astype(self.embed.kernel.dtype))
        if self.position is not None:
            x = x + self._positions()
        prefix = self.class_token[...]
        if self.class_position is not None:
            prefix = prefix + self.class_position[...]
        if self.registers is not None:
            prefix = jnp.concatenate([prefix, self.registers[...]], axis=1)
        x = jnp.concatenate([jnp.broadcast_to(prefix, (batch, *prefix.shape[1:])), x], axis=1)
        x, found = self.encode(x, also)
        found = {name: value[:, prefix.shape[1] :] for name, value in found.items()}
        x = x[:, prefix.shape[1] :]
        x = self.norm(x) if self.norm is not None and self.apply_norm else x
        return {"features": x, **found}

    def _positions(self) -> Float[Array, "1 M C"]:
        position = self.position[...]
        if self.position_grid == self.grid:
            return position
        square = position.reshape(1, *self.position_grid, self.width).astype(jnp.float32)
        size = (1, *self.grid, self.width)
        resized = jax.image.resize(square, size, "cubic", antialias=True)
        return resized.reshape(1, -1, self.width).astype(position.dtype)

    def _embedded(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B M C"]:
        """Embed each patch as a token."""
        (h, w), p = self.grid, self.patch
        # On a TPU, three channels do not fill a tile, so cutting out patches would dominate the
        # cost.
        if self.backend.is_tpu:
            kernel = self.embed.kernel[...].reshape(p, p, 3, -1)
            layout = ("NHWC", "HWIO", "NHWC")
            found = jax.lax.conv_general_dilated(
                images, kernel, (p, p), "VALID", dimension_numbers=layout
            )
            return add_bias(found.reshape(len(images), h * w, -1), self.embed.bias[...])
        patches = images.reshape(-1, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5)
        return self.embed(patches.reshape(-1, h * w, p * p * 3))

    def still_blocks(self, trained: Iterable[str]) -> list[nnx.Module]:
        """Return the leading blocks that no gradient passes through.

        Args:
            trained: names of the encoder's arrays that are trained, such as "blocks.8.qkv.kernel".
        """
        first = len(self.blocks)
        for part, *below in (name.split(".") for name in trained):
            if part == "blocks":
                first = min(first, int(below[0]))
            elif part != "norm":  # anything but the last LayerNorm comes before all blocks
                return []
        return list(self.blocks)[:first]

    def encode(
        self, x: Float[Array, "B S C"], also: tuple[str, ...]
    ) -> tuple[Float[Array, "B S C"], dict[str, Float[Array, "B S C"]]]:
        """Run all tokens through the blocks; class token and registers come first.

        Returns:
            The tokens, and the outputs named in `also`.
        """
        blocks = list(self.blocks)
        last = blocks.pop() if "keys" in also else None
        for block in blocks:
            x = block(x)
        if last is None:
            return x, {}
        query, key, value = last.project(x)
        return last.update(x, query, key, value), {"keys": key}


class ViT(PatchTransformer):
    """A DINOv2 vision transformer, random until weights are loaded (interop/encoder_weights.py).

    Args:
        image_size: H, W of the input in pixels.
        width: C.
        depth: number of blocks.
        num_heads: number of attention heads.
        patch: size of a patch in pixels.
        registers: number of register tokens, after the class token; plain DINOv2 has 0.
        swiglu: whether the feed-forward is a SwiGLU, as in DINOv2 giant.
        resize: factor by which the input is resized first (bicubic, coefficient -0.75, no
            antialiasing); 0.875 in the paper.
        layer_scale: whether the blocks have a LayerScale; DINO (v1) has none.
        class_position: whether the position of the class token is an array of its own.
        final_norm: whether there is a last LayerNorm.
        apply_norm: whether the features are those after it; otherwise its arrays are kept alone.
        position_side: see `PatchTransformer`.

    Raises:
        UserError: the resized image does not divide into patches.
    """

    extras = ("keys",)

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
        layer_scale: bool = True,
        class_position: bool = False,
        final_norm: bool = False,
        apply_norm: bool = True,
        position_side: int | None = None,
        rngs: nnx.Rngs,
    ):
        check_flag("model.encoder.apply_norm", apply_norm)
        check_whole("model.encoder.depth", depth)
        check_flag("model.encoder.layer_scale", layer_scale)
        check_heads("model.encoder.num_heads", num_heads, width, f"model.encoder.width {width}")
        super().__init__(
            image_size,
            width=width,
            num_heads=num_heads,
            patch=patch,
            registers=registers,
            resize=resize,
            positions=True,
            class_position=class_position,
            final_norm=final_norm,
            position_side=position_side,
            rngs=rngs,
        )
        # Two thirds of the MLP's hidden width, up to a multiple of 8.
        gated = (int(4 * width * 2 / 3) + 7) // 8 * 8 if swiglu else None
        self.apply_norm = apply_norm
        more = {"layer_scale": layer_scale, "rngs": rngs}
        self.blocks = nnx.List([ViTBlock(width, num_heads, gated, **more) for _ in range(depth)])
