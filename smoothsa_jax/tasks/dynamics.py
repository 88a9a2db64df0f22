"""Dynamics: train a rollouter to continue the slots of a frozen slot model (SlotFormer).

The config has the rollouter as `model.rollouter`, how many frames it learns to predict as
`model.future`, and the slot model as the companion `slot_model`. Slots of whole clips are constants
of a step: the frozen model finds them, or they were stored (`data.slots`). In training, a window of
frames is drawn from each clip; at evaluation, the frames after the first `eval.observed` are
predicted. No true slot of a predicted frame is ever seen, and the gradient passes through all
predicted frames. From Wu et al. 2023 (arXiv 2210.05861).

The loss `decoded` compares what the frozen decoder makes of predicted slots, so its gradient passes
through that decoder.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.prediction import MODEL as OWN
from smoothsa_jax.evaluation.prediction import SEEN as CEILING
from smoothsa_jax.evaluation.prediction import PredictionEvaluator
from smoothsa_jax.evaluation.split import Batch
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.losses.dynamics import FRAME_MASK
from smoothsa_jax.models.build import PARTS, ROLLOUTER, build_rollout_model, slot_model_shapes
from smoothsa_jax.models.interfaces import Draws, Scheduled, Sizes
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.rollouters import SEEN, interleaved
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.parts import check_whole, choose
from smoothsa_jax.tasks.discovery import (
    batch_reads,
    features_of,
    names_of,
    refuse_missing,
    target_of,
)
from smoothsa_jax.tasks.frozen_slots import (
    SLOT_MODEL,
    SLOTS,
    find_slots,
    refuse_other_parts,
    slot_model_of,
)
from smoothsa_jax.tasks.task import MODEL, Models, Outputs

START = "start"  # a draw (B,): the first frame of each window
DECODED = "prediction"  # what the loss `decoded` reads


class Dynamics:
    """See `task.Task`. The trained model is a `RolloutModel`."""

    untrained = "untrained rollouter"
    companions = (SLOT_MODEL,)
    averages = False
    whole_clips = True
    through = (SLOT_MODEL,)

    def __init__(self, config: ConfigDict):
        self._config = config
        self.slot_model = slot_model_of(config, "predicted")
        self.schedules: dict[str, dict[str, Any]] = {}
        refuse_other_parts(config, (ROLLOUTER, "future"))
        self._future = config.model.get("future")
        check_whole("model.future", self._future)
        self._decodes_in_training = DECODED in build_losses(config.losses).reads
        self.needs_pixels = self._decodes_in_training
        self._more = batch_reads(self.slot_model, config.losses)
        self.inputs = ("video", SLOTS, "boxes", "slot_mask", "num_frames", *self._more)

    @functools.cached_property
    def _shapes(self) -> Any:
        """The trained model, with shapes."""
        sizes = self.slot_model.num_slots, self.slot_model.slot_size
        return nnx.eval_shape(lambda: build_rollout_model(self._config.model, *sizes, 0))

    @functools.cached_property
    def _frozen_shapes(self) -> SlotModel:
        """The slot model, with shapes."""
        return slot_model_shapes(self.slot_model, image_size_of(self._config))

    @functools.cached_property
    def _decodes(self) -> tuple[bool, bool]:
        """Whether the slot model's decoder predicts what frames tell, and masks, of slots alone."""
        model = self._frozen_shapes
        definition, params, frozen = split(model)
        slots = jax.ShapeDtypeStruct((1, 1, model.num_slots, model.slot_size), jnp.float32)

        def decode(arrays: dict[str, Array], slots: Array) -> dict[str, Array]:
            return definition.merge(arrays).decoded(slots, None)

        try:
            found = jax.eval_shape(decode, {**params, **frozen}, slots)
        except UserError:
            return False, False
        targets = names_of(self.slot_model.target)
        chosen = [choose("model.target", name, PARTS["target"]) for name in targets]
        of_tokenizer = any(getattr(x, "of_tokenizer", False) for x in chosen)  # which is not there
        return "prediction" in found and not of_tokenizer, "masks" in found

    @functools.cached_property
    def evaluator(self) -> PredictionEvaluator:
        """How a split is scored."""
        decodes, has_masks = self._decodes
        target = self._frozen_shapes.target
        of_pixels = decodes and getattr(target, "of_pixels", False)
        return PredictionEvaluator(
            has_masks=has_masks,
            decodes=decodes,
            pixels=target.pixels if of_pixels else None,
            image_size=image_size_of(self._config),
            observed=self._observed,
            steps=frames - self._observed if (frames := self._scored) > 0 else self._future,
            match_paper=self._config.eval.match_paper,
            lpips=self._config.eval.lpips,
        )

    @property
    def _scored(self) -> int:
        """The number of frames of a clip at evaluation; negative: they differ."""
        settings = self._config.eval
        return settings.windows or settings.num_frames or self._config.data.get("num_frames") or 1

    @property
    def _observed(self) -> int:
        """How many frames are observed at evaluation."""
        rollouter = self._shapes.rollouter
        fewest = rollouter.history * rollouter.every
        observed = self._config.eval.observed or fewest
        if observed < fewest:
            raise UserError(
                f"eval.observed is {observed}, but the rollouter continues {rollouter.history} "
                f"frames of every {rollouter.every}; set --config.eval.observed={fewest} or more"
            )
        return observed

    def build(self, shapes_only: bool) -> nnx.Module:
        self._check_frames()
        if self._decodes_in_training and not self._decodes[0]:
            raise UserError(
                f"losses.decoded compares what companions.{SLOT_MODEL} decodes of predicted slots, "
                f"but its decoder {self.slot_model.decoder.name!r} makes no features or pixels of "
                "slots alone; give a run with another one, such as 'mlp_mixture', or set "
                "--config.losses.decoded.weight=0 to predict slots alone"
            )
        if shapes_only:
            return self._shapes
        sizes = self.slot_model.num_slots, self.slot_model.slot_size
        return build_rollout_model(self._config.model, *sizes, self._config.seed)

    def _check_frames(self) -> None:
        config, needed = self._config, self._span
        if (frames := config.data.get("num_frames") or 1) < needed:
            raise UserError(
                f"data.num_frames is {frames}, but training needs clips of at least {needed} "
                "frames: those of model.rollouter.history and model.future; set "
                f"--config.data.num_frames={needed} or more"
            )
        if 0 < (frames := self._scored) <= self._observed:
            key = "windows" if config.eval.windows else "num_frames"
            raise UserError(
                f"eval.{key} is {frames}, but {self._observed} frames are observed, so that "
                f"none is left to predict; set --config.eval.{key}={self._observed + 1} or more"
            )

    @property
    def _span(self) -> int:
        """The number of frames that a window of training takes of a clip."""
        rollouter = self._shapes.rollouter
        return rollouter.every * (rollouter.history + self._future - 1) + 1

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        refuse_missing(batch, () if SLOTS in batch and not self.needs_pixels else self._more)
        lengths = batch.get("num_frames")
        if lengths is not None and min(lengths) <= self._observed:
            raise UserError(
                f"a clip has {min(lengths)} frames, but {self._observed} are observed before the "
                "first predicted one; lower eval.observed, or leave such clips out"
            )

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        slots_key, dropout_key, start_key = jax.random.split(key, 3) if training else (key,) * 3
        drawn = {
            SLOT_MODEL: models[SLOT_MODEL].draw(slots_key, sizes, False),
            ROLLOUTER: models[MODEL].rollouter.draw([dropout_key], sizes, training),
            START: None,
        }
        if training:
            starts = sizes.frames - self._span + 1
            drawn[START] = jax.random.randint(start_key, (sizes.batch,), 0, starts, jnp.int32)
        return drawn

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        del match_paper
        model, features = models[SLOT_MODEL], None
        if SLOTS in batch:
            found = {SLOTS: batch[SLOTS].astype(jnp.float32), "slot_mask": batch["slot_mask"]}
        else:
            features = features_of(model, batch)
            found = find_slots(model, batch, features, draws[SLOT_MODEL])
            mask = found["slot_mask"].all(axis=1)
            found = {SLOTS: found[SLOTS], "slot_mask": mask}
        places, past = self._places(found[SLOTS].shape[1], draws[START], len(found[SLOTS]))
        found[SLOTS] = _taken(found[SLOTS], places)
        length = places.shape[1]
        if (lengths := batch.get("num_frames")) is None:
            found[FRAME_MASK] = jnp.ones((len(places), length - past), bool)
        else:
            found[FRAME_MASK] = places[:, past:] < lengths[:, None]
        if self._decodes[0] and (self._decodes_in_training or draws[START] is None):
            seen = ("video", *self._more)
            later = {x: _taken(batch[x], places[:, past:]) for x in seen if x in batch}
            if features is None:
                features = features_of(model, later)
            else:
                features = _taken(features, places[:, past:])
            found |= target_of(model, {**batch, **later}, features, draws[SLOT_MODEL])
        return found

    def _places(self, frames: int, start: Array | None, batch: int) -> tuple[Array, int]:
        """Return the frames (B,T') of each clip that matter, and how many of them are observed."""
        rollouter = self._shapes.rollouter
        if start is None:
            places = jnp.broadcast_to(jnp.arange(frames), (batch, frames))
            return places, self._observed
        window = rollouter.every * jnp.arange(rollouter.history + self._future)
        return start[:, None] + window, rollouter.history

    def targets(
        self, models: Models, batch: Mapping[str, Array], constants: Outputs, draws: Draws
    ) -> Outputs:
        del models, batch, constants, draws
        return {}

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        del constants
        return ()

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        del batch, scheduled
        rollouter, model = models[MODEL].rollouter, models[SLOT_MODEL]
        slots, mask = constants[SLOTS], constants["slot_mask"]
        if draws[START] is None:
            return self._predicted(rollouter, model, slots, mask)
        past, future = slots[:, : rollouter.history], slots[:, rollouter.history :]
        predicted = rollouter(past, future.shape[1], mask, draws[ROLLOUTER])
        found = {
            "predicted_slots": rollouter.scaled(predicted),
            "future_slots": rollouter.scaled(future),
            SEEN: slots,
            "slot_mask": mask,
        }
        if self._decodes_in_training:
            found[DECODED] = model.decoded(predicted, mask)["prediction"]
        return found

    def _predicted(self, rollouter: Any, model: SlotModel, slots: Array, mask: Array) -> Outputs:
        """Return predicted frames of the model and of the rows beside it; see `prediction`."""
        past, future = slots[:, : self._observed], slots[:, self._observed :]
        steps = future.shape[1]
        rows = {
            OWN: interleaved(rollouter, past, steps, mask),
            **continued(past, steps),
            CEILING: future,
        }
        found: Outputs = {"slot_mask": mask}
        for row, of_row in rows.items():
            found[f"{row}.slots"] = of_row
            if any(self._decodes):
                decoded = model.decoded(of_row, mask)
                found |= {f"{row}.{name}": x for name, x in decoded.items()}
        if self._decodes[1]:
            found["observed.masks"] = model.decoded(past, mask)["masks"]
        return found

    def monitor(self, constants: Outputs) -> Outputs:
        del constants
        return {}

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        del batches, features
        return {}


def continued(past: Array, steps: int) -> dict[str, Array]:
    """Return the slots (B,K,N,D) after the past ones, as they are without a model.

    Returns:
        `copy`: the last ones stay; `line`: they go on as they went over the last two frames.
    """
    last = past[:, -1:]
    speed = last - past[:, -2:-1] if past.shape[1] > 1 else jnp.zeros_like(last)
    after = jnp.arange(1, steps + 1, dtype=past.dtype)[:, None, None]
    return {"copy": jnp.repeat(last, steps, axis=1), "line": last + after * speed}


def _taken(x: Array, places: Array) -> Array:
    """Return the frames `places` (B,T') of arrays (B,T,...)."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)
