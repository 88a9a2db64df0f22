"""Targets of the decoder: constants of a training step."""

from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Encoder


class Features(nnx.Module):
    """The features of a frozen encoder (DINOSAUR, Seitzer et al. 2023).

    They are those of the model's `target_encoder`, if it has one, and otherwise of its encoder.

    Args:
        encoder: the encoder whose features are the target; its width is the target's.
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
        for name in ("target_features", "features"):
            if name in constants:
                return {"target": jax.lax.stop_gradient(constants[name])}
        raise UserError(
            "model.target.name is 'features', but the encoder is trained, so that its features "
            'are not constant; set weights.encoder.frozen to ("*",), add a model.target_encoder, '
            "or choose another target"
        )

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""
