"""Autoregressive decoders over patches, in one or several orders."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.attention import fit_on_chip
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    check_start,
    layer_norm,
    linear,
)
from smoothsa_jax.models.layers.transformer import BIASES, causal_layers, run_layers
from smoothsa_jax.parts import (
    check_above_zero,
    check_flag,
    check_heads,
    check_one_of,
    check_whole,
)

NUM_ORDERS = 9


def patch_orders(grid: tuple[int, int]) -> Int[np.ndarray, "9 M"]:
    """Return SPOT's nine orders of the patches of a grid.

    By rows and by columns from each corner, and a spiral from the middle; the first is row-major.
    """
    places = np.arange(grid[0] * grid[1]).reshape(grid)
    right, below, both = places[:, ::-1], places[::-1], places[::-1, ::-1]
    orders = [places, places.T, right.T, right, both.T, both, below.T, below]
    inward, rest = [], places
    while rest.size:  # the right column from the top; then what is left, turned by a quarter
        inward += list(rest[:, -1])
        rest = np.rot90(rest[:, :-1])
    return np.stack([*(order.reshape(-1) for order in orders), np.array(inward[::-1])])


class PermutedARDecoder(nnx.Module):
    """A causal transformer that predicts each patch from the slots and the patches before it.

    Each order has its own token in front. The masks are the last layer's cross-attention, a softmax
    over slots, averaged over heads. There is no position embedding: features of the patches tell
    where they are. With nine orders, the decoder of SPOT (Kakogeorgiou et al. 2024, arXiv
    2312.00648); with one, that of DINOSAUR (Seitzer et al. 2023, arXiv 2209.14860). In training,
    one order is drawn for a whole batch.

    Args:
        grid: (h, w) of the patches.
        width: C of the features.
        slot_size: D.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        orders: how many of `patch_orders` there are; 1 to 9.
        evaluate: the order at evaluation: "first", the row-major one; or "all", which averages
            predictions and masks over all orders.
        biases: which parts have biases; see `PreNormLayer`.
        activation: "gelu" or "relu", of the feed-forward.
        final_norm: whether a LayerNorm follows the last layer.
        first_norm: where the first layer's first LayerNorm acts: on the "stream", and so also on
            the residual branch (SPOT); or in the "branch" alone, as in all other layers (DINOSAUR).
        bos_std: standard deviation of the initial tokens in front.
        start: initial values of the layers, "torch" or "xavier" (SPOT).
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
        orders: int,
        evaluate: str,
        biases: str,
        activation: str,
        final_norm: bool,
        first_norm: str,
        bos_std: float,
        start: str = "torch",
        rngs: nnx.Rngs,
    ):
        path = "model.decoder"
        check_whole(f"{path}.num_layers", num_layers)
        channels = f"the {width} channels of the features"
        check_heads(f"{path}.num_heads", num_heads, width, channels)
        check_whole(f"{path}.orders", orders)
        check_one_of(f"{path}.orders", orders, range(1, NUM_ORDERS + 1))
        check_one_of(f"{path}.evaluate", evaluate, ("first", "all"))
        check_one_of(f"{path}.biases", biases, BIASES)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_flag(f"{path}.final_norm", final_norm)
        check_one_of(f"{path}.first_norm", first_norm, ("stream", "branch"))
        check_above_zero(f"{path}.bos_std", bos_std)
        check_start(f"{path}.start", start)
        self.grid, self.evaluate, self.num_orders = grid, evaluate, orders
        bias = biases != "none"
        self.bos = nnx.Param(
            bos_std * jax.random.normal(rngs.params(), (orders, 1, 1, width), jnp.float32)
        )
        self.project_features = linear(width, width, bias=False, start=start, rngs=rngs)
        self.norm_features = layer_norm(width, rngs=rngs)
        self.project_slots = linear(slot_size, width, bias=False, start=start, rngs=rngs)
        self.norm_slots = layer_norm(width, rngs=rngs)
        self.norm_out = layer_norm(width, bias=bias, rngs=rngs) if final_norm else None
        self.remat = False  # whether the backward pass recomputes a layer's activations
        self.layers = causal_layers(
            width,
            num_heads,
            num_layers,
            norm_stream=first_norm == "stream",
            biases=biases,
            activation=activation,
            start=start,
            rngs=rngs,
        )

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        given: Mapping[str, Array],
        draws: Int[Array, " B"] | None,
    ) -> tuple[Float[Array, "B M C"], Float[Array, "B N h w"]]:
        """Return the prediction and the masks.

        Args:
            slots: the slots of each frame.
            slot_mask: true = valid.
            given: `target` (B,M,C), of which each patch sees those before it.
            draws: the number of the order; None: as `evaluate` says.
        """
        target, batch = given["target"], len(slots)
        averaged = draws is None and self.evaluate == "all" and self.num_orders > 1
        if averaged:  # all orders in one pass, folded into the batch
            repeat = lambda x: None if x is None else jnp.repeat(x, self.num_orders, axis=0)  # noqa: E731
            target, slots, slot_mask = repeat(target), repeat(slots), repeat(slot_mask)
            draws = jnp.tile(jnp.arange(self.num_orders), batch)
        elif draws is None:
            draws = jnp.zeros(batch, jnp.int32)
        inputs = target, slots, draws, slot_mask
        prediction, attention = fit_on_chip(
            self._decoded,
            inputs,
            num_heads=self.layers[0].self_attention.num_heads,
            length=target.shape[1],
            backend=self.backend,
            differentiated=self.differentiated,
        )
        if averaged:
            mean = lambda x: x.reshape(batch, self.num_orders, *x.shape[1:]).mean(axis=1)  # noqa: E731
            prediction, attention = mean(prediction), mean(attention)
        return prediction, attention.reshape(*attention.shape[:2], *self.grid)

    def _decoded(self, target, slots, order, slot_mask):
        orders = patch_orders(self.grid)[: self.num_orders]
        places, back = (jnp.asarray(x, jnp.int32)[order] for x in (orders, orders.argsort(axis=1)))
        permuted = jnp.take_along_axis(target, places[..., None], axis=1)
        # Not a gather: on a GPU, its gradient would be summed in another order in each run.
        chosen = jax.nn.one_hot(order, self.num_orders, dtype=jnp.float32)
        bos = self.bos[...][:, 0, 0].astype(jnp.float32)
        first = jnp.matmul(chosen, bos, precision="highest")[:, None].astype(target.dtype)
        x = jnp.concatenate([first, permuted[:, :-1]], axis=1)
        x = self.norm_features(self.project_features(x))
        memory = self.norm_slots(self.project_slots(slots))
        x, attention = run_layers(self.layers, x, memory, memory_mask=slot_mask, remat=self.remat)
        if self.norm_out is not None:
            x = self.norm_out(x)
        in_place = lambda x: jnp.take_along_axis(x, back[..., None], axis=1)  # noqa: E731
        return in_place(x), in_place(attention).swapaxes(1, 2)

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Int[Array, "B T"] | None:
        """Draw one order for the whole batch; None at evaluation, or if there is one only."""
        if not training or self.num_orders == 1:
            return None
        order = jax.random.randint(keys[0], (), 0, self.num_orders, jnp.int32)
        return jnp.broadcast_to(order, (sizes.batch, sizes.frames))
