"""Names of arrays in the program of STEVE (Singh et al. 2022, arXiv 2205.14065)."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from smoothsa_jax.interop.authors import PACKED, below
from smoothsa_jax.interop.programs import (
    SLOT_ATTENTION,
    Arrays,
    Program,
    pack_attention,
    unpack_attention,
)
from smoothsa_jax.interop.table import (
    FILTERS,
    LINEAR,
    NORM,
    ONE_BY_ONE,
    RAW,
    SAME,
    Leaves,
    Row,
)
from smoothsa_jax.models.layers.positions import functions_of_place

_CONVOLUTION: Leaves = {"weight": ("kernel", FILTERS), "bias": ("bias", SAME)}
_PLACE, MASK = "steve_encoder.pos.pe", "self_attn_mask"
_DECODER, _PREDICTOR = "steve_decoder", "steve_encoder.savi.predictor"

# Of the decoder, the layers of each of its parts; pixels are shuffled in between.
_DVAE_LAYERS = ((0, 1, 2, 3, 4), (6, 7, 8, 9), (11,))


def dvae_rows(normed: bool = False) -> list[Row]:
    """Those below a dVAE.

    Args:
        normed: whether its layers have a GroupNorm in place of a bias, as in SLATE.
    """
    rows: list[Row] = []

    def layer(theirs: str, ours: str, number: int) -> None:
        rows.append((f"{theirs}.m", f"{ours}.layers.{number}", _CONVOLUTION))
        if normed:
            rows.append((theirs, f"{ours}.norms.{number}", NORM))

    for i in range(7):
        layer(f"encoder.{i}", "encoder", i)
    rows.append(("encoder.7", "encoder.layers.7", _CONVOLUTION))
    *shuffled, (last,) = _DVAE_LAYERS
    for part, numbers in enumerate(shuffled):
        for i, number in enumerate(numbers):
            layer(f"decoder.{number}", f"decoder.{part}", i)
    rows.append((f"decoder.{last}", f"decoder.{len(shuffled)}.layers.0", _CONVOLUTION))
    return rows


DVAE = dvae_rows()
_FEED_FORWARD: list[Row] = [
    ("ffn.0", "feed_forward.hidden", LINEAR),
    ("ffn.2", "feed_forward.out", LINEAR),
    ("ffn_layer_norm", "norm_feed_forward", NORM),
]
_PREDICTOR_LAYER: list[Row] = [
    ("attn", "self_attention", PACKED),
    ("attn.proj_o", "self_attention.out", LINEAR),
    ("attn_layer_norm", "norm_self", NORM),
    *_FEED_FORWARD,
]
DECODER_LAYER: list[Row] = [
    ("self_attn", "self_attention", PACKED),
    ("self_attn.proj_o", "self_attention.out", LINEAR),
    ("encoder_decoder_attn", "cross_attention", PACKED),
    ("encoder_decoder_attn.proj_o", "cross_attention.out", LINEAR),
    ("self_attn_layer_norm", "norm_self", NORM),
    ("encoder_decoder_attn_layer_norm", "norm_cross", NORM),
    *_FEED_FORWARD,
]


def _rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    convolutions = {x.split(".")[3] for x in names if x.startswith("encoder.layers.layers.")}
    last = max(map(int, convolutions), default=0)
    further = {x.split(".")[2] for x in names if x.startswith("transition.further.")}
    cnn = [(f"{i}" if i == last else f"{i}.m", i) for i in range(last + 1)]
    return [
        *below("dvae", "tokenizer", DVAE),
        *[
            (f"steve_encoder.cnn.{key}", f"encoder.layers.layers.{i}", _CONVOLUTION)
            for key, i in cnn
        ],
        (
            "steve_encoder.pos.projection",
            "encoder.place.dense",
            {"weight": ("kernel", ONE_BY_ONE), "bias": ("bias", SAME)},
        ),
        ("steve_encoder.layer_norm", "projection.norm", NORM),
        ("steve_encoder.mlp.0", "projection.mlp.hidden", LINEAR),
        ("steve_encoder.mlp.2", "projection.mlp.out", LINEAR),
        ("steve_encoder.savi.slot_mu", "initializer.mean", RAW),
        ("steve_encoder.savi.slot_log_sigma", "initializer.log_std", RAW),
        ("steve_encoder.savi.norm_inputs", "aggregator.norm_features", NORM),
        *below("steve_encoder.savi", "aggregator", SLOT_ATTENTION),
        *below(f"{_PREDICTOR}.blocks.0", "transition.layer", _PREDICTOR_LAYER),
        *[
            row
            for i in sorted(map(int, further))
            for row in below(
                f"{_PREDICTOR}.blocks.{i + 1}", f"transition.further.{i}", _PREDICTOR_LAYER
            )
        ],
        (f"{_PREDICTOR}.layer_norm", "transition.norm", NORM),
        ("steve_encoder.slot_proj", "decoder.project_slots", LINEAR),
        (f"{_DECODER}.bos", "decoder.first", RAW),
        (f"{_DECODER}.dict.dictionary.weight", "decoder.table", RAW),
        (f"{_DECODER}.pos.pe", "decoder.position", RAW),
        *below(f"{_DECODER}.tf.blocks.{{}}", "decoder.layers.{}", DECODER_LAYER),
        (f"{_DECODER}.tf.layer_norm", "decoder.norm_out", NORM),
        (f"{_DECODER}.head", "decoder.readout", LINEAR),
    ]


def _kept(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what a file has that the model's arrays do not tell: the grid of its encoder."""
    return {"grid": list(state_dict[_PLACE].shape[2:])} if _PLACE in state_dict else {}


def _more(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> Arrays:
    """Return the functions of the place, and the masks of causal attention, which it stores."""
    found = {}
    if "grid" in kept:
        place = functions_of_place(tuple(kept["grid"]), "centers")
        found[_PLACE] = place.transpose(2, 0, 1)[None]
    return {**found, **masks(arrays, f"{_DECODER}.tf")}


def masks(arrays: Mapping[str, np.ndarray], decoder: str, spare: int = 1) -> Arrays:
    """Return the masks of causal attention, which the files of a model's decoder hold.

    Args:
        arrays: of the model, by our names.
        decoder: what their keys begin with.
        spare: positions that no token has.
    """
    layers = {name.split(".")[2] for name in arrays if name.startswith("decoder.layers.")}
    if not layers:
        return {}
    size = arrays["decoder.position"].shape[1] - spare
    later = np.triu(np.ones((size, size), bool), 1)
    return {f"{decoder}.blocks.{i}.{MASK}": later.copy() for i in sorted(layers)}


STEVE = Program(
    "STEVE",
    _rows,
    pack_attention,
    unpack_attention,
    more=_more,
    kept=_kept,
    ignored=lambda key: key == _PLACE or key.endswith(MASK),
)
