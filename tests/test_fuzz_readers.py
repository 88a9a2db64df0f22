"""Readers either return a result or fail with a one-line error on damaged files."""

import fuzz_readers
import pytest

COUNTS = dict.fromkeys(fuzz_readers.READERS, 50)
COUNTS |= {"gif": 2, "mp4": 5, "model": 8}  # each a process, or a model that is built


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_files(name, tmp_path):
    read, refused = fuzz_readers.fuzz(name, COUNTS[name], tmp_path)
    assert read + refused == COUNTS[name]
    if COUNTS[name] == 50:
        assert refused > 10
