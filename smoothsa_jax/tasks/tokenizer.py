"""Tokenizer: train a vocabulary of codes that explains pixels, for a second stage.

The config's `model` has a `tokenizer` and, where that reads features, the frozen `encoder`. A slot
model of a later run takes the trained one as its companion `tokenizer`; see `discovery`.

The companion `perceptual` compares decoded pixels with true ones, for the loss of that name.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.split import Batch
from smoothsa_jax.evaluation.tokenizers import TokenizerEvaluator
from smoothsa_jax.models.build import (
    build_model,
    is_tokenizer_model,
    model_shapes,
    part_schedules,
    reads_of_tokenizer,
)
from smoothsa_jax.models.interfaces import Draws, Scheduled, Sizes
from smoothsa_jax.models.parameters import ENCODER
from smoothsa_jax.models.perceptual import PERCEPTUAL
from smoothsa_jax.models.tokenizer_model import FEATURES, TOKENIZER, fold, unfold
from smoothsa_jax.tasks.discovery import seeds_of_parts
from smoothsa_jax.tasks.task import MODEL, Models, Outputs


class Tokenization:
    """See `task.Task`. The trained model is a `TokenizerModel`."""

    untrained = "untrained tokenizer"
    companions = (PERCEPTUAL,)
    averages = True
    needs_pixels = True  # also with stored features: they are what codes explain
    no_segments = (
        "is a tokenizer, which has no slots and finds no segments; use the run of the second "
        "stage, or --mode=evaluate, which draws what the tokenizer decodes into pictures/"
    )

    def __init__(self, config: ConfigDict):
        self._config = config
        if not is_tokenizer_model(config.model):
            raise UserError(
                f"the task 'tokenizer' trains model.tokenizer alone, but the model has "
                f"{', '.join(config.model) or 'no part'}; expected tokenizer, and encoder where it "
                "reads features"
            )
        if not config.model.tokenizer.get("decodes", True):
            raise UserError(
                "model.tokenizer.decodes is False, but the task 'tokenizer' trains what decodes; "
                "set --config.model.tokenizer.decodes=True"
            )
        reads = reads_of_tokenizer(config.model)
        self.slot_model = ConfigDict({"num_slots": 1})  # of the data; there are no slots
        self.schedules = part_schedules(config.model)
        of_features = ("features",) if reads == FEATURES else ()
        self.inputs = ("video", *of_features, "slot_mask")

    @functools.cached_property
    def evaluator(self) -> TokenizerEvaluator:
        """How a split is scored."""
        tokenizer = model_shapes(self._config.model, image_size_of(self._config)).tokenizer
        return TokenizerEvaluator(getattr(tokenizer, "pixels", "imagenet"), tokenizer.vocabulary)

    def build(self, shapes_only: bool) -> nnx.Module:
        config = self._config
        size = image_size_of(config)
        if shapes_only:
            return model_shapes(config.model, size)
        return build_model(config.model, size, config.seed, *seeds_of_parts(config.weights))

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        if "video" not in batch:
            raise UserError(
                "the data has no 'video', expected pixels, which a tokenizer learns to decode; set "
                "--config.data.features="
            )

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        return models[MODEL].draw(key, sizes, training)

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        del draws, match_paper
        if "features" in batch:
            return {"features": batch["features"].astype(np.float32)}
        frozen = ENCODER in models[MODEL].frozen_parts
        return models[MODEL].encode(batch["video"]) if frozen else {}

    def targets(
        self, models: Models, batch: Mapping[str, Array], constants: Outputs, draws: Draws
    ) -> Outputs:
        del constants, draws
        return {"target": models[MODEL].target(batch["video"])}

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        return () if "features" in constants else ("video",)

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        model = models[MODEL]
        inputs = model.inputs(batch.get("video"), constants.get("features"))
        outputs = model(inputs, draws, scheduled.get(TOKENIZER, {}))
        if PERCEPTUAL in models:
            pair = (fold(x) for x in (outputs["prediction"], constants["target"]))
            outputs[PERCEPTUAL] = unfold(models[PERCEPTUAL](*pair), len(inputs))
        return outputs

    def monitor(self, constants: Outputs) -> Outputs:
        del constants
        return {}

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        del batches, features
        return {}
