"""Read and write state dicts in the format given by the file's suffix."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import flax_files, safetensors_files, torch_files

TORCH, SAFETENSORS = (".pth", ".pt", ".ckpt", ".pt.tar"), (".safetensors",)
FLAX = flax_files.SUFFIXES
SUFFIXES = (*TORCH, *SAFETENSORS, *FLAX)


def is_state_dict(path: str | Path) -> bool:
    """Whether the path has the suffix of a state dict."""
    return Path(path).name.endswith(SUFFIXES)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict as key -> array; two-byte floats become float32.

    Raises:
        UserError: the file is unreadable, or has another suffix.
    """
    if Path(path).name.endswith(SAFETENSORS):
        return safetensors_files.read_safetensors(path)
    if Path(path).name.endswith(FLAX):
        return flax_files.read_msgpack(path)
    if Path(path).name.endswith(TORCH):
        return torch_files.read_state_dict(path)
    raise UserError(
        f"{path} is not a state dict: expected a name that ends in {', '.join(SUFFIXES)}"
    )


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to the file `path`, in the format given by its suffix.

    Raises:
        UserError: PyTorch is needed but missing, or the file is not writable.
    """
    write_file = safetensors_files.write_safetensors
    if path.suffix in FLAX:
        write_file = flax_files.write_msgpack
    elif path.suffix not in SAFETENSORS:
        write_file = torch_files.write_state_dict
    try:
        write_file(path, arrays)
    except (SafetensorError, RuntimeError) as error:  # the libraries' errors for a full disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be written: {reason}; make room, or use another disk"
        ) from error
