"""The head that tells category and box from a slot (method section 6, "Recognition")."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.layers.basic import MLP

DROPOUT_RATE = 0.1


class RecognitionHead(nnx.Module):
    """Linear D -> 2D, GELU, dropout, Linear 2D -> classes + 4, on every slot alone; the box is a plain linear output.

    Args:
        slot_size: D.
        num_classes: categories are 0 .. num_classes - 1.
        dropout_rate: behind the GELU, in training.
    """

    def __init__(
        self,
        slot_size: int,
        num_classes: int,
        dropout_rate: float = DROPOUT_RATE,
        *,
        rngs: nnx.Rngs,
    ):
        self.mlp = MLP((slot_size, 2 * slot_size, num_classes + 4), rngs=rngs)
        self.num_classes = num_classes
        self.dropout_rate = dropout_rate

    def __call__(
        self, slots: Float[Array, "... D"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "... classes"], Float[Array, "... 4"]]:
        """Logits, and boxes: normalised left, top, right, bottom. Dropout is off without a key."""
        slots = slots.astype(self.mlp.hidden.kernel.dtype)
        out = self.mlp(slots, self.dropout_rate, key).astype(jnp.float32)
        return out[..., : self.num_classes], out[..., self.num_classes :]
