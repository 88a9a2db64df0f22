"""The discrete VAE of SLATE and STEVE, which is trained along with the slots or before them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.pixels import RANGES
from smoothsa_jax.models.interfaces import Draws, Quantized, Scheduled, Sizes
from smoothsa_jax.models.layers.conv import Convolutions, pixel_shuffle
from smoothsa_jax.models.layers.quantize import gumbel_keys, gumbel_noise, on_row
from smoothsa_jax.parts import check_flag, check_one_of, check_whole

PATCH = 4  # pixels of a side of what one token stands for


class DVAE(nnx.Module):
    """A categorical token for each patch of 4x4 pixels, relaxed in training to learn it.

    The decoder reads softmax((log p + g) / tau), with Gumbel noise g (Jang et al. 2017, arXiv
    1611.01144). The tokens are hard samples, with noise of their own, and have no gradient; without
    draws, as at evaluation, they are the most likely ones. Each layer is a convolution with a bias
    and a ReLU, as in STEVE (Singh et al. 2022, arXiv 2205.14065). SLATE's (arXiv 2110.11405) and
    BO-QSA's (arXiv 2210.08990) have a GroupNorm in place of the bias.

    Codes are the one-hot vectors of tokens, so their width is the vocabulary.

    Args:
        image_size: H, W of the pictures, in pixels.
        grid: unused: it reads pixels.
        width: unused.
        vocabulary: V, the number of tokens to choose from.
        hidden_size: channels of the layers.
        group_norm: whether a GroupNorm of one group stands in front of each ReLU.
        kernel_size: of the encoder's layers after the first, and of the third layer of the decoder:
            3 in BO-QSA; None: 1, as in STEVE and SLATE.
        pixels: their range: "unit" (0..1); "signed" (-1..1), as in the program of SlotFormer (arXiv
            2210.05861); or "imagenet".

    Scheduled:
        tau: the temperature of the relaxed samples.
    """

    scheduled = ("tau",)
    reads = "pixels"

    def __init__(
        self,
        image_size: tuple[int, int],
        grid: tuple[int, int] | None,
        width: int | None,
        *,
        vocabulary: int,
        hidden_size: int,
        group_norm: bool = False,
        kernel_size: int | None = None,
        pixels: str = "unit",
        rngs: nnx.Rngs,
    ):
        del grid, width
        path = "model.tokenizer"
        check_whole(f"{path}.vocabulary", vocabulary, least=2)
        check_whole(f"{path}.hidden_size", hidden_size)
        check_flag(f"{path}.group_norm", group_norm)
        if kernel_size is not None:
            check_one_of(f"{path}.kernel_size", kernel_size, (1, 3))
        check_one_of(f"{path}.pixels", pixels, RANGES)
        self.pixels = pixels
        height, columns = image_size
        if height % PATCH or columns % PATCH:
            raise UserError(
                f"data.image_size is {height}x{columns}, which does not divide into patches of "
                f"{PATCH}, one for each token of {path}.name='dvae'; choose multiples of {PATCH}"
            )
        self.grid = height // PATCH, columns // PATCH
        self.width = self.vocabulary = vocabulary

        def layers(widths: Sequence[int], kernels: Sequence[int], **more: bool) -> Convolutions:
            strides = [PATCH if size == PATCH else 1 for size in kernels]
            norm = "one_group" if group_norm else "none"
            settings = {"padding": "same", "norm": norm, "start": "he", "rngs": rngs, **more}
            return Convolutions(widths[0], widths[1:], kernels, strides, **settings)

        same, larger, k = hidden_size, 4 * hidden_size, kernel_size or 1
        kernels = (PATCH, *[k] * 6, 1)
        self.encoder = layers((3, *[same] * 7, vocabulary), kernels, last_relu=False)
        # After each but the last, pixels are shuffled into twice as many rows and columns.
        self.decoder = nnx.List(
            [
                layers((vocabulary, same, same, same, same, larger), (1, 3, k, 1, 1)),
                layers((same, same, same, same, larger), (3, 1, 1, 1)),
                layers((same, 3), (1,), last_relu=False),
            ]
        )

    def encode(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w V"]:
        """Return the logarithm of each token's probability, in float32."""
        x = x.astype(self.encoder.layers[0].kernel.dtype)
        return jax.nn.log_softmax(self.encoder(x).astype(jnp.float32), axis=-1)

    def quantize(
        self, latents: Float[Array, "B h w V"], draws: Draws, scheduled: Scheduled
    ) -> Quantized:
        """Sample tokens; see `interfaces.Tokenizer`.

        Args:
            latents: what `encode` returned.
            draws: what `draw` returned, or, in place of keys, the noise (B,M,V) itself.
            scheduled: the temperature.
        """
        logits = on_row(latents)
        if draws is None:
            tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return Quantized(tokens, self.codes(tokens))
        soft, hard = (gumbel_noise(draws[name], *logits.shape[1:]) for name in ("soft", "hard"))
        tokens = jnp.argmax(jax.lax.stop_gradient(logits) + hard, axis=-1).astype(jnp.int32)
        relaxed = jax.nn.softmax((logits + soft) / scheduled["tau"], axis=-1)
        return Quantized(tokens, self.codes(tokens), relaxed)

    def codes(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M V"]:
        """Return one-hot vectors."""
        return jax.nn.one_hot(tokens, self.vocabulary, dtype=jnp.float32)

    def decode(self, codes: Float[Array, "B M V"]) -> Float[Array, "B H W 3"]:
        """Return pictures, which may leave their range a little."""
        x = codes.reshape(len(codes), *self.grid, -1)
        *first, last = self.decoder
        x = x.astype(last.layers[0].kernel.dtype)
        for layers in first:
            x = pixel_shuffle(layers(x), 2)
        return last(x)

    def target(self, frames: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Return the pictures themselves."""
        return frames

    def __call__(
        self, x: Float[Array, "B H W 3"], draws: Draws, scheduled: Scheduled
    ) -> dict[str, Array]:
        """Return `prediction`, `latents`, `codes` and `tokens`; see `interfaces.Tokenizer`."""
        latents = self.encode(x)
        found = self.quantize(latents, draws, scheduled)
        read = found.codes if found.mixed is None else found.mixed
        outputs = {"latents": on_row(latents), "codes": found.codes, "tokens": found.tokens}
        return {"prediction": self.decode(read), **outputs, **found.extras}

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> dict[str, Array] | None:
        """Return the keys (B,T) of the relaxed samples and of the tokens."""
        if not training:
            return None
        soft, hard = jax.random.split(keys[0])
        return {"soft": gumbel_keys(soft, sizes), "hard": gumbel_keys(hard, sizes)}
