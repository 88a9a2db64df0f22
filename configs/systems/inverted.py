"""Transformers with inverted attention: slots that compete for tokens (UniReps 2023).

After "Inverted-Attention Transformers can Learn Object Representations", which has no public
program: its variants are put together from SAVi's modules, in flax linen's conventions. What the
paper leaves open is a choice: the transformers have biases and an output projection, slot attention
has neither.

    (no word)   TF-Inv: 3 layers with weights of their own; softmax over slots, mean over tokens
    tf          TF: the softmax is over tokens, as in any transformer
    tf_inv_gru  TF-Inv with a GRU in each layer
    sa_no_gru   one layer's weights for all iterations, plain projections
    sa          slot attention
    sa_id       slot attention with the gradient of the last iteration alone
    learned     with any of these: a learned query for each slot instead of one Gaussian
    original    the paper's encoder, size of pictures, steps and batch

On CLEVR and ClevrTex, everything is trained from pixels; elsewhere slots reconstruct features of a
frozen encoder. The key `model.aggregator.first` is the number of layers, or of iterations.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

TITLE = "TF-Inv"
KIND = "system"

Settings = dict[str, Any]

# Flax linen and SAVi: of layers in general, and of aggregators.
LAYERS: Settings = {"activation": "relu", "norm_epsilon": 1e-6, "start": "lecun"}
LINEN: Settings = {"mlp_ratio": 2.0, "epsilon": 1e-8, "gru": "linen", **LAYERS}
TF_INV: Settings = {
    "name": "inverted_transformer",
    "first": 3,
    "later": None,
    "share": (),
    "inverted": True,
    "update": "residual",
    "renormalize": "mean",
    "normalize_qk": False,
    "bias": True,
    "output_projection": True,
    "gradient": "full",
    **LINEN,
}
TF: Settings = {**TF_INV, "inverted": False, "renormalize": "none"}
TF_INV_GRU: Settings = {**TF_INV, "update": "gru"}
SA_NO_GRU: Settings = {
    **TF_INV,
    "share": ("attention", "gru", "mlp"),
    "bias": False,
    "output_projection": False,
}
SA: Settings = {
    "name": "slot_attention",
    "first": 3,
    "later": None,
    "gradient": "full",
    "extra_iteration": False,
    "epsilon_in": "sum",
    **LINEN,
}
SA_ID: Settings = {**SA, "gradient": "last"}
# The paper's settings for OSRT, with TF-Inv.
NORMALIZED: Settings = {"renormalize": "layernorm", "normalize_qk": True}

PIXELS = ("clevr", "clevrtex")
STEPS, BATCH = 300_000, 64
# Encoders and decoders of SAVi's program.
_CONVOLUTIONS: Settings = {"padding": "same", "position": "linear", "start": "lecun"}
RESNET_34: Settings = {
    "name": "resnet",
    "blocks": (3, 4, 6, 3),
    "root": "small",
    "root_width": 64,
    "groups": 32,
    "pixels": "unit",
    **_CONVOLUTIONS,
}


def convolutions(width: int, first_stride: int) -> Settings:
    """An encoder of four convolutions."""
    return {
        "name": "conv",
        "width": width,
        "kernel_size": 5,
        "strides": (first_stride, 1, 1, 1),
        "last_relu": True,
        "norm": "none",
        "pixels": "unit",
        **_CONVOLUTIONS,
    }


def broadcast(cells: int, doubled: int, layers: int, fusion: str) -> Settings:
    """A broadcast decoder, whose first layers double the size of its cells."""
    enlarges = tuple(i < doubled for i in range(layers))
    return {
        "name": "spatial_broadcast",
        "cells": cells,
        "hidden_size": 64,
        "kernel_size": 5,
        "strides": tuple(2 if x else 1 for x in enlarges),
        "transposed": enlarges,
        "head": "separate",
        "fusion": fusion,
        **_CONVOLUTIONS,
    }


def apply(config: ConfigDict, data: base.DataSet) -> None:
    base.refuse_boxes(data, TITLE)
    tokens = {"name": "mlp", **LAYERS}
    base.predict_features(
        config,
        projection={**tokens, "to_slots": True},
        initializer={"name": "gaussian", "log_std": None, "mean": "glorot"},
        aggregator=TF_INV,
        decoder={**base.DINOSAUR_DECODER, "hidden_size": 1024 if data.is_movi else 2048},
    )
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_halving",
            "peak": 4e-4,
            "warmup": 10_000 / STEPS,
            "half_life": 100_000 / STEPS,
        }
    )
    config.optimizer.clip_norm = 1.0
    # Layers with weights of their own cannot run once more.
    config.eval.prune_restart = "none"
    if data.name in PIXELS:
        _from_pixels(config, data, tokens)
    base.follow(config, data)


def _from_pixels(config: ConfigDict, data: base.DataSet, tokens: Settings) -> None:
    """Train encoder and decoder on pictures of 128 pixels, as the paper does."""
    is_clevr = data.name == "clevr"
    config.weights = ConfigDict()  # nothing is frozen
    config.data.image_size = 128
    if not is_clevr:  # the folder of CLEVR holds its crop
        config.data.update(centre_crop=192, crop="none", flip=0.0, interpolation="plain_bilinear")
    # Early fusion is the same function as late, in less memory. On ClevrTex, the paper's strides of
    # 3, 3, 3, 2, 2 do not give 128 pixels; these are of ISA's program.
    of_decoder = (8, 4, 4) if is_clevr else (16, 3, 5)
    config.model.slot_size = 128 if is_clevr else 64
    for part, settings in {  # whole parts are replaced
        "encoder": convolutions(64, 2) if is_clevr else RESNET_34,
        "projection": {**tokens, "hidden_size": 64 if is_clevr else 128},
        "decoder": broadcast(*of_decoder, fusion="early"),
        "target": {"name": "pixels"},
    }.items():
        config.model[part] = ConfigDict(settings)
    config.losses.reconstruction = ConfigDict({"weight": 1.0, "reduction": "sum"})
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_cosine",
            "peak": 2e-4 if is_clevr else 4e-4,
            "warmup": (2_500 if is_clevr else 10_000) / STEPS,
            "end_ratio": 0.0,
        }
    )
    config.optimizer.clip_norm = 0.05


def _variant(title: str, aggregator: Settings):
    def change(config: ConfigDict, data: base.DataSet) -> None:
        del data
        config.title, config.model.aggregator = title, ConfigDict(aggregator)

    return change


def learned(config: ConfigDict, data: base.DataSet) -> None:
    del data
    config.title += ", learned queries"
    config.model.initializer = ConfigDict(base.LEARNED)


def original(config: ConfigDict, data: base.DataSet) -> None:
    base.use_length(config, data, num_steps=STEPS, batch_size=BATCH)
    if data.name in PIXELS:
        return
    encoder = base.dino("base", 8 if data.is_movi else 16, final_norm=False)
    base.use_encoder(config, data, encoder, image_size=224)
    config.model.slot_size = 128 if data.is_movi else 256


WORDS = {
    "tf": ("system variant", _variant("TF", TF)),
    "tf_inv_gru": ("system variant", _variant("TF-Inv-GRU", TF_INV_GRU)),
    "sa_no_gru": ("system variant", _variant("SA without GRU", SA_NO_GRU)),
    "sa": ("system variant", _variant("SA", SA)),
    "sa_id": ("system variant", _variant("SA-ID", SA_ID)),
    "learned": ("queries", learned),
    "original": ("version", original),
}
