"""Transitions from the slots of past frames to the next frame's queries."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.attention import QUERY_SCALES, KeysValues
from smoothsa_jax.models.layers.basic import (
    ACTIVATIONS,
    COMMON_STARTS,
    EPSILON,
    MLP,
    LSTMCell,
    check_start,
    layer_norm,
    linear,
    split_key,
)
from smoothsa_jax.models.layers.transformer import (
    NORMS,
    EncoderLayer,
    PostNormLayer,
    copied_layers,
    run_copied_layers,
)
from smoothsa_jax.parts import (
    check_above_zero,
    check_dropout,
    check_flag,
    check_heads,
    check_one_of,
    check_whole,
)


class RandSFQ(nnx.Module):
    """A transition in which slots of a past frame attend to tokens of a past or current frame.

    At evaluation, these are the previous and the current frame. In training, the pair is drawn for
    every sample and frame. No gradient flows into slots and tokens. From RandSF.Q (arXiv
    2508.01345; docs/design.md, section 2.1).

    Args:
        width: C of the tokens.
        slot_size: D.
        num_heads: number of attention heads.
        history: bound of the history, dt in the paper: at most the last `history - 1` frames of
            slots and the last `history` frames of tokens are used.
        dropout_rate: rate of dropout in the transformer layer, in training.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        num_heads: int,
        history: int,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        check_whole("model.transition.history", history, least=2)
        check_dropout("model.transition.dropout_rate", dropout_rate)
        size = f"model.slot_size {slot_size}"
        check_heads("model.transition.num_heads", num_heads, slot_size, size)
        self.history = history
        self.offset_embedding = nnx.Param(
            jax.random.normal(rngs.params(), (history, slot_size), jnp.float32)
        )
        self.memory = linear(width, slot_size, zero_bias=True, rngs=rngs)
        self.layer = PostNormLayer(slot_size, num_heads, dropout_rate, rngs=rngs)

    def prepare(
        self, tokens: Float[Array, "B T M C"], draws: dict[str, Array] | None
    ) -> tuple[KeysValues, Int[Array, "B T-1"], Key[Array, "B T-1"] | None]:
        """Prepare all frames after the first.

        Returns:
            Keys and values of the tokens that each frame attends to, the age of its slots in
            frames, and the random keys of its dropout.
        """
        batch, later = tokens.shape[0], tokens.shape[1] - 1
        if draws is None:  # evaluation: the previous slots and the current tokens
            slot_offset = jnp.ones((batch, later), jnp.int32)
            feature_offset = jnp.zeros((batch, later), jnp.int32)
            dropout_keys = None
        else:
            slot_offset, feature_offset = draws["slot_offset"], draws["feature_offset"]
            dropout_keys = _keys_of_frames(draws["dropout"], later)
        frame = jnp.arange(1, later + 1)[None, :] - feature_offset
        looked_at = jnp.take_along_axis(tokens, frame[:, :, None, None], axis=1)
        return self.remember(looked_at, feature_offset), slot_offset, dropout_keys

    def start(
        self, slots: Float[Array, "B N D"], draws: dict[str, Array] | None
    ) -> Float[Array, "S B N D"]:
        """Return the slots of earlier frames, newest first; empty at evaluation."""
        length = 0 if draws is None else self.history - 2
        return jnp.broadcast_to(slots, (length, *slots.shape))

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        memory: Float[Array, "S B N D"],
        prepared: tuple[KeysValues, Int[Array, "B"], Key[Array, "B"] | None],
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "S B N D"]]:
        """Return the next frame's queries and the new memory; see `interfaces.Transition`."""
        features, slot_offset, dropout_key = prepared
        past = jnp.concatenate([slots[None], memory])
        chosen = past[slot_offset - 1, jnp.arange(past.shape[1])]
        queries = self.look(chosen, features, slot_offset, slot_mask, dropout_key)
        return queries, past[:-1]

    def remember(
        self, tokens: Float[Array, "*batch M C"], feature_offset: Int[Array, "*batch"]
    ) -> KeysValues:
        """Return keys and values (*batch, M, D) of tokens that are `feature_offset` frames old."""
        memory = self.memory(jax.lax.stop_gradient(tokens)) + self._embed(feature_offset)
        return self.layer.cross_attention.remember(memory)

    def look(
        self,
        slots: Float[Array, "B N D"],
        features: KeysValues,
        slot_offset: Int[Array, "B"],
        slot_mask: Bool[Array, "B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B N D"]:
        """Return the queries from slots that are `slot_offset` frames old."""
        slots = jax.lax.stop_gradient(slots) + self._embed(slot_offset)
        return self.layer(slots, features, mask=slot_mask, dropout_key=dropout_key)

    def _embed(self, offset):
        return self.offset_embedding[...][offset][..., None, :]

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> dict[str, Array] | None:
        """Draw the frames to use: for frame i, slots 1 .. i and tokens 0 .. i - 1 frames ago."""
        if not training:
            return None
        slot, feature, dropout = keys
        # Frame t (counted from 0) has t earlier frames; at most dt - 1 frames of slots are used.
        available = jnp.minimum(jnp.arange(1, sizes.frames), self.history - 1)
        offsets = (sizes.batch, sizes.frames - 1)
        return {
            "slot_offset": jax.random.randint(slot, offsets, 1, available + 1, jnp.int32),
            "feature_offset": jax.random.randint(feature, offsets, 0, available, jnp.int32),
            "dropout": jax.random.split(dropout, sizes.batch),
        }


class Transformer(nnx.Module):
    """A transition in which the slots of the previous frame attend to each other.

    It sees no tokens, and gradient flows through it from frame to frame. From SAVi (Kipf et al.
    2022, arXiv 2111.12594), as VideoSAUR (Zadaianchuk et al. 2023, arXiv 2306.04829),
    SlotContrast (Manasyan et al. 2025, arXiv 2412.14295) and STEVE (Singh et al. 2022, arXiv
    2205.14065) have it.

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_heads: number of attention heads.
        norm: "pre", LayerNorms in front of attention and feed-forward; or "post", after their
            residuals.
        activation: "gelu" or "relu", of the feed-forward.
        bias: whether the layers have biases.
        attention_bias: whether their attention has; None: as `bias`.
        num_layers: number of layers.
        norm_stream: whether the LayerNorm in front of the first layer's attention replaces the
            slots, and so also enters the residual branch, as in STEVE; with the norm "pre".
        final_norm: whether a LayerNorm follows the last layer.
        out_gain: factor of the initial projections that add to the slots; (2 layers)**-0.5 in
            STEVE.
        dropout_rate: rate of dropout, in training.
        query_scale: what is done to the queries with (width of a head)**-0.5: "multiply", or
            "divide", as in the programs of VideoSAUR and SlotContrast.
        attention_start: initial values of the attention, "torch", "xavier" or, as in SAVi's
            program, "lecun".
        start: the same for the feed-forward.
        qkv_size: width of all heads together; None: D. 256 in SAVi++.
        mlp_size: hidden width of the feed-forward; None: 4 D.
        norm_epsilon: of the LayerNorms; 1e-5 in torch, 1e-6 in SAVi's program.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        num_heads: int,
        norm: str,
        activation: str,
        bias: bool,
        attention_bias: bool | None = None,
        num_layers: int = 1,
        norm_stream: bool = False,
        final_norm: bool = False,
        out_gain: float = 1.0,
        dropout_rate: float = 0.0,
        query_scale: str = "multiply",
        attention_start: str = "torch",
        start: str = "torch",
        qkv_size: int | None = None,
        mlp_size: int | None = None,
        norm_epsilon: float = EPSILON,
        rngs: nnx.Rngs,
    ):
        del width
        path = "model.transition"
        inner = f"model.slot_size {slot_size}"
        if qkv_size is not None:
            check_whole(f"{path}.qkv_size", qkv_size)
            inner = f"{path}.qkv_size {qkv_size}"
        check_heads(f"{path}.num_heads", num_heads, qkv_size or slot_size, inner)
        if mlp_size is not None:
            check_whole(f"{path}.mlp_size", mlp_size)
        check_above_zero(f"{path}.norm_epsilon", norm_epsilon)
        check_start(f"{path}.start", start)
        check_one_of(f"{path}.norm", norm, NORMS)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_flag(f"{path}.bias", bias)
        if attention_bias is not None:
            check_flag(f"{path}.attention_bias", attention_bias)
        check_whole(f"{path}.num_layers", num_layers)
        check_flag(f"{path}.norm_stream", norm_stream)
        check_flag(f"{path}.final_norm", final_norm)
        check_above_zero(f"{path}.out_gain", out_gain)
        if norm_stream and norm != "pre":
            raise UserError(
                f"{path}.norm_stream is True, but {path}.norm is {norm!r}: there is no LayerNorm "
                f"in front; set --config.{path}.norm=pre, or norm_stream to False"
            )
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_one_of(f"{path}.query_scale", query_scale, QUERY_SCALES)
        check_start(f"{path}.attention_start", attention_start, COMMON_STARTS)
        layer = functools.partial(
            EncoderLayer,
            slot_size,
            num_heads,
            norm=norm,
            activation=activation,
            bias=bias,
            attention_bias=attention_bias,
            dropout_rate=dropout_rate,
            query_scale=query_scale,
            attention_start=attention_start,
            start=start,
            qkv_size=qkv_size,
            mlp_size=mlp_size,
            norm_epsilon=norm_epsilon,
            out_gain=out_gain,
            rngs=rngs,
        )
        self.layer = layer(norm_stream=norm_stream)
        self.further = nnx.List([layer() for _ in range(num_layers - 1)])
        self.norm = layer_norm(slot_size, epsilon=norm_epsilon, rngs=rngs) if final_norm else None

    def prepare(
        self, tokens: Float[Array, "B T M C"], draws: Key[Array, "B"] | None
    ) -> Key[Array, "B T-1"] | None:
        """Return the random keys of each later frame's dropout."""
        return _keys_of_frames(draws, tokens.shape[1] - 1)

    def start(self, slots: Float[Array, "B N D"], draws: Key[Array, "B"] | None) -> None:
        """Return None: only the previous frame counts."""

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        memory: None,
        prepared: Key[Array, "B"] | None,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N D"], None]:
        """Return the next frame's queries and no memory; see `interfaces.Transition`."""
        del memory
        layers = [self.layer, *self.further]
        keys = [prepared]  # of one layer: as they always were
        if len(layers) > 1:
            keys = [None] * len(layers) if prepared is None else split_key(prepared, len(layers))
        for layer, key in zip(layers, keys, strict=True):
            slots = layer(slots, mask=slot_mask, dropout_key=key)
        return slots if self.norm is None else self.norm(slots), None

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Key[Array, "B"] | None:
        """Draw the keys of dropout; None: no dropout."""
        if not training or not self.layer.dropout_rate:
            return None
        return jax.random.split(keys[2], sizes.batch)


class MLPTransition(nnx.Module):
    """A transition in which each slot passes through an MLP with a residual, by itself.

    y + MLP(y) for the normalized slots y: the residual is theirs. That of stochastic SAVi in the
    program of SlotFormer (Wu et al. 2023, arXiv 2210.05861).

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        hidden_size: hidden width of the MLP.
    """

    def __init__(self, width: int, slot_size: int, *, hidden_size: int, rngs: nnx.Rngs):
        del width
        check_whole("model.transition.hidden_size", hidden_size)
        self.norm = layer_norm(slot_size, rngs=rngs)
        self.mlp = MLP((slot_size, hidden_size, slot_size), activation="relu", rngs=rngs)

    def prepare(self, tokens: Float[Array, "B T M C"], draws: None) -> None:
        """Return None: nothing depends on the tokens."""

    def start(self, slots: Float[Array, "B N D"], draws: None) -> None:
        """Return None: only the previous frame counts."""

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        memory: None,
        prepared: None,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N D"], None]:
        """Return the next frame's queries and no memory; see `interfaces.Transition`."""
        del memory, prepared, slot_mask
        normed = self.norm(slots)
        return normed + self.mlp(normed), None

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> None:
        """Return None: nothing is random."""


class RecurrentTransformer(nnx.Module):
    """A transition in which slots see each other, and each has an LSTM over the frames of a clip.

    Layers of a transformer, an LSTM with a state for each slot, and a Linear layer. That of SAVi in
    the program of SlotFormer (Wu et al. 2023, arXiv 2210.05861).

    Args:
        width: C of the tokens; unused.
        slot_size: D.
        num_layers: of the transformer, which start as copies of one.
        num_heads: number of attention heads.
        mlp_size: hidden width of the feed-forwards.
        state_size: width of the LSTM.
        dropout_rate: in the transformer, in training.
    """

    def __init__(
        self,
        width: int,
        slot_size: int,
        *,
        num_layers: int,
        num_heads: int,
        mlp_size: int,
        state_size: int,
        dropout_rate: float,
        rngs: nnx.Rngs,
    ):
        del width
        path = "model.transition"
        for key, value in (
            ("num_layers", num_layers),
            ("mlp_size", mlp_size),
            ("state_size", state_size),
        ):
            check_whole(f"{path}.{key}", value)
        check_heads(f"{path}.num_heads", num_heads, slot_size, f"model.slot_size {slot_size}")
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        self.state_size, self.dropout_rate = state_size, dropout_rate
        self.layers = copied_layers(
            num_layers,
            slot_size,
            num_heads,
            norm="pre",
            dropout_rate=dropout_rate,
            mlp_size=mlp_size,
            rngs=rngs,
        )
        self.cell = LSTMCell(slot_size, state_size, rngs=rngs)
        self.out = linear(state_size, slot_size, rngs=rngs)

    def prepare(
        self, tokens: Float[Array, "B T M C"], draws: Key[Array, "B"] | None
    ) -> Key[Array, "B T-1"] | None:
        """Return the random keys of each later frame's dropout."""
        return _keys_of_frames(draws, tokens.shape[1] - 1)

    def start(
        self, slots: Float[Array, "B N D"], draws: Key[Array, "B"] | None
    ) -> tuple[Float[Array, "B N S"], Float[Array, "B N S"]]:
        """Return the state and the cell of each slot, which are zero before the second frame."""
        del draws
        zeros = jnp.zeros((*slots.shape[:2], self.state_size), slots.dtype)
        return zeros, zeros

    def __call__(
        self,
        slots: Float[Array, "B N D"],
        memory: tuple[Float[Array, "B N S"], Float[Array, "B N S"]],
        prepared: Key[Array, "B"] | None,
        slot_mask: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N D"], tuple[Float[Array, "B N S"], Float[Array, "B N S"]]]:
        """Return the next frame's queries and the new memory; see `interfaces.Transition`."""
        slots = run_copied_layers(self.layers, slots, slot_mask, prepared)
        memory = self.cell(slots, *memory)
        return self.out(memory[0]), memory

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Key[Array, "B"] | None:
        """Draw the keys of dropout; None: no dropout."""
        if not training or not self.dropout_rate:
            return None
        return jax.random.split(keys[2], sizes.batch)


def _keys_of_frames(draws: Key[Array, "B"] | None, number: int) -> Key[Array, "B T-1"] | None:
    """Return the random keys of each later frame's dropout; None: no dropout."""
    return None if draws is None else split_key(draws, number).swapaxes(0, 1)
