"""A run's backbone: the arrays that a run without a checkpoint takes from elsewhere; later they are in its checkpoints."""

import dataclasses
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from smoothsa_jax.interop.backbone_weights import load_backbone
from smoothsa_jax.models.build import takes_weights
from smoothsa_jax.models.parameters import FROZEN
from smoothsa_jax.training.step import Training


def with_backbone(config: ConfigDict, training: Training, warn: Callable[[str], None]) -> Training:
    """The same training with the weights that `model.backbone.weights` names.

    Raises:
        UserError: they cannot be had, or do not fit; see `interop.backbone_weights`.
    """
    backbone = config.model.backbone
    if not takes_weights(backbone):
        if "weights" not in backbone:  # of a kind that has none
            return training
        return dataclasses.replace(
            training, frozen_from="random values, as model.backbone.weights=random asks"
        )
    shapes = {name.removeprefix(FROZEN): x for name, x in training.frozen.items()}
    arrays, what = load_backbone(backbone, shapes, training.grid)
    frozen = {f"{FROZEN}{name}": array for name, array in arrays.items()}
    return dataclasses.replace(
        training, frozen=jax.device_put(frozen, training.replicated), frozen_from=what
    )
