"""Load the arrays of a ViT from what `source` of an encoder's weights names.

facebook/dinov2-with-registers-small   a repository of the Hugging Face Hub (see hub.py);
                                       append `@revision` for a specific commit
path/to/folder                         config.json and model.safetensors (or its shards, or
                                       pytorch_model.bin) of such a repository
path/to/file.safetensors, .pth         a state dict of timm; DINO and DINOv2 only
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.interop import hub, state_dicts, torch_files
from smoothsa_jax.interop.architecture import check_architecture, read_architecture
from smoothsa_jax.interop.dinov3 import DINOV3, DINOV3_GATED
from smoothsa_jax.interop.safetensors_files import INDEX, WHOLE, read_model_folder
from smoothsa_jax.interop.table import describe, mismatches
from smoothsa_jax.interop.vit_layouts import DINO, DINOV2, TIMM, is_hugging_face, vit_arrays


def load_encoder(
    weights: str, config: Mapping[str, Any], expected: Mapping[str, Any], grid: tuple[int, int]
) -> tuple[dict[str, np.ndarray], str]:
    """Load the arrays of a ViT.

    Args:
        weights: what to load, as above.
        config: `model.encoder` of a config.
        expected: the ViT's arrays or their shapes, by its own names.
        grid: h, w of its patches; positions are resampled to it.

    Returns:
        The arrays, and where they come from in words.

    Raises:
        UserError: the weights are not found, damaged, of another architecture, or do not match
            `expected` key by key.
    """
    if not isinstance(weights, str) or not weights:
        raise UserError(
            f"weights.encoder.source is {weights!r}: expected 'random', a name such as "
            "'facebook/dinov2-with-registers-small', a folder or a file; set "
            "--config.weights.encoder.source"
        )
    path = expanded(weights)
    if path.is_dir():
        what, arrays = str(path), _from_folder(path, config, expected, grid, str(path))
    elif path.is_file() or _looks_like_a_path(weights):
        what, arrays = str(path), _from_timm(path, config, expected, grid)
    else:
        folder = hub.fetch(weights)
        what = f"{weights.partition('@')[0]}@{folder.name}"
        arrays = _from_folder(folder, config, expected, grid, what)
    wrong = mismatches(describe(arrays), describe(expected))
    if wrong:
        raise UserError(
            f"{what} does not fit the ViT of model.encoder ({'; '.join(wrong)}): "
            "set its width, depth, patch, registers, swiglu, layer_scale, class_position and "
            "final_norm to those of the file, or choose other weights"
        )
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{what}: {name} holds values that are not finite; fetch it again")
    return arrays, what


def _looks_like_a_path(weights: str) -> bool:
    return weights.startswith(("/", ".", "~")) or state_dicts.is_state_dict(weights)


def _from_folder(
    folder: Path,
    config: Mapping[str, Any],
    expected: Mapping[str, Any],
    grid: tuple[int, int],
    what: str,
) -> dict[str, np.ndarray]:
    found = read_architecture(folder / hub.CONFIG)
    check_architecture(found, config, what)
    layout = DINO if found["model_type"] == "vit" else DINOV2
    if found["model_type"] == "dinov3_vit":
        layout = DINOV3_GATED if found["use_gated_mlp"] else DINOV3
    # transformers resamples positions with antialiasing only in the model with registers.
    antialias = found["model_type"] == "dinov2_with_registers"
    return _named(_read_folder(folder), layout, expected, grid, antialias, what)


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    pickled = folder / hub.PICKLED
    if pickled.is_file() and not any((folder / name).is_file() for name in (WHOLE, INDEX)):
        return torch_files.read_state_dict(pickled)
    return read_model_folder(folder)


def _from_timm(
    path: Path, config: Mapping[str, Any], expected: Mapping[str, Any], grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"weights.encoder.source: {path} is not there; give a folder or a file")
    if config.get("name") == "dinov3":
        raise UserError(
            f"weights.encoder.source is the file {path}: DINOv3 can only be read from a folder in "
            f"the layout of Hugging Face, which holds {hub.CONFIG} and {WHOLE}; give its path"
        )
    arrays = state_dicts.read(path)
    if is_hugging_face(arrays):
        raise UserError(
            f"{path} is a file from Hugging Face, which needs its {hub.CONFIG}: "
            "set --config.weights.encoder.source to the folder that holds both"
        )
    return _named(arrays, TIMM, expected, grid, True, str(path))


def _named(
    arrays: dict, layout, expected: Mapping[str, Any], grid, antialias: bool, what: str
) -> dict[str, np.ndarray]:
    try:
        return vit_arrays(arrays, layout, grid, antialias, expected)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
