"""The mixture decoder: an MLP on each slot, and alpha masks, a softmax over slots."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.decoders.logits import predicted_channels
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    MLP,
    activate,
    layer_norm,
    linear,
)
from smoothsa_jax.models.layers.positions import STARTS, learned_positions, position_waves
from smoothsa_jax.parts import check_above_zero, check_flag, check_one_of, check_whole


class MLPMixtureDecoder(nnx.Module):
    """A decoder that applies an MLP to every slot at every position and mixes the results.

    Slots are broadcast to all positions and pass through an MLP. Alpha, a softmax over
    slots, weights their sum and serves as masks. This is the MLP decoder of DINOSAUR (Seitzer et
    al. 2023, appendix B). It sees nothing of the target and draws no random numbers, so `given` and
    `draws` are unused.

    Args:
        grid: (h, w) of the prediction.
        width: C of the prediction.
        slot_size: D.
        num_layers: number of Linear layers, including first and last; at least 2.
        hidden_size: width of the hidden layers.
        uniform_values: whether a slot's features are the same at every position, so that only its
            alpha varies. This keeps slots from sharing the scene and adding up to it, as they do on
            simple data before masks form.
        position: "waves": random, smooth over the grid, and added after the first Linear. "slots":
            independent at each place, and added to the slots in front of the first Linear, as in
            DINOSAUR.
        position_std: standard deviation of the initial position "slots".
        position_start: distribution of the initial position "slots", a "normal" or a
            "truncated_normal" one.
        activation: "relu" or "gelu".
        widen: whether a Linear without bias and a LayerNorm bring the slots to the width of the
            prediction first, as in SPOT.
        logits: whether it predicts logits over the next frame's patches: False, "next_frame" or
            "only"; see `logits.py`.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        slot_size: int,
        *,
        num_layers: int,
        hidden_size: int,
        uniform_values: bool = False,
        position: str = "waves",
        position_std: float = 1.0,
        position_start: str = "truncated_normal",
        activation: str = "relu",
        widen: bool = False,
        logits: bool | str = False,
        rngs: nnx.Rngs,
    ):
        predicted = predicted_channels(logits, width, grid)
        check_flag("model.decoder.widen", widen)
        check_one_of("model.decoder.position", position, ("waves", "slots"))
        check_above_zero("model.decoder.position_std", position_std)
        check_one_of("model.decoder.position_start", position_start, STARTS)
        check_one_of("model.decoder.activation", activation, ACTIVATIONS)
        self.grid, self.on_slots, self.activation = grid, position == "slots", activation
        self.logits = logits
        check_whole("model.decoder.hidden_size", hidden_size)
        if num_layers < 2:
            raise UserError(
                f"model.decoder.num_layers is {num_layers}: expected at least 2, first and last "
                "Linear included"
            )
        self.widen = linear(slot_size, width, bias=False, rngs=rngs) if widen else None
        self.norm_slots = layer_norm(width, rngs=rngs) if widen else None
        slot_size = width if widen else slot_size
        if self.on_slots:
            places, start = grid[0] * grid[1], (position_start, position_std)
            drawn = learned_positions(rngs.params(), places, slot_size, *start)
            self.position = nnx.Param(drawn)
        else:
            # Random, but smooth over the grid: with independent draws, the shape of a mask would
            # have to be learned token by token.
            waves = position_waves(grid, 8).reshape(grid[0] * grid[1], -1)
            mixing = jax.random.normal(rngs.params(), (waves.shape[1], hidden_size), jnp.float32)
            self.position = nnx.Param(waves @ mixing / waves.shape[1] ** 0.5)
        self.remat = False  # as in `RandomARDecoder`
        self.project_slots = linear(slot_size, hidden_size, rngs=rngs)
        self.layers = nnx.List(
            [linear(hidden_size, hidden_size, rngs=rngs) for _ in range(num_layers - 2)]
        )
        sizes = (slot_size, hidden_size, predicted)
        self.values = MLP(sizes, rngs=rngs) if uniform_values else None
        self.out = linear(hidden_size, 1 if uniform_values else predicted + 1, rngs=rngs)

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        given: Mapping[str, Array] | None = None,
        draws: None = None,
    ) -> tuple[Float[Array, "B M K"], Float[Array, "B N h w"]]:
        """Return the prediction and alpha."""
        del given, draws
        if self.widen is not None:
            slots = self.norm_slots(self.widen(slots))
        # The first layer is linear in slot + position, so it is applied before broadcasting.
        position = self.position[...]
        if self.on_slots:
            position = position[0] @ self.project_slots.kernel[...]
        active = lambda x: activate(x, self.activation, self.out.backend)  # noqa: E731
        x = active(self.project_slots(slots)[:, :, None, :] + position)
        again = jax.checkpoint if self.remat else lambda function: function
        for layer in self.layers:
            x = again(lambda x, layer=layer: active(layer(x)))(x)
        x = self.out(x)
        logits = x[..., -1].astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        alpha = jax.nn.softmax(logits, axis=1)
        weights, masks = alpha.astype(x.dtype), alpha.reshape(*alpha.shape[:2], *self.grid)
        if self.values is not None:
            return jnp.einsum("bnm,bnc->bmc", weights, self.values(slots)), masks
        return jnp.einsum("bnm,bnmc->bmc", weights, x[..., :-1]), masks

    def draw(self, keys, sizes, training) -> None:
        """Return None: nothing is random."""
