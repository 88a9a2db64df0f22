"""What a `config.json` of Hugging Face says of a DINOv2, against the ViT of a config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smoothsa_jax.errors import UserError

# transformers' name -> ours, in `model.backbone`.
_SETTINGS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch",
    "num_register_tokens": "registers",
    "use_swiglu_ffn": "swiglu",
}
# What our ViT has no setting for.
_FIXED = {
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "num_channels": 3,
}
_OF_A_VIT = {"registers": 4, "patch": 14, "swiglu": False}  # its defaults


def read_architecture(path: Path) -> dict[str, Any]:
    """All of transformers' settings of a DINOv2, those included that the file leaves at their default.

    Raises:
        UserError: no such file, or it describes something else.
    """
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    kinds = {kind.model_type: kind for kind in (Dinov2Config, Dinov2WithRegistersConfig)}
    if not path.is_file():
        raise UserError(f"{path} is not there: download it beside the weights")
    try:
        written = json.loads(path.read_text())
        found = written["model_type"]
        settings = kinds[found].from_dict(written).to_dict() if found in kinds else {}
    except Exception as error:  # transformers checks what it reads, with errors of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{path} cannot be read as a model's config ({reason})") from error
    if not settings:
        raise UserError(f"{path} describes a {found!r}, expected {' or '.join(kinds)}")
    return {"num_register_tokens": 0, **settings}


def check_architecture(found: Mapping[str, Any], backbone: Mapping[str, Any], what: str) -> None:
    """Refuse weights of another ViT than the config's.

    Args:
        found: from `read_architecture`.
        backbone: the config's `model.backbone`.
        what: where the weights are from, for the message.

    Raises:
        UserError: names all settings that differ.
    """
    other = {key: found[key] for key, value in _FIXED.items() if found[key] != value}
    if other:
        raise UserError(f"{what} has {_pairs(other)}; this ViT has {_pairs(_FIXED)}")
    theirs = {ours: found[key] for key, ours in _SETTINGS.items()}
    wanted = {**_OF_A_VIT, **backbone}
    differ = {key: value for key, value in theirs.items() if wanted.get(key) != value}
    if differ:
        advice = " ".join(f"--config.model.backbone.{key}={value}" for key, value in differ.items())
        raise UserError(
            f"{what} has {_pairs(differ)}; model.backbone has {_pairs({key: wanted.get(key) for key in differ})}; "
            f"set {advice}, or choose other weights"
        )


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in settings.items())
