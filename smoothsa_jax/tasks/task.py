"""What a run trains and how it is scored; the rest of a run is the same for every task."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.evaluation.split import Batch, Evaluator
from smoothsa_jax.models.interfaces import Draws, Scheduled, Sizes

Models = Mapping[str, nnx.Module]  # "model", the trained one, and its companions by their names
Outputs = dict[str, Array]
MODEL = "model"


class Task(Protocol):
    """A task, made from a whole config.

    A training step runs, for a batch: `draw`; `constants` of each sample, outside the gradient;
    `targets`; `forward` of each sample, inside it; and the losses on what these return.

    Attributes:
        evaluator: how a split is scored.
        inputs: what is placed on the devices of a batch.
        slot_model: the `model` part of the config of the slot model that sees the data: the trained
            one, or a companion's.
        schedules: settings of the model that change with the step, by part.
        untrained: what the baseline with the first parameters is called.
    """

    evaluator: Evaluator
    inputs: tuple[str, ...]
    slot_model: ConfigDict
    schedules: dict[str, dict[str, Any]]
    untrained: str

    def build(self, shapes_only: bool) -> nnx.Module:
        """Make the model that is trained, freshly initialized. Parts that take weights from
        elsewhere have shapes in place of arrays, or all parts with `shapes_only`."""

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        """Refuse, on the host, a batch that the models cannot take: on a device that is silent."""

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        """Draw all that is random, as a tree of (B, ...)."""

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        """Return what frozen models compute, for each sample alone; may come from disk."""

    def targets(self, models: Models, batch: Mapping[str, Array], constants: Outputs) -> Outputs:
        """Return what is predicted, from samples and constants, without parameters."""

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        """Return the names of what `forward` reads of a batch beside these constants."""

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        """Return the outputs of the trained model, for each sample alone."""

    def monitor(self, constants: Outputs) -> Outputs:
        """Return numbers for the log beside the losses."""

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Score what needs no weights: baseline -> name -> (samples,)."""


def run_task(
    task: Task,
    models: Models,
    batch: Mapping[str, Array],
    draws: Draws,
    match_paper: bool = False,
) -> Outputs:
    """Return all outputs of an evaluation forward, the constants among them. A pure function."""
    constants = task.constants(models, batch, draws, match_paper)
    constants = {**constants, **task.targets(models, batch, constants)}
    return {**constants, **task.forward(models, batch, constants, draws, {})}


def sizes_of(batch: Mapping[str, Array]) -> Sizes:
    """Return how many samples, frames and slots a batch has."""
    frames = batch["video"] if "video" in batch else batch["features"]
    return Sizes(len(frames), frames.shape[1], batch["slot_mask"].shape[1])
