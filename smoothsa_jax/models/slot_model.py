"""SlotModel: frames -> features -> tokens -> queries -> slots -> prediction and masks.

One model serves images and videos: an image is a video of one frame.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.anew import (
    PATIENCE,
    Watch,
    asked_anew,
    explains_nothing,
    feature_distance,
    first_errors,
    of_memory,
    per_sample,
    relative_error,
    remembered,
)
from smoothsa_jax.models.asked import asked_iterations
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.decoders.logits import taken_apart
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.interfaces import (
    Aggregated,
    Aggregator,
    Decoder,
    Draws,
    Encoder,
    Initializer,
    Pruning,
    Scheduled,
    Sizes,
    Target,
    Tokenizer,
    Transition,
)
from smoothsa_jax.models.layers.basic import ACTIVATIONS, EPSILON, MLP, check_start, layer_norm
from smoothsa_jax.models.pruning import (
    Carry,
    Prune,
    Pruned,
    admitted,
    alone,
    prune_frame,
    united,
    zeroed,
)
from smoothsa_jax.models.tokenizer_model import TOKENIZER, floats, fold, unfold
from smoothsa_jax.parts import (
    check_above_zero,
    check_dropout,
    check_flag,
    check_one_of,
    check_whole,
)

# The random keys of each part at a step. They are fixed, so that a seed gives the same training
# when parts are added; a new random part takes new keys.
KEYS = {
    "initializer": (0, 1),
    "decoder": (2,),
    "transition": (3, 4, 5),
    "aggregator": (6,),
    "target": (7,),
    "tokenizer": (8,),
    "projection": (9,),
}
NUM_KEYS = 10


class Projection(nnx.Module):
    """LayerNorm, Linear, GELU or ReLU, dropout, Linear: features -> tokens.

    Args:
        width: C of the features.
        slot_size: D.
        hidden_ratio: hidden width, as a multiple of C.
        hidden_size: hidden width, in place of `hidden_ratio`.
        to_slots: whether the tokens are as wide as slots; otherwise as wide as the features.
        activation: "gelu" or "relu"; or "none", as in VQ-VFM-OCL.
        norm: whether there is the LayerNorm.
        dropout_rate: in training, of the hidden units.
        norm_epsilon: of the LayerNorm; 1e-5 in torch, 1e-6 in flax linen, 1e-3 in Keras.
        start: initial values, "torch", "xavier", "lecun" or "glorot".
        zero_bias: whether the biases start at 0; with "torch".
    """

    def __init__(
        self,
        width: int,
        *,
        slot_size: int,
        hidden_ratio: float = 1.0,
        hidden_size: int | None = None,
        to_slots: bool = False,
        activation: str = "gelu",
        norm: bool = True,
        dropout_rate: float = 0.0,
        norm_epsilon: float = EPSILON,
        start: str = "torch",
        zero_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        path = "model.projection"
        check_above_zero(f"{path}.hidden_ratio", hidden_ratio)
        if hidden_size is not None:
            check_whole(f"{path}.hidden_size", hidden_size)
        check_flag(f"{path}.to_slots", to_slots)
        check_one_of(f"{path}.activation", activation, (*ACTIVATIONS, "none"))
        check_flag(f"{path}.norm", norm)
        check_dropout(f"{path}.dropout_rate", dropout_rate)
        check_above_zero(f"{path}.norm_epsilon", norm_epsilon)
        check_start(f"{path}.start", start)
        check_flag(f"{path}.zero_bias", zero_bias)
        self.width, self.dropout_rate = slot_size if to_slots else width, dropout_rate
        self.norm = layer_norm(width, epsilon=norm_epsilon, rngs=rngs) if norm else None
        sizes = width, hidden_size or round(hidden_ratio * width), self.width
        self.mlp = MLP(sizes, zero_bias=zero_bias, activation=activation, start=start, rngs=rngs)

    def __call__(
        self, features: Float[Array, "*B M F"], draws: Array | None = None
    ) -> Float[Array, "*B M C"]:
        """Return the tokens.

        Args:
            features: the features.
            draws: keys (*B) of dropout; None: no dropout.
        """
        x = features if self.norm is None else self.norm(features)
        if draws is None:
            return self.mlp(x)
        frames = x.reshape(-1, *x.shape[-2:])
        found = self.mlp(frames, self.dropout_rate, draws.reshape(-1))
        return found.reshape(*x.shape[:-1], -1)

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Array | None:
        """Draw the keys (B,T) of dropout; None without any."""
        if not training or not self.dropout_rate:
            return None
        return jax.random.split(keys[0], (sizes.batch, sizes.frames))


class NoProjection(nnx.Module):
    """The features are the tokens.

    Args:
        width: C of the features.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        del rngs
        self.width = width

    def __call__(self, features: Float[Array, "... F"]) -> Float[Array, "... F"]:
        return features

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing: nothing is random."""


class SlotModel(nnx.Module):
    """A composition of named parts; `build.py` makes them from a config.

    See `interfaces.py` for the parts.

    Args:
        transition: None for a model of images.
        pruning: None for a model without.
        target_encoder: the frozen encoder of the target, for a model that trains its encoder.
        tokenizer: the tokenizer of the decoder's target, for a model that trains it along.
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
        pruning: Pruning | None = None,
        *,
        target_encoder: Encoder | None = None,
        tokenizer: Tokenizer | None = None,
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
        self.pruning = pruning
        self.target_encoder = target_encoder
        self.tokenizer = tokenizer
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
            of_sizes = sizes
            if name == "aggregator" and self.pruning is not None:
                # The extra aggregation has the draws of one more frame.
                of_sizes = sizes._replace(frames=sizes.frames + 1)
            draw = getattr(part, "draw", None)  # a projection may have none
            drawn[name] = None if draw is None else draw(of_part, of_sizes, training)
        return drawn

    def encode(
        self,
        video: Array,
        cameras: Array | None = None,
        encoder: Encoder | None = None,
        also: tuple[str, ...] = (),
    ) -> dict[str, Float[Array, "B T M C"]]:
        """Encode all frames in one batch; the outputs have the model's dtype.

        Args:
            video: (B,T,H,W,3) uint8, or floats as the encoder takes them.
            cameras: (B,T,...) for an encoder that takes them. An encoder of scenes sees all frames
                as the views of one scene, and the features have T = 1.
            encoder: None: the model's own.
            also: outputs besides the features, among the encoder's `extras`.
        """
        encoder = self.encoder if encoder is None else encoder
        if getattr(encoder, "of_scenes", False):
            views = jax.lax.stop_gradient(normalize(video, encoder))
            found = encoder(views, cameras)
            return {name: x.astype(self.dtype)[:, None] for name, x in found.items()}
        frames = normalize(video.reshape(-1, *video.shape[2:]), encoder)
        # Also in front of the encoder: the fastest attention of frozen blocks may have no gradient.
        frames = jax.lax.stop_gradient(frames)
        more = () if cameras is None else (cameras.reshape(-1, *cameras.shape[2:]),)
        unfold = lambda x: x.astype(self.dtype).reshape(*video.shape[:2], *x.shape[1:])  # noqa: E731
        asked = {"also": also} if also else {}
        return jax.tree.map(unfold, encoder(frames, *more, **asked))

    def tokenize(
        self,
        video: Array,
        features: Float[Array, "B T M C"],
        draws: Draws,
        scheduled: Scheduled | None = None,
    ) -> dict[str, Array]:
        """Apply the tokenizer that is trained along to all frames.

        Args:
            video: (B,T,H,W,3) uint8, or floats as the tokenizer takes them.
            features: the encoder's, for a tokenizer that reads them.
            draws: its draws (B,T,...), or None.
            scheduled: the current values of its schedules.

        Returns:
            `tokens` (B,T,M), a constant; and, for losses, its outputs with `tokenizer.` in front,
            with `tokenizer.target` (B,T,H',W',3), the pixels to decode. All floats are float32.
        """
        frames = jax.lax.stop_gradient(normalize(fold(video), self.tokenizer))
        read = frames if self.tokenizer.reads == "pixels" else fold(features)
        found = self.tokenizer(read, jax.tree.map(fold, draws), scheduled or {})
        found = {**found, "target": self.tokenizer.target(frames)}
        batch = len(video)
        outputs = {f"{TOKENIZER}.{name}": floats(unfold(x, batch)) for name, x in found.items()}
        return {"tokens": outputs.pop(f"{TOKENIZER}.tokens"), **outputs}

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
            scheduled: the current values of the parts' schedules, by part. At evaluation,
                `asked.as_scheduled` prunes any model, in place of its own pruning, runs another
                number of iterations, and starts anew at cuts and where slots explain nothing.

        Returns:
            slots (B,T,N,D); attention (B,T,N,h,w) of each frame's last iteration; first_tokens
            (B,M,C), first_attention (B,I,N,h,w) and first_states (B,I,N,D) of all iterations on
            the first frame; prediction (B,T,M,C), unless the decoder predicts logits alone, and
            each part of it, such as flow.prediction, where the target has several;
            next_frame_logits (B,T,M,M) if it predicts them, over the patches of the next frame;
            masks (B,T,N,h,w) if the decoder has masks; queries (B,N,D) and the initializer's
            extras, such as warm_queries. All of them are float32. With a slot mask, also slot_mask
            (B,N), bool. Also the aggregator's outputs of every frame, as of one that may stop
            early `iterations` (B,T), int32: how many each frame has had.

            With pruning, slot_mask has the slots that stay, (B,T,N) if each frame is pruned on its
            own; the slots of the others are 0. extra_attention (B,J,N,h,w) is that of the extra
            iterations on the first frame. With pruning that was asked for, also `carry`, for
            `follow`. Where slots may start anew, also `carry`, and `cold` (B,T), bool: the frames
            on which all of them did; slot_mask is (B,T,N) then, if there is one.

        Raises:
            UserError: there is more than one frame but no transition, or slots start from boxes
                and there are none.
        """
        num_frames = features.shape[1]
        drawn = draws.get("projection")
        more = () if drawn is None else (drawn,)
        tokens = self.projection(features.astype(self.dtype), *more)
        first, pruned, extras = self._first_frame(
            tokens[:, 0], draws, None if boxes is None else boxes[:, 0], slot_mask, scheduled
        )
        asked, anew = _asked(scheduled), asked_anew(scheduled)
        found, carry = _found(self.aggregator, first, pruned, asked)
        if anew is not None:
            inputs = features[:, 0], _of_frame(given, 0)
            watch = self._watched(found, carry, *inputs, slot_mask, draws, scheduled)
            found, carry = _with_masks(found, carry, True), carry._replace(watch=watch)
        frames = jax.tree.map(lambda x: x[:, None], found)
        if num_frames > 1 and anew is not None:
            inputs = tokens, features, given, draws
            later, carry = self._later_frames_anew(carry, *inputs, scheduled)
            frames = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), frames, later)
        elif num_frames > 1:
            later, carry = self._later_frames(carry, tokens, draws, scheduled)
            frames = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), frames, later)

        outputs = {
            **self._outputs(frames, carry, asked, given, draws["decoder"], scheduled),
            "first_attention": self._on_grid(first.attention.swapaxes(0, 1)),
            "first_states": first.states.swapaxes(0, 1),
            "first_tokens": tokens[:, 0],
            **extras,
        }
        if pruned is not None and pruned.extra is not None:
            outputs["extra_attention"] = self._on_grid(pruned.extra.swapaxes(0, 1))
        # Losses and metrics are float32.
        outputs = {name: x.astype(jnp.float32) for name, x in outputs.items()}
        kept = first.slot_mask if pruned is None else pruned.kept
        kept = kept if frames.kept is None else frames.kept
        outputs |= {} if asked is None and anew is None else {"carry": carry}
        outputs |= _told(frames)
        return outputs if kept is None else {**outputs, "slot_mask": kept}

    def follow(
        self,
        features: Float[Array, "B 1 M C"],
        given: Mapping[str, Array],
        carry: Carry,
        memory: Any = None,
        scheduled: Scheduled | None = None,
    ) -> tuple[dict[str, Array], Carry, Any]:
        """Process one more frame of a video at evaluation.

        Args:
            features: features of this frame.
            given: what the decoder may see of this frame's target, by name.
            carry: slots of the previous frame and the slot mask.
            memory: what `follow` returned for the previous frame; None after a first frame.
            scheduled: as for a call of the model.

        Returns:
            slots, attention, prediction, masks, slot_mask if each frame may have its own, the
            aggregator's outputs of every frame and cold, as a call of the model returns them; and
            carry and memory for the next frame.

        Raises:
            UserError: the model has no transition.
        """
        tokens, asked = self.projection(features[:, 0].astype(self.dtype)), _asked(scheduled)
        if asked_anew(scheduled) is None:
            frame, carry, memory = self._next_frame(carry, tokens, memory, scheduled)
        else:
            inputs = tokens, features[:, 0], _of_frame(given, 0), None
            frame, carry, memory = self._next_frame_anew(carry, *inputs, memory, scheduled)
        frames = jax.tree.map(lambda x: x[:, None], frame)
        outputs = self._outputs(frames, carry, asked, given, None, scheduled)
        outputs = {name: x.astype(jnp.float32) for name, x in outputs.items()}
        kept = {} if frames.kept is None else {"slot_mask": frames.kept}
        return {**outputs, **kept, **_told(frames)}, carry, memory

    def _on_grid(self, x: Float[Array, "*B M"]) -> Float[Array, "*B h w"]:
        width = self.encoder.grid[1]
        # The views of a scene are one below the other.
        return x.reshape(*x.shape[:-1], x.shape[-1] // width, width)

    def _outputs(
        self,
        frames: "_Frame",
        carry: Carry,
        asked: Prune | None,
        given: Mapping[str, Array] | None,
        draws: Draws,
        scheduled: Scheduled | None,
    ) -> dict[str, Array]:
        """Return slots, attention, prediction and masks of frames (B,T,...)."""
        merges = asked is not None and asked.merges
        outputs = {"slots": frames.slots, "attention": self._on_grid(frames.attention)}
        needed = getattr(self.decoder, "needs", ())
        of_frames = frames.shown if merges else frames.kept
        if given is not None and all(name in given for name in needed):
            seen = carry.slot_mask if of_frames is None else of_frames
            outputs |= self._decoded(frames.slots, given, draws, seen, scheduled)
        if merges:
            owner = carry.owner[:, None] if frames.owner is None else frames.owner
            owner = jnp.broadcast_to(owner, frames.slots.shape[:3])
            for name in outputs.keys() & {"attention", "masks"}:
                outputs[name] = united(outputs[name], owner)
            stays = owner == jnp.arange(owner.shape[-1])
            if of_frames is not None:
                stays = stays & of_frames
            elif carry.slot_mask is not None:
                stays = stays & carry.slot_mask[:, None]
            outputs["slots"] = zeroed(frames.slots, stays)
        elif asked is not None or self.pruning is not None:
            stays = carry.slot_mask[:, None] if frames.kept is None else frames.kept
            outputs["slots"] = zeroed(frames.slots, stays)
        return outputs

    def decode(
        self,
        slots: Float[Array, "B T N D"],
        slot_mask: Bool[Array, "B N"] | Bool[Array, "B T N"] | None,
    ) -> Float[Array, "B T M C"]:
        """Return the prediction of slots, float32, by a decoder that sees nothing else.

        Raises:
            UserError: the decoder predicts the target from the target itself.
        """
        return self.decoded(slots, slot_mask)["prediction"]

    def decoded(
        self,
        slots: Float[Array, "B T N D"],
        slot_mask: Bool[Array, "B N"] | Bool[Array, "B T N"] | None,
    ) -> dict[str, Array]:
        """Return `prediction` and, if the decoder has some, `masks` of slots, float32.

        Raises:
            UserError: the decoder predicts the target from the target itself.
        """
        try:
            found = self._decoded(slots.astype(self.dtype), {}, None, slot_mask)
        except KeyError as error:
            raise UserError(
                f"this model's decoder needs {error} besides the slots, so that there is no "
                "picture of slots alone; use a model with another decoder"
            ) from error
        return {name: x.astype(jnp.float32) for name, x in found.items()}

    def _decoded(
        self,
        slots: Float[Array, "B T N D"],
        given: Mapping[str, Array],
        draws: Draws,
        slot_mask: Bool[Array, "B N"] | Bool[Array, "B T N"] | None,
        scheduled: Scheduled | None = None,
    ) -> dict[str, Array]:
        """Return the decoder's prediction and masks, computed for all frames in one batch."""
        batch, num_frames = slots.shape[:2]
        exact = getattr(self.decoder, "exact", ())
        given = {
            name: fold(x) if name in exact else fold(x).astype(self.dtype)
            for name, x in given.items()
        }
        folded_mask = slot_mask
        if slot_mask is not None:
            of_frames = slot_mask.ndim == 3
            folded_mask = (
                fold(slot_mask) if of_frames else jnp.repeat(slot_mask, num_frames, axis=0)
            )
        more = _current(self.decoder, "decoder", scheduled)
        drawn = jax.tree.map(fold, draws)
        prediction, masks = self.decoder(fold(slots), folded_mask, given, drawn, **more)
        if isinstance(prediction, Mapping):
            found = {name: unfold(x, batch) for name, x in prediction.items()}
        else:
            logits = getattr(self.decoder, "logits", False)
            found = taken_apart(unfold(prediction, batch), logits, self.encoder.grid)
        for name, channels in getattr(self.target, "parts", {}).items():
            found[f"{name}.prediction"] = found["prediction"][..., channels]
        return found if masks is None else {**found, "masks": unfold(masks, batch)}

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
            What the aggregator found, with the slots and the slot mask that pruning leaves; and the
            queries with the initializer's extras.
        """
        found, pruned, extras = self._first_frame(tokens, draws, boxes, slot_mask, scheduled)
        if pruned is not None:
            found = found._replace(slots=pruned.slots, slot_mask=pruned.kept)
        return found, extras

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
        frame, _, memory = self._next_frame(Carry(slots, slot_mask), tokens, memory, None)
        return frame.slots, frame.attention, memory

    def _first_frame(self, tokens, draws, boxes, slot_mask, scheduled):
        """Return what the aggregator found, what pruning left (None without it), and extras."""
        of_initializer = (scheduled or {}).get("initializer", {})
        queries, extras = self.initializer(
            tokens, boxes, slot_mask, draws["initializer"], of_initializer
        )
        prepared = self.aggregator.prepare(tokens)
        of_frame = jax.tree.map(lambda x: x[:, 0], draws.get("aggregator"))
        more = _current(self.aggregator, "aggregator", scheduled)
        number = asked_iterations(scheduled, first=True)
        found = self.aggregator(
            prepared, queries, slot_mask, of_frame, first=True, **number, **more
        )
        # `_found` takes what later frames have as well.
        of_all = _of_frames(self.aggregator, found)
        of_losses = {name: x for name, x in found.extras.items() if name not in of_all}
        extras = {"queries": queries, **extras, **of_losses}
        pruning = _asked(scheduled) or self.pruning
        if pruning is None:
            return found, None, extras
        # Draws of one more frame, where the model has a pruning of its own.
        drawn = jax.tree.map(lambda x: x[:, -1], draws.get("aggregator"))
        values = (scheduled or {}).get("pruning", {})
        pruned = prune_frame(
            pruning, values, self.aggregator, prepared, queries, found, drawn, first=True, **more
        )
        return found, pruned, extras

    def _next_frame(self, carry, tokens, memory, scheduled):
        """Return a later frame at evaluation, and carry and memory for the next one."""
        self._check_transition("a further frame")
        carry = carry._replace(slots=carry.slots.astype(self.dtype))
        queries, memory = self._queries(carry, tokens, memory, scheduled)
        inputs = self.aggregator.prepare(tokens), queries, carry, None
        return *_aggregated(self.aggregator, *inputs, scheduled), memory

    def _queries(self, carry, tokens, memory, scheduled):
        """Return the queries that follow the previous frame's slots, and the new memory."""
        if memory is None:
            memory = self.transition.start(carry.slots, None)
        # `prepare` ignores the first frame, so any tokens will do.
        pair = jnp.stack([tokens, tokens], axis=1)
        of_frame = jax.tree.map(lambda x: x[:, 0], self.transition.prepare(pair, None))
        more = _current(self.transition, "transition", scheduled)
        return self.transition(carry.slots, memory, of_frame, carry.slot_mask, **more)

    # -------------------------------------------------------------------------- starting anew

    def _watched(self, frame, carry, features, given, slot_mask, draws, scheduled) -> Watch:
        """Return what later frames have to know of a first one."""
        anew, errors = asked_anew(scheduled), None
        if anew.signal == "error":
            errors = first_errors(self._error(frame, carry, given, scheduled))
        weak = explains_nothing(frame.attention, anew).astype(jnp.int32)
        return Watch(features, errors, weak, slot_mask, draws["initializer"])

    def _error(self, frame, carry, given, scheduled) -> Float[Array, " B"]:
        """Return the decoder's error of each sample of a frame.

        Raises:
            UserError: the decoder predicts no target that pictures alone tell.
        """
        frames = jax.tree.map(lambda x: x[:, None], frame)
        unfolded = {name: x[:, None] for name, x in (given or {}).items()}
        inputs = frames, carry, _asked(scheduled), unfolded
        prediction = self._outputs(*inputs, None, scheduled).get("prediction")
        target = unfolded.get("target")
        if prediction is None or target is None or prediction.shape != target.shape:
            raise UserError(
                "cut_signal='error' needs a decoder that predicts its target place by place, and "
                "this model's does not; use cut_signal='features'"
            )
        difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
        return jnp.square(difference).mean(axis=(1, 2, 3))

    def _next_frame_anew(self, carry, tokens, features, given, drawn, memory, scheduled):
        """Return a later frame at evaluation, in which samples and slots may start anew.

        What is costly runs only if a sample of the batch needs it; which one changes nothing for
        the others.
        """
        anew, asked, watch = asked_anew(scheduled), _asked(scheduled), carry.watch
        carry = carry._replace(slots=carry.slots.astype(self.dtype), watch=None)
        start = lambda slots: self.transition.start(slots, None)  # noqa: E731
        queries, after = self._queries(carry, tokens, memory, scheduled)
        prepared, weak = self.aggregator.prepare(tokens), watch.weak
        if anew.requery is not None:
            lost = weak >= PATIENCE
            lost = lost if carry.slot_mask is None else lost & carry.slot_mask
            queries = self._requeried(queries, lost, tokens, watch)
            weak = jnp.where(lost, 0, weak)
        frame, carry = _aggregated(self.aggregator, prepared, queries, carry, drawn, scheduled)
        frame = _with_masks(frame, carry, False)
        if anew.requery is not None and asked is not None and not (asked.merges or asked.renews):
            inputs = prepared, queries, drawn, tokens, watch
            frame, carry = self._given_to_entering(frame, carry, *inputs, scheduled)

        cut = jnp.zeros(len(tokens), bool)
        error = None
        if anew.signal == "features":
            cut = feature_distance(watch.features, features) > anew.threshold
        elif anew.signal == "error":
            error = self._error(frame, carry, given, scheduled)
            cut = relative_error(watch.errors, error) > anew.threshold

        def first():
            of_frame = jax.tree.map(lambda x: x[:, None], drawn)
            draws = {"initializer": watch.draws, "aggregator": of_frame}
            found, pruned, _ = self._first_frame(tokens, draws, None, watch.slot_mask, scheduled)
            new, after_new = _found(self.aggregator, found, pruned, asked)
            new_error = None
            if error is not None:
                new_error = self._error(new, after_new, given, scheduled)
            return _with_masks(new, after_new, True), after_new, start(after_new.slots), new_error

        so_far = frame, carry, after, error
        if anew.signal is not None:
            new = jax.lax.cond(jnp.any(cut), first, lambda: so_far)
            frame, carry, error = per_sample(cut, (new[0], new[1], new[3]), (frame, carry, error))
            after = of_memory(cut, new[2], after, start, carry.slots)
        nothing = explains_nothing(frame.attention, anew)
        weak = jnp.where(nothing, jnp.where(cut[:, None], 0, weak) + 1, 0)
        errors = None if error is None else remembered(watch.errors, error, cut)
        watch = watch._replace(features=features, errors=errors, weak=weak)
        return frame, carry._replace(watch=watch), after

    def _requeried(self, queries, lost, tokens, watch) -> Float[Array, "B N D"]:
        """Return the queries, new ones where slots are lost."""

        def new():
            found, _ = self.initializer(tokens, None, watch.slot_mask, watch.draws, {})
            return jnp.where(lost[..., None], found.astype(queries.dtype), queries)

        return jax.lax.cond(jnp.any(lost), new, lambda: queries)

    def _given_to_entering(self, frame, carry, prepared, queries, drawn, tokens, watch, scheduled):
        """Give slots that pruning has left out to objects that have entered.

        All of these slots start anew beside the others. Those that then have tokens of their own,
        and are not redundant, stay from now on; where there are none, nothing has happened.
        """
        anew, asked, aggregator = asked_anew(scheduled), _asked(scheduled), self.aggregator
        stays = carry.slot_mask
        valid = jnp.ones_like(stays) if watch.slot_mask is None else watch.slot_mask
        free = valid & ~stays
        more = {"first": False, **_current(aggregator, "aggregator", scheduled)}
        more |= asked_iterations(scheduled, first=False)

        def tried():
            start = self._requeried(queries, free, tokens, watch)
            found = aggregator(prepared, start, valid, drawn, **more)
            last = found.attention[-1]
            new = admitted(asked, found.slots, last, stays, valid)
            new = new & ~explains_nothing(last, anew)
            kept, slots = stays | new, found.slots
            if asked.restart == "none":
                last = alone(last, kept)
            else:
                start = slots if asked.restart == "slots" else start
                number = {"iterations": asked.iterations}
                again = aggregator(prepared, start, kept, drawn, **(more | number))
                slots, last = again.slots, again.attention[-1]
            slots = zeroed(slots, kept)
            joined = frame._replace(slots=slots, attention=last, kept=kept)
            after = carry._replace(slots=slots, slot_mask=kept)
            return per_sample(new.any(axis=1), (joined, after), (frame, carry))

        return jax.lax.cond(jnp.any(free), tried, lambda: (frame, carry))

    def _later_frames_anew(self, carry, tokens, features, given, draws, scheduled):
        """Return the frames after the first, (B,T-1,...), and the carry after the last."""
        self._check_transition(f"clips of {tokens.shape[1]} frames")
        carry = carry._replace(slots=carry.slots.astype(self.dtype))
        frames_first = lambda x: jnp.moveaxis(x[:, 1:], 1, 0)  # noqa: E731

        def step(state, inputs):
            frame, after, memory = self._next_frame_anew(state[0], *inputs, state[1], scheduled)
            after = after._replace(slots=after.slots.astype(self.dtype))
            return (after, memory), frame

        last = tokens.shape[1]
        drawn = jax.tree.map(lambda x: x[:, :last], draws.get("aggregator"))
        inputs = jax.tree.map(frames_first, (tokens, features, dict(given or {}), drawn))
        memory = self.transition.start(carry.slots, None)
        (carry, _), frames = jax.lax.scan(step, (carry, memory), inputs)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), frames), carry

    def _check_transition(self, found: str) -> None:
        if self.transition is None:
            raise UserError(
                f"this model has no transition and got {found}: give single images, or set "
                "model.transition.name"
            )

    def _later_frames(self, carry, tokens, draws, scheduled):
        """Return the frames after the first, (B,T-1,...), and the carry after the last."""
        self._check_transition(f"clips of {tokens.shape[1]} frames")
        later = tokens.shape[1] - 1
        # Compute what depends on the tokens alone for all frames at once.
        of_transition = self.transition.prepare(tokens, draws["transition"])
        of_aggregator = self.aggregator.prepare(tokens[:, 1:])
        memory = self.transition.start(carry.slots, draws["transition"])
        # Weights stay float32 outside the loop, so that their gradients are summed over frames in
        # float32.
        definition, weights = nnx.split((self.transition, self.aggregator))
        weights = _floats_as(jnp.float32, weights)
        drawn = jax.tree.map(lambda x: x[:, 1 : later + 1], draws.get("aggregator"))

        def step(state, inputs):
            slots, memory = state
            parts = nnx.merge(definition, _floats_as(self.dtype, weights))
            found, after, memory = _next(
                parts, carry._replace(slots=slots), memory, inputs, scheduled
            )
            return (after.slots, memory), found

        frames_first = lambda x: jnp.moveaxis(x, 1, 0)  # noqa: E731
        inputs = jax.tree.map(frames_first, (of_transition, of_aggregator, drawn))
        if self.remat in ("recurrence", "all"):
            step = jax.checkpoint(step, prevent_cse=False)  # inside a scan nothing can be merged
        unroll = self.scan_unroll or (later if self.backend.is_gpu else 1)
        (slots, _), frames = jax.lax.scan(step, (carry.slots, memory), inputs, unroll=unroll)
        frames = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), frames)
        return frames, carry._replace(slots=slots)


