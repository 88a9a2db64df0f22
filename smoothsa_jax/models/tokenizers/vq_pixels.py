"""Tokens of pixels, with the layers of TAESD: the VQ-VAE of VQ-VFM-OCL's SLATE and STEVE."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.pixels import RANGES
from smoothsa_jax.models.encoders.vit import resized
from smoothsa_jax.models.interfaces import Draws, Quantized, Scheduled
from smoothsa_jax.models.layers.basic import linear, uniform
from smoothsa_jax.models.layers.quantize import chosen, on_row, squared_distances
from smoothsa_jax.models.layers.taesd import TinyDecoder, TinyEncoder
from smoothsa_jax.models.tokenizers.base import (
    PATH,
    VQ,
    check_codes,
    one_group,
    straight_through,
    strides_of,
)
from smoothsa_jax.parts import check_above_zero, check_one_of, check_whole


class VQPixels(VQ, nnx.Module):
    """A vocabulary of patches of pixels (VQ-VFM-OCL's program); the nearest code is chosen.

    The frames are halved first: bicubic without antialias, coefficient -0.75. TAESD's layers expect
    pixels in -1..1; the published models give them ImageNet's range all the same.

    Args:
        image_size: (H, W) of the frames.
        grid, features: of the encoder; unused.
        width: D of a code.
        vocabulary: V.
        layer_width: channels of TAESD's layers.
        blocks: of each stride; 3 in TAESD.
        strides: of TAESD's encoder; its decoder enlarges by the same.
        pixels: range of the pixels that it reads and decodes: "imagenet", "unit" or "signed".
        decodes: whether it has a decoder. A published file of a second stage holds none.
        code_range: codes start uniform within +-this. None: 1/V, as published, from where few of
            them are ever used in a short training.
    """

    reads = "pixels"

    def __init__(
        self,
        image_size: tuple[int, int],
        grid: tuple[int, int] | None = None,
        features: int | None = None,
        *,
        width: int,
        vocabulary: int,
        layer_width: int,
        blocks: int,
        strides: Sequence[int],
        pixels: str,
        decodes: bool = True,
        code_range: float | None = None,
        rngs: nnx.Rngs,
    ):
        del grid, features
        check_codes(width, vocabulary, decodes)
        check_whole(f"{PATH}.layer_width", layer_width)
        check_whole(f"{PATH}.blocks", blocks)
        check_one_of(f"{PATH}.pixels", pixels, RANGES)
        if code_range is not None:
            check_above_zero(f"{PATH}.code_range", code_range)
        self.strides, self.pixels = strides_of(strides), pixels
        factor = 2 * self.strides[0] * self.strides[1] * self.strides[2]
        if any(side % factor for side in image_size):
            raise UserError(
                f"data.image_size is {image_size[0]}x{image_size[1]}, which does not divide into "
                f"tokens of {factor} pixels; choose a multiple, or other {PATH}.strides"
            )
        self.grid = tuple(side // factor for side in image_size)
        self.width, self.vocabulary = width, vocabulary
        self.encoder = TinyEncoder(layer_width, self.strides, blocks, rngs=rngs)
        self.norm = one_group(layer_width, rngs=rngs)
        self.project = linear(layer_width, width, rngs=rngs)
        draw = uniform(1.0 / vocabulary if code_range is None else code_range)
        self.codebook = nnx.Param(draw(rngs.params(), (vocabulary, width), jnp.float32))
        self.expand = linear(width, layer_width, rngs=rngs)
        self.expand_norm = one_group(layer_width, rngs=rngs)
        self.decoder = TinyDecoder(layer_width, self.strides, blocks, rngs=rngs)
        if not decodes:
            self.expand = self.expand_norm = self.decoder = None

    def code_matrix(self) -> Float[Array, "V D"]:
        """Return the codes."""
        return self.codebook[...]

    def encode(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        half = tuple(side // 2 for side in x.shape[1:3])
        x = resized(x, half, self.codebook[...].dtype)
        return self.project(self.norm(self.encoder(x)))

    def quantize(
        self, latents: Float[Array, "B h w D"], draws: Draws, scheduled: Scheduled
    ) -> Quantized:
        del draws, scheduled
        latents, matrix = on_row(latents), self.code_matrix()
        tokens = jnp.argmin(squared_distances(latents, matrix), axis=-1).astype(jnp.int32)
        codes = chosen(matrix, tokens)
        return Quantized(tokens, codes, straight_through(codes, latents))

    def decode(self, codes: Float[Array, "B M D"]) -> Float[Array, "B H' W' 3"]:
        codes = codes.astype(self.codebook[...].dtype)
        x = self.expand(codes.reshape(len(codes), *self.grid, self.width))
        return self.decoder(self.expand_norm(x))
