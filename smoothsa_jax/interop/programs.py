"""Names of arrays in the state dicts of other programs.

A `Program` turns a state dict into arrays by our names and back. What a key stands for depends on
the model, so both directions take the names of its arrays and the `model` part of its config.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.authors import PACKED, TORCH_LAYER, below
from smoothsa_jax.interop.authors import ROWS as SMOOTHSA_ROWS
from smoothsa_jax.interop.generative import CAUSAL, UNET, tokenizer_rows
from smoothsa_jax.interop.table import (
    FILTERS,
    KERNEL,
    LINEAR,
    NORM,
    ONE_BY_ONE,
    RAW,
    SAME,
    KeyTable,
    Row,
    Transform,
)
from smoothsa_jax.interop.vit_layouts import TIMM_ROWS

Arrays = dict[str, np.ndarray]
# An array with an axis of length 1 in front that theirs lacks.
WITH_AXIS = Transform(lambda x: x[None], lambda x: x[0])
_ROWS = {"": ("", WITH_AXIS)}
GRU = {
    "weight_ih": ("input.kernel", KERNEL),
    "weight_hh": ("hidden.kernel", KERNEL),
    "bias_ih": ("input.bias", SAME),
    "bias_hh": ("hidden.bias", SAME),
}
# Slot attention in BO-QSA's and SPOT's programs, but for the LayerNorm of tokens.
SLOT_ATTENTION: list[Row] = [
    ("norm_slots", "norm_slots", NORM),
    ("norm_mlp", "norm_mlp", NORM),
    ("project_q", "query", LINEAR),
    ("project_k", "key", LINEAR),
    ("project_v", "value", LINEAR),
    ("gru", "gru", GRU),
    ("mlp.0", "mlp.hidden", LINEAR),
    ("mlp.2", "mlp.out", LINEAR),
]
VIT: list[Row] = [
    *TIMM_ROWS,
    # A position embedding with an entry for the class token is cut before it gets here.
    ("pos_embed#class", "class_position", RAW),
]


def _numbered(names: Collection[str], start: str) -> int:
    """Return how many numbers follow `start` in these names."""
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def mixture_rows(theirs: str, names: Collection[str]) -> list[Row]:
    """Return the rows of an MLP decoder, whose Linear layers have even numbers in `theirs`."""
    inner = _numbered(names, "decoder.layers.")
    layers = ["project_slots", *(f"layers.{i}" for i in range(inner)), "out"]
    return [(f"{theirs}.{2 * i}", f"decoder.{x}", LINEAR) for i, x in enumerate(layers)]


@dataclasses.dataclass(frozen=True)
class Program:
    """How a program names the arrays of its models.

    Attributes:
        title: the program, for messages.
        rows: (names of a model's arrays, its config) -> rows of the table.
        cut: their state dict -> the same with arrays cut or joined as our models have them;
            by default none is.
        join: the inverse of `cut`.
        more: (our arrays, what `kept` returned) -> keys that a file of the program also has.
        kept: a state dict -> values of such keys that our arrays do not tell, as JSON values.
        ignored: whether a key stands for no array that a model needs.
        sized: whether such a key has a shape that the config decides, as a grid of places has.
        today: a key of an earlier version -> today's.
    """

    title: str
    rows: Callable[[Collection[str], Mapping[str, Any]], list[Row]]
    cut: Callable[[Mapping[str, np.ndarray], Collection[str]], Arrays] = lambda state_dict, names: (
        dict(state_dict)
    )
    join: Callable[[Arrays], Arrays] = dict
    more: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Arrays] = lambda arrays, kept: {}
    kept: Callable[[Mapping[str, np.ndarray]], dict[str, Any]] = lambda state_dict: {}
    ignored: Callable[[str], bool] = lambda key: False
    sized: Callable[[str], bool] = lambda key: False
    today: Callable[[str], str] = lambda key: key

    def to_ours(
        self,
        state_dict: Mapping[str, np.ndarray],
        names: Collection[str],
        model: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        """Convert a state dict to arrays of a model.

        Args:
            state_dict: all of it, or a part.
            names: names of the model's arrays, and of its buffers where these are wanted.
            model: the `model` part of its config.

        Raises:
            UserError: a key is unknown, or two keys name the same array.
        """
        table, arrays = KeyTable(self.rows(names, model)), {}
        state_dict = {self.today(key): array for key, array in state_dict.items()}
        for key, array in self.cut(state_dict, names).items():
            found = table.ours(key)
            if self.ignored(key) and (found is None or found[0] not in names):
                continue
            if found is None:
                raise UserError(f"unknown key {key!r}: expected those of a model of {self.title}")
            name, transform = found
            if name in arrays:
                raise UserError(f"two keys of the state dict are {name}, the second is {key!r}")
            arrays[name] = np.asarray(transform.to_ours(np.asarray(array)), order="C")
        return arrays

    def to_theirs(
        self,
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any] = MappingProxyType({}),
        kept: Mapping[str, Any] = MappingProxyType({}),
    ) -> Arrays:
        """Convert arrays, and buffers if there are any, to a state dict.

        Raises:
            UserError: the program has no place for an array.
        """
        table, state_dict = KeyTable(self.rows(arrays, model)), {}
        for name, array in arrays.items():
            found = table.theirs(name)
            if found is None:
                raise UserError(f"{name} has no place in a state dict of {self.title}")
            key, transform = found
            state_dict[key] = transform.to_theirs(np.asarray(array))
        return self.join({**state_dict, **self.more(arrays, kept)})


# -------------------------------------------------------------------------- cutting and joining


def cut_positions(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    """Cut the class token's position off, for models that have it as an array of its own."""
    found = dict(state_dict)
    if any(name.endswith("encoder.class_position") for name in names):
        classes = [key for key in found if key.endswith("cls_token")]
        for key in [key.replace("cls_token", "pos_embed") for key in classes]:
            if key not in found:  # a part of a state dict
                continue
            whole = found.pop(key)
            found[f"{key}#class"], found[key] = whole[:, :1], whole[:, 1:]
    return found


def join_positions(state_dict: Arrays) -> Arrays:
    found = dict(state_dict)
    for key in [key for key in found if key.endswith("#class")]:
        whole = key.removesuffix("#class")
        found[whole] = np.concatenate([found.pop(key), found[whole]], axis=1)
    return found


_OF_ATTENTION = ("proj_q", "proj_k", "proj_v")


def pack_attention(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    """Join query, key and value, which SLATE's and SPOT's layers keep apart."""
    found = cut_positions(state_dict, names)
    for key in [key for key in found if ".proj_q." in key]:
        parts = [found.pop(key.replace("proj_q", part)) for part in _OF_ATTENTION]
        found[key.replace("proj_q.", "in_proj_")] = np.concatenate(parts)
    return found


def unpack_attention(state_dict: Arrays) -> Arrays:
    found = join_positions(state_dict)
    for key in [key for key in found if ".in_proj_" in key]:
        parts = np.split(found.pop(key), 3)
        for part, array in zip(_OF_ATTENTION, parts, strict=True):
            found[key.replace("in_proj_", f"{part}.")] = array
    return found


# ---------------------------------------------------------------------------------- the programs


def _later(size: int) -> np.ndarray:
    """Return what causal attention must not see: True above the diagonal."""
    return np.triu(np.ones((size, size), bool), 1)


def _mask(arrays: Mapping[str, np.ndarray], form: Sequence[str]) -> np.ndarray:
    """Return the mask of causal attention over the patches.

    Args:
        arrays: of the model.
        form: its dtype, and its values above the diagonal and elsewhere.
    """
    dtype, hidden, seen = form
    later = _later(arrays["encoder.position"].shape[1])
    return np.where(later, float(hidden), float(seen)).astype(dtype)


def _form_of_mask(state_dict: Mapping[str, np.ndarray], ending: str) -> dict[str, Any]:
    """Return the form of a state dict's masks, as `_mask` takes it.

    Raises:
        UserError: a mask is not that of causal attention.
    """
    form: dict[str, Any] = {}
    for key, array in state_dict.items():
        if not key.endswith(ending):
            continue
        later = _later(len(array)) if array.ndim else np.ones((), bool)
        is_square = array.shape == later.shape
        values = [np.unique(array[x]) for x in (later, ~later)] if is_square else []
        if [len(x) for x in values] != [1, 1] or values[0] == values[1]:
            raise UserError(
                f"{key} is not the mask of causal attention, which this decoder has; give a file "
                "of another model"
            )
        form["mask"] = [array.dtype.name, *(str(float(x[0])) for x in values)]
    return form


def _spot_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    layer: list[Row] = [
        ("self_attn", "self_attention", PACKED),
        ("self_attn.proj_o", "self_attention.out", LINEAR),
        ("encoder_decoder_attn", "cross_attention", PACKED),
        ("encoder_decoder_attn.proj_o", "cross_attention.out", LINEAR),
        ("ffn.0", "feed_forward.hidden", LINEAR),
        ("ffn.2", "feed_forward.out", LINEAR),
        ("self_attn_layer_norm", "norm_self", NORM),
        ("encoder_decoder_attn_layer_norm", "norm_cross", NORM),
        ("ffn_layer_norm", "norm_feed_forward", NORM),
    ]
    attention: list[Row] = [
        ("norm_inputs", "norm_features", NORM),
        *SLOT_ATTENTION,
    ]
    return [
        *below("encoder", "encoder", VIT),
        *below("second_encoder", "target_encoder", VIT),
        ("slot_attn.layer_norm", "projection.norm", NORM),
        ("slot_attn.mlp.0", "projection.mlp.hidden", LINEAR),
        ("slot_attn.mlp.2", "projection.mlp.out", LINEAR),
        # One Gaussian, or a learned query for each slot.
        ("slot_attn.slot_mu", "initializer.mean", RAW)
        if "initializer.log_std" in names
        else ("slot_attn.slots_init.weight", "initializer.mean", _ROWS),
        ("slot_attn.slot_log_sigma", "initializer.log_std", RAW),
        *below("slot_attn.slot_attention", "aggregator", attention),
        ("input_proj.0", "decoder.project_features", LINEAR),
        ("input_proj.1", "decoder.norm_features", NORM),
        ("slot_proj.0", "decoder.project_slots", LINEAR),
        ("slot_proj.1", "decoder.norm_slots", NORM),
        ("bos_tokens", "decoder.bos", RAW),
        *below("dec.blocks.{}", "decoder.layers.{}", layer),
        ("dec.layer_norm", "decoder.norm_out", NORM),
    ]


_MASKS = "self_attn_mask"


def _spot_more(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> Arrays:
    if "decoder.bos" not in arrays:
        return {}
    layers = {name.split(".")[2] for name in arrays if name.startswith("decoder.layers.")}
    mask = _mask(arrays, kept.get("mask", ("bool", "1", "0")))
    return {f"dec.blocks.{i}.{_MASKS}": mask for i in sorted(layers)}


SPOT = Program(
    "SPOT",
    _spot_rows,
    pack_attention,
    unpack_attention,
    more=_spot_more,
    kept=lambda state_dict: _form_of_mask(state_dict, _MASKS),
    ignored=lambda key: key.endswith(_MASKS),
    today=lambda key: key.removeprefix("tf_") if key.startswith("tf_dec.") else key,
)


def _oclf_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    del model
    attention: list[Row] = [
        ("norm_input", "norm_features", NORM),
        ("norm_slots", "norm_slots", NORM),
        ("ff_mlp.module.0", "norm_mlp", NORM),
        ("to_q", "query", LINEAR),
        ("to_k", "key", LINEAR),
        ("to_v", "value", LINEAR),
        ("gru", "gru", GRU),
        ("ff_mlp.module.1", "mlp.hidden", LINEAR),
        ("ff_mlp.module.3", "mlp.out", LINEAR),
    ]
    projection = "perceptual_grouping.positional_embedding.layers.1"
    decoder = "object_decoder"
    rows: list[Row] = [
        *below("feature_extractor.model", "encoder", VIT),
        (f"{projection}.0", "projection.norm", NORM),
        (f"{projection}.1", "projection.mlp.hidden", LINEAR),
        (f"{projection}.3", "projection.mlp.out", LINEAR),
        ("conditioning.slots_mu", "initializer.mean", RAW),
        ("conditioning.slots_logsigma", "initializer.log_std", RAW),
        *below("perceptual_grouping.slot_attention", "aggregator", attention),
    ]
    if "decoder.bos" in names:
        rows += [
            (f"{decoder}.bos_token", "decoder.bos", _ROWS),
            (f"{decoder}.inp_transform.0", "decoder.project_features", LINEAR),
            (f"{decoder}.inp_transform.1", "decoder.norm_features", NORM),
            (f"{decoder}.cond_transform.0", "decoder.project_slots", LINEAR),
            (f"{decoder}.cond_transform.1", "decoder.norm_slots", NORM),
            *below(f"{decoder}.decoder.layers.{{}}", "decoder.layers.{}", TORCH_LAYER),
        ]
    else:
        rows += [
            (f"{decoder}.pos_embed", "decoder.position", RAW),
            *mixture_rows(f"{decoder}.decoder", names),
        ]
    return [(f"models.{key}", name, leaves) for key, name, leaves in rows]


_MASK = "models.object_decoder.mask"
_MINUS_INFINITY = ("float32", "-inf", "0")


def _oclf_more(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> Arrays:
    if "decoder.bos" not in arrays:
        return {}
    return {_MASK: _mask(arrays, kept.get("mask", _MINUS_INFINITY))}


OCLF = Program(
    "DINOSAUR's framework",
    _oclf_rows,
    cut_positions,
    join_positions,
    more=_oclf_more,
    kept=lambda state_dict: _form_of_mask(state_dict, _MASK),
    ignored=lambda key: key == _MASK,
)


# Positions with one more axis of length 1 in front than ours have.
_WITHOUT_AXIS = Transform(lambda x: x[0], lambda x: x[None])


def _videosaur_layer(attention: str) -> list[Row]:
    """Return the rows of a layer, whose only attention has this name in ours."""
    own_norm = {"self_attention": "norm_self", "cross_attention": "norm_cross"}[attention]
    packed = {"weight": ("in_projection", KERNEL), "bias": ("in_bias", SAME)}
    return [
        ("self_attn.qkv", attention, packed),
        ("self_attn.out_proj", f"{attention}.out", LINEAR),
        ("linear1", "feed_forward.hidden", LINEAR),
        ("linear2", "feed_forward.out", LINEAR),
        ("norm1", own_norm, NORM),
        ("norm2", "norm_feed_forward", NORM),
    ]


def _videosaur_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    """VideoSAUR and SlotContrast, whose program is derived from VideoSAUR's; DINOSAUR in both.

    Their models of videos have each part in a module that applies it to every frame.
    """
    del model
    of_frame = ".module" if any(name.startswith("transition.") for name in names) else ""
    attention: list[Row] = [
        ("norm_features", "norm_features", NORM),
        ("norm_slots", "norm_slots", NORM),
        ("to_q", "query", LINEAR),
        ("to_k", "key", LINEAR),
        ("to_v", "value", LINEAR),
        ("gru", "gru", GRU),
        ("mlp.layers.0", "norm_mlp", NORM),
        ("mlp.layers.1", "mlp.hidden", LINEAR),
        ("mlp.layers.3", "mlp.out", LINEAR),
    ]
    encoder, decoder = f"encoder{of_frame}", f"decoder{of_frame}"
    projection = f"{encoder}.output_transform.layers"
    rows: list[Row] = [
        *below(f"{encoder}.backbone.model", "encoder", VIT),
        (f"{projection}.0", "projection.norm", NORM),
        (f"{projection}.1", "projection.mlp.hidden", LINEAR),
        (f"{projection}.3", "projection.mlp.out", LINEAR),
        # One Gaussian, or a learned query for each slot.
        ("initializer.mean", "initializer.mean", RAW)
        if "initializer.log_std" in names
        else ("initializer.slots", "initializer.mean", RAW),
        ("initializer.log_std", "initializer.log_std", RAW),
        *below(f"processor{of_frame}.corrector", "aggregator", attention),
        *below(
            "processor.module.predictor.blocks.0",
            "transition.layer",
            _videosaur_layer("self_attention"),
        ),
    ]
    if "decoder.renderer.out.kernel" not in names:
        position = {"": ("", _WITHOUT_AXIS)}
        return [
            *rows,
            (f"{decoder}.pos_emb", "decoder.position", position),
            *mixture_rows(f"{decoder}.mlp.layers", names),
        ]
    inner = _numbered(names, "decoder.renderer.layers.")
    return [
        *rows,
        (f"{decoder}.pos_emb", "decoder.position", RAW),
        (f"{decoder}.norm_memory", "decoder.norm_memory", NORM),
        *below(
            f"{decoder}.allocator.blocks.{{}}",
            "decoder.layers.{}",
            _videosaur_layer("cross_attention"),
        ),
        (f"{decoder}.norm_q", "decoder.norm_query", NORM),
        (f"{decoder}.norm_k", "decoder.norm_key", NORM),
        (f"{decoder}.to_q", "decoder.query", LINEAR),
        (f"{decoder}.to_k", "decoder.key", LINEAR),
        *[
            (f"{decoder}.renderer.layers.{2 * i}", f"decoder.renderer.layers.{i}", LINEAR)
            for i in range(inner)
        ],
        (f"{decoder}.output_transform", "decoder.renderer.out", LINEAR),
    ]


VIDEOSAUR = Program("VideoSAUR", _videosaur_rows, cut_positions, join_positions)


# torch counts with 64 bits.
_INTEGER = Transform(lambda x: x.astype(np.int32), lambda x: x.astype(np.int64))


# torch's TransformerEncoderLayer.
ENCODER_LAYER: list[Row] = [
    *[row for row in TORCH_LAYER if row[0].startswith(("self_attn", "linear", "norm1"))],
    ("norm2", "norm_feed_forward", NORM),
]
# RandSF.Q's layers of a slot mixer, TransformerDecoderLayers without self-attention.
_ALLOCATOR_LAYER = [row for row in TORCH_LAYER if not row[0].startswith("self_attn")]


def _of_genera1z_mixer(names: Collection[str]) -> list[Row]:
    """Return the rows of the slot mixer in RandSF.Q's program."""
    inner = _numbered(names, "decoder.renderer.layers.")
    return [
        ("decode.posit_embed._pe", "decoder.position", RAW),
        ("decode.norm_m", "decoder.norm_memory", NORM),
        *below("decode.allocat.layers.{}", "decoder.layers.{}", _ALLOCATOR_LAYER),
        ("decode.norm_q", "decoder.norm_query", NORM),
        ("decode.norm_k", "decoder.norm_key", NORM),
        ("decode.attent.q_proj_weight", "decoder.query.kernel", {"": ("", KERNEL)}),
        ("decode.attent.k_proj_weight", "decoder.key.kernel", {"": ("", KERNEL)}),
        ("decode.render.0", "decoder.renderer.norm", NORM),
        *[
            (f"decode.render.{1 + 2 * i}", f"decoder.renderer.layers.{i}", LINEAR)
            for i in range(inner)
        ],
        (f"decode.render.{1 + 2 * inner}", "decoder.renderer.out", LINEAR),
    ]


def _genera1z_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    """DIAS, and SPOT, DINOSAUR and MetaSlot in the programs derived from its author's.

    Also RandSF.Q, and VideoSAUR and SlotContrast in its program; and heads of recognition.
    """
    if "mlp.hidden.kernel" in names:
        return [("recogn.0", "mlp.hidden", LINEAR), ("recogn.3", "mlp.out", LINEAR)]
    if any(name.startswith("tokenizer.") for name in names):
        return [*below("encode_backbone.1", "encoder", VIT), *tokenizer_rows(names)]
    rows = [row for row in SMOOTHSA_ROWS if not row[1].startswith(("initializer.", "recognition."))]
    is_video = any(name.startswith("transition.") for name in names)
    if is_video and "transition.memory.kernel" not in names:
        rows = [row for row in rows if not row[1].startswith("transition.")]
        rows += below("transit", "transition.layer", ENCODER_LAYER)
    if "initializer.mlp.hidden.kernel" in names:
        rows += [
            ("initializ.0", "initializer.mlp.hidden", LINEAR),
            ("initializ.2", "initializer.mlp.out", LINEAR),
        ]
    rows += [
        *below("encode_backbone.1", "encoder", VIT),
        *below("encode_backbone2.1", "target_encoder", VIT),
        ("aggregat.vq.codebook.templat.weight", "aggregator.codebook", RAW),
        ("aggregat.vq.latent_buffer", "aggregator.queue", RAW),
        ("aggregat.vq.buffer_ptr", "aggregator.pointer", {"": ("", _INTEGER)}),
        ("aggregat.clust_prob", "aggregator.slots_share", RAW),
        ("decode.bos", "decoder.bos", RAW),
        ("decode.readout", "decoder.readout", LINEAR),
    ]
    # Learned queries without a Gaussian have no place.
    if "initializer.log_std" in names or "initializer.mean" not in names:
        rows += [
            ("initializ.mean", "initializer.mean", RAW),
            ("initializ.logstd", "initializer.log_std", RAW),
        ]
    if model.get("aggregator", {}).get("dropout_rate", 0.0):  # one more module in their MLP
        rows.insert(0, ("aggregat.ffn.3", "aggregator.mlp.out", LINEAR))
    if "decoder.bos" in names:
        rows.insert(0, ("decode.norm0", "decoder.layers.0.norm_self", NORM))
    if "decoder.out.kernel" in names:
        rows = [row for row in rows if not row[1].startswith("decoder.")]
        rows += [
            (f"decode.posit_embed.{'_pe' if is_video else 'pe'}", "decoder.position", RAW),
            *mixture_rows("decode.backbone", names),
        ]
    if "decoder.renderer.out.kernel" in names:
        rows = [row for row in rows if not row[1].startswith("decoder.")]
        rows += _of_genera1z_mixer(names)
    for sign, of_decoder in (("embedding.out.kernel", UNET), ("first", CAUSAL)):
        if f"decoder.{sign}" in names:
            rows = [row for row in rows if not row[1].startswith("decoder.")]
            rows += below("decode", "decoder", of_decoder)
    # Without a LayerNorm in front, or an activation in between, the Linear layers count otherwise.
    if "projection.mlp.out.kernel" in names and "projection.norm.scale" not in names:
        rows = [row for row in rows if not row[1].startswith("projection.")]
        rows += [
            ("encode_project.0", "projection.mlp.hidden", LINEAR),
            ("encode_project.2", "projection.mlp.out", LINEAR),
        ]
    return rows


def _cut_genera1z(state_dict: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    bare = {key.removeprefix("m.").removeprefix(MEDIATOR): x for key, x in state_dict.items()}
    return cut_positions(bare, names)


def _join_genera1z(state_dict: Arrays) -> Arrays:
    found = join_positions(state_dict)
    if any(key.startswith(OF_FEATURES) for key in found):
        backbone = "encode_backbone."
        found = {k if k.startswith(backbone) else MEDIATOR + k: x for k, x in found.items()}
    return {f"m.{key}": x for key, x in found.items()}


# Of a tokenizer's keys: in front of them in a second stage, and in the first one that has a
# backbone; and what tells that one.
MEDIATOR, OF_FEATURES = "mediat.", "quant."

# Of MetaSlot: what its training goes on from, which no model needs; and a causal mask.
_METASLOT_STATE = ("aggregat.clust_prob", "aggregat.vq.")
_CODES, _ALPHA = "aggregat.vq.idx_buffer", "aggregat.vq.alpha"
_MASK_OF_METASLOT = "decode.mask"


def _genera1z_more(arrays: Mapping[str, np.ndarray], kept: Mapping[str, Any]) -> Arrays:
    found: Arrays = {}
    if "aggregator.queue" in arrays:
        # Which code each queued slot had; nothing reads them.
        codes = kept.get("codes", [0] * len(arrays["aggregator.queue"]))
        found[_CODES] = np.array(codes, np.int64)
        found[_ALPHA] = np.float32(kept.get("alpha", 0.0))
        if "decoder.bos" in arrays:
            found[_MASK_OF_METASLOT] = _mask(arrays, kept.get("mask", _MINUS_INFINITY))
    return found


def _genera1z_kept(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = _form_of_mask(state_dict, _MASK_OF_METASLOT)
    if f"m.{_CODES}" in state_dict:
        found["codes"] = np.asarray(state_dict[f"m.{_CODES}"]).tolist()
    if f"m.{_ALPHA}" in state_dict:
        found["alpha"] = float(state_dict[f"m.{_ALPHA}"])
    return found


GENERA1Z = Program(
    "the program of SmoothSA's author",
    _genera1z_rows,
    _cut_genera1z,
    _join_genera1z,
    more=_genera1z_more,
    kept=_genera1z_kept,
    ignored=lambda key: (
        key == _MASK_OF_METASLOT or (key.startswith(_METASLOT_STATE) and "codebook" not in key)
    ),
)


# --------------------------------------------------------------------------------------- OSRT


def _osrt_rows(names: Collection[str], model: Mapping[str, Any]) -> list[Row]:
    """OSRT's port. Where tokens stand for slots, it is SRT in the same program."""
    del model
    layer: list[Row] = [
        ("0.norm", "norm_attention", NORM),
        ("0.fn.to_qkv", "attention.packed", LINEAR),
        ("0.fn.to_q", "attention.query", LINEAR),
        ("0.fn.to_kv", "attention.key_value", LINEAR),
        ("0.fn.to_out.0", "attention.out", LINEAR),
        ("1.norm", "norm_feed_forward", NORM),
        ("1.fn.net.0", "feed_forward.hidden", LINEAR),
        ("1.fn.net.3", "feed_forward.out", LINEAR),
    ]
    attention: list[Row] = [
        ("norm_input", "norm_features", NORM),
        ("norm_slots", "norm_slots", NORM),
        ("norm_pre_mlp", "norm_mlp", NORM),
        ("to_q", "query", LINEAR),
        ("to_k", "key", LINEAR),
        ("to_v", "value", LINEAR),
        ("gru", "gru", GRU),
        ("mlp.0", "mlp.hidden", LINEAR),
        ("mlp.2", "mlp.out", LINEAR),
    ]
    has_slots = "initializer.mean" in names
    encoder, allocator = f"encoder{'.srt_encoder' * has_slots}", "decoder.allocation_transformer"
    renderer = f"decoder.render_mlp{'.net' * ('decoder.allocator.hidden.kernel' in names)}"
    return [
        *[
            (
                f"{encoder}.conv_blocks.{i // 2}.layers.{2 * (i % 2)}.weight",
                f"encoder.convolutions.{i}.kernel",
                {"": ("", FILTERS)},
            )
            for i in range(_numbered(names, "encoder.convolutions."))
        ],
        (
            f"{encoder}.per_patch_linear",
            "encoder.project",
            {"weight": ("kernel", ONE_BY_ONE), "bias": ("bias", SAME)},
        ),
        *below(f"{encoder}.transformer.layers.{{}}", "encoder.layers.{}", layer),
        ("encoder.slot_attention.initial_slots", "initializer.mean", _ROWS),
        *below("encoder.slot_attention", "aggregator", attention),
        (f"{allocator}.input_mlp.0", "decoder.allocator.hidden", LINEAR),
        (f"{allocator}.input_mlp.2", "decoder.allocator.out", LINEAR),
        *below(f"{allocator}.transformer.layers.{{}}", "decoder.allocator.layers.{}", layer),
        ("decoder.mixing_block.norm1", "decoder.norm_query", NORM),
        ("decoder.mixing_block.norm2", "decoder.norm_mixed", NORM),
        ("decoder.mixing_block.to_q", "decoder.query", LINEAR),
        ("decoder.mixing_block.to_k", "decoder.key", LINEAR),
        *[
            (f"{renderer}.{2 * i}", f"decoder.renderer.layers.{i}", LINEAR)
            for i in range(_numbered(names, "decoder.renderer.layers."))
        ],
    ]


OSRT = Program("OSRT", _osrt_rows, lambda state_dict, names: dict(state_dict), lambda x: x)
