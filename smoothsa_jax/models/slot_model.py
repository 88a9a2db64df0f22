"""SlotModel: frames -> features -> queries -> slots -> reconstruction (method sections 1 and 2).

One model serves images and videos: an image is a video of one frame.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.backend import CPU
from smoothsa_jax.models.draws import Draws
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.initializers import Initializer
from smoothsa_jax.models.layers.basic import MLP, layer_norm, split_key
from smoothsa_jax.models.transitions import Transition, push, recall


class Projection(nnx.Module):
    """LayerNorm, Linear, GELU, Linear: features -> encoded features, both of width C."""

    def __init__(self, feature_size: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(feature_size, rngs=rngs)
        self.mlp = MLP((feature_size,) * 3, zero_bias=True, rngs=rngs)

    def __call__(self, features: Float[Array, "... C"]) -> Float[Array, "... C"]:
        return self.mlp(self.norm(features))


class SlotModel(nnx.Module):
    """A composition of named parts; `build.py` makes them from a config.

    Args:
        backbone: frozen; images (B,H,W,3) -> features (B,M,C).
        first_iterations: of slot attention on the first frame.
        later_iterations: on every later frame.
        transition: slots to the next frame's queries; None for a model of images.
        decoder: features, slots -> reconstruction, attention.
    """

    backend = CPU

    def __init__(
        self,
        backbone: nnx.Module,
        projection: Projection,
        initializer: Initializer,
        slot_attention: SlotAttention,
        transition: Transition | None,
        decoder: nnx.Module,
        *,
        first_iterations: int,
        later_iterations: int,
    ):
        self.backbone = backbone
        self.projection = projection
        self.initializer = initializer
        self.slot_attention = slot_attention
        self.transition = transition
        self.decoder = decoder
        self.first_iterations = first_iterations
        self.later_iterations = later_iterations
        self.remat, self.scan_unroll = "none", 0

    def set_memory_options(self, remat: str, scan_unroll: int) -> None:
        """Chooses between time and memory in the gradient; values stay the same.

        Args:
            remat: what is computed again in the backward pass instead of kept: "none", each frame's step of the
                "recurrence", each layer of the "decoder", or "all" of these.
            scan_unroll: steps of the recurrence that are written out in a row; 1: a plain loop. 0: all of them on a GPU,
                where a loop costs kernels of its own, and 1 elsewhere.
        """
        self.remat, self.scan_unroll = remat, scan_unroll
        self.decoder.remat = remat in ("decoder", "all")

    @property
    def dtype(self) -> jnp.dtype:
        """In which it computes: that of its weights, see `ModelDefinition.merge`."""
        return self.slot_attention.query.kernel.dtype

    def extract(self, video: Array) -> Float[Array, "B T M C"]:
        """The frozen features of all frames, in one batch, in the model's dtype.

        `video` (B,T,H,W,3): uint8, or normalised floats.
        """
        frames = normalize(video.reshape(-1, *video.shape[2:]))
        # In front too: what frozen blocks are made of may have no gradient (`attention.takes_cudnn`).
        features = self.backbone(jax.lax.stop_gradient(frames)).astype(self.dtype)
        return features.reshape(*video.shape[:2], *features.shape[1:])

    def __call__(
        self,
        features: Float[Array, "B T M C"],
        draws: Draws,
        boxes: Float[Array, "B T N 4"] | None = None,
        slot_mask: Bool[Array, "B N"] | None = None,
        detach_warmer: bool | Bool[Array, ""] = False,
    ) -> dict[str, Array]:
        """From features to named outputs.

        Args:
            draws: all randomness; what is None there is off, as at evaluation.
            boxes: normalised left, top, right, bottom; only the first frame's are used.
            slot_mask: true = valid. Masked slots change nothing in the others' outputs.
            detach_warmer: whether the features enter the warmer behind a stop-gradient.

        Returns:
            warm_queries (B,N,D), absent without a warmer; slots (B,T,N,D); attention (B,T,N,M) of slot attention;
            decoder_attention (B,T,N,M); reconstruction (B,T,M,C); features (B,T,M,C). All float32.

        Raises:
            UserError: more than one frame and no transition, or no boxes where slots start from them.
        """
        batch, num_frames = features.shape[:2]
        features = features.astype(self.dtype)
        encoded = self.projection(features)
        warm_queries, slots, attention = self.first_frame(
            encoded[:, 0],
            draws,
            None if boxes is None else boxes[:, 0],
            slot_mask,
            detach_warmer,
        )
        slots, attention = slots[:, None], attention[:, None]
        if num_frames > 1:
            later = self._later_frames(slots[:, 0], encoded, draws, slot_mask)
            slots, attention = (
                jnp.concatenate(pair, axis=1)
                for pair in zip((slots, attention), later, strict=True)
            )

        fold = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])  # noqa: E731
        unfold = lambda x: x.reshape(batch, num_frames, *x.shape[1:])  # noqa: E731
        reconstruction, decoder_attention = self.decoder(
            fold(features),
            fold(slots),
            fold(draws.visible),
            None if slot_mask is None else jnp.repeat(slot_mask, num_frames, axis=0),
        )
        outputs = {
            "features": features,
            "slots": slots,
            "attention": attention,
            "decoder_attention": unfold(decoder_attention),
            "reconstruction": unfold(reconstruction),
        }
        if warm_queries is not None:
            outputs["warm_queries"] = warm_queries
        # Losses and metrics are float32.
        return {name: x.astype(jnp.float32) for name, x in outputs.items()}

    def first_frame(
        self,
        encoded: Float[Array, "B M C"],
        draws: Draws,
        boxes: Float[Array, "B N 4"] | None,
        slot_mask: Bool[Array, "B N"] | None,
        detach_warmer: bool | Bool[Array, ""] = False,
    ) -> tuple[Float[Array, "B N D"] | None, Float[Array, "B N D"], Float[Array, "B N M"]]:
        """Warm queries (None without a warmer), slots and slot attention of a first frame; arguments as for the model."""
        warm_queries, queries = self.initializer(
            encoded, draws.cold_noise, draws.query_noise, boxes, slot_mask, detach_warmer
        )
        return warm_queries, *self.slot_attention(
            encoded, queries, self.first_iterations, slot_mask
        )

    def next_frame(
        self,
        slots: Float[Array, "B N D"],
        encoded: Float[Array, "B M C"],
        slot_mask: Bool[Array, "B N"] | None,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B N M"]]:
        """Slots and slot attention of a frame at evaluation, from the slots of the frame before.

        Raises:
            UserError: the model has no transition.
        """
        self._check_transition("a further frame")
        ones = jnp.ones(slots.shape[0], jnp.int32)  # the slots' offset in time; the features' is 0
        slots = slots.astype(self.dtype)
        queries = self.transition(slots, encoded, ones, 0 * ones, slot_mask, None)
        return self.slot_attention(encoded, queries, self.later_iterations, slot_mask)

    def _check_transition(self, found: str) -> None:
        if self.transition is None:
            raise UserError(
                f"this model has no transition and got {found}: give single images, or set model.transition.name"
            )

    def _later_frames(self, first_slots, encoded, draws, slot_mask):
        """Slots (B,T-1,N,D) and attention (B,T-1,N,M) of the frames after the first."""
        self._check_transition(f"clips of {encoded.shape[1]} frames")
        batch, later = encoded.shape[0], encoded.shape[1] - 1
        if draws.slot_offset is None:  # always the previous slots and the current features
            slot_offset = jnp.ones((batch, later), jnp.int32)
            feature_offset = jnp.zeros((batch, later), jnp.int32)
            length = 1
        else:
            slot_offset, feature_offset = draws.slot_offset, draws.feature_offset
            length = self.transition.history - 1
        frame = jnp.arange(1, later + 1)[None, :] - feature_offset
        looked_at = jnp.take_along_axis(encoded, frame[:, :, None, None], axis=1)
        dropout_keys = None if draws.dropout is None else split_key(draws.dropout, later)
        # What depends on the features alone is computed for all frames at once.
        memory = self.transition.remember(looked_at, feature_offset)
        tokens = self.slot_attention.remember(encoded[:, 1:])
        # Float32 around the loop, so that the weights' gradients are summed over the frames in float32.
        definition, weights = nnx.split((self.transition, self.slot_attention))
        weights = jax.tree.map(lambda x: x.astype(jnp.float32), weights)

        def step(history, inputs):
            (memory_t, tokens_t, slot_offset_t), dropout_key = inputs
            narrow = jax.tree.map(lambda x: x.astype(self.dtype), weights)
            transition, slot_attention = nnx.merge(definition, narrow)
            past = recall(history, slot_offset_t)
            queries = transition.look(past, memory_t, slot_offset_t, slot_mask, dropout_key)
            slots, attention = slot_attention.iterate(
                tokens_t, queries, self.later_iterations, slot_mask
            )
            return push(history, slots), (slots, attention)

        history = jnp.broadcast_to(first_slots, (length, *first_slots.shape))
        frames_first = lambda x: jnp.moveaxis(x, 1, 0)  # noqa: E731
        inputs = jax.tree.map(frames_first, (memory, tokens, slot_offset)), dropout_keys
        if self.remat in ("recurrence", "all"):
            step = jax.checkpoint(step, prevent_cse=False)  # inside a scan nothing can be merged
        unroll = self.scan_unroll or (later if self.backend.is_gpu else 1)
        _, outputs = jax.lax.scan(step, history, inputs, unroll=unroll)
        return tuple(jnp.moveaxis(x, 0, 1) for x in outputs)
