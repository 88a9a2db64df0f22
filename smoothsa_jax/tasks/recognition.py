"""Recognition: train a head to predict category and box from the slots of a frozen slot model.

The config has the head as `model`, the slot model as the companion `slot_model`, and the losses
`category` and `box`. With `train.match_paper`, the head is trained as by the authors: with a bug in
their matching, and with the frozen model in training mode. At evaluation, the frozen model is
always in evaluation mode. With `eval.match_paper`, both matchings are scored.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.recognition import RecognitionEvaluator, targets_of_slots
from smoothsa_jax.evaluation.split import Batch
from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.models.build import build_head
from smoothsa_jax.models.interfaces import Draws, Scheduled, Sizes
from smoothsa_jax.tasks.frozen_slots import SLOT_MODEL, slot_model_of
from smoothsa_jax.tasks.task import MODEL, Models, Outputs


class Recognition:
    """See `task.Task`. The trained model is a head."""

    untrained = "untrained head"
    companions = (SLOT_MODEL,)
    averages = False
    inputs = ("video", "boxes", "slot_mask", "segmentations", "categories")

    def __init__(self, config: ConfigDict):
        self._config = config
        self.evaluator = RecognitionEvaluator()
        self.schedules: dict[str, dict[str, Any]] = {}
        self.slot_model = slot_model_of(config, "recognized")

    def build(self, shapes_only: bool) -> nnx.Module:
        config = self._config
        build = lambda: build_head(config.model, self.slot_model.slot_size, config.seed)  # noqa: E731
        return nnx.eval_shape(build) if shapes_only else build()

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        check_labels(batch, self._config.model.num_classes)

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        slots_key, dropout_key = jax.random.split(key) if training else (key, key)
        as_paper = training and self._config.train.match_paper
        return {
            SLOT_MODEL: models[SLOT_MODEL].draw(slots_key, sizes, as_paper),
            MODEL: models[MODEL].draw([dropout_key], sizes, training),
        }

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        model, mask = models[SLOT_MODEL], batch["slot_mask"]
        features = model.encode(batch["video"])["features"]
        outputs = model(features, None, draws[SLOT_MODEL], batch["boxes"], mask)
        found = targets_of_slots(
            outputs["attention"],
            batch["segmentations"],
            batch["categories"],
            mask,
            match_paper,
            model.backend,
        )
        slots = jax.lax.stop_gradient(outputs["slots"])
        return {"slots": slots, "matched": found.matched, **found._asdict()}

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
        logits, boxes = models[MODEL](constants["slots"], draws[MODEL])
        return {"logits": logits, "predicted_box": boxes}

    def monitor(self, constants: Outputs) -> Outputs:
        return {"num_matches": constants["matched"].sum()}

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        del batches, features
        return {}


def check_labels(batch: Mapping[str, np.ndarray], num_classes: int) -> None:
    """Refuse a batch without valid categories.

    Args:
        batch: the samples.
        num_classes: number of categories of the head.

    Raises:
        UserError: there are no "categories" or "segmentations", a category is outside
            -1 .. num_classes - 1, or a label has no category.
    """
    for name in ("segmentations", "categories"):
        if name not in batch:
            raise UserError(
                f"the data has no {name!r}, expected it in every sample for recognition; choose a "
                "data set with categories"
            )
    categories, labels = np.asarray(batch["categories"]), np.asarray(batch["segmentations"])
    if categories.min() < -1 or categories.max() >= num_classes:
        raise UserError(
            f"categories hold numbers from {categories.min()} to {categories.max()}, expected -1 "
            f"(none) to {num_classes - 1}; set model.num_classes to at least {categories.max() + 1}"
        )
    largest = int(labels.max(where=labels != NO_SEGMENT, initial=0))
    if largest > categories.shape[-1]:
        raise UserError(
            f"labels hold object {largest}, but there are categories for {categories.shape[-1]}; "
            "raise data.max_objects"
        )