class _Frame(NamedTuple):
    """What is decoded of a frame.

    Attributes:
        slots: the slots.
        attention: of the last iteration.
        kept: the slots that stay, if each frame is pruned on its own; otherwise None.
        owner: whose mask each slot's is added to, if each frame merges on its own.
        shown: the slots that are decoded before masks are united, if each frame has its own.
        cold: whether all slots start on it, where they may start anew.
        extras: what the aggregator tells of every frame, without its part in pruning.
    """

    slots: Float[Array, "B N D"]
    attention: Float[Array, "B N M"]
    kept: Bool[Array, "B N"] | None = None
    owner: Int[Array, "B N"] | None = None
    shown: Bool[Array, "B N"] | None = None
    cold: Bool[Array, " B"] | None = None
    extras: Mapping[str, Array] = MappingProxyType({})


def _of_frames(aggregator: Aggregator, found: Aggregated) -> dict[str, Array]:
    """Return the extras that an aggregator tells of every frame."""
    names = getattr(aggregator, "of_frames", ())
    return {name: found.extras[name] for name in names if name in found.extras}


def _next(
    parts: tuple[Transition, Aggregator],
    carry: Carry,
    memory: Any,
    inputs: tuple[Any, Any, Draws],
    scheduled: Scheduled | None,
) -> tuple[_Frame, Carry, Any]:
    """Aggregate a later frame.

    Args:
        parts: the transition and the aggregator.
        carry: of the previous frame.
        memory: the transition's.
        inputs: what the transition's and the aggregator's `prepare` returned for this frame, and
            the aggregator's draws.
        scheduled: as for a call of the model.

    Returns:
        The frame, and carry and memory for the next one.
    """
    (transition, aggregator), (of_transition, prepared, drawn) = parts, inputs
    more = _current(transition, "transition", scheduled)
    queries, memory = transition(carry.slots, memory, of_transition, carry.slot_mask, **more)
    return *_aggregated(aggregator, prepared, queries, carry, drawn, scheduled), memory


