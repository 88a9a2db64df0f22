"""Run `main.py` as a user does: in another process, with its exit status and output."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from smoothsa_jax.checkpoints.read import read_checkpoint
from smoothsa_jax.training.logging import read_log

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for `main`, which is not part of the package
CONFIG = ROOT / "tests" / "run_config.py"
IMAGE = f"{CONFIG}:image"


def start(
    *arguments: str,
    cache: str,
    cwd: Path = ROOT,
    devices: int = 1,
    program: tuple[str, ...] = (str(ROOT / "main.py"),),
    **options,
) -> subprocess.Popen:
    """Begin `python main.py ...`, or another program; compiled programs are kept in `cache`."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env=environment(cache, devices),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def environment(cache: str, devices: int = 1) -> dict[str, str]:
    """The environment of `main.py`: the CPU, as this many devices."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return others | {
        "JAX_PLATFORMS": "cpu",
        "SMOOTHSA_JAX_CACHE": cache,
        # This halves the compile time; the programs are as exact and as repeatable.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        f"--xla_force_host_platform_device_count={devices}",
    }


def run(*arguments: str, cache: str, **options) -> subprocess.CompletedProcess:
    """Run `python main.py ...` to its end."""
    process = start(*arguments, cache=cache, **options)
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def here(*arguments: str) -> int:
    """Run `python main.py ...` in this process, with the tests' quick compilation; exit status."""
    import main

    return main.main([str(argument) for argument in arguments])


def trained(folder: Path, cache: str) -> Path:
    """A workdir of the image variant, trained once for the session; tests work on `copy_of` it."""
    workdir = folder / "trained_once"
    if not workdir.exists():
        result = run(f"--config={IMAGE}", f"--workdir={workdir}", cache=cache)
        assert result.returncode == 0, result.stderr
        (folder / "trained_once.out").write_text(result.stdout)
    return workdir


def copy_of(workdir: Path, target: Path) -> Path:
    shutil.copytree(workdir, target)
    return target


def assert_same_run(one: Path, two: Path, step: int) -> None:
    """Check that weights, optimizer, losses and scores of two runs are bit-identical."""
    found, expected = read_checkpoint(one, step), read_checkpoint(two, step)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    assert found.progress == expected.progress
    assert losses(one) == losses(two)
    assert (one / "scores.json").read_bytes() == (two / "scores.json").read_bytes()


def losses(workdir: Path) -> list[dict[str, float]]:
    """Return the rows of the log without the entries that depend on the clock."""
    rows = read_log(workdir / "log.jsonl")
    clock = ("steps_per_second", "data_wait_share", "data_wait_ms", "data_wait_process")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]
