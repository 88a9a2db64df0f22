"""PyTorch's files without PyTorch: what is read, and what never runs."""

import collections
import contextlib
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from golden_files import FOLDER
from test_golden import MODELS

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import state_dicts, torch_files

FILES = [*(f"{name}.pth" for name in MODELS), "dias.pth", "spot_genera1z.pth"]
FILES += ["dinosaur_genera1z.pth", "spot_original.pt.tar"]
FILES += ["videosaur_original.ckpt", "videosaur_original_features.ckpt"]
FILES += ["slotcontrast_original.ckpt"]
MASK = "self_attn_mask"  # in the file, and left out of the recorded arrays


class Storage:
    """Values of tensors, as PyTorch writes them: an entry of its own in the archive."""

    def __init__(self, kind: str, values: bytes, size: int, entry: str = "0"):
        self.kind, self.values, self.size, self.entry = kind, values, size, entry


class Call:
    """An object that is pickled as the call of a function, by the function's name."""

    def __init__(self, function: str, *arguments: object):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return named(self.function), self.arguments


def named(name: str) -> types.FunctionType:
    """A function that pickle stores by this name."""
    module, _, short = name.rpartition(".")
    made = lambda *arguments: None  # noqa: E731
    made.__module__, made.__name__, made.__qualname__ = module, short, short
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    setattr(sys.modules[module], short, made)
    return made


def tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> Call:
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, {})


def plain(array: np.ndarray, kind: str = "FloatStorage", entry: str = "0") -> Call:
    steps = tuple(step // array.itemsize for step in array.strides)
    return tensor(Storage(kind, array.tobytes(), array.size, entry), 0, array.shape, steps)


@contextlib.contextmanager
def stand_ins():
    """Modules that `named` makes are forgotten; those of an installed PyTorch come back."""
    is_one = lambda name: name.partition(".")[0] in ("torch", "elsewhere")  # noqa: E731
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if is_one(name)}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if is_one(name)]:
            del sys.modules[name]
        sys.modules.update(real)


class TorchPickler(pickle.Pickler):
    """Writes storages by their entries, and notes them.

    Args:
        file: to write to.
        storages: entry -> storage, filled.
        view: what stands behind a storage's size.
    """

    def __init__(self, file, storages: dict[str, Storage], *view):
        super().__init__(file, protocol=2)
        self._storages, self._view = storages, view

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self._storages[value.entry] = value
        kind = named(f"torch.{value.kind}")
        return ("storage", kind, value.entry, "cpu", value.size, *self._view)


@pytest.fixture
def write(tmp_path):
    """A function that writes an object to a file in PyTorch's layout."""

    def write(content: object, name: str = "a.pth", byteorder: bytes = b"little") -> Path:
        storages: dict[str, Storage] = {}

        with stand_ins(), zipfile.ZipFile(tmp_path / name, "w") as archive:
            with archive.open("a/data.pkl", "w") as file:
                TorchPickler(file, storages).dump(content)
            archive.writestr("a/byteorder", byteorder)
            for entry, storage in storages.items():
                archive.writestr(f"a/data/{entry}", storage.values)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_pytorch_has_the_recorded_arrays(name):
    found = state_dicts.read(FOLDER / f"model_{name}")
    with np.load(FOLDER / f"model_{name.partition('.')[0]}.npz") as file:
        recorded = {k.removeprefix("param/"): x for k, x in file.items() if "param/" in k}
    assert {key for key in found if not key.endswith(MASK)} == recorded.keys()
    for key, array in recorded.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    for key in found.keys() - recorded.keys():
        np.testing.assert_array_equal(found[key], np.triu(np.ones_like(found[key]), 1))


def test_all_kinds_of_numbers(write):
    values = np.array([[0, 1, 2], [3, 4, 100]])
    kinds = {
        "DoubleStorage": "f8",
        "FloatStorage": "f4",
        "HalfStorage": "f2",
        "LongStorage": "i8",
        "IntStorage": "i4",
        "ShortStorage": "i2",
        "CharStorage": "i1",
        "ByteStorage": "u1",
        "BoolStorage": "?",
    }
    content = {kind: plain(values.astype(dtype), kind, kind) for kind, dtype in kinds.items()}
    upper = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    content["BFloat16Storage"] = plain(upper.astype(np.uint16), "BFloat16Storage", "b")
    found = torch_files.read_state_dict(write(content))
    np.testing.assert_array_equal(found.pop("BFloat16Storage"), np.array([1.5, -2.0], np.float32))
    for kind, array in found.items():
        expected = values.astype("f4" if kind == "HalfStorage" else kinds[kind])
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    big = write({"x": plain(values.astype(">f4"))}, byteorder=b"big")
    np.testing.assert_array_equal(torch_files.read_state_dict(big)["x"], values.astype("f4"))


