"""Read and write PyTorch's `.pth` files as NumPy arrays; only this module needs PyTorch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError

# Where a training program puts the state dict, beside its optimizer's state and the like.
HOLDERS = ("state_dict", "model")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the state dict of a `.pth` file, for example a checkpoint of the authors.

    The file may hold more beside it, as a `.ckpt` of Lightning or SPOT's `.pt.tar` do. Only tensors
    and plain values are read (`weights_only`), so that an untrusted file cannot run code.

    Returns:
        key -> array, in the file's order. float16 and bfloat16 become float32.

    Raises:
        UserError: PyTorch is missing, the file is unreadable, or it holds no state dict.
    """
    torch = _torch(path)
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a .pth file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the pickle and zip readers each have their own errors
        raise UserError(
            f"{path} cannot be read as a PyTorch state dict ({_first_line(error)}): "
            "it may be cut short or hold more than tensors; fetch it again"
        ) from error
    for place in HOLDERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(place), dict):
            loaded = loaded[place]
    good = isinstance(loaded, dict) and all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in loaded.items()
    )
    if not good:
        raise UserError(
            f"{path} holds {type(loaded).__name__}, expected a state dict of tensors: "
            "give a file that was saved from model.state_dict()"
        )
    return {key: _array(tensor) for key, tensor in loaded.items()}


def write_state_dict(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a state dict that `torch.load(path, weights_only=True)` reads.

    Raises:
        UserError: PyTorch is missing.
    """
    torch = _torch(path)
    torch.save({key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}, path)


def _torch(path: str | Path):
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file, and PyTorch is not installed: install smoothsa_jax[torch]"
        ) from error
    return torch


def _array(tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.element_size() == 2:
        tensor = tensor.float()  # NumPy has no bfloat16
    return tensor.numpy()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
