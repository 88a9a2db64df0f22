"""Tokens of a backbone's features: the tokenizer of VQ-VFM-OCL (arXiv 2502.20263)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import Draws, Quantized, Scheduled, Sizes
from smoothsa_jax.models.layers.basic import linear
from smoothsa_jax.models.layers.conv import pixel_shuffle
from smoothsa_jax.models.layers.quantize import (
    chosen,
    gumbel_keys,
    gumbel_noise,
    on_row,
    scores_of_distances,
    squared_distances,
)
from smoothsa_jax.models.layers.taesd import TinyDecoder, conv3
from smoothsa_jax.models.tokenizers.base import (
    PATH,
    VQ,
    check_codes,
    one_group,
    straight_through,
    strides_of,
)
from smoothsa_jax.parts import check_whole


class VQFeatures(VQ, nnx.Module):
    """A vocabulary of features, whose codes also explain pixels (arXiv 2502.20263).

    The codes are a trained Linear layer of a random matrix that is never trained. In training, a
    code is drawn: argmax of std * score + Gumbel noise, where the score is the standardized
    negative distance; at evaluation it is the nearest. The decoder reads alpha * latent +
    (1 - alpha) * code; at evaluation, the code alone.

    Args:
        image_size: (H, W) of the frames; unused.
        grid: (h, w) of the encoder, which is that of the tokens.
        features: C, the width of the encoder.
        width: D of a code.
        vocabulary: V.
        basis_size: width of the random matrix.
        hidden_size: width of the decoder's first layers.
        decoder_width: channels of TAESD's layers.
        blocks: in front of each stride; 3 in TAESD.
        strides: how the decoder enlarges: a pixel shuffle, then twice within TAESD's layers.
        decodes: whether it has a decoder. A published file of a second stage holds none.
        std: scheduled; how sharp draws are.
        alpha: scheduled; share of the latents in what the decoder reads.
    """

    reads = "features"
    scheduled = ("alpha", "std")

    def __init__(
        self,
        image_size: tuple[int, int],
        grid: tuple[int, int],
        features: int,
        *,
        width: int,
        vocabulary: int,
        basis_size: int,
        hidden_size: int,
        decoder_width: int,
        blocks: int,
        strides: Sequence[int],
        decodes: bool = True,
        rngs: nnx.Rngs,
    ):
        del image_size
        check_codes(width, vocabulary, decodes)
        check_whole(f"{PATH}.basis_size", basis_size)
        check_whole(f"{PATH}.hidden_size", hidden_size)
        check_whole(f"{PATH}.decoder_width", decoder_width)
        check_whole(f"{PATH}.blocks", blocks)
        self.strides = strides_of(strides)
        self.grid, self.width, self.vocabulary = tuple(grid), width, vocabulary
        self.encoder = _Encoder(features, width, rngs=rngs)
        basis = jax.random.normal(rngs.params(), (vocabulary, basis_size), jnp.float32)
        self.basis = nnx.Variable(basis)  # not nnx.Param: it is never trained
        self.codebook = linear(basis_size, width, rngs=rngs)
        self.expand = _Expand(width, hidden_size, decoder_width, self.strides[0], rngs=rngs)
        self.decoder = TinyDecoder(decoder_width, (1, *self.strides[1:]), blocks, rngs=rngs)
        if not decodes:
            self.expand = self.decoder = None

    def code_matrix(self) -> Float[Array, "V D"]:
        """Compute the codes from the present arrays, never from earlier ones."""
        return self.codebook(self.basis[...].astype(self.codebook.kernel.dtype))

    def encode(self, x: Float[Array, "B M C"]) -> Float[Array, "B h w D"]:
        x = x.astype(self.codebook.kernel.dtype)
        return self.encoder(x.reshape(len(x), *self.grid, x.shape[-1]))

    def quantize(
        self, latents: Float[Array, "B h w D"], draws: Draws, scheduled: Scheduled
    ) -> Quantized:
        latents, matrix = on_row(latents), self.code_matrix()
        squared = squared_distances(latents, matrix)
        if draws is None:
            tokens = jnp.argmin(squared, axis=-1)
        else:
            scores = scores_of_distances(squared, self.width)
            noise = gumbel_noise(draws, latents.shape[1], self.vocabulary)
            tokens = jnp.argmax(scheduled["std"] * scores + noise, axis=-1)
        tokens = tokens.astype(jnp.int32)
        codes, alpha = chosen(matrix, tokens), scheduled.get("alpha", 0.0)
        blend = alpha * latents + (1.0 - alpha) * codes
        mixed = straight_through(blend, latents)
        return Quantized(tokens, codes, mixed)

    def decode(self, codes: Float[Array, "B M D"]) -> Float[Array, "B H' W' 3"]:
        codes = codes.astype(self.codebook.kernel.dtype)
        return self.decoder(self.expand(codes.reshape(len(codes), *self.grid, self.width)))

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws:
        """Draw a key for each frame in training; its Gumbel noise is drawn where it is used."""
        return gumbel_keys(keys[0], sizes) if training else None


class _Encoder(nnx.Module):
    """Convolutions of the features, each but the last with a norm and a SiLU; then a projection."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List([conv3(features, features, rngs=rngs) for _ in range(3)])
        self.norms = nnx.List([one_group(features, rngs=rngs) for _ in range(3)])
        self.project = linear(features, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            if number < len(self.convs) - 1:
                x = jax.nn.silu(x)
        return self.project(x)


class _Expand(nnx.Module):
    """Codes -> what TAESD's decoder reads: 1x1 convolutions and a pixel shuffle.

    Args:
        width: D.
        hidden_size: before the shuffle.
        decoder_width: after it.
        factor: 2; or 1, without a shuffle.
    """

    def __init__(
        self, width: int, hidden_size: int, decoder_width: int, factor: int, *, rngs: nnx.Rngs
    ):
        self.factor = factor
        self.first = linear(width, hidden_size, rngs=rngs)
        self.second = linear(hidden_size, hidden_size, rngs=rngs)
        self.third = linear(hidden_size, factor**2 * decoder_width, rngs=rngs)
        self.fourth = linear(decoder_width, decoder_width, rngs=rngs)
        self.norm_second = one_group(hidden_size, rngs=rngs)
        self.norm_third = one_group(decoder_width, rngs=rngs)
        self.norm_fourth = one_group(decoder_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
        x = jax.nn.silu(self.norm_second(self.second(self.first(x))))
        x = self.third(x)
        x = pixel_shuffle(x, self.factor)
        x = jax.nn.silu(self.norm_third(x))
        return jax.nn.silu(self.norm_fourth(self.fourth(x)))
