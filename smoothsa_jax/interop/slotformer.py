"""Names of arrays in the program of SlotFormer (Wu et al. 2023, arXiv 2210.05861).

A file of its SAVi is a slot model's. One of its STEVE has the frozen tokenizer too, which also has
a file of its own. A file of a rollouter has the decoder of its slot model beside it; the rest of
that model is in a file of its own.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import steve
from smoothsa_jax.interop.authors import below
from smoothsa_jax.interop.pixel_programs import (
    TORCH_TRANSPOSED,
    OfPixels,
    Places,
    borders,
    convolution,
    kept_of,
)
from smoothsa_jax.interop.programs import (
    ENCODER_LAYER,
    GRU,
    Arrays,
    Program,
    pack_attention,
    unpack_attention,
)
from smoothsa_jax.interop.table import FILTERS, KERNEL, LINEAR, NORM, RAW, SAME, Row, Transform
from smoothsa_jax.models.rollouters import sinusoids

# An array without the axis of length 1 in front that theirs has.
_BARE = {"": ("", Transform(lambda x: x[0], lambda x: x[None]))}
_LSTM = {
    "weight_ih_l0": ("input.kernel", KERNEL),
    "weight_hh_l0": ("hidden.kernel", KERNEL),
    "bias_ih_l0": ("input.bias", SAME),
    "bias_hh_l0": ("hidden.bias", SAME),
}
# Slot attention as SlotFormer and SlotDiffusion name it.
ATTENTION: list[Row] = [
    ("norm_inputs", "norm_features", NORM),
    ("project_q.0", "norm_slots", NORM),
    ("project_q.1", "query", LINEAR),
    ("project_k", "key", LINEAR),
    ("project_v", "value", LINEAR),
    ("gru", "gru", GRU),
    ("mlp.0", "norm_mlp", NORM),
    ("mlp.1", "mlp.hidden", LINEAR),
    ("mlp.3", "mlp.out", LINEAR),
]
_UNUSED = "prior_slot_layer"  # nothing reads it
_GRID = "_pos_embedding.grid"
_TIME = "rollouter.enc_t_pe"
_FRONT = "slot_model."  # of our names of a rollouter's companion


def _last(names: Collection[str], front: str) -> int:
    """Return the number of the decoder's last layer, which makes colors and mask logits."""
    start = f"{front}decoder.layers.layers."
    return len({name.removeprefix(start).split(".")[0] for name in names if name.startswith(start)})


def _decoder_rows() -> list[Row]:
    enlarge = convolution(TORCH_TRANSPOSED)
    return [
        ("decoder.{}.0", "decoder.layers.layers.{}", enlarge),
        ("decoder.values", "decoder.values", LINEAR),
        ("decoder.alpha", "decoder.alpha", LINEAR),
        ("decoder_pos_embedding.dense", "decoder.place.dense", LINEAR),
    ]


def _slots_rows() -> list[Row]:
    """What SAVi and STEVE share: all that makes slots."""
    transformer = "predictor.base_predictor.transformer_encoder.layers.{}"
    return [
        ("init_latents", "initializer.mean", RAW),
        *below("slot_attention", "aggregator", ATTENTION),
        ("encoder.{}.0", "encoder.layers.layers.{}", convolution(FILTERS)),
        ("encoder_pos_embedding.dense", "encoder.place.dense", LINEAR),
        ("encoder_out_layer.0", "projection.norm", NORM),
        ("encoder_out_layer.1", "projection.mlp.hidden", LINEAR),
        ("encoder_out_layer.3", "projection.mlp.out", LINEAR),
        *below(transformer, "transition.layers.{}", ENCODER_LAYER),
        ("predictor.rnn", "transition.cell", _LSTM),
        ("predictor.out_projector", "transition.out", LINEAR),
    ]


