"""Read pickles of plain values and NumPy arrays without running anything that they name.

A pickle is a program: it names functions and calls them with arguments. Here, the few
names that arrays need stand for functions in this file, which check their arguments. NumPy's own
functions are never called, because they trust their arguments. All other names are refused.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

NUMBERS = re.compile(r"[biuf][1248]")


class Refused(ValueError):
    """A pickle names something that plain values do not need."""


def loads(data: bytes) -> Any:
    """Unpickle None, numbers, text, bytes, arrays of numbers, and lists, tuples and dicts of these.

    A pickled `io.BytesIO` becomes its bytes.

    Raises:
        Refused: the pickle names something else; nothing was run.
        ValueError: the data are truncated, damaged, or not a pickle.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data)).load())
    except Refused:
        raise
    except Exception as error:  # damage may raise any exception
        raise ValueError(f"cut off or damaged ({type(error).__name__}: {error})") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise Refused(f"it names {module}.{name}")
        return NAMES[module, name]


class _Function:
    """A function that a pickle may only call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("it changes a function")


class _Kind:
    """A numeric dtype; its state gives the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any):
        if not (isinstance(code, str) and NUMBERS.fullmatch(code)):
            raise Refused(f"it has an array of {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError(f"an array's bytes are in order {state[1]!r}")
        self.order = state[1]

    def array(self, data: bytes, shape: Any, order: str) -> np.ndarray:
        if not isinstance(data, bytes | bytearray):
            raise Refused(f"it has an array of {type(data).__name__}")
        return np.frombuffer(data, np.dtype(self.order + self.code)).reshape(shape, order=order)


class _Array:
    """An array whose state is not set yet."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, data = state
        self.value = _checked(kind).array(data, shape, "F" if is_fortran else "C")


class _Buffer:
    """An `io.BytesIO`."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        self.value = bytes(state[0])


def _checked(kind: Any) -> _Kind:
    if not isinstance(kind, _Kind):
        raise ValueError(f"an array is of {type(kind).__name__}")
    return kind


def _scalar(kind: Any, data: bytes) -> int | float | bool:
    return _checked(kind).array(data, (), "C").item()


def _from_buffer(
    data: bytes, kind: Any, shape: tuple, order: str, axes: tuple | None = None
) -> np.ndarray:
    array = _checked(kind).array(data, shape, "F" if order == "F" else "C")
    return array if axes is None else array.transpose(axes)


def _no_call(*arguments: Any) -> None:
    raise Refused("it calls numpy.ndarray")


MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Function(_no_call),
    ("numpy", "dtype"): _Function(lambda code, *flags: _Kind(code)),
    **{(module, "_reconstruct"): _Function(lambda *start: _Array()) for module in MULTIARRAY},
    **{(module, "scalar"): _Function(_scalar) for module in MULTIARRAY},
    **{(module, "_frombuffer"): _Function(_from_buffer) for module in NUMERIC},
    ("_io", "BytesIO"): _Buffer,
}


def _plain(value: Any) -> Any:
    """Replace arrays and buffers by their contents; RecursionError on cycles."""
    if isinstance(value, _Array | _Buffer):
        return value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if value is None or isinstance(
        value, bool | int | float | str | bytes | bytearray | np.ndarray
    ):
        return value
    raise Refused(f"it holds a {type(value).__name__}")
