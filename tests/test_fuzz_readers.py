"""Readers either return a result or fail with a one-line error on damaged files."""

import fuzz_readers
import pytest

COUNTS = dict.fromkeys(fuzz_readers.READERS, 50)
COUNTS |= {"gif": 5, "mp4": 5, "model": 8}  # each a process, or a model that is built


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.torch if n == "pth" else ()) for n in COUNTS],
)
def test_damaged_files(name, tmp_path):
    if name == "pth":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
    read, refused = fuzz_readers.fuzz(name, COUNTS[name], tmp_path)
    assert read + refused == COUNTS[name]
    if COUNTS[name] == 50:
        assert refused > 10
