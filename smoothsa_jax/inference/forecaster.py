"""A trained rollouter for videos: the slots, and masks, of frames that nobody has seen yet."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.sources import Trained
from smoothsa_jax.config.values import canonical
from smoothsa_jax.devices.compiling import at_precision
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inference.segmentation import Segmentation
from smoothsa_jax.inference.segmenter import Segmenter, checksum_of
from smoothsa_jax.inputs.resize import resize_pixels
from smoothsa_jax.models.encoders.pixels import denormalize
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.rollouters import interleaved
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.frozen_slots import SLOT_MODEL

BLANK = 40  # the gray of a frame of which only masks are predicted


class Forecaster:
    """A rollouter with its slot model; `load.load_forecaster` makes one.

    Args:
        trained: a run of the task `dynamics`, with the arrays of its companion.

    Attributes:
        segmenter: the slot model.
        config: the whole config of the rollouter.
        step: number of training steps done.

    Raises:
        UserError: it is a run of another task, or its decoder decodes no masks of slots alone.
    """

    def __init__(self, trained: Trained):
        config = trained.config
        if config.task != "dynamics":
            raise UserError(
                f"--future predicts with a rollouter, but {trained.what} holds a model of the task "
                f"{config.task!r}; train one with the word 'dynamics', or leave --future out"
            )
        self.config, self.step = config, trained.step
        task = build_task(config)
        if not task.evaluator.tells_masks:
            raise UserError(
                f"the slot model of {trained.what} has the decoder "
                f"{task.slot_model.decoder.name!r}, which tells no masks of slots alone, so that "
                "there are none of predicted frames; use a run with another decoder"
            )
        self.segmenter = Segmenter(_of_slots(config), trained.slot_model, trained.step)
        self._definition, params, frozen = split(task.build(shapes_only=True), config.dtype)
        expected = {**params, **frozen}
        self._params = {name: jnp.asarray(trained.arrays[name]) for name in expected}
        rollouter = self._definition.skeleton().rollouter
        self.fewest = rollouter.history * rollouter.every
        self.most = rollouter.window * rollouter.every

        def run(arrays: Any, past: Array, mask: Array, steps: int) -> dict[str, Array]:
            of_rollouter, of_slots = arrays
            own = self._definition.merge(of_rollouter, differentiated=False).rollouter
            model = self.segmenter.definition.merge(of_slots, differentiated=False)
            slots = interleaved(own, past, steps, mask)
            return {"slots": slots, **model.decoded(slots, mask)}

        self._run = jax.jit(at_precision(run, config), static_argnums=3)

    @functools.cached_property
    def checksum(self) -> int:
        """A CRC-32 checksum of the rollouter's weights."""
        return checksum_of(self._params)

    def future(
        self, past: Sequence[Segmentation], steps: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "H W 3"], Segmentation]]:
        """Predict the frames after some of a video.

        Args:
            past: of each observed frame, as `Segmenter.stream` gives them; at least `fewest`, of
                which the last `most` count.
            steps: number of frames to predict.

        Yields:
            Each predicted frame: its picture, if the decoder tells pixels, or a gray one; and its
            segmentation, whose attention is the decoder's.

        Raises:
            UserError: there are too few frames.
        """
        if len(past) < self.fewest:
            raise UserError(
                f"there are {len(past)} frames, but the rollouter continues at least "
                f"{self.fewest}; give a longer video"
            )
        last = past[-1]
        slots = np.stack([found.slots for found in past[-self.most :]])[None]
        mask, arrays = last.slot_mask[None], (self._params, self.segmenter.params)
        found = self._run(arrays, slots, mask, steps)
        size = tuple(map(int, last.masks.shape))
        segments = np.asarray(segments_from_masks(found["masks"], size, mask))[0]
        predicted, masks = (np.asarray(found[name])[0] for name in ("slots", "masks"))
        pictures = self._pictures(found, size)
        unknown = np.full(masks.shape[-2:], np.nan, np.float32)
        for k in range(steps):
            yield (
                pictures[k],
                Segmentation(
                    slots=predicted[k],
                    masks=segments[k],
                    attention=masks[k],
                    decoder_attention=masks[k],
                    reconstruction_error=unknown,
                    slot_mask=last.slot_mask,
                    cold=np.array(False),
                ),
            )

    def _pictures(self, found: Mapping[str, Array], size: tuple[int, int]) -> np.ndarray:
        """Return the pictures (K,H,W,3) that the decoder tells, or gray ones."""
        steps, target = found["slots"].shape[1], self.segmenter.definition.skeleton().target
        if not getattr(target, "of_pixels", False):
            return np.full((steps, *size, 3), BLANK, np.uint8)
        pixels = found["prediction"][0].reshape(steps, *target.grid, 3)
        colors = jnp.clip(denormalize(pixels, target.pixels), 0.0, 1.0)
        return resize_pixels(np.asarray(jnp.rint(255.0 * colors).astype(jnp.uint8)), size)


def _of_slots(config: ConfigDict) -> ConfigDict:
    """Return a config of the slot model alone."""
    own = config.copy_and_resolve_references().unlock()
    companion = own.companions[SLOT_MODEL]
    own.task, own.model = "discovery", companion.model
    own.title = companion.get("title") or own.title
    own.companions = ConfigDict()
    own.losses = ConfigDict({"reconstruction": {"weight": 1.0}})
    own.weights = ConfigDict({"encoder": {"into": "encoder", "source": "random", "frozen": ("*",)}})
    own.eval.observed = None
    own.data.slots = ""
    return canonical(own)
