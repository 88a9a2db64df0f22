"""The slot mixer: each position takes a mixture of slots and turns it into its prediction."""

from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.decoders.logits import predicted_channels
from smoothsa_jax.models.layers.attention import QUERY_SCALES, attend_with_weights
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    activate,
    check_start,
    layer_norm,
    linear,
)
from smoothsa_jax.models.layers.positions import STARTS, learned_positions
from smoothsa_jax.models.layers.transformer import PreNormLayer
from smoothsa_jax.parts import (
    check_above_zero,
    check_flag,
    check_heads,
    check_one_of,
    check_whole,
)


class Renderer(nnx.Module):
    """An MLP: an optional LayerNorm, Linear layers, and the activation between them.

    Args:
        sizes: width of the input, of each hidden layer, and of the output.
        norm: whether a LayerNorm comes first.
        activation: "gelu" or "relu".
        start: initial values of the last layer, "torch" or "xavier".
    """

    backend = CPU

    def __init__(
        self, sizes: tuple[int, ...], *, norm: bool, activation: str, start: str, rngs: nnx.Rngs
    ):
        self.activation = activation
        self.norm = layer_norm(sizes[0], rngs=rngs) if norm else None
        pairs = zip(sizes[:-2], sizes[1:-1], strict=True)
        self.layers = nnx.List([linear(*pair, rngs=rngs) for pair in pairs])
        self.out = linear(*sizes[-2:], start=start, rngs=rngs)

    def __call__(self, x: Float[Array, "... E"]) -> Float[Array, "... K"]:
        x = x if self.norm is None else self.norm(x)
        for layer in self.layers:
            x = activate(layer(x), self.activation, self.backend)
        return self.out(x)


class SlotMixerDecoder(nnx.Module):
    """A decoder that mixes slots before it renders them.

    Learned positions attend to the slots in the layers of an allocator, and then once more to the
    slots alone: their weights mix the slots themselves, and are the masks. An MLP renders mixture
    plus position. This is the decoder of VideoSAUR (Zadaianchuk et al. 2023, arXiv 2306.04829),
    after Sajjadi et al. 2022 (arXiv 2206.06922). It sees nothing of the target and draws no random
    numbers, so `given` and `draws` are unused.

    Args:
        grid: (h, w) of the prediction.
        width: C of the target.
        slot_size: D, also of the positions.
        num_layers: number of the allocator's layers.
        num_heads: their attention heads.
        mix_heads: heads of the mixture; each mixes its own share of the channels, and the masks are
            their mean.
        hidden_size: width of the renderer's hidden layers.
        renderer_layers: number of its Linear layers, including first and last; at least 2.
        renderer_norm: whether a LayerNorm comes first in it.
        activation: "relu" or "gelu", of allocator and renderer.
        bias: whether the allocator's layers have biases.
        norm: whether each of these layers first adds a LayerNorm of the stream to the stream, what
            is left of a transformer layer without its self-attention, as in the program of
            RandSF.Q. Then all layers also start with the same values.
        query_scale: of the allocator, "multiply" or "divide"; see `transitions.Transformer`.
        position_start: distribution of the initial positions, "normal" or "truncated_normal".
        position_std: their standard deviation.
        start: initial values of the allocator's attention and of the last Linear, "torch" or
            "xavier".
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
        num_heads: int,
        mix_heads: int,
        hidden_size: int,
        renderer_layers: int,
        renderer_norm: bool,
        activation: str,
        bias: bool,
        norm: bool,
        query_scale: str = "multiply",
        position_start: str = "truncated_normal",
        position_std: float = 1.0,
        start: str = "torch",
        logits: bool | str = False,
        rngs: nnx.Rngs,
    ):
        path, size = "model.decoder", f"model.slot_size {slot_size}"
        check_whole(f"{path}.num_layers", num_layers)
        check_heads(f"{path}.num_heads", num_heads, slot_size, size)
        check_heads(f"{path}.mix_heads", mix_heads, slot_size, size)
        check_whole(f"{path}.hidden_size", hidden_size)
        check_whole(f"{path}.renderer_layers", renderer_layers, least=2)
        check_flag(f"{path}.renderer_norm", renderer_norm)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_flag(f"{path}.bias", bias)
        check_flag(f"{path}.norm", norm)
        check_one_of(f"{path}.query_scale", query_scale, QUERY_SCALES)
        check_one_of(f"{path}.position_start", position_start, STARTS)
        check_above_zero(f"{path}.position_std", position_std)
        check_start(f"{path}.start", start)
        self.grid, self.mix_heads, self.logits = grid, mix_heads, logits
        predicted = predicted_channels(logits, width, grid)
        self.remat = False  # whether the backward pass recomputes a layer's activations
        positions = (grid[0] * grid[1], slot_size, position_start, position_std)
        self.position = nnx.Param(learned_positions(rngs.params(), *positions))
        self.norm_memory = layer_norm(slot_size, rngs=rngs)
        key = rngs.params()
        self.layers = nnx.List(
            [
                PreNormLayer(
                    slot_size,
                    num_heads,
                    around="norm" if norm else "none",
                    biases="all" if bias else "none",
                    activation=activation,
                    start=start,
                    feed_forward_start="torch",
                    query_scale=query_scale,
                    rngs=nnx.Rngs(key) if norm else rngs,
                )
                for _ in range(num_layers)
            ]
        )
        self.norm_query = layer_norm(slot_size, rngs=rngs)
        self.norm_key = layer_norm(slot_size, rngs=rngs)
        self.query = linear(slot_size, slot_size, bias=False, start="xavier", rngs=rngs)
        self.key = linear(slot_size, slot_size, bias=False, start="xavier", rngs=rngs)
        self.renderer = Renderer(
            (slot_size, *[hidden_size] * (renderer_layers - 1), predicted),
            norm=renderer_norm,
            activation=activation,
            start=start,
            rngs=rngs,
        )

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None = None,
        given: Mapping[str, Array] | None = None,
        draws: None = None,
    ) -> tuple[Float[Array, "B M K"], Float[Array, "B N h w"]]:
        """Return the prediction and the masks."""
        del given, draws
        position = self.position[...]
        x = position.repeat(len(slots), axis=0)
        memory = self.norm_memory(slots)
        again = jax.checkpoint if self.remat else lambda function: function
        for layer in self.layers:
            x = again(lambda x, layer=layer: layer(x, memory, memory_mask=slot_mask))(x)
        query, key = self.query(self.norm_query(x)), self.key(self.norm_key(slots))
        mixed, weights = attend_with_weights(query, key, slots, self.mix_heads, slot_mask)
        masks = weights.swapaxes(1, 2)
        prediction = self.renderer(mixed + position)
        return prediction, masks.reshape(*masks.shape[:2], *self.grid)

    def draw(self, keys, sizes, training) -> None:
        """Return None: nothing is random."""