def test_views_of_one_storage(write):
    whole = np.arange(12, dtype=np.float32)
    storage = Storage("FloatStorage", whole.tobytes(), 12)
    content = {
        "all": tensor(storage, 0, (3, 4), (4, 1)),
        "turned": tensor(storage, 0, (4, 3), (1, 4)),
        "part": tensor(storage, 5, (2, 2), (4, 1)),
        "repeated": tensor(storage, 3, (2, 3), (0, 1)),
        "one": tensor(storage, 7, (), ()),
        "none": tensor(storage, 12, (0, 4), (4, 1)),
        "parameter": Call("torch._utils._rebuild_parameter", tensor(storage, 0, (2,), (1,)), True),
    }
    found = torch_files.read_state_dict(write(content))
    table = whole.reshape(3, 4)
    expected = {
        "all": table,
        "turned": table.T,
        "part": table[1:, 1:3],
        "repeated": [[3, 4, 5], [3, 4, 5]],
        "one": 7,
        "none": np.zeros((0, 4)),
        "parameter": [0, 1],
    }
    assert list(found) == list(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, strict=False)
        assert found[key].shape == np.shape(array) and found[key].flags.owndata


@pytest.mark.parametrize(("holder", "name"), [("state_dict", "a.ckpt"), ("model", "a.pt.tar")])
def test_what_lies_beside_the_state_dict_is_not_needed(write, holder, name):
    """Settings, callbacks and an optimizer, of classes that are not installed."""
    array = np.ones((2, 3), np.float32)
    content = {
        "epoch": 3,
        "settings": Call("elsewhere.config.DictConfig", {"a": Call("elsewhere.Node", 1)}),
        "optimizer": {"state": {0: plain(array, entry="no such entry")}, "lr": 0.1},
        "callbacks": {Call("elsewhere.Name"): [1, None, "text"]},
        holder: collections.OrderedDict(x=plain(array)),
    }
    path = write(content, name)
    found = state_dicts.read(path)
    assert list(found) == ["x"]
    np.testing.assert_array_equal(found["x"], array)


