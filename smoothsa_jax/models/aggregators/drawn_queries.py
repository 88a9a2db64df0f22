"""Slot attention whose queries are drawn from a Gaussian that a layer makes of given ones."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.interfaces import Aggregated, Sizes
from smoothsa_jax.models.layers.attention import KeysValues
from smoothsa_jax.models.layers.basic import layer_norm, linear
from smoothsa_jax.parts import check_flag, check_one_of

KERNEL = "kernel"  # an output: mean and log variance (B,T,N,2D) of the queries
KERNELS = ("linear", "mlp")


class Kernel(nnx.Module):
    """A layer, or an MLP with a LayerNorm in it, that makes mean and log variance of a query."""

    def __init__(self, slot_size: int, kind: str, *, rngs: nnx.Rngs):
        double, deep = 2 * slot_size, kind == "mlp"
        self.hidden = linear(slot_size, double, rngs=rngs) if deep else None
        self.norm = layer_norm(double, rngs=rngs) if deep else None
        self.out = linear(double if deep else slot_size, double, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... 2D"]:
        if self.hidden is not None:
            x = jax.nn.relu(self.norm(self.hidden(x)))
        return self.out(x)


class DrawnQueries(SlotAttention):
    """Slot attention that starts from the mean of a Gaussian, or from a draw of it.

    A layer makes the Gaussian of each slot from the queries of every frame. From the program of
    SlotFormer (Wu et al. 2023, arXiv 2210.05861, appendix), whose stochastic SAVi also draws at
    evaluation. Frame by frame, as in a stream, the queries are the means.

    Args:
        width: C of the tokens.
        slot_size: D.
        kernel: what makes the Gaussian: a "linear" layer or an "mlp".
        stochastic: whether the queries are drawn.
        first, later, gradient, epsilon, epsilon_in, mlp_ratio, mlp_size, activation, zero_bias: see
            `SlotAttention`.
    """

    of_frames = (*SlotAttention.of_frames, KERNEL)

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        kernel: str,
        stochastic: bool,
        first: int,
        later: int | None,
        gradient: str = "full",
        epsilon: float = 1e-5,
        epsilon_in: str = "sum",
        mlp_ratio: float = 4.0,
        mlp_size: int | None = None,
        activation: str = "gelu",
        zero_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        check_one_of("model.aggregator.kernel", kernel, KERNELS)
        check_flag("model.aggregator.stochastic", stochastic)
        super().__init__(
            width,
            slot_size,
            first=first,
            later=later,
            gradient=gradient,
            epsilon=epsilon,
            epsilon_in=epsilon_in,
            mlp_ratio=mlp_ratio,
            mlp_size=mlp_size,
            activation=activation,
            zero_bias=zero_bias,
            rngs=rngs,
        )
        self.slot_size, self.stochastic = slot_size, stochastic
        self.kernel = Kernel(slot_size, kernel, rngs=rngs)

    def __call__(
        self,
        prepared: KeysValues,
        queries: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        draws: Float[Array, "B N D"] | None = None,
        first: bool = True,
        iterations: int | None = None,
    ) -> Aggregated:
        """Run the iterations; see `SlotAttention`. The extra `kernel` is that of every frame."""
        distribution = self.kernel(queries)
        mean, log_variance = jnp.split(distribution, 2, axis=-1)
        if self.stochastic and draws is not None:
            mean = mean + draws.astype(mean.dtype) * jnp.exp(0.5 * log_variance)
        found = super().__call__(prepared, mean, slot_mask, None, first, iterations)
        return found._replace(extras={**found.extras, KERNEL: distribution})

    def draw(self, keys: Any, sizes: Sizes, training: bool) -> Float[Array, "B T N D"] | None:
        """Draw the noise of all frames; None: the queries are the means."""
        del training
        if not self.stochastic:
            return None
        shape = (sizes.batch, sizes.frames, sizes.slots, self.slot_size)
        return jax.random.normal(keys[0], shape, jnp.float32)
