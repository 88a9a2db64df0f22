"""Decoders: slots -> reconstructed features, and the masks that say which slot explains which token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.layers.attention import samples_at_once
from smoothsa_jax.models.layers.basic import in_turns, layer_norm, linear
from smoothsa_jax.models.layers.transformer import PreNormLayer


class RandomARDecoder(nnx.Module):
    """The random autoregressive decoder (method section 1.3).

    In training some tokens are visible and the rest are a learned mask token; at evaluation all are visible.
    Its attention is the last layer's cross-attention, softmax over slots, averaged over heads.
    """

    backend = CPU
    differentiated = True

    def __init__(
        self,
        grid: tuple[int, int],
        feature_size: int,
        slot_size: int,
        *,
        num_layers: int,
        num_heads: int,
        rngs: nnx.Rngs,
    ):
        width, num_tokens = feature_size, grid[0] * grid[1]
        if width % num_heads:
            raise UserError(
                f"model.decoder.num_heads is {num_heads}, which does not divide the {width} channels of the features; "
                "choose a divisor"
            )
        self.project_features = linear(width, width, bias=False, rngs=rngs)
        self.norm_features = layer_norm(width, rngs=rngs)
        self.project_slots = linear(slot_size, width, bias=False, rngs=rngs)
        self.norm_slots = layer_norm(width, rngs=rngs)
        position = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (1, num_tokens, width))
        self.position = nnx.Param(position)
        mask_token = jax.random.normal(rngs.params(), (1, 1, width)) * width**-0.5
        self.mask_token = nnx.Param(mask_token)
        self.norm_input = layer_norm(width, bias=False, rngs=rngs)
        self.remat = False  # whether a layer's activations are computed again in the backward pass
        # The layers start as copies of one layer, hence the same key for each.
        key = rngs.params()
        self.layers = nnx.List(
            [
                PreNormLayer(width, num_heads, norm_self=index > 0, rngs=nnx.Rngs(key))
                for index in range(num_layers)
            ]
        )

    def __call__(
        self,
        features: Float[Array, "B M C"],
        slots: Float[Array, "B N D"],
        visible: Bool[Array, "B M"] | None = None,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B M C"], Float[Array, "B N M"]]:
        """Returns reconstruction and attention. `visible` None: every token is."""
        inputs = features, slots, visible, slot_mask
        if not self.backend.is_tpu or self.differentiated:
            return self._decoded(*inputs)
        num_tokens = features.shape[1]
        most = samples_at_once(self.layers[0].self_attention.num_heads, num_tokens, num_tokens)
        return in_turns(self._decoded, inputs, most)

    def _decoded(self, features, slots, visible, slot_mask):
        tokens = self.norm_features(self.project_features(features))
        if visible is not None:
            tokens = jnp.where(visible[..., None], tokens, self.mask_token[...])
        memory = self.norm_slots(self.project_slots(slots))
        x = self.norm_input(tokens + self.position[...])
        *layers, last = self.layers
        again = jax.checkpoint if self.remat else lambda function: function
        for layer in layers:
            x = again(lambda x, layer=layer: layer(x, memory, memory_mask=slot_mask))(x)
        x, attention = again(lambda x: last.with_weights(x, memory, memory_mask=slot_mask))(x)
        return x, attention.swapaxes(1, 2)
