"""Discovery: train a slot model to predict a target from its slots, and score its masks.

A run may have a frozen slot model as the companion `teacher`, whose masks (B,T,N,h,w) enter losses.
Scores do not need them, so the compiler leaves the teacher out at evaluation.

It may have a frozen tokenizer as the companion `tokenizer`, the model of an earlier run of the task
`tokenizer`. Its `tokens` (B,T,M) and `codes` (B,T,M,D) are constants that targets and decoders
read; where nothing does, the compiler leaves it out too. Its schedules have their last values.
Stored tokens take the place of computed ones, unless they are drawn.
"""

import dataclasses
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
from smoothsa_jax.evaluation.masks import MaskEvaluator, Scoring, evaluate_baselines
from smoothsa_jax.evaluation.split import Batch
from smoothsa_jax.losses.build import LOSSES, build_losses
from smoothsa_jax.models.build import (
    PARTS,
    build_slot_model,
    is_tokenizer_model,
    part_schedules,
    reads_of_tokenizer,
    slot_model_shapes,
)
from smoothsa_jax.models.interfaces import GIVEN, Draws, Scheduled, Sizes
from smoothsa_jax.models.parameters import ENCODER
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.models.tokenizer_model import FEATURES, PIXELS, TOKENIZER, TokenizerModel
from smoothsa_jax.parts import choose
from smoothsa_jax.schedules import last_values
from smoothsa_jax.tasks.task import MODEL, Models, Outputs

TEACHER = "teacher"  # the companion


class Discovery:
    """See `task.Task`. The trained model is a `SlotModel`."""

    untrained = "untrained model"
    companions = (TEACHER, TOKENIZER)
    averages = True

    def __init__(self, config: ConfigDict):
        self._config = config
        self.slot_model = config.model
        self.schedules = part_schedules(config.model)
        self._more = batch_reads(config.model, config.losses)
        self._extras = read_extras(config)
        teacher = config.companions.get(TEACHER)
        self._teacher_trains = teacher is not None and teacher.get("draws") == "training"
        self._tokenizer = FrozenTokenizer(config.companions.get(TOKENIZER, {}))
        self._along = TOKENIZER in config.model  # it is a part, and trained
        self.needs_pixels = self._along or self._tokenizer.reads == PIXELS
        # Pixels or stored features.
        tokens = ("tokens",) if self._tokenizer.reads and not self._tokenizer.draws else ()
        self.inputs = ("video", "features", *tokens, "boxes", "slot_mask", *self._more)
        self._scoring = scoring_of(config.eval)
        halts = config.model.get("aggregator", {}).get("halting") is not None
        asked = config.eval.masks, self._scoring, prunes(config.eval)
        self.evaluator = MaskEvaluator(*asked, halts)

    def build(self, shapes_only: bool) -> nnx.Module:
        config = self._config
        size = image_size_of(config)
        if shapes_only:
            return slot_model_shapes(config.model, size)
        return build_slot_model(config.model, size, config.seed, *seeds_of_parts(config.weights))

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        refuse_missing(batch, self._more)

    def draw(self, models: Models, key: Array, sizes: Sizes, training: bool) -> Draws:
        drawn = models[MODEL].draw(key, sizes, training)
        if TEACHER in models:
            as_in_training = training and self._teacher_trains
            own_key = jax.random.fold_in(key, 1) if training else key
            drawn[TEACHER] = models[TEACHER].draw(own_key, sizes, as_in_training)
        if TOKENIZER in models:
            as_in_training = training and self._tokenizer.draws
            own_key = jax.random.fold_in(key, 3)  # 2 is that of buffers
            drawn[TOKENIZER] = models[TOKENIZER].draw(own_key, sizes, as_in_training)
        return drawn

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        del match_paper
        model, found = models[MODEL], {}
        if "features" in batch:
            found["features"] = batch["features"].astype(jnp.float32)
        elif ENCODER in model.frozen_parts:
            also = () if model.target_encoder is not None else self._extras
            found = model.encode(batch["video"], batch.get("cameras"), also=also)
        if model.target_encoder is not None:
            of_target = _encoded_for_target(model, batch, self._extras)
            found |= {"target_features": of_target.pop("features"), **of_target}
        if TEACHER in models:
            found[f"{TEACHER}.masks"] = _masks_of_teacher(models[TEACHER], batch, draws[TEACHER])
        if TOKENIZER in models:
            # The encoder is the same, as `checks` and `sources` have made sure.
            features = found.get("target_features", found.get("features"))
            own = draws[TOKENIZER]
            found |= self._tokenizer.tokens(models[TOKENIZER], batch, features, own)
        return found

    def targets(
        self, models: Models, batch: Mapping[str, Array], constants: Outputs, draws: Draws
    ) -> Outputs:
        return models[MODEL].target(batch, constants, (draws or {}).get("target"))

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        pixels = ("video", "cameras") if self._along or "features" not in constants else ()
        return ("boxes", "slot_mask", *pixels)

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        model = models[MODEL]
        encoded = constants
        if "features" not in constants:
            encoded = model.encode(batch["video"], batch.get("cameras"))
        # At inference there is no target of what pictures alone do not tell, such as flow.
        given = {name: constants[name] for name in GIVEN if name in constants}
        boxes, slot_mask = batch.get("boxes"), batch.get("slot_mask")
        found = {}
        if model.tokenizer is not None and "video" in batch:
            own = draws.get(TOKENIZER), scheduled.get(TOKENIZER)
            found = model.tokenize(batch["video"], encoded["features"], *own)
            given = {**given, "tokens": found["tokens"]}
        outputs = model(encoded["features"], given, draws, boxes, slot_mask, scheduled)
        return {**found, **outputs}

    def monitor(self, constants: Outputs) -> Outputs:
        del constants
        return {}

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        boxes = bool(self._config.data.get("boxes", False))
        return evaluate_baselines(batches(), features, with_boxes=boxes, scoring=self._scoring)


