"""Targets of the decoder: constants of a training step."""

from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Encoder


class Features(nnx.Module):
    """Features of frozen models (DINOSAUR, Seitzer et al. 2023).

    Args:
        encoder: the encoder; its width is the target's.
        image_size: (H, W) of the frames, in pixels; unused.
        of: whose features: those of the model's own "encoder", or of a companion such as the
            "teacher", for a model that trains its encoder (SPOT). The encoders have the same
            architecture.
    """

    def __init__(
        self,
        encoder: Encoder,
        image_size: tuple[int, int],
        *,
        of: str = "encoder",
        rngs: nnx.Rngs,
    ):
        del image_size, rngs
        self.width, self.of = encoder.width, of
        self._name = "features" if of == "encoder" else f"{of}.features"

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: None = None
    ) -> dict[str, Float[Array, "B T M C"]]:
        """Return the features, through which no gradient flows."""
        del batch, draws
        if self._name in constants:
            return {"target": jax.lax.stop_gradient(constants[self._name])}
        if self.of == "encoder":
            raise UserError(
                "model.target.name is 'features', but the encoder is trained, so that its features "
                'are not constant; set weights.encoder.frozen to ("*",), or choose another target'
            )
        raise UserError(
            f"model.target.of is {self.of!r}, but there is no companion of that name with an "
            f"encoder; set --config.companions.{self.of}.source to the workdir of its run"
        )

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: the target is not random."""
