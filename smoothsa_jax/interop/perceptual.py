"""Read LPIPS: torchvision's AlexNet, and the linear heads of the package `lpips`."""

from pathlib import Path

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.interop import state_dicts

ALEXNET, HEADS = "alexnet-owt-*", "alex.*"  # names of the two files
CONVOLUTIONS = (0, 3, 6, 8, 10)  # of `features`, a Sequential
FETCH = (
    "a folder with torchvision's alexnet-owt-7be5be79.pth (download.pytorch.org/models) and "
    "alex.pth of the package lpips (its folder weights/v0.1)"
)


def load_lpips(source: str, path: str) -> tuple[dict[str, np.ndarray], str]:
    """Read the arrays of `models.perceptual.LPIPS`.

    Args:
        source: the folder of both files, each a state dict.
        path: what names it in the config, for messages.

    Returns:
        The arrays by our names, and where they come from in words.

    Raises:
        UserError: a file is missing or holds something else.
    """
    folder = expanded(source)
    network, of_network = _read(folder, ALEXNET, path)
    heads, of_heads = _read(folder, HEADS, path)
    arrays = {}
    for index, number in enumerate(CONVOLUTIONS):
        kernel = _entry(network, f"features.{number}.weight", 4, of_network, path)
        arrays[f"convs.{index}.kernel"] = kernel.transpose(2, 3, 1, 0)
        bias = _entry(network, f"features.{number}.bias", 1, of_network, path)
        arrays[f"convs.{index}.bias"] = bias
        head = _entry(heads, f"lin{index}.model.1.weight", 4, of_heads, path)
        arrays[f"heads.{index}"] = head[0, :, 0, 0]
    found = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    return found, str(folder)


def _read(folder: Path, pattern: str, path: str) -> tuple[dict[str, np.ndarray], Path]:
    files = sorted(file for file in folder.glob(pattern) if state_dicts.is_state_dict(file))
    if not files:
        raise UserError(f"{path}: {folder} has no {pattern}; expected {FETCH}")
    return state_dicts.read(files[0]), files[0]


def _entry(found: dict[str, np.ndarray], key: str, axes: int, file: Path, path: str) -> np.ndarray:
    array = found.get(key)
    if array is None or array.ndim != axes:
        what = "no such array" if array is None else f"one of shape {list(array.shape)}"
        raise UserError(f"{path}: {file} should hold {key}, but has {what}; expected {FETCH}")
    return array
