"""Decoders: slots -> reconstructed features, and the masks that say which slot explains which token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.attention import samples_at_once
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.layers import MLP, in_turns, layer_norm, linear, position_waves
from smoothsa_jax.models.transformer import PreNormLayer


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


class MLPMixtureDecoder(nnx.Module):
    """Slots broadcast to every position, an MLP with ReLU, and a sum weighted by alpha, a softmax over slots.

    The plain decoder of DINOSAUR (Seitzer et al. 2023, appendix B): it sees no features, so `features` and `visible`
    are unused. Its attention is alpha.

    Args:
        num_layers: Linear layers, first and last included; at least 2.
        uniform_values: a slot's features are the same at every position, only its alpha is not. Keeps slots from
            sharing the scene and adding up to it, which on simple data they do before masks form.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        feature_size: int,
        slot_size: int,
        *,
        num_layers: int,
        hidden_size: int,
        uniform_values: bool = False,
        rngs: nnx.Rngs,
    ):
        if num_layers < 2:
            raise UserError(
                f"model.decoder.num_layers is {num_layers}: expected at least 2, first and last Linear included"
            )
        # Random, but smooth over the grid: from independent draws the shape of a mask is learned token by token.
        waves = position_waves(grid, 8).reshape(grid[0] * grid[1], -1)
        mixing = jax.random.normal(rngs.params(), (waves.shape[1], hidden_size))
        self.position = nnx.Param(waves @ mixing / waves.shape[1] ** 0.5)
        self.remat = False  # as in `RandomARDecoder`
        self.project_slots = linear(slot_size, hidden_size, rngs=rngs)
        self.layers = nnx.List(
            [linear(hidden_size, hidden_size, rngs=rngs) for _ in range(num_layers - 2)]
        )
        self.values = (
            MLP((slot_size, hidden_size, feature_size), rngs=rngs) if uniform_values else None
        )
        self.out = linear(hidden_size, 1 if uniform_values else feature_size + 1, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "B M C"],
        slots: Float[Array, "B N D"],
        visible: Bool[Array, "B M"] | None = None,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B M C"], Float[Array, "B N M"]]:
        """Returns reconstruction and alpha."""
        del features, visible
        # The first layer is linear in slot + position, so it is applied to the slots before they spread.
        x = jax.nn.relu(self.project_slots(slots)[:, :, None, :] + self.position[...])
        again = jax.checkpoint if self.remat else lambda function: function
        for layer in self.layers:
            x = again(lambda x, layer=layer: jax.nn.relu(layer(x)))(x)
        x = self.out(x)
        logits = x[..., -1].astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        alpha = jax.nn.softmax(logits, axis=1)
        weights = alpha.astype(x.dtype)
        if self.values is not None:
            return jnp.einsum("bnm,bnc->bmc", weights, self.values(slots)), alpha
        return jnp.einsum("bnm,bnmc->bmc", weights, x[..., :-1]), alpha