class FrozenTokenizer:
    """How a companion makes tokens of a batch.

    Args:
        companion: its entry of a config; {}: there is none.

    Attributes:
        reads: what its tokenizer reads, "features" or "pixels"; "": it is not known yet.
        draws: whether it draws tokens in training, as in its own; otherwise the nearest codes.
    """

    def __init__(self, companion: Mapping[str, Any]):
        self.reads, self._scheduled = "", {}
        self.draws = companion.get("draws") == "training"
        model = companion.get("model")
        if model is None:
            return
        if not is_tokenizer_model(model):
            raise UserError(
                f"companions.{TOKENIZER} holds {companion.get('title') or 'a model'}, which is no "
                "tokenizer; give the workdir of a run of the task 'tokenizer', such as that of "
                f"configs/coco.py:slate,tokenizer, with --config.companions.{TOKENIZER}.source"
            )
        self.reads = reads_of_tokenizer(model)
        settings = part_schedules(model).get(TOKENIZER, {})
        self._scheduled = last_values(f"companions.{TOKENIZER}.model.{TOKENIZER}", settings)

    def tokens(
        self,
        model: TokenizerModel,
        batch: Mapping[str, Array],
        features: Array | None,
        draws: Mapping[str, Draws],
    ) -> Outputs:
        """Return `tokens` and `codes`.

        Args:
            model: the companion.
            batch: the samples, with pixels where the tokenizer reads these.
            features: of the encoder that both models have; None: its own encoder computes them.
            draws: what `TokenizerModel.draw` returned.
        """
        if "tokens" in batch:  # `stored.refuse_other_features` has compared the tokenizers
            return model.of_tokens(batch["tokens"])
        features = features if self.reads == FEATURES else None
        inputs = model.inputs(batch.get("video"), features)
        return model.tokens(inputs, draws, self._scheduled)


def seeds_of_parts(weights: ConfigDict) -> tuple[dict[str, int], frozenset[str]]:
    """Return the parts with a seed of their own, and those whose arrays all come from elsewhere.

    Args:
        weights: `weights` of a config.
    """
    entries = [entry for entry in weights.values() if entry.get("into")]
    random = {e["into"]: e.get("seed", 0) for e in entries if e["source"] == "random"}
    given = [e for e in entries if e["source"] != "random" and not e.get("without")]
    # Arrays that are trained, or left out by `without`, need initial values.
    elsewhere = frozenset(e["into"] for e in given if "*" in tuple(e.get("frozen", ())))
    return random, elsewhere


