"""Read LPIPS: a network of torchvision, and the linear heads of the package `lpips`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.interop import state_dicts


class _Files(NamedTuple):
    """The two files of a backbone.

    Attributes:
        network, heads: patterns of their names.
        fetch: what they are, for messages.
        convolutions: the numbers of the convolutions in `features`, a Sequential.
        taps: which of the convolutions have a head.
    """

    network: str
    heads: str
    fetch: str
    convolutions: tuple[int, ...]
    taps: tuple[int, ...]


_FETCH = (
    "a folder with torchvision's {} (download.pytorch.org/models) and {} of the package lpips (its "
    "folder weights/v0.1)"
)
FILES = {
    "alexnet": _Files(
        "alexnet-owt-*",
        "alex.*",
        _FETCH.format("alexnet-owt-7be5be79.pth", "alex.pth"),
        (0, 3, 6, 8, 10),
        (0, 1, 2, 3, 4),
    ),
    "vgg16": _Files(
        "vgg16-*",
        "vgg.*",
        _FETCH.format("vgg16-397923af.pth", "vgg.pth"),
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (1, 3, 6, 9, 12),
    ),
}


def load_lpips(
    source: str, path: str, backbone: str = "alexnet"
) -> tuple[dict[str, np.ndarray], str]:
    """Read the arrays of `models.perceptual.LPIPS`.

    Args:
        source: the folder of both files, each a state dict.
        path: what names it in the config, for messages.
        backbone: "alexnet" or "vgg16".

    Returns:
        The arrays by our names, and where they come from in words.

    Raises:
        UserError: a file is missing or holds something else.
    """
    files = FILES[backbone]
    of_network, of_heads = find_lpips(source, path, backbone)
    network, heads = state_dicts.read(of_network), state_dicts.read(of_heads)
    arrays = {}
    for index, number in enumerate(files.convolutions):
        kernel = _entry(network, f"features.{number}.weight", 4, of_network, path, files)
        arrays[f"convs.{index}.kernel"] = kernel.transpose(2, 3, 1, 0)
        bias = _entry(network, f"features.{number}.bias", 1, of_network, path, files)
        arrays[f"convs.{index}.bias"] = bias
    for index, layer in enumerate(files.taps):
        key = f"lin{index}.model.1.weight"
        head = _entry(heads, key, 4, of_heads, path, files)[0, :, 0, 0]
        channels = len(arrays[f"convs.{layer}.bias"])
        if len(head) != channels:
            raise UserError(
                f"{path}: {of_heads} has {key} of {len(head)} channels, but {of_network} has "
                f"{channels} there; expected {files.fetch}"
            )
        arrays[f"heads.{index}"] = head
    found = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
    return found, str(expanded(source))


def find_lpips(source: str, path: str, backbone: str = "alexnet") -> tuple[Path, Path]:
    """Return the two files of `load_lpips`, without reading them.

    Raises:
        UserError: one is missing.
    """
    folder, files, found = expanded(source), FILES[backbone], []
    for pattern in (files.network, files.heads):
        named = sorted(file for file in folder.glob(pattern) if state_dicts.is_state_dict(file))
        if not named:
            raise UserError(f"{path}: {folder} has no {pattern}; expected {files.fetch}")
        found.append(named[0])
    return found[0], found[1]


def _entry(
    found: dict[str, np.ndarray], key: str, axes: int, file: Path, path: str, files: _Files
) -> np.ndarray:
    array = found.get(key)
    if array is None or array.ndim != axes:
        what = "no such array" if array is None else f"one of shape {list(array.shape)}"
        raise UserError(f"{path}: {file} should hold {key}, but has {what}; expected {files.fetch}")
    return array
