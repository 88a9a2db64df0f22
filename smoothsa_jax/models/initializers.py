"""Initializers of the first frame's queries: cold-start samples, and SmoothSA's warmer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Initializer, Scheduled, Sizes
from smoothsa_jax.models.layers.attention import MultiHeadAttention
from smoothsa_jax.models.layers.basic import MLP, layer_norm, linear
from smoothsa_jax.parts import check_heads

Queries = tuple[Float[Array, "B N D"], dict[str, Array]]


def scaled(noise: Float[Array, "B N D"], log_std: nnx.Param) -> Float[Array, "B N D"]:
    """Return standard normal noise times a learned scale, in the dtype of the weights."""
    return jnp.exp(log_std[...]) * noise.astype(log_std.dtype)


class Gaussian(nnx.Module):
    """An initializer that draws every query from one learned Gaussian, at evaluation too.

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_slots: N; unused, since any number of slots can be drawn.
        log_std: initial value of the learned log standard deviation.
    """

    starts_from_boxes = False

    def __init__(
        self, width: int, slot_size: int, num_slots: int, *, log_std: float, rngs: nnx.Rngs
    ):
        del width, num_slots, rngs
        self.slot_size = slot_size
        self.mean = nnx.Param(jnp.zeros((1, 1, slot_size), jnp.float32))
        self.log_std = nnx.Param(jnp.full((1, 1, slot_size), log_std, jnp.float32))

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Float[Array, "B N D"],
        scheduled: Scheduled,
    ) -> Queries:
        del tokens, boxes, slot_mask, scheduled
        return self.mean[...] + scaled(draws, self.log_std), {}

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Float[Array, "B N D"]:
        del training
        return jax.random.normal(keys[0], (sizes.batch, sizes.slots, self.slot_size), jnp.float32)


class Boxes(nnx.Module):
    """An initializer that embeds each object's box in the first frame and adds scaled noise.

    The noise has a learned scale and is added at evaluation too. Boxes are left, top, right,
    bottom, divided by width and height. A box of -1 is padding; a box of 0 is an object that is
    absent from the frame.

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_slots: N; unused.
        log_std: initial value of the learned log standard deviation.
    """

    starts_from_boxes = True

    def __init__(
        self, width: int, slot_size: int, num_slots: int, *, log_std: float, rngs: nnx.Rngs
    ):
        del width, num_slots
        self.slot_size = slot_size
        self.mlp = MLP((4, slot_size, slot_size), rngs=rngs)
        self.norm = layer_norm(slot_size, rngs=rngs)
        self.log_std = nnx.Param(jnp.full((1, 1, slot_size), log_std, jnp.float32))

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Float[Array, "B N D"],
        scheduled: Scheduled,
    ) -> Queries:
        del tokens, slot_mask, scheduled
        if boxes is None:
            raise UserError(
                "this model starts its slots from boxes, and the batch has none: give `boxes` "
                "(B,T,N,4), or use a model with initializer.name='gaussian'"
            )
        boxes = boxes.astype(self.log_std.dtype)
        return self.norm(self.mlp(boxes)) + scaled(draws, self.log_std), {}

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Float[Array, "B N D"]:
        del training
        return jax.random.normal(keys[0], (sizes.batch, sizes.slots, self.slot_size), jnp.float32)


class Warmer(nnx.Module):
    """A transformer layer that refines cold-start samples into warm queries.

    The order is cross-attention to the tokens (no LayerNorm in front), self-attention and
    feed-forward (LayerNorm in front). Only the projection of the tokens has biases. From SmoothSA
    (docs/design.md, section 1.2).

    Args:
        width: C of the tokens.
        slot_size: D.
        num_heads: number of attention heads.
    """

    def __init__(self, width: int, slot_size: int, num_heads: int, *, rngs: nnx.Rngs):
        self.memory = linear(width, slot_size, rngs=rngs)
        self.cross_attention = MultiHeadAttention(slot_size, num_heads, rngs=rngs)
        self.self_attention = MultiHeadAttention(slot_size, num_heads, rngs=rngs)
        self.feed_forward = MLP((slot_size, 4 * slot_size, slot_size), bias=False, rngs=rngs)
        self.norm_self = layer_norm(slot_size, bias=False, rngs=rngs)
        self.norm_feed_forward = layer_norm(slot_size, bias=False, rngs=rngs)

    def __call__(
        self,
        samples: Float[Array, "B N D"],
        tokens: Float[Array, "B M C"],
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> Float[Array, "B N D"]:
        memory = self.cross_attention.remember(self.memory(tokens))
        x = samples + self.cross_attention(samples, memory)
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, key_mask=slot_mask)
        return x + self.feed_forward(self.norm_feed_forward(x))


class Warmed(nnx.Module):
    """An initializer that adds a warmer to any other initializer.

    The aggregator gets the warm queries behind a stop-gradient, so the warmer learns from the
    distillation loss alone. In training, noise of a learned scale is added to the queries.

    Args:
        width: C of the tokens.
        slot_size: D.
        num_slots: N; unused.
        cold: the initializer of the cold-start samples.
        num_heads: number of attention heads of the warmer.
        log_std: initial value of the noise's learned log standard deviation; 0 in the paper.
        straight_through: not in the paper: the gradient of the distillation stops at the samples,
            and that of the reconstruction reaches them as if the warmer were the identity.

    Scheduled:
        detach: whether the tokens enter the warmer behind a stop-gradient: 1 yes, 0 no.
    """

    scheduled = ("detach",)

    def __init__(
        self,
        width: int,
        slot_size: int,
        num_slots: int,
        *,
        cold: Initializer,
        num_heads: int,
        log_std: float,
        straight_through: bool = False,
        rngs: nnx.Rngs,
    ):
        del num_slots
        size = f"model.slot_size {slot_size}"
        check_heads("model.initializer.num_heads", num_heads, slot_size, size)
        self.slot_size = slot_size
        self.cold = cold
        self.warmer = Warmer(width, slot_size, num_heads, rngs=rngs)
        self.straight_through = straight_through
        self.log_std = nnx.Param(jnp.full((1, 1, slot_size), log_std, jnp.float32))

    @property
    def starts_from_boxes(self) -> bool:
        """Whether the cold-start samples need a box for each slot."""
        return self.cold.starts_from_boxes

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: dict[str, Array],
        scheduled: Scheduled,
    ) -> Queries:
        """Return the queries, and the extras `warm_queries` and `cold_queries` (B,N,D)."""
        samples, _ = self.cold(tokens, boxes, slot_mask, draws["cold"], scheduled)
        # At evaluation nothing is scheduled; a stop-gradient would not change any value.
        if "detach" in scheduled:
            tokens = jnp.where(scheduled["detach"] > 0, jax.lax.stop_gradient(tokens), tokens)
        if self.straight_through:
            warm_queries = self.warmer(jax.lax.stop_gradient(samples), tokens, slot_mask)
            queries = samples + jax.lax.stop_gradient(warm_queries - samples)
        else:
            warm_queries = self.warmer(samples, tokens, slot_mask)
            queries = jax.lax.stop_gradient(warm_queries)
        if draws["noise"] is not None:
            queries = queries + scaled(draws["noise"], self.log_std)
        return queries, {"warm_queries": warm_queries, "cold_queries": samples}

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> dict[str, Array]:
        shape = (sizes.batch, sizes.slots, self.slot_size)
        noise = jax.random.normal(keys[1], shape, jnp.float32) if training else None
        return {"cold": self.cold.draw(keys, sizes, training), "noise": noise}
