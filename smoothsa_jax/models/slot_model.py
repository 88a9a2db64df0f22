"""SlotModel: frames -> features -> tokens -> queries -> slots -> prediction and masks.

One model serves images and videos: an image is a video of one frame.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.interfaces import (
    Aggregated,
    Aggregator,
    Decoder,
    Draws,
    Encoder,
    Initializer,
    Scheduled,
    Sizes,
    Target,
    Transition,
)
from smoothsa_jax.models.layers.basic import ACTIVATIONS, MLP, check_start, layer_norm
from smoothsa_jax.parts import check_above_zero, check_flag, check_one_of

# The random keys of each part at a step. They are fixed, so that a seed gives the same training
# when parts are added; a new random part takes new keys.
KEYS = {
    "initializer": (0, 1),
    "decoder": (2,),
    "transition": (3, 4, 5),
    "aggregator": (6,),
    "target": (7,),
}
NUM_KEYS = 8


class Projection(nnx.Module):
    """LayerNorm, Linear, GELU or ReLU, Linear: features -> tokens.

    Args:
        width: C of the features.
        slot_size: D.
        hidden_ratio: hidden width, as a multiple of C.
        to_slots: whether the tokens are as wide as slots; otherwise as wide as the features.
        activation: "gelu" or "relu".
        start: initial values, "torch" or "xavier".
    """

    def __init__(
        self,
        width: int,
        *,
        slot_size: int,
        hidden_ratio: float = 1.0,
        to_slots: bool = False,
        activation: str = "gelu",
        start: str = "torch",
        rngs: nnx.Rngs,
    ):
        path = "model.projection"
        check_above_zero(f"{path}.hidden_ratio", hidden_ratio)
        check_flag(f"{path}.to_slots", to_slots)
        check_one_of(f"{path}.activation", activation, ACTIVATIONS)
        check_start(f"{path}.start", start)
        self.width = slot_size if to_slots else width
        self.norm = layer_norm(width, rngs=rngs)
        sizes = width, round(hidden_ratio * width), self.width
        self.mlp = MLP(sizes, zero_bias=True, activation=activation, start=start, rngs=rngs)

    def __call__(self, features: Float[Array, "... F"]) -> Float[Array, "... C"]:
        return self.mlp(self.norm(features))


class SlotModel(nnx.Module):
    """A composition of named parts; `build.py` makes them from a config.

    See `interfaces.py` for the parts.

    Args:
        transition: None for a model of images.
        target_encoder: the frozen encoder of the target, for a model that trains its encoder.
        num_slots: N that the model is trained with.
        slot_size: D.
    """

    backend = CPU
    compute_dtype = "float32"
    frozen_parts: frozenset[str] = frozenset()

    def __init__(
        self,
        encoder: Encoder,
        projection: Projection,
        initializer: Initializer,
        aggregator: Aggregator,
        transition: Transition | None,
        decoder: Decoder,
        target: Target,
        *,
        target_encoder: Encoder | None = None,
        num_slots: int,
        slot_size: int,
    ):
        self.encoder = encoder
        self.projection = projection
        self.initializer = initializer
        self.aggregator = aggregator
        self.transition = transition
        self.decoder = decoder
        self.target = target
        self.target_encoder = target_encoder
        self.num_slots, self.slot_size = num_slots, slot_size
        self.remat, self.scan_unroll = "none", 0

    def set_memory_options(self, remat: str, scan_unroll: int) -> None:
        """Trade time for memory in the gradient; values do not change.

        Args:
            remat: what the backward pass recomputes instead of storing: "none", each frame's step
                of the "recurrence", each layer of the "decoder", or "all" of these.
            scan_unroll: number of steps of the recurrence to unroll; 1: a plain loop. 0: all of
                them on a GPU, where a loop needs extra kernels, and 1 elsewhere.
        """
        self.remat, self.scan_unroll = remat, scan_unroll
        self.decoder.remat = remat in ("decoder", "all")

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype that it computes in; `ModelDefinition.merge` sets it."""
        return jnp.dtype(self.compute_dtype)

    def draw(self, key: Array, sizes: Sizes, training: bool) -> dict[str, Draws]:
        """Draw all random numbers of a forward pass, by the name of the part that needs them."""
        keys = jax.random.split(key, NUM_KEYS)
        drawn = {}
        for name, places in KEYS.items():
            part = getattr(self, name)
            of_part = [keys[i] for i in places]
            if name == "initializer" and not training:
                of_part = [key]  # evaluation draws queries from the key itself
            drawn[name] = None if part is None else part.draw(of_part, sizes, training)
        return drawn

    def encode(
        self, video: Array, cameras: Array | None = None, encoder: Encoder | None = None
    ) -> dict[str, Float[Array, "B T M C"]]:
        """Encode all frames in one batch; the outputs have the model's dtype.

        Args:
            video: (B,T,H,W,3) uint8, or normalized floats.
            cameras: (B,T,...) for an encoder that takes them.
            encoder: None: the model's own.
        """
        encoder = self.encoder if encoder is None else encoder
        frames = normalize(video.reshape(-1, *video.shape[2:]))
        # Also in front of the encoder: the fastest attention of frozen blocks may have no gradient.
        frames = jax.lax.stop_gradient(frames)
        more = () if cameras is None else (cameras.reshape(-1, *cameras.shape[2:]),)
        unfold = lambda x: x.astype(self.dtype).reshape(*video.shape[:2], *x.shape[1:])  # noqa: E731
        return jax.tree.map(unfold, encoder(frames, *more))

    def __call__(
        self,
        features: Float[Array, "B T M C"],
        given: Mapping[str, Array] | None,
        draws: Mapping[str, Draws],
        boxes: Float[Array, "B T N 4"] | None = None,
        slot_mask: Bool[Array, "B N"] | None = None,
        scheduled: Scheduled | None = None,
    ) -> dict[str, Array]:
        """Compute named outputs from features.

        Args:
            features: the encoder's features.
            given: what the decoder may see of the target, (B,T,...), by name; None: nothing is
                decoded.
            draws: all random numbers, as `draw` returns them.
            boxes: normalized left, top, right, bottom; only the first frame's boxes are used.
            slot_mask: true = valid. Masked slots do not affect the outputs of the others.
            scheduled: the current values of the parts' schedules, by part.

        Returns:
            slots (B,T,N,D); attention (B,T,N,h,w) of each frame's last iteration; first_tokens
            (B,M,C), first_attention (B,I,N,h,w) and first_states (B,I,N,D) of all iterations on
            the first frame; prediction (B,T,M,K) with K channels; masks (B,T,N,h,w) if the decoder
            has masks; queries (B,N,D) and the initializer's extras, such as warm_queries. All of
            them are float32. With a slot mask, also slot_mask (B,N), bool.

        Raises:
            UserError: there is more than one frame but no transition, or slots start from boxes
                and there are none.
        """
        num_frames = features.shape[1]
        tokens = self.projection(features.astype(self.dtype))
        first, extras = self.first_frame(
            tokens[:, 0], draws, None if boxes is None else boxes[:, 0], slot_mask, scheduled
        )
        slot_mask = first.slot_mask
        slots, attention = first.slots[:, None], first.attention[-1][:, None]
        if num_frames > 1:
            later = self._later_frames(first.slots, tokens, draws, slot_mask, scheduled)
            slots, attention = (
                jnp.concatenate(pair, axis=1)
                for pair in zip((slots, attention), later, strict=True)
            )

        on_grid = lambda x: x.reshape(*x.shape[:-1], *self.encoder.grid)  # noqa: E731
        outputs = {
            "slots": slots,
            "attention": on_grid(attention),
            "first_attention": on_grid(first.attention.swapaxes(0, 1)),
            "first_states": first.states.swapaxes(0, 1),
            "first_tokens": tokens[:, 0],
            **extras,
        }
        if given is not None:
            of_decoder = draws["decoder"]
            outputs |= self._decoded(slots, given, of_decoder, slot_mask, scheduled)
        # Losses and metrics are float32.
        outputs = {name: x.astype(jnp.float32) for name, x in outputs.items()}
        return outputs if slot_mask is None else {**outputs, "slot_mask": slot_mask}

    def follow(
        self,
        features: Float[Array, "B 1 M C"],
        given: Mapping[str, Array],
        slots: Float[Array, "B N D"],
        slot_mask: Bool[Array, "B N"] | None,
        memory: Any = None,
    ) -> tuple[dict[str, Array], Any]:
        """Process one more frame of a video at evaluation.

        Args:
            features: features of this frame.
            given: what the decoder may see of this frame's target, by name.
            slots: slots of the previous frame.
            slot_mask: true = valid.
            memory: what `follow` returned for the previous frame; None after a first frame.

        Returns:
            slots, attention, prediction and masks, as a call of the model returns them, and the
            memory for the next frame.

        Raises:
            UserError: the model has no transition.
        """
        tokens = self.projection(features[:, 0].astype(self.dtype))
        slots, attention, memory = self.next_frame(slots, tokens, slot_mask, memory)
        slots, attention = slots[:, None], attention[:, None]
        outputs = {
            "slots": slots,
            "attention": attention.reshape(*attention.shape[:-1], *self.encoder.grid),
            **self._decoded(slots, given, None, slot_mask),
        }
        return {name: x.astype(jnp.float32) for name, x in outputs.items()}, memory

    def _decoded(
        self,
        slots: Float[Array, "B T N D"],
        given: Mapping[str, Array],
        draws: Draws,
        slot_mask: Bool[Array, "B N"] | None,
        scheduled: Scheduled | None = None,
    ) -> dict[str, Array]:
        """Return the decoder's prediction and masks, computed for all frames in one batch."""
        batch, num_frames = slots.shape[:2]
        fold = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        unfold = lambda x: x.reshape(batch, num_frames, *x.shape[1:])  # noqa: E731
        given = {name: fold(x).astype(self.dtype) for name, x in given.items()}
        folded_mask = None if slot_mask is None else jnp.repeat(slot_mask, num_frames, axis=0)
        more = _current(self.decoder, "decoder", scheduled)
        drawn = jax.tree.map(fold, draws)
        prediction, masks = self.decoder(fold(slots), folded_mask, given, drawn, **more)
        found = {"prediction": unfold(prediction)}
        return found if masks is None else {**found, "masks": unfold(masks)}

    def first_frame(
        self,
        tokens: Float[Array, "B M C"],
        draws: Mapping[str, Draws],
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        scheduled: Scheduled | None = None,
    ) -> tuple[Aggregated, dict[str, Array]]:
        """Aggregate a first frame; the arguments are as for a call of the model.

        Returns:
            What the aggregator found, and the queries with the initializer's extras.
        """
        of_initializer = (scheduled or {}).get("initializer", {})
        queries, extras = self.initializer(
            tokens, boxes, slot_mask, draws["initializer"], of_initializer
        )
        prepared = self.aggregator.prepare(tokens)
        of_frame = jax.tree.map(lambda x: x[:, 0], draws.get("aggregator"))
        more = _current(self.aggregator, "aggregator", scheduled)
        found = self.aggregator(prepared, queries, slot_mask, of_frame, first=True, **more)
        return found, {"queries": queries, **extras, **found.extras}

    def next_frame(
        self,
        slots: Float[Array, "B N D"],
        tokens: Float[Array, "B M C"],
        slot_mask: Bool[Array, "B N"] | None,
        memory: Any = None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N M"], Any]:
        """Aggregate a later frame at evaluation.

        Args:
            slots: slots of the previous frame.
            tokens: tokens of this frame.
            slot_mask: true = valid.
            memory: the transition's memory from the previous frame; None: this is the second frame.

        Returns:
            The slots, their attention and the new memory.

        Raises:
            UserError: the model has no transition.
        """
        self._check_transition("a further frame")
        slots = slots.astype(self.dtype)
        if memory is None:
            memory = self.transition.start(slots, None)
        # `prepare` ignores the first frame, so any tokens will do.
        pair = jnp.stack([tokens, tokens], axis=1)
        of_frame = jax.tree.map(lambda x: x[:, 0], self.transition.prepare(pair, None))
        more = _current(self.transition, "transition", None)
        queries, memory = self.transition(slots, memory, of_frame, slot_mask, **more)
        prepared = self.aggregator.prepare(tokens)
        more = _current(self.aggregator, "aggregator", None)
        found = self.aggregator(prepared, queries, slot_mask, None, first=False, **more)
        return found.slots, found.attention[-1], memory

    def _check_transition(self, found: str) -> None:
        if self.transition is None:
            raise UserError(
                f"this model has no transition and got {found}: give single images, or set "
                "model.transition.name"
            )

    def _later_frames(self, first_slots, tokens, draws, slot_mask, scheduled):
        """Return slots (B,T-1,N,D) and attention (B,T-1,N,M) of the frames after the first."""
        self._check_transition(f"clips of {tokens.shape[1]} frames")
        later = tokens.shape[1] - 1
        # Compute what depends on the tokens alone for all frames at once.
        of_transition = self.transition.prepare(tokens, draws["transition"])
        of_aggregator = self.aggregator.prepare(tokens[:, 1:])
        memory = self.transition.start(first_slots, draws["transition"])
        # Weights stay float32 outside the loop, so that their gradients are summed over frames in
        # float32.
        definition, weights = nnx.split((self.transition, self.aggregator))
        weights = _floats_as(jnp.float32, weights)
        drawn = jax.tree.map(lambda x: x[:, 1:], draws.get("aggregator"))
        for_transition = _current(self.transition, "transition", scheduled)
        for_aggregator = _current(self.aggregator, "aggregator", scheduled)

        def step(carry, inputs):
            slots, memory = carry
            of_transition, of_aggregator, drawn = inputs
            transition, aggregator = nnx.merge(definition, _floats_as(self.dtype, weights))
            queries, memory = transition(slots, memory, of_transition, slot_mask, **for_transition)
            found = aggregator(
                of_aggregator, queries, slot_mask, drawn, first=False, **for_aggregator
            )
            return (found.slots, memory), (found.slots, found.attention[-1])

        frames_first = lambda x: jnp.moveaxis(x, 1, 0)  # noqa: E731
        inputs = jax.tree.map(frames_first, (of_transition, of_aggregator, drawn))
        if self.remat in ("recurrence", "all"):
            step = jax.checkpoint(step, prevent_cse=False)  # inside a scan nothing can be merged
        unroll = self.scan_unroll or (later if self.backend.is_gpu else 1)
        _, outputs = jax.lax.scan(step, (first_slots, memory), inputs, unroll=unroll)
        return tuple(jnp.moveaxis(x, 0, 1) for x in outputs)


def _current(part: Any, name: str, scheduled: Scheduled | None) -> dict[str, Any]:
    """Return the keyword that a part with scheduled settings gets, and no other part."""
    if not getattr(part, "scheduled", ()):
        return {}
    return {"scheduled": (scheduled or {}).get(name, {})}


def _floats_as(dtype: jnp.dtype, arrays: Any) -> Any:
    """Cast the floating-point arrays of a tree; counters and the like stay."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, arrays)
