"""The authors' PyTorch state dicts as our flat parameters, and back (docs/reproduce.md).

One table lists (their name, our name, transform). A key that it does not contain is an error: no
state dict is loaded in part.
"""

from collections.abc import Callable, Mapping

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.table import KERNEL, LINEAR, NORM, RAW, SAME, KeyTable, Row
from smoothsa_jax.interop.vit_layouts import TIMM_ROWS

HEAD = "recognition."  # the prefix of our names of the recognition head

PACKED = {"in_proj_weight": ("in_projection", KERNEL), "in_proj_bias": ("in_bias", SAME)}
TORCH_LAYER: list[Row] = [  # torch's TransformerDecoderLayer
    ("self_attn", "self_attention", PACKED),
    ("self_attn.out_proj", "self_attention.out", LINEAR),
    ("multihead_attn", "cross_attention", PACKED),
    ("multihead_attn.out_proj", "cross_attention.out", LINEAR),
    ("linear1", "feed_forward.hidden", LINEAR),
    ("linear2", "feed_forward.out", LINEAR),
    ("norm1", "norm_self", NORM),
    ("norm2", "norm_cross", NORM),
    ("norm3", "norm_feed_forward", NORM),
]


def below(theirs: str, ours: str, rows: list[Row]) -> list[Row]:
    """Return rows with a name in front on either side."""
    return [(f"{theirs}.{key}", f"{ours}.{name}", leaves) for key, name, leaves in rows]


ROWS: list[Row] = [
    *below("encode_backbone.1", "encoder", TIMM_ROWS),
    ("encode_project.0", "projection.norm", NORM),
    ("encode_project.1", "projection.mlp.hidden", LINEAR),
    ("encode_project.3", "projection.mlp.out", LINEAR),
    ("initializ.mean", "initializer.cold.mean", RAW),
    ("initializ.logstd", "initializer.cold.log_std", RAW),
    ("initializ.logstd2", "initializer.log_std", RAW),
    ("initializ.mlp.0", "initializer.cold.mlp.hidden", LINEAR),
    ("initializ.mlp.2", "initializer.cold.mlp.out", LINEAR),
    ("initializ.mlp.3", "initializer.cold.norm", NORM),
    ("initializ.qproj_kv", "initializer.warmer.memory", LINEAR),
    *below("initializ.qinit", "initializer.warmer", TORCH_LAYER),
    ("aggregat.norm1kv", "aggregator.norm_features", NORM),
    ("aggregat.norm1q", "aggregator.norm_slots", NORM),
    ("aggregat.norm2", "aggregator.norm_mlp", NORM),
    ("aggregat.proj_q", "aggregator.query", LINEAR),
    ("aggregat.proj_k", "aggregator.key", LINEAR),
    ("aggregat.proj_v", "aggregator.value", LINEAR),
    ("aggregat.rnn", "aggregator.gru", {
        "weight_ih": ("input.kernel", KERNEL),
        "weight_hh": ("hidden.kernel", KERNEL),
        "bias_ih": ("input.bias", SAME),
        "bias_hh": ("hidden.bias", SAME),
    }),
    ("aggregat.ffn.0", "aggregator.mlp.hidden", LINEAR),
    ("aggregat.ffn.2", "aggregator.mlp.out", LINEAR),
    ("transit.te.weight", "transition.offset_embedding", RAW),
    ("transit.proji", "transition.memory", LINEAR),
    *below("transit.transit", "transition.layer", TORCH_LAYER),
    ("decode.mask_token", "decoder.mask_token", RAW),
    ("decode.posit_embed._pe", "decoder.position", RAW),
    ("decode.project1.0", "decoder.project_features", LINEAR),
    ("decode.project1.1", "decoder.norm_features", NORM),
    ("decode.project2.0", "decoder.project_slots", LINEAR),
    ("decode.project2.1", "decoder.norm_slots", NORM),
    ("decode.norm0", "decoder.norm_input", NORM),
    *below("decode.backbone.layers.{}", "decoder.layers.{}", TORCH_LAYER),
    ("recogn.0", f"{HEAD}mlp.hidden", LINEAR),
    ("recogn.3", f"{HEAD}mlp.out", LINEAR),
]  # fmt: skip
TABLE = KeyTable(ROWS)

# Not a parameter but a flag that their training loop sets: whether the warmer's features are
# detached.
DETACH_FLAG = "initializ.detach_flag"


def name_of(key: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]] | None:
    """Translate one of their keys.

    In a recognition checkpoint, the slot model's keys start with `discov.`. Its arrays have the
    same names here; the head's names start with `recognition.`.

    Args:
        key: their key, with or without the prefix `m.`.

    Returns:
        Our name and the transform of its array; None if the key is not a parameter.

    Raises:
        UserError: no row of the table matches the key.
    """
    key = key.removeprefix("m.").removeprefix("discov.")
    if key == DETACH_FLAG:
        return None
    found = TABLE.ours(key)
    if found is None:
        raise UserError(
            f"unknown key {key!r} in an authors' state dict: expected the keys of a SmoothSA "
            "checkpoint"
        )
    name, transform = found
    return name, transform.to_ours


def from_authors(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert their state dict, or a part of it, to our flat parameters.

    Raises:
        UserError: a key is unknown, or two keys name the same array.
    """
    arrays = {}
    for key, array in state_dict.items():
        found = name_of(key)
        if found is None:
            continue
        name, transform = found
        if name in arrays:
            raise UserError(f"two keys of the state dict are {name}, the second is {key!r}")
        arrays[name] = np.ascontiguousarray(transform(np.asarray(array)))
    return arrays


def to_authors(arrays: Mapping[str, np.ndarray], detach: bool) -> dict[str, np.ndarray]:
    """Convert our flat parameters, including the encoder's, to their state dict.

    Args:
        arrays: arrays by our names; the head's names start with `recognition.`.
        detach: the value of their flag; see `DETACH_FLAG`.

    Raises:
        UserError: their program has no place for an array.
    """
    has_head = any(name.startswith(HEAD) for name in arrays)
    smoothsa = "m.discov." if has_head else "m."
    state_dict = {}
    for name, array in arrays.items():
        found = TABLE.theirs(name)
        if found is None:
            raise UserError(
                f"{name} has no place in the authors' program: only models of its parts can be "
                "exported (a vit encoder, gaussian or boxes, slot_attention, randsfq, random_ar)"
            )
        key, transform = found
        prefix = "m." if name.startswith(HEAD) else smoothsa
        state_dict[prefix + key] = np.ascontiguousarray(transform.to_theirs(np.asarray(array)))
    state_dict[smoothsa + DETACH_FLAG] = np.asarray(detach)
    return state_dict
