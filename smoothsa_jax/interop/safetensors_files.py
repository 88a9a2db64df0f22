"""Read and write `.safetensors` files, whole or sharded, as NumPy arrays."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError

WHOLE = "model.safetensors"  # Hugging Face's names for the files of a model
INDEX = "model.safetensors.index.json"


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file. Two-byte floats become float32.

    Raises:
        UserError: the file does not exist, is truncated, or is not safetensors.
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
    """Read the arrays of a Hugging Face folder: one file, or the shards named by its index.

    Raises:
        UserError: the folder has neither, or a file is missing or damaged.
    """
    arrays: dict[str, np.ndarray] = {}
    for name in weight_files(folder):
        arrays |= read_safetensors(folder / name)
    return arrays


def weight_files(folder: Path) -> list[str]:
    """List the names of the files with a model's weights.

    Raises:
        UserError: there is neither a whole file nor an index, or the index is unreadable.
    """
    if (folder / WHOLE).is_file():
        return [WHOLE]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has no {WHOLE} and no {INDEX}: download one of them there")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("it names files outside its folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} cannot be read ({error}); fetch it again") from error
    return names


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to the file `path`."""
    from safetensors.numpy import save_file

    # The library writes the memory of an array as it is, transposed or not.
    in_order = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    save_file(in_order, path, metadata={"format": "pt"})


def _wide(array: np.ndarray) -> np.ndarray:
    # NumPy does not treat bfloat16 as a floating type.
    two_bytes = array.dtype.itemsize == 2 and array.dtype.kind not in "iu"
    return array.astype(np.float32) if two_bytes else array
