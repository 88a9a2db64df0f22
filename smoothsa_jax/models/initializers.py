"""Initializers of the first frame's queries: cold-start samples, and SmoothSA's warmer."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Initializer, Scheduled, Sizes
from smoothsa_jax.models.layers.attention import MultiHeadAttention
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    MLP,
    check_start,
    layer_norm,
    linear,
    uniform,
)
from smoothsa_jax.parts import (
    check_above_zero,
    check_flag,
    check_heads,
    check_number,
    check_one_of,
    check_whole,
)

Queries = tuple[Float[Array, "B N D"], dict[str, Array]]


def scaled(noise: Float[Array, "B N D"], log_std: nnx.Param) -> Float[Array, "B N D"]:
    """Return standard normal noise times a learned scale, in the dtype of the weights."""
    return jnp.exp(log_std[...]) * noise.astype(log_std.dtype)


def standard_noise(key: Array, sizes: Sizes, slot_size: int) -> Float[Array, "B N D"]:
    """Draw standard normal noise for all slots of a batch."""
    return jax.random.normal(key, (sizes.batch, sizes.slots, slot_size), jnp.float32)


def xavier(rngs: nnx.Rngs, num_slots: int, slot_size: int) -> Float[Array, "1 N D"]:
    """Draw initial values as torch's `xavier_uniform_` does for an array (1,N,D).

    For it, each of the N rows has D inputs, so the bound is sqrt(6 / (N D + D)).
    """
    bound = (6.0 / ((num_slots + 1) * slot_size)) ** 0.5
    return uniform(bound)(rngs.params(), (1, num_slots, slot_size), jnp.float32)


def xavier_matrix(rngs: nnx.Rngs, num_slots: int, slot_size: int) -> Float[Array, "1 N D"]:
    """Draw initial values as torch's `xavier_uniform_` does for a matrix (N,D)."""
    bound = (6.0 / (num_slots + slot_size)) ** 0.5
    return uniform(bound)(rngs.params(), (1, num_slots, slot_size), jnp.float32)


# Of Keras for an array (1,1,D), which has one input; the means of several slots are a matrix.
MEANS = {"xavier": xavier, "xavier_matrix": xavier_matrix, "glorot": xavier_matrix}


class Gaussian(nnx.Module):
    """An initializer that draws every query from a learned Gaussian.

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_slots: N; matters only if Gaussians are separate.
        log_std: initial value of the learned log standard deviation; None: random ones, as of the
            mean "xavier", or of "glorot" where that is the mean's.
        mean: initial value of the learned mean: "zero"; "xavier", a random one (DINOSAUR, SPOT,
            DIAS); "xavier_matrix", uniform in +-sqrt(6/(N+D)) (separate Gaussians in the programs
            of SmoothSA's author and MetaSlot); or "glorot", with N = 1 uniform in +-sqrt(6/(1+D))
            (Keras, for both parameters of the original).
        separate: whether each slot has a Gaussian of its own. Then there are always N slots.
        noise: "always", at evaluation too; or "training", so that slots start from their means at
            evaluation.
    """

    starts_from_boxes = False

    def __init__(
        self,
        width: int,
        slot_size: int,
        num_slots: int,
        *,
        log_std: float | None,
        mean: str = "zero",
        separate: bool = False,
        noise: str = "always",
        rngs: nnx.Rngs,
    ):
        del width
        path = "model.initializer"
        check_one_of(f"{path}.mean", mean, ("zero", *MEANS))
        check_flag(f"{path}.separate", separate)
        if log_std is not None:
            check_number(f"{path}.log_std", log_std, least=-math.inf)
        check_one_of(f"{path}.noise", noise, ("always", "training"))
        if noise == "training" and not separate:
            raise UserError(
                f"{path}.noise is 'training', but all slots share one Gaussian, so that they would "
                f"be alike at evaluation; set --config.{path}.separate=True"
            )
        self.slot_size = slot_size
        self.any_number, self.always = not separate, noise == "always"
        slots = num_slots if separate else 1
        shape = (1, slots, slot_size)
        zeros = jnp.zeros(shape, jnp.float32)
        self.mean = nnx.Param(zeros if mean == "zero" else MEANS[mean](rngs, slots, slot_size))
        draw = xavier_matrix if mean == "glorot" else xavier
        self.log_std = nnx.Param(
            draw(rngs, slots, slot_size) if log_std is None else zeros + log_std
        )

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Float[Array, "B N D"] | None,
        scheduled: Scheduled,
    ) -> Queries:
        del boxes, slot_mask, scheduled
        if draws is None:
            return _for_all(self.mean, tokens), {}
        return self.mean[...] + scaled(draws, self.log_std), {}

    def draw(
        self, keys: Sequence[Array], sizes: Sizes, training: bool
    ) -> Float[Array, "B N D"] | None:
        if not (training or self.always):
            return None
        return standard_noise(keys[0], sizes, self.slot_size)


