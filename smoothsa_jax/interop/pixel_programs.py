"""Names of arrays in the programs whose models see pixels: SAVi's, BO-QSA's, and the original's.

Their convolution kernels are brought to the one layout of `models.layers.conv`, and their gates of
a GRU to torch's order. They store the functions of the place, which are constants here.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.authors import below
from smoothsa_jax.interop.programs import GRU, Arrays, Program
from smoothsa_jax.interop.table import LINEAR, NORM, RAW, SAME, Row, Transform
from smoothsa_jax.models.encoders.conv import Conv
from smoothsa_jax.models.encoders.resnet import ResNet
from smoothsa_jax.parts import make

IMAGE_SIZE = "image_size"  # what `published` adds to what a file tells
GRIDS = "grids"  # name -> shape or values of the functions of the place that a file has
_ENCODERS = {"conv": Conv, "resnet": ResNet}


# -------------------------------------------------------------------------- functions of the place


def _torch_linspace(size: int) -> np.ndarray:
    """From 0 to 1 as torch rounds it: from both ends."""
    step, place = np.float32(1.0) / np.float32(max(size - 1, 1)), np.arange(size)
    forward = (step * place.astype(np.float32)).astype(np.float32)
    backward = np.float32(1.0) - step * (size - 1 - place).astype(np.float32)
    return np.where(place < size / 2, forward, backward.astype(np.float32))


def _borders(grid: tuple[int, int]) -> np.ndarray:
    """(1,h,w,4), as BO-QSA's program stores it."""
    sides = [_torch_linspace(n) for n in grid]
    place = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    return np.concatenate([place, np.float32(1.0) - place], axis=-1)[None]


def _linear(grid: tuple[int, int]) -> np.ndarray:
    """(1,h,w,2), as SAVi's program stores it."""
    sides = [np.asarray(jnp.linspace(-1.0, 1.0, n), np.float32) for n in grid]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)[None]


@dataclasses.dataclass(frozen=True)
class _Places:
    """The functions of the place that a program stores.

    Attributes:
        encoder, decoder: their keys.
        make: (h, w) -> an array.
    """

    encoder: str
    decoder: str
    make: Callable[[tuple[int, int]], np.ndarray]

    def kept(self, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the sizes of those in a file; the values, where they are not ours to the bit."""
        found = {}
        for key, x in state_dict.items():
            if not key.endswith((self.encoder, self.decoder)):
                continue
            own = self.make(x.shape[1:3])
            if own.shape != x.shape or np.abs(own - x).max() > 1e-5:
                raise UserError(
                    f"{key} does not hold the places of a grid; give a file of another model"
                )
            found[key] = list(x.shape[1:3]) if np.array_equal(own, x) else np.asarray(x).tolist()
        return {GRIDS: found} if found else {}

    def arrays(self, model: Mapping[str, Any], kept: Mapping[str, Any]) -> Arrays:
        """Return those of a model."""
        if GRIDS in kept:
            given = kept[GRIDS]
            values = lambda x: self.make(tuple(x)) if len(x) == 2 else np.array(x, np.float32)  # noqa: E731
            return {key: values(x) for key, x in given.items()}
        if IMAGE_SIZE not in kept or "encoder" not in model:
            return {}
        cells = model["decoder"]["cells"]
        grids = {
            self.encoder: _grid_of(model["encoder"], tuple(kept[IMAGE_SIZE])),
            self.decoder: (cells, cells) if isinstance(cells, int) else tuple(cells),
        }
        return {key: self.make(grid) for key, grid in grids.items()}


def _grid_of(encoder: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of an encoder's tokens."""
    build = lambda: make("model.encoder", encoder, _ENCODERS, image_size, rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.eval_shape(build).grid


# ------------------------------------------------------------------------------------------ BO-QSA

# (out, in, k, k), and of a transposed convolution (in, out, k, k), which torch flips.
_TORCH = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
_TORCH_TRANSPOSED = Transform(
    lambda x: x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),
    lambda x: x.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1],
)
# (k, k, out, in), which Keras flips; the other way is the same.
_KERAS_TRANSPOSED = Transform(
    *[lambda x: x[::-1, ::-1].transpose(0, 1, 3, 2)] * 2,
)


def _convolution(transform: Transform, kernel: str = "weight") -> dict[str, tuple[str, Transform]]:
    return {kernel: ("kernel", transform), "bias": ("bias", SAME)}


