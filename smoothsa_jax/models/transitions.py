"""From the slots of past frames to the next frame's queries (method section 2.1, from RandSF.Q)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import linear
from smoothsa_jax.models.layers.transformer import PostNormLayer


class Transition(nnx.Module):
    """Slots of one past frame look at the features of one past or current frame.

    Which frames these are is the caller's choice, told here by time offsets: 1 and 0 at evaluation (the previous
    slots, the current features), random in training.

    Args:
        history: dt, the bound of the history; offsets are below it. At most the last `history - 1` slot frames
            and `history` feature frames are looked at.
    """

    def __init__(
        self,
        feature_size: int,
        slot_size: int,
        *,
        num_heads: int,
        history: int,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        self.history = history
        self.offset_embedding = nnx.Param(jax.random.normal(rngs.params(), (history, slot_size)))
        self.memory = linear(feature_size, slot_size, zero_bias=True, rngs=rngs)
        self.layer = PostNormLayer(slot_size, num_heads, dropout_rate, rngs=rngs)

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        encoded: Float[Array, "B M C"],
        slot_offset: Int[Array, "B"],
        feature_offset: Int[Array, "B"],
        slot_mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B N D"]:
        """Returns the queries. No gradient flows into `slots` and `encoded`."""
        memory = self.remember(encoded, feature_offset)
        return self.look(slots, memory, slot_offset, slot_mask, dropout_key)

    def remember(
        self, encoded: Float[Array, "*batch M C"], feature_offset: Int[Array, "*batch"]
    ) -> KeysValues:
        """Keys and values (*batch, M, D) of the features: of all frames of a clip at once."""
        memory = self.memory(jax.lax.stop_gradient(encoded)) + self._embed(feature_offset)
        return self.layer.cross_attention.remember(memory)

    def look(
        self,
        slots: Float[Array, "B N D"],
        memory: KeysValues,
        slot_offset: Int[Array, "B"],
        slot_mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B N D"]:
        """As a call, on what `remember` gives of one frame of each sample."""
        slots = jax.lax.stop_gradient(slots) + self._embed(slot_offset)
        return self.layer(slots, memory, mask=slot_mask, dropout_key=dropout_key)

    def _embed(self, offset):
        return self.offset_embedding[...][offset][..., None, :]


def push(history: Float[Array, "S B N D"], slots: Float[Array, "B N D"]) -> Array:
    """Puts the newest slots in front of the history and forgets the oldest."""
    return jnp.concatenate([slots[None], history[:-1]])


def recall(history: Float[Array, "S B N D"], offset: Int[Array, "B"]) -> Float[Array, "B N D"]:
    """The slots `offset` frames ago (1 = the newest), for each sample its own."""
    return history[offset - 1, jnp.arange(history.shape[1])]
