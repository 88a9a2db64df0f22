"""The interface of tasks: what a run trains and how it is scored.

Everything else in a run is the same for all tasks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.evaluation.split import Batch, Evaluator
from smoothsa_jax.models.interfaces import Draws, Scheduled, Sizes

Models = Mapping[str, nnx.Module]  # "model" (the trained model), and companions by name
Outputs = dict[str, Array]
MODEL = "model"


class Task(Protocol):
    """A task, made from a whole config.

    A training step runs, in this order, on a batch: `draw`; `constants` of each sample, outside the
    gradient; `targets`; `forward` of each sample, inside the gradient; and the losses.

    Attributes:
        evaluator: how a split is scored.
        inputs: names of the arrays of a batch to place on the devices.
        slot_model: config of the slot model that sees the data, trained or a companion: the `model`
            part of its config.
        schedules: settings of the model that change with the step, by part.
        untrained: name of the baseline with the initial parameters.
        companions: names of the companions that the task uses; a config may have no others.
        averages: whether it may also have moving averages of the model, under any name.
        needs_pixels: whether it reads pixels in training even where features are stored. May be
            absent: no.
        through: names of the companions through which the gradient passes on its way to the model.
            May be absent: none.
        whole_clips: whether its outputs need all frames of a training clip, and are others in
            training than at evaluation. May be absent: no; two frames tell them all.
        arrays: name -> (shape, dtype) of arrays of a sample besides those of its clip, and of those
            that only scored samples have. May be absent: none.
        stored: what is stored of clips for it, of `inputs.features.SLOT_ARRAYS`. May be absent: all
            but the mean of features.
        stored_splits: the splits of which it reads stored slots. May be absent: training.
        no_segments: why its model cannot segment pictures and videos, for messages; "": it can.
            May be absent: it can, if it is a slot model.
    """

    evaluator: Evaluator
    inputs: tuple[str, ...]
    slot_model: ConfigDict
    schedules: dict[str, dict[str, Any]]
    untrained: str
    companions: tuple[str, ...]
    averages: bool
    no_segments: str

    # A task of questions has `check_source(source)`, which refuses samples that do not fit it.

    def build(self, shapes_only: bool) -> nnx.Module:
        """Make the model to train, freshly initialized.

        Parts whose weights come from elsewhere have shapes instead of arrays.

        Args:
            shapes_only: whether all parts have shapes instead of arrays.
        """

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        """Refuse a batch that the models cannot process; on a device, errors would be silent.

        Raises:
            UserError: the batch is not valid.
        """

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        """Draw all random numbers of a forward pass, as a tree of arrays (B, ...)."""

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        """Return the outputs of frozen models, each sample on its own; they may come from disk."""

    def targets(
        self, models: Models, batch: Mapping[str, Array], constants: Outputs, draws: Draws
    ) -> Outputs:
        """Return the targets of the model, from samples and constants, without parameters."""

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        """Return the names of a batch's arrays that `forward` reads besides these constants."""

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        """Return the outputs of the trained model, each sample on its own."""

    def monitor(self, constants: Outputs) -> Outputs:
        """Return numbers for the log besides the losses."""

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Score the baselines that need no trained weights.

        Returns:
            baseline -> name -> (samples,).
        """


def run_task(
    task: Task,
    models: Models,
    batch: Mapping[str, Array],
    draws: Draws,
    match_paper: bool = False,
    scheduled: Scheduled | None = None,
) -> Outputs:
    """Return all outputs of a forward pass, including the constants.

    This is a pure function.

    Args:
        task: the task.
        models: its models with their arrays.
        batch: the samples.
        draws: what `Task.draw` returned.
        match_paper: whether to follow the paper's protocol; static.
        scheduled: values of the model's schedules; None at evaluation.
    """
    constants = task.constants(models, batch, draws, match_paper)
    constants = {**constants, **task.targets(models, batch, constants, draws)}
    return {**constants, **task.forward(models, batch, constants, draws, scheduled or {})}


def batch_shapes(
    config: ConfigDict, task: Task, batch: int, frames: int
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and dtype of every array that a batch of some data set may have.

    Args:
        config: the whole config.
        task: its task.
        batch: B.
        frames: T of a clip.
    """
    size, slots = image_size_of(config), task.slot_model.num_slots
    of_frames = {
        "video": ((*size, 3), jnp.uint8),
        "boxes": ((slots, 4), jnp.float32),
        "segmentations": (size, jnp.uint8),
        "flow": ((*size, 2), jnp.float32),
        "depth": (size, jnp.float32),
        "cameras": ((4, 3), jnp.float32),
    }
    of_clips = {
        "slot_mask": ((slots,), jnp.bool_),
        "categories": ((config.data.get("max_objects") or slots,), jnp.int32),
        **{name: ((frames, *shape), dtype) for name, (shape, dtype) in of_frames.items()},
        **getattr(task, "arrays", {}),
    }
    return {name: ((batch, *shape), dtype) for name, (shape, dtype) in of_clips.items()}


def sizes_of(batch: Mapping[str, Array]) -> Sizes:
    """Return the numbers of samples, frames and slots of a batch."""
    frames = next(batch[name] for name in ("video", "features", "slots") if name in batch)
    return Sizes(len(frames), frames.shape[1], batch["slot_mask"].shape[1])