def _boqsa_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    numbers = {int(x.split(".")[3]) for x in names if x.startswith("decoder.layers.layers.")}
    last = max(numbers, default=0)
    enlarge = _convolution(_TORCH_TRANSPOSED)
    attention: list[Row] = [
        ("norm_feature", "norm_features", NORM),
        ("norm_slots", "norm_slots", NORM),
        ("norm_mlp", "norm_mlp", NORM),
        ("project_q", "query", LINEAR),
        ("project_k", "key", LINEAR),
        ("project_v", "value", LINEAR),
        ("gru", "gru", GRU),
        ("mlp.0", "mlp.hidden", LINEAR),
        ("mlp.2", "mlp.out", LINEAR),
    ]
    with_axis = {"": ("", Transform(lambda x: x[None], lambda x: x[0]))}
    return [
        ("encoder.conv.{}.0", "encoder.layers.layers.{}", _convolution(_TORCH)),
        ("slot_attn.pos_emb.dense", "encoder.place.dense", LINEAR),
        ("slot_attn.mlp.0", "projection.norm", NORM),
        ("slot_attn.mlp.1", "projection.mlp.hidden", LINEAR),
        ("slot_attn.mlp.3", "projection.mlp.out", LINEAR),
        ("slot_attn.slots_init.weight", "initializer.mean", with_axis),
        *below("slot_attn.slot_attention", "aggregator", attention),
        ("decoder.pos_emb.dense", "decoder.place.dense", LINEAR),
        ("decoder.conv.{}.0.conv.0", "decoder.layers.layers.{}", enlarge),
        (f"decoder.conv.{last}.1", "decoder.joint", enlarge),
    ]


@dataclasses.dataclass(frozen=True)
class _OfPixels(Program):
    """A program that stores functions of the place.

    Attributes:
        places: which.
        prefix: what its files may have in front of every key.
    """

    places: _Places | None = None
    prefix: str = ""

    def to_theirs(
        self,
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any] = MappingProxyType({}),
        kept: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        found = super().to_theirs(arrays, model, kept)
        if self.places is not None:
            found |= self.places.arrays(model, kept)
        prefix = kept.get("prefix", "")
        return {f"{prefix}{key}": np.ascontiguousarray(x) for key, x in found.items()}


