"""The array script for SLURM: which run a task starts, and what it refuses."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SWEEP = Path(__file__).parent.parent / "docs" / "cluster" / "sweep.sh"
TEXT = """# two runs
--config=sprites:gaussian

  --config=sprites:gaussian --config.eval.seeds="(0, 1)"  --config.train.num_steps=5
"""


@pytest.fixture
def run(tmp_path):
    """Run a task of the array with stand-ins for both programs, which print their arguments."""
    for name in ("python", "smoothsa"):
        (tmp_path / name).write_text(f"#!/bin/bash\nprintf '%s\\n' {name} \"$@\"\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sweep.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text("# nothing yet\n\n")

    def start(task: int | None, *arguments: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        if task is not None:
            environment["SLURM_ARRAY_TASK_ID"] = str(task)
        return subprocess.run(
            ["bash", SWEEP, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return start


def test_every_task_is_another_line_or_seed(run, tmp_path):
    found = [run(task, "sweep.txt", "3", "runs/x", "--config.log.every=7") for task in range(6)]
    assert [done.returncode for done in found] == [0] * 6
    words = [done.stdout.splitlines() for done in found]
    assert words[4] == [
        "smoothsa",
        "--config=sprites:gaussian",
        "--config.eval.seeds=(0, 1)",
        "--config.train.num_steps=5",
        "--config.log.every=7",
        "--config.seed=1",
        "--workdir=runs/x/2_seed1",
    ]
    assert len({line[-1] for line in words}) == 6
    (tmp_path / "main.py").touch()  # in a checkout
    assert run(0, "sweep.txt", "3", "runs/x").stdout.split()[:2] == ["python", "main.py"]


@pytest.mark.parametrize(
    "task, arguments, expected",
    [
        (0, ("sweep.txt", "runs/x"), "expected: sweep.sh FILE NUMBER_OF_SEEDS FOLDER"),
        (0, ("sweep.txt", "0", "runs/x"), "expected: sweep.sh FILE NUMBER_OF_SEEDS FOLDER"),
        (0, ("none.txt", "2", "runs/x"), "none.txt cannot be read"),
        (0, ("empty.txt", "2", "runs/x"), "empty.txt has no line"),
        (4, ("sweep.txt", "2", "runs/x"), "beyond the 2 lines of sweep.txt .* --array=0-3"),
        (None, ("sweep.txt", "2", "runs/x"), "submit with sbatch --array=0-3"),
    ],
)
def test_what_it_refuses(task, arguments, expected, run):
    done = run(task, *arguments)
    assert done.returncode != 0 and not done.stdout
    assert re.search(expected, done.stderr), done.stderr
