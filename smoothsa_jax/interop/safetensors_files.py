"""`.safetensors` files, whole or in shards, as NumPy arrays."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError

WHOLE = "model.safetensors"  # as Hugging Face calls the files of a model
INDEX = "model.safetensors.index.json"


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Floats of two bytes become float32.

    Raises:
        UserError: no such file, or it is cut short or none of safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: _wide(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({' '.join(str(error).split())[:120]}): "
            "it may be cut short; fetch it again"
        ) from error


def read_model_folder(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder of Hugging Face's: one file, or the shards that its index names.

    Raises:
        UserError: neither is there, or a file is missing or damaged.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in weight_files(folder):
        arrays |= read_safetensors(folder / name)
    return arrays


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a model's weights.

    Raises:
        UserError: there is neither a whole file nor an index, or the index cannot be read.
    """
    if (folder / WHOLE).is_file():
        return [WHOLE]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {WHOLE} and no {INDEX}: download one of them there")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("it names files outside of its folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} cannot be read ({error}); fetch it again") from error
    return names


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file of this path."""
    from safetensors.numpy import save_file

    save_file(dict(arrays), path, metadata={"format": "pt"})


def _wide(array: np.ndarray) -> np.ndarray:
    # bfloat16 is no floating type to NumPy.
    two_bytes = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return array.astype(np.float32) if two_bytes else array