def _aggregated(
    aggregator: Aggregator,
    prepared: Any,
    queries: Float[Array, "B N D"],
    carry: Carry,
    drawn: Draws,
    scheduled: Scheduled | None,
) -> tuple[_Frame, Carry]:
    """Do what `_next` does, given the frame's queries."""
    asked = _asked(scheduled)
    more = {"first": False, **_current(aggregator, "aggregator", scheduled)}
    number = asked_iterations(scheduled, first=False)
    found = aggregator(prepared, queries, carry.slot_mask, drawn, **number, **more)
    if asked is None or not asked.renews:
        frame, _ = _found(aggregator, found, None, None)
        return frame, carry._replace(slots=found.slots)
    pruned = prune_frame(asked, {}, aggregator, prepared, queries, found, drawn, **more)
    return _found(aggregator, found._replace(slot_mask=carry.slot_mask), pruned, asked)


def _with_masks(frame: _Frame, carry: Carry, cold: bool) -> _Frame:
    """Return a frame with its own masks of slots, which may change where slots start anew."""
    kept, owner = frame.kept, frame.owner
    owner = carry.owner if owner is None else owner
    kept = carry.slot_mask if kept is None else kept
    if carry.owner is not None and kept is not None:  # masks are united, by the first frame
        kept = kept & (owner == jnp.arange(owner.shape[1]))
    started = jnp.full(len(frame.slots), cold)
    return frame._replace(kept=kept, owner=owner, shown=carry.slot_mask, cold=started)