class Learned(nnx.Module):
    """An initializer with one learned query for each slot, and with BO-QSA's noise.

    The noise is sigma * z * mean, with z standard normal for each sample, no gradient through that
    mean, and a sigma that a schedule sets in training. At evaluation there is none. From BO-QSA
    (Jia et al. 2023, arXiv 2210.08990); with a sigma of 0, also SPOT's student and SlotContrast.

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_slots: N.
        start: initial values: "xavier", uniform in +-sqrt(6/(N+D)), or "normal".
        start_std: standard deviation of the start "normal".

    Scheduled:
        noise: sigma.
    """

    scheduled = ("noise",)
    starts_from_boxes = False
    any_number = False

    def __init__(
        self,
        width: int,
        slot_size: int,
        num_slots: int,
        *,
        start: str,
        start_std: float = 1.0,
        rngs: nnx.Rngs,
    ):
        del width
        check_one_of("model.initializer.start", start, ("xavier", "normal"))
        check_above_zero("model.initializer.start_std", start_std)
        self.slot_size = slot_size
        if start == "xavier":
            self.mean = nnx.Param(xavier_matrix(rngs, num_slots, slot_size))
        else:
            init, shape = nnx.initializers.normal(start_std), (1, num_slots, slot_size)
            self.mean = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Float[Array, "B N D"] | None,
        scheduled: Scheduled,
    ) -> Queries:
        del boxes, slot_mask
        queries = _for_all(self.mean, tokens)
        if draws is None or "noise" not in scheduled:
            return queries, {}
        sigma = jnp.asarray(scheduled["noise"], queries.dtype)
        noise = sigma * draws.astype(queries.dtype)
        return queries + noise * jax.lax.stop_gradient(queries), {}

    def draw(
        self, keys: Sequence[Array], sizes: Sizes, training: bool
    ) -> Float[Array, "B N D"] | None:
        return standard_noise(keys[0], sizes, self.slot_size) if training else None


def _for_all(mean: nnx.Param, tokens: Float[Array, "B M C"]) -> Float[Array, "B N D"]:
    """Return the same queries for every sample."""
    return jnp.broadcast_to(mean[...], (len(tokens), *mean.shape[1:]))


BOX_ORDERS = ("columns_first", "rows_first")


