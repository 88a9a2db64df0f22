"""The random autoregressive decoder: features from slots, some tokens visible."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.decoders.logits import predicted_channels
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.attention import fit_on_chip
from smoothsa_jax.models.layers.basic import layer_norm, linear
from smoothsa_jax.models.layers.transformer import PreNormLayer, run_layers
from smoothsa_jax.parts import check_heads, check_whole


class RandomARDecoder(nnx.Module):
    """A decoder that predicts features from slots and from some of the features themselves.

    In training, some tokens are visible and a learned mask token replaces the rest; at evaluation,
    all are visible. The masks are the last layer's cross-attention, a softmax over slots, averaged
    over heads (docs/design.md, section 1.3).

    Args:
        grid: (h, w) of the tokens.
        width: C of the features.
        slot_size: D.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        logits: whether a Linear layer on top of the last layer predicts, besides the features,
            logits over the next frame's patches (RandSF.Q): False, "next_frame" or "only"; see
            `logits.py`.
    """

    backend = CPU
    differentiated = True

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        num_layers: int,
        num_heads: int,
        logits: bool | str = False,
        rngs: nnx.Rngs,
    ):
        self.grid, num_tokens, self.logits = grid, grid[0] * grid[1], logits
        predicted = predicted_channels(logits, width, grid)
        check_whole("model.decoder.num_layers", num_layers)
        channels = f"the {width} channels of the features"
        check_heads("model.decoder.num_heads", num_heads, width, channels)
        self.project_features = linear(width, width, bias=False, rngs=rngs)
        self.norm_features = layer_norm(width, rngs=rngs)
        self.project_slots = linear(slot_size, width, bias=False, rngs=rngs)
        self.norm_slots = layer_norm(width, rngs=rngs)
        position = jax.random.truncated_normal(
            rngs.params(), -2.0, 2.0, (1, num_tokens, width), jnp.float32
        )
        self.position = nnx.Param(position)
        mask_token = jax.random.normal(rngs.params(), (1, 1, width), jnp.float32) * width**-0.5
        self.mask_token = nnx.Param(mask_token)
        self.norm_input = layer_norm(width, bias=False, rngs=rngs)
        self.remat = False  # whether the backward pass recomputes a layer's activations
        # All layers start with the same values, hence the same key.
        key = rngs.params()
        self.layers = nnx.List(
            [
                PreNormLayer(width, num_heads, norm_self=index > 0, rngs=nnx.Rngs(key))
                for index in range(num_layers)
            ]
        )
        self.readout = linear(width, predicted, rngs=rngs) if logits else None

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: Bool[Array, "B M"] | None,
    ) -> tuple[Float[Array, "B M K"], Float[Array, "B N h w"]]:
        """Return the prediction and the masks.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            given: `target` (B,M,C), of which the decoder sees the visible tokens.
            draws: the visible tokens; None: all.
        """
        inputs = given["target"], slots, draws, slot_mask
        prediction, attention = fit_on_chip(
            self._decoded,
            inputs,
            num_heads=self.layers[0].self_attention.num_heads,
            length=given["target"].shape[1],
            backend=self.backend,
            differentiated=self.differentiated,
        )
        return prediction, attention.reshape(*attention.shape[:2], *self.grid)

    def _decoded(self, features, slots, visible, slot_mask):
        tokens = self.norm_features(self.project_features(features))
        if visible is not None:
            tokens = jnp.where(visible[..., None], tokens, self.mask_token[...])
        memory = self.norm_slots(self.project_slots(slots))
        x = self.norm_input(tokens + self.position[...])
        x, attention = run_layers(self.layers, x, memory, memory_mask=slot_mask, remat=self.remat)
        return x if self.readout is None else self.readout(x), attention.swapaxes(1, 2)

    def draw(
        self, keys: Sequence[Array], sizes: Sizes, training: bool
    ) -> Bool[Array, "B T M"] | None:
        """Draw the visible tokens; None at evaluation: all are visible."""
        if not training:
            return None
        num_tokens = self.grid[0] * self.grid[1]
        return sample_visible(keys[0], (sizes.batch, sizes.frames), num_tokens)


def sample_visible(
    key: Array, batch_shape: tuple[int, ...], num_tokens: int
) -> Bool[Array, "*batch M"]:
    """Draw the visible tokens of every frame: the first k of a random permutation.

    With probability 0.5, k is uniform on {0 .. M-2}; otherwise k is floor(0.1 M) - 1 (24 of 256
    tokens). The decoder's self-attention is not masked, so a mask in grid order is equivalent to
    the permutation, up to the order of summation.
    """
    order, uniform, coin = jax.random.split(key, 3)
    rank = (
        jax.random.uniform(order, (*batch_shape, num_tokens), jnp.float32).argsort(-1).argsort(-1)
    )
    num_visible = jnp.where(
        jax.random.bernoulli(coin, jnp.float32(0.5), batch_shape),
        jax.random.randint(uniform, batch_shape, 0, num_tokens - 1, jnp.int32),
        max(int(0.1 * num_tokens) - 1, 0),
    )
    return rank < num_visible[..., None]
