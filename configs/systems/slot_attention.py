"""Slot attention on pixels, as it was published (Locatello et al. 2020, arXiv 2006.15055).

A small convolutional encoder, three iterations and a broadcast decoder are trained together to
reconstruct pictures. The recipe is that of object discovery on CLEVR6; on other data, steps, slots
and pictures are the data set's own.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

TITLE = "slot attention"
KIND = "system"
# Keras.
KERAS: dict[str, Any] = {"activation": "relu", "norm_epsilon": 1e-3, "start": "glorot"}
STEPS = 500_000


def from_pixels(config: ConfigDict, data: base.DataSet, first_stride: int, **program: Any) -> None:
    """Encoder and decoder of slot attention's models of pixels; nothing is frozen.

    Args:
        first_stride: of the encoder's first layer.
        **program: padding and initial values.
    """
    config.weights = ConfigDict()
    if data.small is None:
        with config.data.ignore_type():  # it may be a pair of numbers
            config.data.image_size = 128
    shared = {"kernel_size": 5, "position": "borders", **program}
    config.model.encoder = ConfigDict(
        {
            "name": "conv",
            "width": 64,
            "strides": (first_stride, 1, 1, 1),
            "last_relu": True,
            "norm": "none",
            "pixels": "signed",
            **shared,
        }
    )
    config.model.decoder = ConfigDict(
        {
            "name": "spatial_broadcast",
            "cells": 8,
            "hidden_size": 64,
            "strides": (2, 2, 2, 2, 1),
            "transposed": (True,) * 5,
            "head": "joint",
            "fusion": "late",
            **shared,
        }
    )
    config.model.update(slot_size=64, target=ConfigDict({"name": "pixels"}))
    config.losses.reconstruction = ConfigDict({"weight": 1.0, "reduction": "mean"})


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    base.predict_features(
        config,
        projection={"name": "mlp", "hidden_size": 64, **KERAS},
        initializer={"name": "gaussian", "log_std": None, "mean": "glorot"},
        aggregator={
            "name": "slot_attention",
            "gradient": "full",
            "first": 3,
            "later": 3,
            "epsilon": 1e-8,
            "epsilon_in": "weights",
            "mlp_size": 128,
            **KERAS,
        },
    )
    from_pixels(config, data, 1, padding="same", start="glorot")
    # The program multiplies the warm-up by the decay too.
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_halving",
            "peak": 4e-4,
            "warmup": 10_000 / STEPS,
            "half_life": 100_000 / STEPS,
            "from_zero": True,
        }
    )
    config.optimizer.clip_norm = 0.0
    base.use_length(config, data, num_steps=STEPS, batch_size=64)
    base.follow(config, data)
