"""Heads to train on the slots of a frozen model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.basic import MLP, gelu
from smoothsa_jax.parts import check_dropout, check_whole


class RecognitionHead(nnx.Module):
    """An MLP that predicts category and box from each slot on its own.

    Linear D -> 2D, GELU, dropout, Linear 2D -> classes + 4. The box has no final activation. From
    SmoothSA's recognition experiment (docs/design.md, section 6).

    Args:
        slot_size: D.
        num_classes: number of categories, 0 .. num_classes - 1.
        dropout_rate: rate of dropout after the GELU, in training.
    """

    def __init__(self, slot_size: int, *, num_classes: int, dropout_rate: float, rngs: nnx.Rngs):
        check_whole("model.num_classes", num_classes)
        check_dropout("model.dropout_rate", dropout_rate)
        self.slot_size = slot_size
        self.mlp = MLP((slot_size, 2 * slot_size, num_classes + 4), rngs=rngs)
        self.num_classes = num_classes
        self.dropout_rate = dropout_rate

    def __call__(
        self, slots: Float[Array, "... D"], draws: Bool[Array, "... 2D"] | None = None
    ) -> tuple[Float[Array, "... classes"], Float[Array, "... 4"]]:
        """Predict categories and boxes.

        Args:
            slots: slots of any frames.
            draws: the hidden units that dropout keeps; None: no dropout.

        Returns:
            Logits of the categories, and boxes as normalized left, top, right, bottom.
        """
        mlp = self.mlp
        hidden = gelu(mlp.hidden(slots.astype(mlp.hidden.kernel.dtype)), mlp.hidden.backend)
        if draws is not None:
            hidden = jnp.where(draws, hidden / (1.0 - self.dropout_rate), 0.0)
        out = mlp.out(hidden).astype(jnp.float32)
        return out[..., : self.num_classes], out[..., self.num_classes :]

    def draw(
        self, keys: Sequence[Array], sizes: Sizes, training: bool
    ) -> Bool[Array, "B T N 2D"] | None:
        """Draw the hidden units that dropout keeps; None: no dropout."""
        if not training or self.dropout_rate == 0.0:
            return None
        shape = (sizes.batch, sizes.frames, sizes.slots, 2 * self.slot_size)
        return jax.random.bernoulli(keys[0], jnp.float32(1.0 - self.dropout_rate), shape)
