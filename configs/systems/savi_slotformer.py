"""SAVi in the program of SlotFormer (Wu et al. 2023, arXiv 2210.05861, appendix).

Its slots start from a learned query each, and see pixels. A layer makes the queries of every frame
from the latents that a transition predicts, so that no labels of the first frame are needed.

(no word)   a transformer and an LSTM predict the next latents, as on OBJ3D and PHYRE
stochastic  an MLP predicts them, and the queries are drawn, as on CLEVRER
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

TITLE = "SAVi of SlotFormer"
KIND = "system"
SLOT_SIZE, CHANNELS = 128, 64
# STEVE in this program has these parts too.
ATTENTION = {
    "first": 2,
    "later": 2,
    "gradient": "full",
    "epsilon": 1e-6,
    "epsilon_in": "weights",
    "mlp_ratio": 2.0,
    "activation": "relu",
    "zero_bias": False,
}
ENCODER = {
    "name": "conv",
    "width": CHANNELS,
    "kernel_size": 5,
    "strides": (1, 1, 1, 1),
    "padding": "torch",
    "last_relu": False,
    "norm": "none",
    "position": "borders",
    "pixels": "signed",
    "start": "torch",
}
QUERIES = {"name": "learned", "start": "normal", "noise": 0.0}


def projection(slot_size: int) -> dict[str, Any]:
    """What makes the tokens that slot attention reads."""
    return {
        "name": "mlp",
        "hidden_size": slot_size,
        "to_slots": True,
        "activation": "relu",
        "zero_bias": False,
    }


def predictor(slot_size: int) -> dict[str, Any]:
    """The transition with an LSTM."""
    return {
        "name": "recurrent_transformer",
        "num_layers": 2,
        "num_heads": 4,
        "mlp_size": 4 * slot_size,
        "state_size": 2 * slot_size,
        "dropout_rate": 0.1,
    }


def fits(data: base.DataSet) -> bool:
    return base.has_videos(data)


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE, videos=True)
    base.refuse_pictures(data, TITLE)
    config.data.image_size = 64 if data.small is None else config.data.image_size
    if "features" in config.data:
        config.data.features = ""
    strides = (2, 2, 2, 1) if data.small is None else (2, 2)
    config.model.encoder = ConfigDict(ENCODER)
    config.model.update(
        slot_size=SLOT_SIZE,
        projection=projection(SLOT_SIZE),
        initializer=QUERIES,
        aggregator={
            "name": "drawn_queries",
            "kernel": "mlp",
            "stochastic": False,
            **ATTENTION,
        },
        transition=predictor(SLOT_SIZE),
        decoder={
            "name": "spatial_broadcast",
            "cells": 8,
            "hidden_size": CHANNELS,
            "kernel_size": 5,
            "strides": strides,
            "transposed": (True,) * len(strides),
            "padding": "torch",
            "position": "borders",
            "head": "separate",
            "fusion": "late",
            "start": "torch",
        },
        target={"name": "pixels"},
    )
    config.weights = ConfigDict()
    config.losses.reconstruction = ConfigDict({"weight": 1.0})
    config.optimizer.learning_rate = base.rate_of_slotformer(peak=1e-4, warmup=0.025)
    config.optimizer.clip_norm = 0.05
    base.use_length(config, data, num_steps=80_000, batch_size=64, num_frames=6)


def stochastic(config: ConfigDict, data: base.DataSet) -> None:
    config.title = f"Stochastic {TITLE}"
    config.model.aggregator.update(kernel="linear", stochastic=True)
    config.model.transition = ConfigDict({"name": "mlp", "hidden_size": 2 * SLOT_SIZE})
    config.losses.query_kl = ConfigDict({"weight": 1e-4, "variance": 0.01})
    base.use_length(config, data, num_steps=230_000, batch_size=64, num_frames=6)


WORDS = {"stochastic": ("system variant", stochastic)}
