"""`benchmarks/gpu.sh`: its error without a GPU, and all its measurements with tiny models."""

import os
import subprocess
import sys

import pytest
from command import ROOT


def gpu_script(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", *arguments],
        env={**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1200,
    )


def test_the_gpu_script_fails_clearly_without_a_gpu():
    result = gpu_script()
    assert result.returncode == 1
    assert result.stderr.startswith("error: JAX sees no GPU") and result.stdout == ""


@pytest.mark.slow
def test_every_measurement_runs_and_tells_its_figures():
    result = gpu_script("rehearse")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    table = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    for what in (
        "batches of 2",
        "a frame of a stream, median",
        "99th percentile",
        "a training step",
        "fits in 24 GB",
    ):
        assert any(what in line for line in table), what
    for line in table[2:]:
        assert line.count("|") == 4 and any(character.isdigit() for character in line)