def _kept_of(places: _Places, prefix: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, Any]]:
    """Return what a file tells besides the arrays, as JSON values."""

    def kept(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
        bare = {key.removeprefix(prefix): x for key, x in state_dict.items()}
        has = {"prefix": prefix} if prefix and bare.keys() != state_dict.keys() else {}
        return {**places.kept(bare), **has}

    return kept


_BOQSA_PLACES = _Places("slot_attn.pos_emb.grid", "decoder.pos_emb.grid", _borders)
BOQSA = _OfPixels(
    "BO-QSA",
    _boqsa_rows,
    cut=lambda state_dict, names: dict(state_dict),
    join=lambda state_dict: state_dict,
    kept=_kept_of(_BOQSA_PLACES, "model."),
    ignored=lambda key: key.removeprefix("model.").endswith(".pos_emb.grid"),
    today=lambda key: key.removeprefix("model."),
    places=_BOQSA_PLACES,
)


# ----------------------------------------------------------------------- the original (Keras)

_DENSE = {"kernel": ("kernel", SAME), "bias": ("bias", SAME)}
_KERAS_NORM = {"gamma": ("scale", SAME), "beta": ("bias", SAME)}


def _reordered(x: np.ndarray) -> np.ndarray:
    """Swap the gates that come first and second: Keras has update, reset, new."""
    first, second, new = np.split(x, 3, axis=-1)
    return np.concatenate([second, first, new], axis=-1)


_GATES = Transform(_reordered, _reordered)


def _original_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    numbers = {int(x.split(".")[3]) for x in names if x.startswith("decoder.layers.layers.")}
    convolution, enlarge = (_convolution(x, "kernel") for x in (SAME, _KERAS_TRANSPOSED))
    # The bias of input and state are one array of two rows there; `cut` has taken it apart.
    gru = {
        "kernel": ("input.kernel", _GATES),
        "recurrent_kernel": ("hidden.kernel", _GATES),
        "bias#0": ("input.bias", _GATES),
        "bias#1": ("hidden.bias", _GATES),
    }
    attention: list[Row] = [
        ("norm_inputs", "norm_features", _KERAS_NORM),
        ("norm_slots", "norm_slots", _KERAS_NORM),
        ("norm_mlp", "norm_mlp", _KERAS_NORM),
        ("project_q", "query", _DENSE),
        ("project_k", "key", _DENSE),
        ("project_v", "value", _DENSE),
        ("gru", "gru", gru),
        ("mlp.0", "mlp.hidden", _DENSE),
        ("mlp.1", "mlp.out", _DENSE),
    ]
    return [
        ("encoder_cnn.{}", "encoder.layers.layers.{}", convolution),
        ("encoder_pos.dense", "encoder.place.dense", _DENSE),
        ("layer_norm", "projection.norm", _KERAS_NORM),
        ("mlp.0", "projection.mlp.hidden", _DENSE),
        ("mlp.1", "projection.mlp.out", _DENSE),
        ("slot_attention.slots_mu", "initializer.mean", RAW),
        ("slot_attention.slots_log_sigma", "initializer.log_std", RAW),
        *below("slot_attention", "aggregator", attention),
        ("decoder_pos.dense", "decoder.place.dense", _DENSE),
        (f"decoder_cnn.{max(numbers, default=0) + 1}", "decoder.joint", enlarge),
        ("decoder_cnn.{}", "decoder.layers.layers.{}", enlarge),
    ]


_KERAS_BIAS = "slot_attention.gru.bias"


def _cut_original(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    del names
    found = {key.replace("/", "."): x for key, x in state_dict.items()}
    if _KERAS_BIAS in found:
        rows = found.pop(_KERAS_BIAS)
        found |= {f"{_KERAS_BIAS}#{i}": row for i, row in enumerate(rows)}
    return found


def _join_original(state_dict: Arrays) -> Arrays:
    found = dict(state_dict)
    if f"{_KERAS_BIAS}#0" in found:
        found[_KERAS_BIAS] = np.stack([found.pop(f"{_KERAS_BIAS}#{i}") for i in range(2)])
    return {key.replace(".", "/"): x for key, x in found.items()}


ORIGINAL = Program("slot attention", _original_rows, _cut_original, _join_original)


# -------------------------------------------------------------------------------------------- SAVi

_LINEN_NORM = {"scale": ("scale", SAME), "bias": ("bias", SAME)}
_GATE_NAMES = ("r", "z", "n")
_OF_ATTENTION = ("query", "key", "value")


def _heads(number: int) -> Transform:
    """(in, heads, width) <-> (in, heads * width)."""
    return Transform(lambda x: x.reshape(len(x), -1), lambda x: x.reshape(len(x), number, -1))


def _linen_attention(theirs: str, ours: str, number: int) -> list[Row]:
    """The rows of a multi-head attention, whose projections `cut` has stacked."""
    packed = {
        "qkv.kernel": (
            "in_projection",
            Transform(
                lambda x: np.concatenate([part.reshape(len(part), -1) for part in x], axis=1),
                lambda x: np.stack(
                    [part.reshape(len(part), number, -1) for part in np.split(x, 3, axis=1)]
                ),
            ),
        ),
        "qkv.bias": ("in_bias", Transform(np.ravel, lambda x: x.reshape(3, number, -1))),
        "out.kernel": (
            "out.kernel",
            Transform(
                lambda x: x.reshape(-1, x.shape[-1]), lambda x: x.reshape(number, -1, x.shape[-1])
            ),
        ),
        "out.bias": ("out.bias", SAME),
    }
    return [(theirs, ours, packed)]


def _linen_layer(theirs: str, ours: str, number: int) -> list[Row]:
    """The rows of a transformer block without cross-attention."""
    return [
        (f"{theirs}.LayerNorm_0", f"{ours}.norm_self", _LINEN_NORM),
        (f"{theirs}.LayerNorm_1", f"{ours}.norm_feed_forward", _LINEN_NORM),
        (f"{theirs}.MLP_0.dense_mlp_0", f"{ours}.feed_forward.hidden", _DENSE),
        (f"{theirs}.MLP_0.dense_mlp_1", f"{ours}.feed_forward.out", _DENSE),
        *_linen_attention(
            f"{theirs}.MultiHeadDotProductAttention_0", f"{ours}.self_attention", number
        ),
    ]


def _resnet_rows(names: Collection[str], theirs: str) -> list[Row]:
    kernel = {"kernel": ("kernel", SAME)}
    rows: list[Row] = [
        (f"{theirs}.init_conv", "encoder.root", kernel),
        (f"{theirs}.init_bn", "encoder.norm_root", _LINEN_NORM),
    ]
    places = {tuple(x.split(".")[2:4]) for x in names if x.startswith("encoder.stages.")}
    for stage, block in sorted(places):
        key = f"{theirs}.stage{int(stage) + 1}.block{int(block) + 1}"
        name = f"encoder.stages.{stage}.{block}"
        rows += [
            (f"{key}.conv1", f"{name}.first", kernel),
            (f"{key}.bn1", f"{name}.norm_first", _LINEN_NORM),
            (f"{key}.conv2", f"{name}.second", kernel),
            (f"{key}.bn2", f"{name}.norm_second", _LINEN_NORM),
            (f"{key}.proj_conv", f"{name}.shortcut", kernel),
            (f"{key}.proj_bn", f"{name}.norm_shortcut", _LINEN_NORM),
        ]
    return rows


def _savi_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    def heads(part: str) -> int:
        return model.get(part, {}).get("num_heads", 4)

    number = model.get("aggregator", {}).get("num_heads", 1)
    projected = {"kernel": ("kernel", _heads(number))}
    encoder, attention = "FrameEncoder_0", "SlotAttention_0"
    place, decoder = f"{encoder}.PositionEmbedding_0", "SpatialBroadcastDecoder_0"
    gru = {
        "input.kernel": ("input.kernel", SAME),
        "input.bias": ("input.bias", SAME),
        "hidden.kernel": ("hidden.kernel", SAME),
        "hn.bias": ("new_bias", SAME),
    }
    return [
        (f"{encoder}.CNN_0.conv_{{}}", "encoder.layers.layers.{}", _DENSE),
        *_resnet_rows(names, f"{encoder}.ResNet_0"),
        (f"{place}.dense_pe_0", "encoder.place.dense", _DENSE),
        (f"{place}.MLP_0.LayerNorm_0", "projection.norm", _LINEN_NORM),
        (f"{place}.MLP_0.dense_mlp_0", "projection.mlp.hidden", _DENSE),
        (f"{place}.MLP_0.dense_mlp_1", "projection.mlp.out", _DENSE),
        (f"{encoder}.Dense_0", "projection.embed", _DENSE),
        *_linen_layer(
            f"{encoder}.Transformer_0.TransformerBlock{{}}",
            "projection.layers.{}",
            heads("projection"),
        ),
        ("CoordinateEncoderStateInit_0.MLP_0.dense_mlp_0", "initializer.mlp.hidden", _DENSE),
        ("CoordinateEncoderStateInit_0.MLP_0.dense_mlp_1", "initializer.mlp.out", _DENSE),
        (f"{attention}.LayerNorm_0", "aggregator.norm_slots", _LINEN_NORM),
        (f"{attention}.LayerNorm_1", "aggregator.norm_features", _LINEN_NORM),
        (f"{attention}.general_dense_q_0", "aggregator.query", projected),
        (f"{attention}.general_dense_k_0", "aggregator.key", projected),
        (f"{attention}.general_dense_v_0", "aggregator.value", projected),
        (f"{attention}.GRU_0.GRUCell_0", "aggregator.gru", gru),
        *_linen_layer("TransformerBlock_0", "transition.layer", heads("transition")),
        (f"{decoder}.PositionEmbedding_0.dense_pe_0", "decoder.place.dense", _DENSE),
        (f"{decoder}.CNN_0.conv_{{}}", "decoder.layers.layers.{}", _DENSE),
        (f"{decoder}.alpha_logits", "decoder.alpha", _DENSE),
        (f"{decoder}.Readout", "decoder.values", _DENSE),
    ]


_READOUT = "SpatialBroadcastDecoder_0.Readout_0."
_GATES_OF = "SlotAttention_0.GRU_0.GRUCell_0."


def _readouts(keys: Collection[str]) -> list[str]:
    """The names of a file's heads, in its order: "...Dense_0.Dense_0", "...MLP_1.dense_mlp_0"."""
    heads = {key.rsplit(".", 1)[0] for key in keys if key.startswith(_READOUT)}
    return sorted(heads)


def _in_our_order(widths: list[int]) -> list[int]:
    """The places of a file's heads in our order: flow, of three channels, before depth, of one."""
    return sorted(range(len(widths)), key=lambda i: -widths[i])


def _cut_savi(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    del names
    found = {key.replace("/", "."): np.asarray(x) for key, x in state_dict.items()}
    found = {key: x for key, x in found.items() if not key.endswith(".pos_embedding")}
    for leaf in ("kernel", "bias"):
        heads = [f"{name}.{leaf}" for name in _readouts(found) if f"{name}.{leaf}" in found]
        parts = [found.pop(key) for key in heads]
        if parts:
            order = _in_our_order([part.shape[-1] for part in parts])
            joined = np.concatenate([parts[i] for i in order], axis=-1)
            found[f"SpatialBroadcastDecoder_0.Readout.{leaf}"] = joined
        for gates, ours in (("i", "input"), ("h", "hidden")):
            keys = [f"{_GATES_OF}{gates}{gate}.{leaf}" for gate in _GATE_NAMES]
            if all(key in found for key in keys):
                joined = np.concatenate([found.pop(key) for key in keys], axis=-1)
                found[f"{_GATES_OF}{ours}.{leaf}"] = joined
    for key in [key for key in found if ".query." in key]:
        parts = [found.pop(key.replace(".query.", f".{part}.")) for part in _OF_ATTENTION]
        found[key.replace(".query.", ".qkv.")] = np.stack(parts)
    return found


@dataclasses.dataclass(frozen=True)
class _Savi(_OfPixels):
    """SAVi's program, in flax linen: names of nested dictionaries, joined by slashes."""

    def to_theirs(
        self,
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any] = MappingProxyType({}),
        kept: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        # The keys of what `join` puts together depend on the config, so this is done here.
        found = super().to_theirs(arrays, model, {**kept, "prefix": ""})
        early = model.get("decoder", {}).get("fusion", "late") == "early"
        form = "MLP_{}.dense_mlp_0" if early else "Dense_{}.Dense_0"
        for leaf in ("kernel", "bias"):
            whole = found.pop(f"SpatialBroadcastDecoder_0.Readout.{leaf}", None)
            if whole is not None:
                widths = kept.get("heads") or _widths_of(model, whole.shape[-1])
                order = _in_our_order(widths)
                ends = np.cumsum([widths[i] for i in order])[:-1]
                for i, part in zip(order, np.split(whole, ends, axis=-1), strict=True):
                    found[f"{_READOUT}{form.format(i)}.{leaf}"] = part
            for gates, ours in (("i", "input"), ("h", "hidden")):
                joined = found.pop(f"{_GATES_OF}{ours}.{leaf}", None)
                if joined is not None:
                    parts = np.split(joined, 3, axis=-1)
                    for gate, part in zip(_GATE_NAMES, parts, strict=True):
                        found[f"{_GATES_OF}{gates}{gate}.{leaf}"] = part
        for key in [key for key in found if ".qkv." in key]:
            for part, array in zip(_OF_ATTENTION, found.pop(key), strict=True):
                found[key.replace(".qkv.", f".{part}.")] = array
        prefix = kept.get("prefix", "")
        join = lambda key: prefix + key.replace(".", "/")  # noqa: E731
        return {join(key): np.ascontiguousarray(x) for key, x in found.items()}


def _widths_of(model: Mapping[str, Any], width: int) -> list[int]:
    """The channels of each head, in the order of SAVi's official configs: of the alphabet."""
    if model.get("target", {}).get("name") != "several":
        return [width]
    channels = {"depth": 1, "flow": 3, "pixels": 3}
    return [channels[name] for name in sorted(channels) if name in model["target"]]


_SAVI_PLACES = _Places(
    "FrameEncoder_0.PositionEmbedding_0.pos_embedding",
    "SpatialBroadcastDecoder_0.PositionEmbedding_0.pos_embedding",
    _linear,
)


def _savi_kept(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = {key.replace("/", "."): x for key, x in state_dict.items()}
    widths = [found[f"{name}.bias"].shape[-1] for name in _readouts(found)]
    return {**_SAVI_PLACES.kept(found), **({"heads": widths} if len(widths) > 1 else {})}


SAVI = _Savi(
    "SAVi",
    _savi_rows,
    _cut_savi,
    lambda state_dict: state_dict,
    kept=_savi_kept,
    ignored=lambda key: key.endswith(("/pos_embedding", ".pos_embedding")),
    places=_SAVI_PLACES,
)