def scoring_of(settings: ConfigDict) -> Scoring:
    """Return how an evaluation compares masks with labels.

    Args:
        settings: the `eval` part of a config.
    """
    return Scoring(**{field.name: settings[field.name] for field in dataclasses.fields(Scoring)})


def prunes(settings: ConfigDict) -> dict[str, Any] | None:
    """Return how an evaluation prunes, for `scores.json`; None: it does not.

    Args:
        settings: the `eval` part of a config.
    """
    if settings.prune is None:
        return None
    names = ("prune", "prune_restart", "prune_iterations", "prune_video")
    return {name: settings[name] for name in names}


def _encoded_for_target(
    model: SlotModel, batch: Mapping[str, Array], also: tuple[str, ...] = ()
) -> Outputs:
    """Return the outputs (B,T,M,C) of a model's target encoder."""
    return model.encode(batch["video"], batch.get("cameras"), model.target_encoder, also)


def features_of(model: SlotModel, batch: Mapping[str, Array]) -> Array:
    """Return the features (B,T,M,C) of all frames."""
    return model.encode(batch["video"], batch.get("cameras"))["features"]


def target_of(
    model: SlotModel, batch: Mapping[str, Array], features: Array, draws: Draws
) -> Outputs:
    """Return what a frozen model's decoder should predict, as its own task has it."""
    constants = {"features": features}
    if model.target_encoder is not None:
        constants["target_features"] = _encoded_for_target(model, batch)["features"]
    return model.target(batch, constants, draws.get("target"))


def _masks_of_teacher(teacher: SlotModel, batch: Mapping[str, Array], draws: Draws) -> Array:
    """Return the masks (B,T,N,h,w) of a teacher's decoder."""
    if "features" in batch:  # `stored.refuse_other_features` has compared the encoders
        features = batch["features"].astype(jnp.float32)
    else:
        features = features_of(teacher, batch)
    given = target_of(teacher, batch, features, draws)
    boxes, slot_mask = batch.get("boxes"), batch.get("slot_mask")
    outputs = teacher(features, given, draws, boxes, slot_mask)
    if "masks" not in outputs:
        raise UserError(
            f"companions.{TEACHER} has a decoder without masks, which losses read; choose a "
            "teacher with another decoder"
        )
    return outputs["masks"]


def read_extras(config: ConfigDict) -> tuple[str, ...]:
    """Return the outputs besides features that the losses read of the encoder of the target.

    Raises:
        UserError: training sees stored features, which lack them.
    """
    kind = "target_encoder" if "target_encoder" in config.model else "encoder"
    chosen = choose(f"model.{kind}", config.model[kind].name, PARTS[kind])
    reads = build_losses(config.losses).reads
    found = tuple(name for name in getattr(chosen, "extras", ()) if name in reads)
    if found and (features := config.data.get("features")):
        raise UserError(
            f"data.features is {features!r}, but a loss reads the encoder's {found[0]}, which are "
            "not stored; set --config.data.features=, or a loss that reads features alone"
        )
    return found


def names_of(part: ConfigDict) -> list[str]:
    """Return the names of a part and of the parts inside it."""
    inside = [x for x in part.values() if isinstance(x, ConfigDict)]
    return [part.name, *(name for x in inside for name in names_of(x))]


def refuse_missing(batch: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
    """Refuse a batch without these arrays.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if name not in batch:
            raise UserError(
                f"the data has no {name!r}, which a part of the model or a loss reads; choose "
                "a data set that has it, or another part"
            )


def batch_reads(model: ConfigDict, losses: ConfigDict) -> tuple[str, ...]:
    """Return the keys that the chosen parts and losses read, besides those of all samples."""
    chosen = [choose("model.encoder", model.encoder.name, PARTS["encoder"])]
    chosen += [choose("model.target", name, PARTS["target"]) for name in names_of(model.target)]
    for name, settings in losses.items():
        chosen.append(choose(f"losses.{name}", settings.get("name", name), LOSSES))
    return tuple(sorted({name for x in chosen for name in getattr(x, "batch_reads", ())}))