def _told(frames: _Frame) -> dict[str, Array]:
    """Return what is told of frames (B,T, ...) besides what is decoded; floats are float32."""
    cold = {} if frames.cold is None else {"cold": frames.cold}
    return {**_floats_as(jnp.float32, dict(frames.extras)), **cold}


def _of_frame(given: Mapping[str, Array] | None, frame: int) -> dict[str, Array]:
    return {name: x[:, frame] for name, x in (given or {}).items()}


def _found(
    aggregator: Aggregator, first: Aggregated, pruned: Pruned | None, asked: Prune | None
) -> tuple[_Frame, Carry]:
    """Return what is decoded of a frame that was pruned, and what the next one starts from."""
    extras = _of_frames(aggregator, first)
    if pruned is None:
        frame = _Frame(first.slots, first.attention[-1], extras=extras)
        return frame, Carry(first.slots, first.slot_mask)
    frame = _Frame(pruned.slots, pruned.attention, extras=extras)
    if asked is not None and asked.renews:
        stays = jnp.where(pruned.kept[..., None], pruned.slots, first.slots)
        owner = pruned.owner if asked.merges else None
        return frame._replace(kept=pruned.kept, owner=owner), Carry(stays, first.slot_mask)
    if asked is not None and asked.merges:
        return frame, Carry(first.slots, first.slot_mask, pruned.owner)
    return frame, Carry(pruned.slots, pruned.kept)


def _asked(scheduled: Scheduled | None) -> Prune | None:
    """Return the pruning that was asked for at evaluation."""
    return (scheduled or {}).get("pruning", {}).get("asked")


def _current(part: Any, name: str, scheduled: Scheduled | None) -> dict[str, Any]:
    """Return the keyword that a part with scheduled settings gets, and no other part."""
    if not getattr(part, "scheduled", ()):
        return {}
    return {"scheduled": (scheduled or {}).get(name, {})}


def _floats_as(dtype: jnp.dtype, arrays: Any) -> Any:
    """Cast the floating-point arrays of a tree; counters and the like stay."""
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, arrays)