class Boxes(nnx.Module):
    """An initializer that embeds each object's box in the first frame and may add scaled noise.

    The noise has a learned scale and is added at evaluation too. Boxes are left, top, right,
    bottom, divided by width and height. A box of -1 is padding; a box of 0 is an object that is
    absent from the frame.

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_slots: N; unused.
        log_std: initial value of the learned log standard deviation; None: no noise (RandSF.Q).
        norm: whether a LayerNorm follows the embedding.
        order: of a box's numbers as they are embedded: "columns_first" (left, top, right, bottom),
            or "rows_first" (top, left, bottom, right), as in SAVi's program.
        center: whether the middle of the box is embedded in place of the box (SAVi's
            `center_of_mass`).
        zeros: whether the first box, the background's (`data.background_box`), and the padding
            enter as boxes of zeros, as in SAVi's program.
        hidden_size: hidden width of the embedding's MLP; None: D. 256 in SAVi.
        activation: "gelu" or "relu", of that MLP.
        start: its initial values; see `linear`.
    """

    starts_from_boxes = True
    any_number = True

    def __init__(
        self,
        width: int,
        slot_size: int,
        num_slots: int,
        *,
        log_std: float | None,
        norm: bool = True,
        order: str = "columns_first",
        center: bool = False,
        zeros: bool = False,
        hidden_size: int | None = None,
        activation: str = "gelu",
        start: str = "torch",
        rngs: nnx.Rngs,
    ):
        del width, num_slots
        path = "model.initializer"
        if log_std is not None:
            check_number(f"{path}.log_std", log_std, least=-math.inf)
        check_flag(f"{path}.norm", norm)
        check_one_of(f"{path}.order", order, BOX_ORDERS)
        check_flag(f"{path}.center", center)
        check_flag(f"{path}.zeros", zeros)
        if hidden_size is not None:
            check_whole(f"{path}.hidden_size", hidden_size)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_start(f"{path}.start", start)
        self.slot_size = slot_size
        self.rows_first, self.center, self.zeros = order == "rows_first", center, zeros
        sizes = (2 if center else 4, hidden_size or slot_size, slot_size)
        self.mlp = MLP(sizes, activation=activation, start=start, rngs=rngs)
        self.norm = layer_norm(slot_size, rngs=rngs) if norm else None
        std = None if log_std is None else jnp.full((1, 1, slot_size), log_std, jnp.float32)
        self.log_std = None if std is None else nnx.Param(std)

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: Float[Array, "B N D"] | None,
        scheduled: Scheduled,
    ) -> Queries:
        del tokens, slot_mask, scheduled
        if boxes is None:
            raise UserError(
                "this model starts its slots from boxes, and the batch has none: give `boxes` "
                "(B,T,N,4), or use a model with initializer.name='gaussian'"
            )
        queries = self.mlp(self._read(boxes).astype(self.mlp.hidden.kernel.dtype))
        if self.norm is not None:
            queries = self.norm(queries)
        return queries if draws is None else queries + scaled(draws, self.log_std), {}

    def draw(
        self, keys: Sequence[Array], sizes: Sizes, training: bool
    ) -> Float[Array, "B N D"] | None:
        del training
        if self.log_std is None:
            return None
        return standard_noise(keys[0], sizes, self.slot_size)

    def _read(self, boxes: Float[Array, "B N 4"]) -> Float[Array, "B N numbers"]:
        """Return the numbers of each box that are embedded."""
        if self.zeros:
            boxes = jnp.where(boxes < 0.0, 0.0, boxes).at[:, 0].set(0.0)
        if self.rows_first:
            boxes = boxes[..., jnp.array([1, 0, 3, 2])]
        return (boxes[..., :2] + boxes[..., 2:]) / 2 if self.center else boxes


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

    @property
    def any_number(self) -> bool:
        """Whether the cold-start samples may have any number."""
        return self.cold.any_number

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
        noise = standard_noise(keys[1], sizes, self.slot_size) if training else None
        return {"cold": self.cold.draw(keys, sizes, training), "noise": noise}


class Tokens(nnx.Module):
    """An initializer whose queries are the tokens themselves, for models without slots.

    With the aggregator `none`, the decoder sees all tokens: SRT (Sajjadi et al. 2022, arXiv
    2111.13152).

    Args:
        width: C of the tokens; has to be D.
        slot_size: D.
        num_slots: N; unused, since there is a query for each token.
    """

    starts_from_boxes = False
    any_number = False

    def __init__(self, width: int, slot_size: int, num_slots: int, *, rngs: nnx.Rngs):
        del num_slots, rngs
        if width != slot_size:
            raise UserError(
                f"model.initializer.name is 'tokens', but tokens have {width} channels and "
                f"model.slot_size is {slot_size}; set --config.model.slot_size={width}"
            )

    def __call__(
        self,
        tokens: Float[Array, "B M C"],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        draws: None,
        scheduled: Scheduled,
    ) -> tuple[Float[Array, "B M C"], dict[str, Array]]:
        del boxes, slot_mask, draws, scheduled
        return tokens, {}

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> None:
        """Return None: nothing is random."""
