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
from smoothsa_jax.interop import keras, linen, steve
from smoothsa_jax.interop.authors import below
from smoothsa_jax.interop.programs import (
    SLOT_ATTENTION,
    WITH_AXIS,
    Arrays,
    Program,
    pack_attention,
    unpack_attention,
)
from smoothsa_jax.interop.table import FILTERS, LINEAR, NORM, RAW, SAME, Row, Transform
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


def borders(grid: tuple[int, int]) -> np.ndarray:
    """(1,h,w,4), as BO-QSA's program stores it."""
    sides = [_torch_linspace(n) for n in grid]
    place = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    return np.concatenate([place, np.float32(1.0) - place], axis=-1)[None]


def _linear(grid: tuple[int, int]) -> np.ndarray:
    """(1,h,w,2), as SAVi's program stores it."""
    sides = [np.asarray(jnp.linspace(-1.0, 1.0, n), np.float32) for n in grid]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)[None]


@dataclasses.dataclass(frozen=True)
class Places:
    """The functions of the place that a program stores.

    Attributes:
        encoder, decoder: their keys; None: the decoder has none.
        make: (h, w) -> an array.
    """

    encoder: str
    decoder: str | None
    make: Callable[[tuple[int, int]], np.ndarray]

    def kept(self, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the sizes of those in a file; the values, where they are not ours to the bit."""
        found, mine = {}, tuple(filter(None, (self.encoder, self.decoder)))
        for key, x in state_dict.items():
            if not key.endswith(mine):
                continue
            own = self.make(x.shape[1:3])
            if own.shape != x.shape or np.abs(own - x).max() > 1e-5:
                raise UserError(
                    f"{key} does not hold the places of a grid; give a file of another model"
                )
            found[key] = list(x.shape[1:3]) if np.array_equal(own, x) else np.asarray(x).tolist()
        return {GRIDS: found} if found else {}

    def arrays(self, model: Mapping[str, Any], kept: Mapping[str, Any]) -> Arrays:
        """Return those of a model; one without an encoder, such as a tokenizer, has none."""
        if "encoder" not in model:
            return {}
        if GRIDS in kept:
            given = kept[GRIDS]
            values = lambda x: self.make(tuple(x)) if len(x) == 2 else np.array(x, np.float32)  # noqa: E731
            return {key: values(x) for key, x in given.items()}
        if IMAGE_SIZE not in kept:
            return {}
        grids = {self.encoder: _grid_of(model["encoder"], tuple(kept[IMAGE_SIZE]))}
        if self.decoder is not None:
            cells = model["decoder"]["cells"]
            grids[self.decoder] = (cells, cells) if isinstance(cells, int) else tuple(cells)
        return {key: self.make(grid) for key, grid in grids.items()}


def _grid_of(encoder: Mapping[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of an encoder's tokens."""
    build = lambda: make("model.encoder", encoder, _ENCODERS, image_size, rngs=nnx.Rngs(0))  # noqa: E731
    return nnx.eval_shape(build).grid


# ------------------------------------------------------------------------------------------ BO-QSA

# torch's of a transposed convolution, (in, out, k, k), which it flips.
TORCH_TRANSPOSED = Transform(
    lambda x: x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),
    lambda x: x.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1],
)
# (k, k, out, in), which Keras flips; the other way is the same.
_KERAS_TRANSPOSED = Transform(
    *[lambda x: x[::-1, ::-1].transpose(0, 1, 3, 2)] * 2,
)


def convolution(transform: Transform, kernel: str = "weight") -> dict[str, tuple[str, Transform]]:
    return {kernel: ("kernel", transform), "bias": ("bias", SAME)}


def _boqsa_slots(encoder: str) -> list[Row]:
    """What its two models share: an encoder of that name, and all that makes slots."""
    attention: list[Row] = [
        ("norm_feature", "norm_features", NORM),
        *SLOT_ATTENTION,
    ]
    return [
        (f"{encoder}.conv.{{}}.0", "encoder.layers.layers.{}", convolution(FILTERS)),
        ("slot_attn.pos_emb.dense", "encoder.place.dense", LINEAR),
        ("slot_attn.mlp.0", "projection.norm", NORM),
        ("slot_attn.mlp.1", "projection.mlp.hidden", LINEAR),
        ("slot_attn.mlp.3", "projection.mlp.out", LINEAR),
        ("slot_attn.slots_init.weight", "initializer.mean", {"": ("", WITH_AXIS)}),
        *below("slot_attn.slot_attention", "aggregator", attention),
    ]


def _boqsa_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    numbers = {int(x.split(".")[3]) for x in names if x.startswith("decoder.layers.layers.")}
    last = max(numbers, default=0)
    enlarge = convolution(TORCH_TRANSPOSED)
    return [
        *_boqsa_slots("encoder"),
        ("decoder.pos_emb.dense", "decoder.place.dense", LINEAR),
        ("decoder.conv.{}.0.conv.0", "decoder.layers.layers.{}", enlarge),
        (f"decoder.conv.{last}.1", "decoder.joint", enlarge),
    ]