def of_before(content: object, path: Path, order: str = "<") -> Path:
    """Write an object as PyTorch did before 1.6: pickles, and the values of storages behind."""
    storages: dict[str, Storage] = {}

    with stand_ins(), open(path, "wb") as file:
        machine = {"protocol_version": 1001, "little_endian": order == "<", "type_sizes": {}}
        for about in (torch_files.MAGIC, 1001, machine):
            pickle.dump(about, file, protocol=2)
        TorchPickler(file, storages, None).dump(content)
        pickle.dump(sorted(storages), file, protocol=2)
        for entry in sorted(storages):
            file.write(np.array(storages[entry].size, f"{order}i8").tobytes())
            file.write(storages[entry].values)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_files_from_before_archives(tmp_path, order):
    """As torchvision's VGG16 and LPIPS's heads are; what lies beside the state dict is skipped."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3)).astype(f"{order}f4"), np.arange(4, dtype=f"{order}i8")
    beside = plain(np.zeros(5, f"{order}f8"), "DoubleStorage", "1")
    both = Storage("FloatStorage", x.tobytes(), 6, "2")
    state = collections.OrderedDict(
        a=tensor(both, 0, (2, 3), (3, 1)),
        b=plain(y, "LongStorage", "0"),
        c=tensor(both, 1, (2,), (3,)),
    )
    path = of_before({"state_dict": state, "optimizer": [beside]}, tmp_path / "a.pth", order)
    found = torch_files.read_state_dict(path)
    assert list(found) == ["a", "b", "c"] and found["a"].dtype == np.float32
    for key, expected in {"a": x, "b": y, "c": x[:, 1]}.items():
        np.testing.assert_array_equal(found[key], expected)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 30, 40, 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read as a PyTorch state dict"):
            torch_files.read_state_dict(path)


def test_nothing_of_a_file_from_before_archives_runs(tmp_path):
    mark = tmp_path / "ran"
    path = of_before({"x": Evil(mark)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"cannot be read as a PyTorch state dict \(x is a"):
        torch_files.read_state_dict(path)
    assert not mark.exists()


@pytest.mark.torch
def test_pytorch_writes_such_files(tmp_path):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install torch==2.13.0"
    )
    x = torch.arange(6.0).reshape(2, 3)
    state = {"a": x.T, "b": torch.nn.Parameter(x[1]), "c": x.to(torch.bfloat16)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    found = torch_files.read_state_dict(tmp_path / "a.pth")
    assert list(found) == list(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(found[key], tensor.detach().float().numpy())


@pytest.mark.torch
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.ckpt", "a.pt.tar"])
def test_written_files(name, tmp_path):
    """PyTorch reads them, and so does this program."""
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install torch==2.13.0"
    )
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T, "y": np.array(True)}
    state_dicts.write(tmp_path / name, arrays)
    loaded = torch.load(tmp_path / name, weights_only=True)
    holder = {".ckpt": "state_dict", ".tar": "model"}.get((tmp_path / name).suffix)
    assert (loaded if holder is None else loaded[holder]).keys() == arrays.keys()
    for key, array in state_dicts.read(tmp_path / name).items():
        np.testing.assert_array_equal(array, arrays[key], strict=True)


def test_what_is_no_state_dict(write, tmp_path):
    one = plain(np.zeros(2, np.float32))
    for content in ([1, 2], {"epoch": 3}, {1: one}, one, {"state_dict": {"x": [one]}}):
        with pytest.raises(UserError, match="expected a state dict of tensors"):
            torch_files.read_state_dict(write(content))
    with pytest.raises(UserError, match=r"cannot be read .*x is a elsewhere\.Thing"):
        torch_files.read_state_dict(write({"x": Call("elsewhere.Thing")}))
    with pytest.raises(UserError, match="is not a file"):
        torch_files.read_state_dict(tmp_path / "none.pth")
    for other in (b"<!DOCTYPE html>", b"PK\x03\x04 cut short", b""):
        (tmp_path / "other.pth").write_bytes(other)
        with pytest.raises(UserError, match="it is neither an archive nor a pickle"):
            torch_files.read_state_dict(tmp_path / "other.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(UserError, match=r"cannot be read .*it begins with \{'x': 1\}.*cut short"):
        torch_files.read_state_dict(tmp_path / "old.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (7,), (1,)), (6, (1,), (1,)), (0, (2, 4), (3, 1)), (-1, (2,), (1,)), (5, (2,), (-1,))],
)
def test_a_tensor_stays_inside_its_values(write, offset, shape, strides):
    storage = Storage("FloatStorage", bytes(24), 6)
    with pytest.raises(UserError, match="cannot be read"):
        torch_files.read_state_dict(write({"x": tensor(storage, offset, shape, strides)}))


def test_a_storage_that_is_cut_short(write):
    with pytest.raises(UserError, match="cannot be read"):
        storage = Storage("FloatStorage", bytes(20), 6)
        torch_files.read_state_dict(write({"x": tensor(storage, 0, (2,), (1,))}))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("place", ["in it", "beside it"])
def test_nothing_of_a_file_runs(write, tmp_path, place):
    mark, one = tmp_path / "ran", plain(np.zeros(2, np.float32))
    if place == "in it":
        path = write({"x": Evil(mark)})
        with pytest.raises(UserError, match=r"cannot be read as a PyTorch state dict \(x is a"):
            torch_files.read_state_dict(path)
    else:
        path = write({"hooks": [Evil(mark)], "state_dict": {"x": one}})
        assert list(torch_files.read_state_dict(path)) == ["x"]
    assert not mark.exists()
    with zipfile.ZipFile(path) as archive:  # it would have run
        text = archive.read("a/data.pkl")

    class Trusting(pickle.Unpickler):
        def persistent_load(self, pid):
            return None

    with contextlib.suppress(ImportError, AttributeError, TypeError):  # PyTorch may be missing
        Trusting(io.BytesIO(text)).load()
    assert mark.exists()
