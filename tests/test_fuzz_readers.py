"""Damaged files end in a result or in one line; `python tests/fuzz_readers.py` tries a thousand for each reader."""

import pytest
from fuzz_readers import READERS, outcome

# Each video has a process of its own.
COUNTS = {"image": 15, "gif": 5, "mp4": 5, "model": 10, "boxes": 15}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    read = READERS[name]()
    for seed in range(COUNTS[name]):
        assert outcome(read, tmp_path, seed) in ("result", "line"), seed
