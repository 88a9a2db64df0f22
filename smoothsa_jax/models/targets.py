"""Targets of the decoder: constants of a training step."""

from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Encoder


class Features(nnx.Module):
    """The encoder's features (DINOSAUR, Seitzer et al. 2023).

    Args:
        encoder: the encoder; its width is the target's.
        image_size: (H, W) of the frames, in pixels; unused.
    """

    def __init__(self, encoder: Encoder, image_size: tuple[int, int], *, rngs: nnx.Rngs):
        del image_size, rngs
        self.width = encoder.width

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Float[Array, "B T M C"]]:
        """Return the features, through which no gradient flows."""
        del batch, draws
        if "features" not in constants:
            raise UserError(
                "model.target.name is 'features', but the encoder is trained, so that its features "
                'are not constant; set weights.encoder.frozen to ("*",), or choose another target'
            )
        return {"target": jax.lax.stop_gradient(constants["features"])}

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""
