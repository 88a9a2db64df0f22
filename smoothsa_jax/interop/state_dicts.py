"""A state dict's file, whichever of the two kinds its name says it is."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import safetensors_files, torch_files

TORCH, SAFETENSORS = (".pth", ".pt"), (".safetensors",)
SUFFIXES = (*TORCH, *SAFETENSORS)


def is_state_dict(path: str | Path) -> bool:
    """Whether the name is that of such a file."""
    return Path(path).suffix in SUFFIXES


def read(path: str | Path) -> dict[str, np.ndarray]:
    """key -> array; floats of two bytes become float32.

    Raises:
        UserError: the file cannot be read, or its name has another ending.
    """
    if Path(path).suffix in SAFETENSORS:
        return safetensors_files.read_safetensors(path)
    if Path(path).suffix in TORCH:
        return torch_files.read_state_dict(path)
    raise UserError(f"{path} is no state dict: expected a name that ends in {', '.join(SUFFIXES)}")


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file of this path, in the kind that its name says.

    Raises:
        UserError: PyTorch is needed and missing, or the file cannot be written.
    """
    write_file = safetensors_files.write_safetensors
    if path.suffix not in SAFETENSORS:
        write_file = torch_files.write_state_dict
    try:
        write_file(path, arrays)
    except (SafetensorError, RuntimeError) as error:  # as both libraries tell a full disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be written: {reason}; make room, or use another disk"
        ) from error