@dataclasses.dataclass(frozen=True)
class OfPixels(Program):
    """A program that stores functions of the place.

    Attributes:
        places: which.
        prefix: what its files may have in front of every key.
    """

    places: Places | None = None
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


def kept_of(places: Places, prefix: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, Any]]:
    """Return what a file tells besides the arrays, as JSON values."""

    def kept(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
        bare = {key.removeprefix(prefix): x for key, x in state_dict.items()}
        has = {"prefix": prefix} if prefix and bare.keys() != state_dict.keys() else {}
        return {**places.kept(bare), **has}

    return kept


_BOQSA_PLACES = Places("slot_attn.pos_emb.grid", "decoder.pos_emb.grid", borders)
BOQSA = OfPixels(
    "BO-QSA",
    _boqsa_rows,
    kept=kept_of(_BOQSA_PLACES, "model."),
    ignored=lambda key: key.removeprefix("model.").endswith(".pos_emb.grid"),
    today=lambda key: key.removeprefix("model."),
    places=_BOQSA_PLACES,
)


def _boqsa_token_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    """Those of its model of tokens, which is SLATE with an encoder of its own."""
    del names, model
    return [
        *_boqsa_slots("backbone"),
        *below("dvae", "tokenizer", steve.dvae_rows(normed=True)),
        ("slot_proj", "decoder.project_slots", LINEAR),
        ("dictionary.dictionary.weight", "decoder.table", RAW),
        ("positional_encoder.pe", "decoder.position", RAW),
        *below("tf_dec.blocks.{}", "decoder.layers.{}", steve.DECODER_LAYER),
        ("tf_dec.layer_norm", "decoder.norm_out", NORM),
        ("out", "decoder.readout", LINEAR),
    ]


_BOQSA_TOKEN_PLACES = Places("slot_attn.pos_emb.grid", None, borders)
BOQSA_TOKENS = OfPixels(
    "BO-QSA on tokens",
    _boqsa_token_rows,
    cut=pack_attention,
    join=unpack_attention,
    more=lambda arrays, kept: steve.masks(arrays, "tf_dec"),
    kept=kept_of(_BOQSA_TOKEN_PLACES, "model."),
    ignored=lambda key: key.endswith((".pos_emb.grid", f".{steve.MASK}")),
    today=lambda key: key.removeprefix("model."),
    places=_BOQSA_TOKEN_PLACES,
)


# ----------------------------------------------------------------------- the original (Keras)


def _original_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    numbers = {int(x.split(".")[3]) for x in names if x.startswith("decoder.layers.layers.")}
    plain, enlarge = (convolution(x, "kernel") for x in (SAME, _KERAS_TRANSPOSED))
    return [
        ("encoder_cnn.{}", "encoder.layers.layers.{}", plain),
        ("encoder_pos.dense", "encoder.place.dense", keras.DENSE),
        ("layer_norm", "projection.norm", keras.NORM),
        ("mlp.0", "projection.mlp.hidden", keras.DENSE),
        ("mlp.1", "projection.mlp.out", keras.DENSE),
        *[(f"slot_attention.{key}", *row) for key, *row in keras.SLOT_ATTENTION_ROWS],
        ("decoder_pos.dense", "decoder.place.dense", keras.DENSE),
        (f"decoder_cnn.{max(numbers, default=0) + 1}", "decoder.joint", enlarge),
        ("decoder_cnn.{}", "decoder.layers.layers.{}", enlarge),
    ]


def _with_slashes(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {key.replace(".", "/"): x for key, x in arrays.items()}


ORIGINAL = Program(
    "slot attention",
    _original_rows,
    cut=lambda state_dict, names: keras.joined(state_dict),
    join=lambda state_dict: _with_slashes(keras.parted(state_dict)),
)


# -------------------------------------------------------------------------------------------- SAVi


def _resnet_rows(names: Collection[str], theirs: str) -> list[Row]:
    kernel = {"kernel": ("kernel", SAME)}
    rows: list[Row] = [
        (f"{theirs}.init_conv", "encoder.root", kernel),
        (f"{theirs}.init_bn", "encoder.norm_root", linen.NORM),
    ]
    places = {tuple(x.split(".")[2:4]) for x in names if x.startswith("encoder.stages.")}
    for stage, block in sorted(places):
        key = f"{theirs}.stage{int(stage) + 1}.block{int(block) + 1}"
        name = f"encoder.stages.{stage}.{block}"
        rows += [
            (f"{key}.conv1", f"{name}.first", kernel),
            (f"{key}.bn1", f"{name}.norm_first", linen.NORM),
            (f"{key}.conv2", f"{name}.second", kernel),
            (f"{key}.bn2", f"{name}.norm_second", linen.NORM),
            (f"{key}.proj_conv", f"{name}.shortcut", kernel),
            (f"{key}.proj_bn", f"{name}.norm_shortcut", linen.NORM),
        ]
    return rows


def _savi_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    def heads(part: str, otherwise: int) -> int:
        return model.get(part, {}).get("num_heads", otherwise)

    encoder, attention = "FrameEncoder_0", "SlotAttention_0"
    place, decoder = f"{encoder}.PositionEmbedding_0", "SpatialBroadcastDecoder_0"
    block = f"{encoder}.Transformer_0.TransformerBlock{{}}"
    boxes, dense = "CoordinateEncoderStateInit_0.MLP_0", linen.DENSE
    return [
        (f"{encoder}.CNN_0.conv_{{}}", "encoder.layers.layers.{}", dense),
        *_resnet_rows(names, f"{encoder}.ResNet_0"),
        (f"{place}.dense_pe_0", "encoder.place.dense", dense),
        (f"{place}.MLP_0.LayerNorm_0", "projection.norm", linen.NORM),
        *linen.mlp_rows(f"{place}.MLP_0", "projection.mlp"),
        (f"{encoder}.Dense_0", "projection.embed", dense),
        *below(block, "projection.layers.{}", linen.block_rows(heads("projection", 4))),
        *linen.mlp_rows(boxes, "initializer.mlp"),
        *below(attention, "aggregator", linen.slot_attention_rows(heads("aggregator", 1))),
        *below("TransformerBlock_0", "transition.layer", linen.block_rows(heads("transition", 4))),
        (f"{decoder}.PositionEmbedding_0.dense_pe_0", "decoder.place.dense", dense),
        (f"{decoder}.CNN_0.conv_{{}}", "decoder.layers.layers.{}", dense),
        (f"{decoder}.alpha_logits", "decoder.alpha", dense),
        (f"{decoder}.Readout", "decoder.values", dense),
    ]


_READOUT = "SpatialBroadcastDecoder_0.Readout_0."


def _readouts(keys: Collection[str]) -> list[str]:
    """The names of a file's heads, in its order: "...Dense_0.Dense_0", "...MLP_1.dense_mlp_0"."""
    heads = {key.rsplit(".", 1)[0] for key in keys if key.startswith(_READOUT)}
    return sorted(heads)


def _in_our_order(widths: list[int]) -> list[int]:
    """The places of a file's heads in our order: flow, of three channels, before depth, of one."""
    return sorted(range(len(widths)), key=lambda i: -widths[i])


def _cut_savi(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    del names
    bare = {key: x for key, x in state_dict.items() if not key.endswith("pos_embedding")}
    found = linen.joined(bare)
    for leaf in ("kernel", "bias"):
        heads = [f"{name}.{leaf}" for name in _readouts(found) if f"{name}.{leaf}" in found]
        parts = [found.pop(key) for key in heads]
        if parts:
            order = _in_our_order([part.shape[-1] for part in parts])
            joined = np.concatenate([parts[i] for i in order], axis=-1)
            found[f"SpatialBroadcastDecoder_0.Readout.{leaf}"] = joined
    return found


@dataclasses.dataclass(frozen=True)
class _Savi(OfPixels):
    """SAVi's program, in flax linen: names of nested dictionaries, joined by slashes."""

    def to_theirs(
        self,
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any] = MappingProxyType({}),
        kept: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        found = super().to_theirs(arrays, model, kept)
        # How the heads are called depends on the config, so `join` cannot part them.
        early = model.get("decoder", {}).get("fusion", "late") == "early"
        form = "MLP_{}.dense_mlp_0" if early else "Dense_{}.Dense_0"
        for leaf in ("kernel", "bias"):
            whole = found.pop(f"SpatialBroadcastDecoder_0.Readout.{leaf}", None)
            if whole is None:
                continue
            widths = kept.get("heads") or _widths_of(model, whole.shape[-1])
            order = _in_our_order(widths)
            ends = np.cumsum([widths[i] for i in order])[:-1]
            for i, part in zip(order, np.split(whole, ends, axis=-1), strict=True):
                found[f"{_READOUT}{form.format(i)}.{leaf}"] = np.ascontiguousarray(part)
        return _with_slashes(found)


def _widths_of(model: Mapping[str, Any], width: int) -> list[int]:
    """The channels of each head, in the order of SAVi's official configs: of the alphabet."""
    if model.get("target", {}).get("name") != "several":
        return [width]
    channels = {"depth": 1, "flow": 3, "pixels": 3}
    return [channels[name] for name in sorted(channels) if name in model["target"]]


_SAVI_PLACES = Places(
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
    linen.parted,
    kept=_savi_kept,
    ignored=lambda key: key.endswith(("/pos_embedding", ".pos_embedding")),
    places=_SAVI_PLACES,
)
