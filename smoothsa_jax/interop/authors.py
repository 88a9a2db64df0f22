"""The authors' PyTorch state dicts as our flat parameters (method section 9).

One table of (pattern, our name, transform); a key that it does not know, or one of ours that stays without a value, is an
error: nothing is loaded in part.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from smoothsa_jax.errors import UserError


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _kernel(array: np.ndarray) -> np.ndarray:
    """torch's Linear weight (out, in) -> kernel (in, out)."""
    return array.T


def _patches(array: np.ndarray) -> np.ndarray:
    """Convolution weight (C, 3, p, p) -> kernel (p * p * 3, C) over patches of channels-last pixels."""
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


_LINEAR = {"weight": ("kernel", _kernel), "bias": ("bias", _same)}
_NORM = {"weight": ("scale", _same), "bias": ("bias", _same)}
_RAW = {None: (None, _same)}
_PACKED = {"in_proj_weight": ("in_projection", _kernel)}

_LAYER = [  # torch's TransformerDecoderLayer
    (r"self_attn", "self_attention", _PACKED),
    (r"self_attn\.out_proj", "self_attention.out", _LINEAR),
    (r"multihead_attn", "cross_attention", _PACKED),
    (r"multihead_attn\.out_proj", "cross_attention.out", _LINEAR),
    (r"linear1", "feed_forward.hidden", _LINEAR),
    (r"linear2", "feed_forward.out", _LINEAR),
    (r"norm1", "norm_self", _NORM),
    (r"norm2", "norm_cross", _NORM),
    (r"norm3", "norm_feed_forward", _NORM),
]


def _layer(theirs: str, ours: str) -> list:
    return [(rf"{theirs}\.{pattern}", f"{ours}.{name}", kind) for pattern, name, kind in _LAYER]


_BLOCK = r"encode_backbone\.1\.blocks\.(\d+)"
_TABLE = [
    (r"encode_backbone\.1\.patch_embed\.proj", "backbone.embed", {"weight": ("kernel", _patches), "bias": ("bias", _same)}),
    (r"encode_backbone\.1\.pos_embed", "backbone.position", _RAW),
    (r"encode_backbone\.1\.cls_token", "backbone.class_token", _RAW),
    (r"encode_backbone\.1\.reg_token", "backbone.registers", _RAW),
    (rf"{_BLOCK}\.norm1", r"backbone.blocks.\1.norm_attention", _NORM),
    (rf"{_BLOCK}\.attn\.qkv", r"backbone.blocks.\1.qkv", _LINEAR),
    (rf"{_BLOCK}\.attn\.proj", r"backbone.blocks.\1.out", _LINEAR),
    (rf"{_BLOCK}\.ls1\.gamma", r"backbone.blocks.\1.scale_attention", _RAW),
    (rf"{_BLOCK}\.norm2", r"backbone.blocks.\1.norm_mlp", _NORM),
    (rf"{_BLOCK}\.mlp\.fc1", r"backbone.blocks.\1.mlp.hidden", _LINEAR),
    (rf"{_BLOCK}\.mlp\.fc2", r"backbone.blocks.\1.mlp.out", _LINEAR),
    (rf"{_BLOCK}\.ls2\.gamma", r"backbone.blocks.\1.scale_mlp", _RAW),
    (r"encode_project\.0", "projection.norm", _NORM),
    (r"encode_project\.1", "projection.mlp.hidden", _LINEAR),
    (r"encode_project\.3", "projection.mlp.out", _LINEAR),
    (r"initializ\.mean", "initializer.sampler.mean", _RAW),
    (r"initializ\.logstd", "initializer.sampler.log_std", _RAW),
    (r"initializ\.logstd2", "initializer.log_std", _RAW),
    (r"initializ\.mlp\.0", "initializer.sampler.mlp.hidden", _LINEAR),
    (r"initializ\.mlp\.2", "initializer.sampler.mlp.out", _LINEAR),
    (r"initializ\.mlp\.3", "initializer.sampler.norm", _NORM),
    (r"initializ\.qproj_kv", "initializer.warmer.memory", _LINEAR),
    *_layer(r"initializ\.qinit", "initializer.warmer"),
    (r"aggregat\.norm1kv", "slot_attention.norm_features", _NORM),
    (r"aggregat\.norm1q", "slot_attention.norm_slots", _NORM),
    (r"aggregat\.norm2", "slot_attention.norm_mlp", _NORM),
    (r"aggregat\.proj_q", "slot_attention.query", _LINEAR),
    (r"aggregat\.proj_k", "slot_attention.key", _LINEAR),
    (r"aggregat\.proj_v", "slot_attention.value", _LINEAR),
    (r"aggregat\.rnn", "slot_attention.gru", {
        "weight_ih": ("input.kernel", _kernel),
        "weight_hh": ("hidden.kernel", _kernel),
        "bias_ih": ("input.bias", _same),
        "bias_hh": ("hidden.bias", _same),
    }),
    (r"aggregat\.ffn\.0", "slot_attention.mlp.hidden", _LINEAR),
    (r"aggregat\.ffn\.2", "slot_attention.mlp.out", _LINEAR),
    (r"transit\.te\.weight", "transition.offset_embedding", _RAW),
    (r"transit\.proji", "transition.memory", _LINEAR),
    *_layer(r"transit\.transit", "transition.layer"),
    (r"decode\.mask_token", "decoder.mask_token", _RAW),
    (r"decode\.posit_embed\._pe", "decoder.position", _RAW),
    (r"decode\.project1\.0", "decoder.project_features", _LINEAR),
    (r"decode\.project1\.1", "decoder.norm_features", _NORM),
    (r"decode\.project2\.0", "decoder.project_slots", _LINEAR),
    (r"decode\.project2\.1", "decoder.norm_slots", _NORM),
    (r"decode\.norm0", "decoder.norm_input", _NORM),
    *_layer(r"decode\.backbone\.layers\.(\d+)", r"decoder.layers.\1"),
    (r"recogn\.0", "recognition.mlp.hidden", _LINEAR),
    (r"recogn\.3", "recognition.mlp.out", _LINEAR),
]  # fmt: skip

# A flag that their training loop sets by the step; ours follows from the step number.
_NOT_PARAMETERS = frozenset({"initializ.detach_flag"})


def name_of(key: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]] | None:
    """Our name for one of their keys (`m.` in front or not), and the transform of its array.

    None for what is no parameter. In a file of recognition the SmoothSA is below `discov.`, and has the same names here; the
    head's names begin with `recognition.`.

    Raises:
        UserError: a key that no row of the table matches.
    """
    key = key.removeprefix("m.").removeprefix("discov.")
    if key in _NOT_PARAMETERS:
        return None
    for pattern, name, leaves in _TABLE:
        for leaf, (ours, transform) in leaves.items():
            full = pattern if leaf is None else rf"{pattern}\.{leaf}"
            match = re.fullmatch(full, key)
            if match:
                return match.expand(name if ours is None else f"{name}.{ours}"), transform
    raise UserError(
        f"unknown key {key!r} in an authors' state dict: expected the keys of a SmoothSA checkpoint"
    )


def from_authors(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their state dict, or a part of it, as flat parameters of ours."""
    arrays = {}
    for key, array in state_dict.items():
        found = name_of(key)
        if found is not None:
            name, transform = found
            arrays[name] = np.ascontiguousarray(transform(np.asarray(array)))
    return arrays
