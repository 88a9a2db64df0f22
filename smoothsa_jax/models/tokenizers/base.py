"""What tokenizers with the decoder of TAESD share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Draws, Quantized, Scheduled, Sizes
from smoothsa_jax.models.layers.conv import check_strides, group_norm
from smoothsa_jax.models.layers.quantize import chosen, on_row
from smoothsa_jax.models.layers.taesd import NUM_STRIDES
from smoothsa_jax.parts import check_flag, check_whole

PATH = "model.tokenizer"


class VQ:
    """A tokenizer whose codes are rows of one matrix; see `interfaces.Tokenizer`.

    Subclasses have `grid`, `strides`, `encode`, `quantize`, `decoder` and `decode`, and
    `code_matrix`, which returns the codes (V,D).
    """

    pixels = "imagenet"

    @property
    def decodes(self) -> bool:
        """Whether it has a decoder."""
        return self.decoder is not None

    @property
    def size(self) -> tuple[int, int]:
        """(H', W') of the decoded pixels."""
        factor = 1
        for stride in self.strides:
            factor *= stride
        return self.grid[0] * factor, self.grid[1] * factor

    def codes(self, tokens: Int[Array, "B M"]) -> Float[Array, "B M D"]:
        """Return the codes of tokens."""
        return chosen(self.code_matrix(), tokens)

    def target(self, frames: Float[Array, "B H W 3"]) -> Float[Array, "B H' W' 3"]:
        """Return frames at the decoder's size: bicubic with antialias, coefficient -0.5."""
        shape = (len(frames), *self.size, frames.shape[-1])
        return jax.image.resize(frames.astype(jnp.float32), shape, "cubic", antialias=True)

    def __call__(self, x: Array, draws: Draws, scheduled: Scheduled) -> dict[str, Array]:
        """Return `prediction`, `latents`, `codes`, `mixed` and `tokens`."""
        latents = self.encode(x)
        found: Quantized = self.quantize(latents, draws, scheduled)
        return {
            "prediction": self.decode(found.mixed),
            "latents": on_row(latents),
            "codes": found.codes,
            "mixed": found.mixed,
            "tokens": found.tokens,
            **found.extras,
        }

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws:
        """Draw nothing: the nearest code is chosen."""


def straight_through(
    value: Float[Array, "B M D"], latents: Float[Array, "B M D"]
) -> Float[Array, "B M D"]:
    """Return `value`, whose gradient goes to the latents as it is."""
    return latents + jax.lax.stop_gradient(value - latents)


def one_group(width: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """A GroupNorm over positions and channels of a sample, with torch's epsilon."""
    return group_norm(width, 1, epsilon=1e-5, rngs=rngs)


def check_codes(width: Any, vocabulary: Any, decodes: Any) -> None:
    """Refuse settings of codes that cannot be."""
    check_whole(f"{PATH}.width", width)
    check_whole(f"{PATH}.vocabulary", vocabulary, 2)
    check_flag(f"{PATH}.decodes", decodes)


def strides_of(strides: Any) -> tuple[int, ...]:
    """Return the three strides; each is 1 or 2.

    Raises:
        UserError: they are not.
    """
    check_strides(f"{PATH}.strides", strides)
    strides = tuple(strides)
    if len(strides) != NUM_STRIDES or not set(strides) <= {1, 2}:
        raise UserError(
            f"{PATH}.strides is {strides}; expected {NUM_STRIDES} numbers, each 1 or 2, such as "
            f"(2, 2, 2); change --config.{PATH}.strides"
        )
    return strides
