"""Read and write PyTorch's files as NumPy arrays. Only writing needs PyTorch.

A file is a zip archive: a pickle that describes the tensors, and their values one entry each. Files
from before PyTorch 1.6, such as several of torchvision, are pickles with the values behind them. A
pickle is read with stand-ins for all classes, so an untrusted file cannot run code, and a training
program's optimizer, settings and the like can lie beside the state dict without their classes.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from smoothsa_jax.errors import UserError

# Where a training program puts the state dict, beside its optimizer's state and the like.
HOLDERS = ("state_dict", "model")
# By the end of a file's name, what the programs that write such files look for.
_HOLDER_OF = {".ckpt": HOLDERS[0], ".tar": HOLDERS[1]}

# OSRT's program saves a state dict of each of these, side by side. Here the names of the parts
# stand in front of the keys.
PARTS = ("encoder", "decoder")

MAGIC = 0x1950A86A20F9469CFC6C  # begins a file from before PyTorch 1.6
_BFLOAT16 = "bfloat16"  # NumPy lacks it
_DTYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    """The values of one or several tensors: an entry of the archive."""

    dtype: str
    entry: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; sizes and strides count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Foreign:
    """Stands for an object of any other class, and forgets what it is given."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Foreign":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Foreign":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> _Tensor:
    del rest
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: _Tensor, *rest: Any) -> _Tensor:
    del rest
    return tensor


class _Unpickler(pickle._Unpickler):
    """Makes descriptions of tensors, and plain values. Nothing that a file names runs.

    It is the one in Python: the one in C takes gigabytes for a damaged number.
    """

    known = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
    }

    def __init__(self, file: Any):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}  # those of the whole file, by entry

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return type(f"{module}.{name}", (_Foreign,), {})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, entry, _, size, *view = pid
        if any(part is not None for part in view):
            raise ValueError("a tensor shares another one's values, as before PyTorch 0.4")
        if kind != "storage":
            return _Foreign()
        return self.storages.setdefault(entry, _Storage(dtype, entry, size))


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the state dict of a `.pth` file, for example a checkpoint of the authors.

    The file may hold more beside it, as a `.ckpt` of Lightning or SPOT's `.pt.tar` do; of that,
    nothing is read.

    Returns:
        key -> array, in the file's order. float16 and bfloat16 become float32.

    Raises:
        UserError: the file is unreadable, or it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a .pth file")
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return _of_pickles(file, path)
        with zipfile.ZipFile(path) as archive:
            return _of_archive(archive, path)
    except UserError:
        raise
    except Exception as error:  # the pickle and zip readers each have their own errors
        raise UserError(
            f"{path} cannot be read as a PyTorch state dict ({_first_line(error)}): it may be cut "
            "short; fetch it again, or save it again with torch.save"
        ) from error


def write_state_dict(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a state dict that `torch.load(path, weights_only=True)` reads.

    Raises:
        UserError: PyTorch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file, and PyTorch is not installed: install "
            "smoothsa_jax[torch], or write a .safetensors file"
        ) from error
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    holder = _HOLDER_OF.get(path.suffix)
    whole = tensors if holder is None else {holder: tensors}
    if {key.partition(".")[0] for key in tensors} == set(PARTS):
        whole = {part: {} for part in PARTS}
        for key, tensor in tensors.items():
            part, _, rest = key.partition(".")
            whole[part][rest] = tensor
    torch.save(whole, path)


def _of_archive(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    (described,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    root = described.removesuffix("data.pkl")
    with archive.open(described) as file:
        tensors = _tensors(_Unpickler(file).load(), path)
    is_big = f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") == b"big"
    read = lambda storage: archive.read(f"{root}data/{storage.entry}")  # noqa: E731
    return _arrays(tensors, read, ">" if is_big else "<")


def _of_pickles(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """Read a file from before PyTorch 1.6.

    It holds five pickles: a number that marks it, the format, the machine, the description of the
    tensors, and the keys of their storages. The storages follow: a number of values, and these.
    """
    if file.read(1) != pickle.PROTO:
        raise ValueError("it is neither an archive nor a pickle")
    file.seek(0)
    if (found := _Unpickler(file).load()) != MAGIC:
        raise ValueError(f"it begins with {found!r:.40}")
    _Unpickler(file).load()
    machine = _Unpickler(file).load()
    order = "<" if machine.get("little_endian", True) else ">"
    described = _Unpickler(file)
    tensors = _tensors(described.load(), path)
    end, values = path.stat().st_size, {}
    for entry in _Unpickler(file).load():
        dtype = described.storages[entry].dtype
        size = 2 if dtype == _BFLOAT16 else np.dtype(dtype).itemsize
        number = int.from_bytes(file.read(8), "little" if order == "<" else "big", signed=True)
        if not 0 <= number * size <= end - file.tell():
            raise ValueError(f"a tensor has {number} values")
        values[entry] = file.read(number * size)
    return _arrays(tensors, lambda storage: values[storage.entry], order)


def _tensors(loaded: Any, path: Path) -> dict[str, _Tensor]:
    """Return the state dict of what was unpickled.

    Raises:
        UserError: there is none.
    """
    for holder in HOLDERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(holder), dict):
            loaded = loaded[holder]
    if isinstance(loaded, dict) and all(isinstance(loaded.get(part), dict) for part in PARTS):
        loaded = {f"{part}.{key}": x for part in PARTS for key, x in loaded[part].items()}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise _no_state_dict(path, type(loaded).__name__)
    for key, value in loaded.items():
        if isinstance(value, _Foreign):
            raise ValueError(f"{key} is a {type(value).__name__}")
        if not isinstance(value, _Tensor):
            raise _no_state_dict(path, f"{key}={value!r:.40}")
    return loaded


def _arrays(
    tensors: Mapping[str, _Tensor], read: Callable[[_Storage], bytes], order: str
) -> dict[str, np.ndarray]:
    """Return the tensors as arrays of their own, of the bytes of their storages."""
    whole: dict[_Storage, np.ndarray] = {}  # tensors may share one
    for tensor in tensors.values():
        if tensor.storage not in whole:
            whole[tensor.storage] = _values(read(tensor.storage), tensor.storage, order)
    return {key: _view(tensor, whole[tensor.storage]) for key, tensor in tensors.items()}


def _no_state_dict(path: Path, found: str) -> UserError:
    return UserError(
        f"{path} holds {found}, expected a state dict of tensors: give a file that was saved from "
        "model.state_dict()"
    )


def _values(data: bytes, storage: _Storage, order: str) -> np.ndarray:
    if storage.size < 0:
        raise ValueError(f"a tensor has {storage.size} values")
    if storage.dtype == _BFLOAT16:  # the upper half of a float32
        upper = np.frombuffer(data, f"{order}u2", storage.size)
        return (upper.astype(np.uint32) << 16).view(np.float32)
    values = np.frombuffer(data, order + storage.dtype, storage.size)
    wide = np.float32 if storage.dtype == "f2" else values.dtype.newbyteorder("=")
    return values.astype(wide, copy=False)


def _view(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """Return a tensor's part of its storage, as an array of its own."""
    _, offset, shape, strides = tensor
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor has the shape {shape} and the strides {strides}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= len(values):
        raise ValueError(f"a tensor of shape {shape} is larger than its {len(values)} values")
    if not math.prod(shape):
        return np.zeros(shape, values.dtype)
    in_bytes = [step * values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, in_bytes).copy()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
