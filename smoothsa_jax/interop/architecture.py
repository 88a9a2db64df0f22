"""Check a DINO, DINOv2 or DINOv3 `config.json` of Hugging Face against the ViT of a config."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smoothsa_jax.errors import UserError

_SETTINGS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch",
}
_REGISTERS = {"num_register_tokens": "registers"}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One of our encoders.

    Attributes:
        name: its `model.encoder.name`.
        settings: names in transformers -> our names in `model.encoder`.
        fixed: values for which our encoder has no setting.
        implied: our settings for which transformers' model has none.
    """

    name: str
    settings: Mapping[str, str]
    fixed: Mapping[str, Any]
    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True, "num_channels": 3}
_DINO = _Kind("vit", _SETTINGS, _FIXED, {"registers": 0, "swiglu": False, "layer_scale": False})
_DINOV2 = _Kind(
    "vit",
    {**_SETTINGS, **_REGISTERS, "use_swiglu_ffn": "swiglu"},
    {"mlp_ratio": 4, **_FIXED},
    {"layer_scale": True},
)
_DINOV3 = _Kind(
    "dinov3",
    {**_SETTINGS, **_REGISTERS, "use_gated_mlp": "swiglu"},
    {
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "num_channels": 3,
    },
)
_KINDS = {
    "vit": _DINO,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": _DINOV3,
}
_DEFAULTS = {"name": "vit", "swiglu": False, "layer_scale": True}


def read_architecture(path: Path) -> dict[str, Any]:
    """Read all transformers settings of a ViT, including those left at their default.

    Raises:
        UserError: the file does not exist, or describes another model.
    """
    from transformers import (
        Dinov2Config,
        Dinov2WithRegistersConfig,
        DINOv3ViTConfig,
        ViTConfig,
    )

    classes = (ViTConfig, Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig)
    kinds = {kind.model_type: kind for kind in classes}
    if not path.is_file():
        raise UserError(f"{path} does not exist: download it next to the weights")
    try:
        written = json.loads(path.read_text())
        found = written["model_type"]
        settings = kinds[found].from_dict(written).to_dict() if found in kinds else {}
    except Exception as error:  # transformers validates what it reads, with its own errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{path} cannot be read as a model's config ({reason})") from error
    if not settings:
        raise UserError(f"{path} describes a {found!r}, expected {' or '.join(kinds)}")
    return {"num_register_tokens": 0, **settings}


def check_architecture(found: Mapping[str, Any], encoder: Mapping[str, Any], what: str) -> None:
    """Refuse weights of a ViT other than the config's.

    Args:
        found: the result of `read_architecture`.
        encoder: the config's `model.encoder`.
        what: the origin of the weights, for error messages.

    Raises:
        UserError: settings differ; the message names all of them.
    """
    kind = _KINDS[found["model_type"]]
    wanted = {**_DEFAULTS, **encoder}
    name = wanted["name"]
    if name != kind.name:
        raise UserError(
            f"{what} describes a {found['model_type']!r}, which does not match "
            f"model.encoder.name={name!r}; set --config.model.encoder.name={kind.name}, or choose "
            "other weights"
        )
    fixed = dict(kind.fixed)
    if kind is _DINO:
        fixed["intermediate_size"] = 4 * found["hidden_size"]
        # DINO was trained with 1e-6; its files on the Hub have transformers' default instead.
        if found["layer_norm_eps"] == 1e-12:
            del fixed["layer_norm_eps"]
    if kind is _DINOV3:
        fixed["intermediate_size"] = 4 * found["hidden_size"]
        fixed["hidden_act"] = "silu" if found["use_gated_mlp"] else "gelu"
    other = {key: found.get(key) for key, value in fixed.items() if found.get(key) != value}
    if other:
        raise UserError(f"{what} has {_pairs(other)}; this ViT has {_pairs(fixed)}")
    theirs = {ours: found[key] for key, ours in kind.settings.items()} | dict(kind.implied)
    differ = {key: value for key, value in theirs.items() if wanted.get(key) != value}
    if differ:
        advice = " ".join(f"--config.model.encoder.{key}={value}" for key, value in differ.items())
        raise UserError(
            f"{what} has {_pairs(differ)}; model.encoder has "
            f"{_pairs({key: wanted.get(key) for key in differ})}; set {advice}, or choose other "
            "weights"
        )


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in settings.items())
