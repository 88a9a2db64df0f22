"""Where the first frame's queries come from: cold-start samples, and the warmer (method section 1.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.layers.attention import MultiHeadAttention
from smoothsa_jax.models.layers.basic import MLP, layer_norm, linear


def scaled(noise: Float[Array, "B N D"], log_std: nnx.Param) -> Float[Array, "B N D"]:
    """Standard normal noise times a learned scale, in the dtype of the weights."""
    return jnp.exp(log_std[...]) * noise.astype(log_std.dtype)


class GaussianSampler(nnx.Module):
    """Every slot is a draw from one learned Gaussian, at evaluation too."""

    def __init__(self, slot_size: int, log_std: float, *, rngs: nnx.Rngs):
        del rngs
        self.mean = nnx.Param(jnp.zeros((1, 1, slot_size)))
        self.log_std = nnx.Param(jnp.full((1, 1, slot_size), log_std, jnp.float32))

    def __call__(
        self, noise: Float[Array, "B N D"], boxes: Float[Array, "B N 4"] | None
    ) -> Float[Array, "B N D"]:
        del boxes
        return self.mean[...] + scaled(noise, self.log_std)


class BoxSampler(nnx.Module):
    """Embeds each object's first-frame box and adds noise of learned scale, at evaluation too.

    Boxes are normalised left, top, right, bottom; all -1 is padding, all 0 an object absent from the frame.
    """

    def __init__(self, slot_size: int, log_std: float, *, rngs: nnx.Rngs):
        self.mlp = MLP((4, slot_size, slot_size), rngs=rngs)
        self.norm = layer_norm(slot_size, rngs=rngs)
        self.log_std = nnx.Param(jnp.full((1, 1, slot_size), log_std, jnp.float32))

    def __call__(
        self, noise: Float[Array, "B N D"], boxes: Float[Array, "B N 4"] | None
    ) -> Float[Array, "B N D"]:
        if boxes is None:
            raise UserError(
                "this model starts its slots from boxes, and the batch has none: "
                "give `boxes` (B,T,N,4), or use a model with initializer.name='gaussian'"
            )
        boxes = boxes.astype(self.log_std.dtype)
        return self.norm(self.mlp(boxes)) + scaled(noise, self.log_std)


class Warmer(nnx.Module):
    """Refines cold-start samples with the features into sample-specific, warm queries.

    One transformer decoder layer in the order cross-attention (no LayerNorm in front), self-attention,
    feed-forward (both with one), bias-free but for the projection of the features.
    """

    def __init__(self, feature_size: int, slot_size: int, num_heads: int, *, rngs: nnx.Rngs):
        self.memory = linear(feature_size, slot_size, rngs=rngs)
        self.cross_attention = MultiHeadAttention(slot_size, num_heads, rngs=rngs)
        self.self_attention = MultiHeadAttention(slot_size, num_heads, rngs=rngs)
        self.feed_forward = MLP((slot_size, 4 * slot_size, slot_size), bias=False, rngs=rngs)
        self.norm_self = layer_norm(slot_size, bias=False, rngs=rngs)
        self.norm_feed_forward = layer_norm(slot_size, bias=False, rngs=rngs)

    def __call__(
        self,
        samples: Float[Array, "B N D"],
        encoded: Float[Array, "B M C"],
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> Float[Array, "B N D"]:
        memory = self.cross_attention.remember(self.memory(encoded))
        x = samples + self.cross_attention(samples, memory)
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, key_mask=slot_mask)
        return x + self.feed_forward(self.norm_feed_forward(x))


class Initializer(nnx.Module):
    """A cold-start sampler, and on top of it a warmer or none.

    With a warmer, slot attention receives the warm queries behind a stop-gradient: the warmer learns from
    the distillation loss alone. In training noise of a learned scale is added to them.
    Without one, the samples are the queries, and gradient flows.

    Args:
        log_std: start of the learned scale of that noise; 0 in the paper.
        straight_through: not in the paper: the distillation stops at the samples, and gradient of the reconstruction
            reaches them as if the warmer were the identity.
    """

    def __init__(
        self,
        sampler: nnx.Module,
        warmer: Warmer | None,
        slot_size: int,
        log_std: float = 0.0,
        straight_through: bool = False,
    ):
        self.sampler = sampler
        self.warmer = warmer
        self.straight_through = straight_through
        if warmer is not None:
            self.log_std = nnx.Param(jnp.full((1, 1, slot_size), log_std, jnp.float32))

    def __call__(
        self,
        encoded: Float[Array, "B M C"],
        cold_noise: Float[Array, "B N D"],
        query_noise: Float[Array, "B N D"] | None,
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        detach: bool | Bool[Array, ""],
    ) -> tuple[Float[Array, "B N D"] | None, Float[Array, "B N D"]]:
        """Returns the warm queries (None without a warmer) and the queries for slot attention.

        Args:
            query_noise: standard normal; None at evaluation.
            detach: whether the features enter the warmer behind a stop-gradient.
        """
        samples = self.sampler(cold_noise, boxes)
        if self.warmer is None:
            return None, samples
        encoded = jnp.where(detach, jax.lax.stop_gradient(encoded), encoded)
        if self.straight_through:
            warm_queries = self.warmer(jax.lax.stop_gradient(samples), encoded, slot_mask)
            queries = samples + jax.lax.stop_gradient(warm_queries - samples)
        else:
            warm_queries = self.warmer(samples, encoded, slot_mask)
            queries = jax.lax.stop_gradient(warm_queries)
        if query_noise is not None:
            queries = queries + scaled(query_noise, self.log_std)
        return warm_queries, queries