def _savi_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    deep = "aggregator.kernel.hidden.kernel" in names
    kernel: list[Row] = [("0", "out", LINEAR)]
    if deep:
        kernel = [("0", "hidden", LINEAR), ("1", "norm", NORM), ("3", "out", LINEAR)]
    return [
        *_slots_rows(),
        *below("kernel_dist_layer", "aggregator.kernel", kernel),
        *_decoder_rows(),
        ("predictor.ln", "transition.norm", NORM),
        ("predictor.mlp.0", "transition.mlp.hidden", LINEAR),
        ("predictor.mlp.2", "transition.mlp.out", LINEAR),
    ]


def _cut(front: str) -> Callable[[Mapping[str, np.ndarray], Collection[str]], Arrays]:
    """Part the decoder's last layer, a convolution of size 1, into colors and mask logits."""

    def cut(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
        found, last = dict(state_dict), _last(names, front)
        for leaf in ("weight", "bias"):
            whole = found.pop(f"decoder.{last}.{leaf}", None)
            if whole is not None:
                whole = whole.reshape(len(whole), -1) if leaf == "weight" else whole
                found[f"decoder.values.{leaf}"] = whole[:-1]
                found[f"decoder.alpha.{leaf}"] = whole[-1:]
        return found

    return cut


def _join(state_dict: Arrays) -> Arrays:
    found = dict(state_dict)
    layers = {key.split(".")[1] for key in found if key.startswith("decoder.")}
    last = len(layers - {"values", "alpha"})
    for leaf in ("weight", "bias"):
        parts = [found.pop(f"decoder.{part}.{leaf}", None) for part in ("values", "alpha")]
        if parts[0] is not None:
            whole = np.concatenate(parts)
            whole = whole[:, :, None, None] if leaf == "weight" else whole
            found[f"decoder.{last}.{leaf}"] = whole
    return found


def _in_order(state_dict: Arrays) -> Arrays:
    """Return arrays as files have them, one row after the other."""
    return {key: np.ascontiguousarray(x) for key, x in state_dict.items()}


def _prior(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> Arrays:
    """Return zeros for the layers of a file that nothing reads."""
    del kept
    if "initializer.mean" not in arrays:
        return {}
    size = arrays["initializer.mean"].shape[-1]
    shapes = {"0.weight": (size, size), "0.bias": (size,), "1.weight": (size,), "1.bias": (size,)}
    shapes |= {"3.weight": (size, size), "3.bias": (size,)}
    return {f"{_UNUSED}.{key}": np.zeros(shape, np.float32) for key, shape in shapes.items()}


_PLACES = Places("encoder_pos_embedding.grid", "decoder_pos_embedding.grid", borders)
SAVI = OfPixels(
    "SAVi of SlotFormer",
    _savi_rows,
    cut=_cut(""),
    join=_join,
    more=_prior,
    kept=kept_of(_PLACES, ""),
    ignored=lambda key: key.endswith(_GRID) or key.startswith(f"{_UNUSED}."),
    sized=lambda key: key.endswith(_GRID),
    places=_PLACES,
)


# ---------------------------------------------------------------------------------------- STEVE

# The start of a sequence is the last row of their table, and the first one of ours.
_TABLE = {
    "": ("", Transform(lambda x: np.roll(x, 1, axis=0), lambda x: np.roll(x, -1, axis=0))),
}
_TOKENS: list[Row] = [  # below a decoder
    ("in_proj", "project_slots", LINEAR),
    ("tok_emb.weight", "table", _TABLE),
    ("pos_emb.pe", "position", RAW),
    *below("tf_dec.blocks.{}", "layers.{}", steve.DECODER_LAYER),
    ("tf_dec.layer_norm", "norm_out", NORM),
    ("head", "readout", LINEAR),
]
_TOKEN_DECODER = "trans_decoder"
DVAE = "dvae."  # in front of the keys of a tokenizer in another model's file


def _unpacked(state_dict: Arrays) -> Arrays:
    """Part query, key and value of the decoder's layers; torch's own layers keep them together."""
    own = {key: x for key, x in state_dict.items() if ".tf_dec." in key}
    rest = {key: x for key, x in state_dict.items() if key not in own}
    return {**rest, **unpack_attention(own)}


def _steve_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    """Those of STEVE, or of its tokenizer."""
    del model
    if any(name.startswith("tokenizer.") for name in names):
        rows = steve.dvae_rows(normed=True)
        return [(key, f"tokenizer.{name}", leaves) for key, name, leaves in rows]
    return [*_slots_rows(), *below(_TOKEN_DECODER, "decoder", _TOKENS)]


_STEVE_PLACES = Places("encoder_pos_embedding.grid", None, borders)
STEVE = OfPixels(
    "STEVE of SlotFormer",
    _steve_rows,
    cut=pack_attention,
    join=_unpacked,
    more=lambda arrays, kept: steve.masks(arrays, f"{_TOKEN_DECODER}.tf_dec", spare=0),
    kept=kept_of(_STEVE_PLACES, ""),
    ignored=lambda key: key.endswith((_GRID, f".{steve.MASK}")),
    sized=lambda key: key.endswith(_GRID),
    places=_STEVE_PLACES,
)


# ----------------------------------------------------------------------------------- rollouters


def _rollouter_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del names, model
    return [
        ("rollouter.in_proj", "rollouter.in_projection", LINEAR),
        (_TIME, "rollouter.time_positions", _BARE),
        ("rollouter.enc_slots_pe", "rollouter.slot_positions", _BARE),
        *below("rollouter.transformer_encoder.layers.{}", "rollouter.layers.{}", ENCODER_LAYER),
        ("rollouter.out_proj", "rollouter.out_projection", LINEAR),
        *[(key, f"{_FRONT}{name}", leaves) for key, name, leaves in _decoder_rows()],
        *below("decoder", f"{_FRONT}decoder", _TOKENS),
    ]


def _cut_rollouter(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    return pack_attention(_cut(_FRONT)(state_dict, names), names)


def _masks(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> Arrays:
    """Return the masks of a decoder of tokens."""
    del kept
    own = {name.removeprefix(_FRONT): x for name, x in arrays.items()}
    return steve.masks(own, "decoder.tf_dec", spare=0) if "decoder.position" in own else {}


def _unscaled(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Put the mean and the deviation of slots into the layers that read and write them."""
    found = {name: np.asarray(x) for name, x in arrays.items()}
    mean, scale = (found.pop(f"rollouter.slot_{x}", None) for x in ("mean", "scale"))
    if mean is None:
        return found
    front, back = ("rollouter.in_projection", "rollouter.out_projection")
    kernel = found[f"{front}.kernel"] / scale[:, None]
    found[f"{front}.kernel"] = kernel
    found[f"{front}.bias"] = found[f"{front}.bias"] - mean @ kernel
    found[f"{back}.kernel"] = found[f"{back}.kernel"] * scale
    found[f"{back}.bias"] = found[f"{back}.bias"] * scale + mean
    return found


@dataclasses.dataclass(frozen=True)
class _Rollouter(Program):
    """Files of rollouters, which hold the constant functions of the age of a frame."""

    def to_ours(
        self,
        state_dict: Mapping[str, np.ndarray],
        names: Collection[str],
        model: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        table = state_dict.get(_TIME)
        if table is not None and "rollouter.time_positions" not in names:
            own = sinusoids(*table.shape[1:])
            if np.abs(table[0] - own).max() > 1e-5:
                raise UserError(
                    f"{_TIME} does not hold the sinusoids of the ages of frames; give a file of "
                    "another model, or set --config.model.rollouter.positions=learned"
                )
        return super().to_ours(state_dict, names, model)

    def to_theirs(
        self,
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any] = MappingProxyType({}),
        kept: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        settings = model.get("rollouter", {})
        for key, theirs in (("residual", False), ("positions", "time")):
            found = settings.get(key, theirs)
            if found not in (theirs, "learned"):
                raise UserError(
                    f"model.rollouter.{key} is {found!r}, which the program of {self.title} does "
                    f"not have; only a rollouter with {theirs!r} has a file there"
                )
        found = super().to_theirs(_unscaled(arrays), model, kept)
        if _TIME not in found and settings:
            width = arrays["rollouter.in_projection.kernel"].shape[1]
            found[_TIME] = sinusoids(settings["window"], width)[None]
        if (cells := kept.get("cells")) is not None:
            found["decoder_pos_embedding.grid"] = borders(tuple(cells))
        return _in_order(found)


def _cells(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    grid = state_dict.get(f"decoder{_GRID}")
    return {} if grid is None else {"cells": list(grid.shape[1:3])}


def of_tokenizer(key: str) -> bool:
    """Whether a key of a rollouter's file is that of its slot model's tokenizer, which is not read.

    A run of a rollouter has no tokenizer.
    """
    return key.startswith(DVAE)


ROLLOUTER = _Rollouter(
    "SlotFormer",
    _rollouter_rows,
    cut=_cut_rollouter,
    join=lambda state_dict: _unpacked(_join(state_dict)),
    more=_masks,
    kept=_cells,
    ignored=lambda key: (
        key in (_TIME, f"decoder{_GRID}") or key.endswith(f".{steve.MASK}") or of_tokenizer(key)
    ),
    sized=lambda key: key in (_TIME, f"decoder{_GRID}"),
)


def _layers_of(state_dict: Mapping[str, np.ndarray], start: str) -> dict[str, int]:
    """Return what a file tells of a transformer whose keys begin so."""
    layers = {key.removeprefix(start).split(".")[0] for key in state_dict if key.startswith(start)}
    hidden = state_dict[f"{start}0.linear1.weight"].shape[0]
    return {"num_layers": len(layers), "mlp_size": hidden}


def sizes_of(state_dict: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the settings of `model.rollouter` that a file of one tells."""
    return {
        "width": state_dict["rollouter.in_proj.weight"].shape[0],
        **_layers_of(state_dict, "rollouter.transformer_encoder.layers."),
        "window": state_dict[_TIME].shape[1],
    }


# ------------------------------------------------------------------------------------- readouts

_ALOE = "transformer_model"
_FIRST = {"": ("", Transform(lambda x: x[0, 0], lambda x: x[None, None]))}
# What tells tokens apart, which is in the files but not trained.
_KINDS = {
    f"{_ALOE}.{key}": np.array(value, np.float32)
    for key, value in {
        "text_token": (1, 0),
        "vision_token": (0, 1),
        "cls_token": (0, 1),
        "mc_question_token": (1, 0),
        "mc_choice_token": (0, 1),
    }.items()
}
_PAIRS = "comb_idx"


def _of_readouts(rows: list[Row]) -> list[Row]:
    return [(key, f"readout.{name}", leaves) for key, name, leaves in rows]


@dataclasses.dataclass(frozen=True)
class _Readout(Program):
    """Files of readouts, which hold constants.

    Attributes:
        constants: a state dict -> its constants, as they have to be.
    """

    constants: Callable[[Mapping[str, np.ndarray]], Arrays] = lambda state_dict: {}

    def to_ours(
        self,
        state_dict: Mapping[str, np.ndarray],
        names: Collection[str],
        model: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        for key, expected in self.constants(state_dict).items():
            found = state_dict.get(key, expected)
            if found.shape != expected.shape or np.abs(found - expected).max() > 1e-5:
                raise UserError(
                    f"{key} is not what the program of {self.title} writes there; give a file of "
                    "another model"
                )
        return super().to_ours(state_dict, names, model)


@dataclasses.dataclass(frozen=True)
class _Aloe(_Readout):
    """Files of Aloe, in which every slot of every frame has a position of its own."""

    def to_theirs(
        self,
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any] = MappingProxyType({}),
        kept: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        settings, found = model.get("readout", {}), dict(arrays)
        if settings.get("positions", "token") == "time" and "slots" in kept:
            table = np.asarray(found["readout.position"])
            words = settings["question_length"] + settings["choice_length"]
            first, of_frames, rest = np.split(table, [1, len(table) - words])
            of_slots = np.repeat(of_frames, kept["slots"], axis=0)
            found["readout.position"] = np.concatenate([first, of_slots, rest])
        return super().to_theirs(found, model, kept)


def _aloe_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del names, model
    rows = [
        ("CLS", "first", _FIRST),
        ("transformer_encoder.pos_embedding", "position", _BARE),
        *below("transformer_encoder.layers.{}", "layers.{}", ENCODER_LAYER),
        ("q_embedding.weight", "embedding", RAW),
        ("q_in_proj", "word_projection", LINEAR),
        ("vision_in_proj", "slot_projection", LINEAR),
        ("cls_answer_mlp.0", "answer.hidden", LINEAR),
        ("cls_answer_mlp.2", "answer.out", LINEAR),
        ("mc_answer_mlp.0", "choice.hidden", LINEAR),
        ("mc_answer_mlp.2", "choice.out", LINEAR),
    ]
    return _of_readouts([(f"{_ALOE}.{key}", name, leaves) for key, name, leaves in rows])


ALOE = _Aloe(
    "Aloe of SlotFormer",
    _aloe_rows,
    join=_in_order,
    more=lambda arrays, kept: dict(_KINDS),
    ignored=lambda key: key in _KINDS,
    constants=lambda state_dict: dict(_KINDS),
)


def _physion_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del names, model
    return _of_readouts([("linear1", "of_pair", LINEAR), ("linear2", "out", LINEAR)])


def _in_pairs(slots: int) -> np.ndarray:
    """Return the numbers of the slots of all pairs, one after the other."""
    return np.stack(np.triu_indices(slots, 1), axis=1).reshape(-1).astype(np.int64)


def _pairs_of(state_dict: Mapping[str, np.ndarray]) -> Arrays:
    if _PAIRS not in state_dict:
        return {}
    number = len(state_dict[_PAIRS]) // 2  # N (N - 1) / 2
    return {_PAIRS: _in_pairs(round((1 + (1 + 8 * number) ** 0.5) / 2))}


PHYSION = _Readout(
    "SlotFormer's readout of Physion",
    _physion_rows,
    join=_in_order,
    more=lambda arrays, kept: {_PAIRS: _in_pairs(kept["slots"])} if "slots" in kept else {},
    kept=lambda state_dict: {"slots": int(max(state_dict[_PAIRS])) + 1},
    ignored=lambda key: key == _PAIRS,
    sized=lambda key: key == _PAIRS,
    constants=_pairs_of,
)


def _phyre_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del names, model
    return _of_readouts(
        [
            ("CLS", "first", _FIRST),
            ("in_proj", "in_projection", LINEAR),
            *below("transformer_encoder.layers.{}", "layers.{}", ENCODER_LAYER),
            ("cls_mlp.0", "answer.hidden", LINEAR),
            ("cls_mlp.2", "answer.out", LINEAR),
        ]
    )


def _ages_of(state_dict: Mapping[str, np.ndarray]) -> Arrays:
    table = state_dict.get("enc_t_pe")
    return {} if table is None else {"enc_t_pe": sinusoids(*table.shape[1:])[None]}


PHYRE = _Readout(
    "SlotFormer's readout of PHYRE",
    _phyre_rows,
    join=_in_order,
    more=lambda arrays, kept: (
        {"enc_t_pe": sinusoids(kept["frames"], len(arrays["readout.first"]))[None]}
        if "frames" in kept
        else {}
    ),
    kept=lambda state_dict: {"frames": state_dict["enc_t_pe"].shape[1]},
    ignored=lambda key: key == "enc_t_pe",
    sized=lambda key: key == "enc_t_pe",
    constants=_ages_of,
)
# Of a readout of PHYRE, what its file does not tell.
PHYRE_SETTINGS = {"frames": (0, 3), "num_heads": 8, "dropout_rate": 0.1}


def phyre_sizes_of(state_dict: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the other settings of `model.readout` of such a file."""
    width = state_dict["in_proj.weight"].shape[0]
    return {"width": width, **_layers_of(state_dict, "transformer_encoder.layers.")}


READOUTS = {"aloe": ALOE, "pairs": PHYSION, "frames_transformer": PHYRE}
