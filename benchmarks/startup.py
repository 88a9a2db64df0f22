"""Measure what a run costs before and beside its steps: imports, the first step, and a save.

    python benchmarks/startup.py                           # sprites
    python benchmarks/startup.py --config=configs/movi_c.py \\
        --config.weights.encoder.source=random --config.train.batch_size=1

Any `--config.key=value` works as for main.py; the time to the first step is measured on sprites
only, which need no folder of data. Each start is a process of its own; cold and warm caches take
turns, each cold one with an empty cache. A save holds up the loop from the call until it returns;
its checking and writing go on beside the next steps, which they slow down where they share cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.devices.host_arrays import copied

STEPS = 12  # in which the writing of a save is done
IMPORTS = ("smoothsa_jax", "smoothsa_jax.config", "jax", "smoothsa_jax.training.loop")

FIRST_STEP = """
import os, sys, time
begin = time.time()
sys.path.insert(0, {root!r})
import main
from smoothsa_jax.training.logging import RunLog
def record(self, step, metrics):
    print("first step", time.time() - begin, flush=True)
    os._exit(0)
RunLog.record = record
sys.exit(main.main({arguments!r}))
"""


def seconds_to_import(module: str, rounds: int) -> float:
    """Return the median processor time of several processes, without the interpreter's start."""
    code = f"import time; b = time.process_time(); import {module}; print(time.process_time() - b)"
    found = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, **_text()).stdout)
        for _ in range(rounds)
    ]
    return statistics.median(found)


def seconds_to_first_step(arguments: Sequence[str], cache: Path, workdir: Path) -> float:
    """Return the seconds from a process's start until its first step's metrics are on the host."""
    arguments = [*arguments, f"--workdir={workdir}"]
    code = FIRST_STEP.format(root=str(ROOT), arguments=arguments)
    environment = {**os.environ, "SMOOTHSA_JAX_CACHE": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, **_text())
    line = next(x for x in done.stdout.splitlines() if x.startswith("first step"))
    return float(line.split()[-1])


def _text() -> dict:
    return {"capture_output": True, "text": True, "check": True}


def save_beside_steps(config: ConfigDict, rounds: int) -> dict[str, float]:
    """Return the seconds of a step, of the call that saves, and by how much a save lengthens
    `STEPS` steps; and the bytes of the state."""
    training = cases.training_of(config)
    placed = training.place(cases.random_batch(config))
    key, state = jax.random.key(0), copied(training.state)
    size = sum(x.nbytes for x in jax.tree.leaves((state, training.frozen)))
    found: dict[str, list[float]] = {"plain": [], "beside": [], "call": []}
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(folder, config)
        for number in range(2 * rounds + 2):
            kind = ("plain", "beside")[number % 2]
            begin = time.perf_counter()
            for step in range(STEPS):
                state, _ = training.train_step(state, training.frozen, placed, key)
                jax.block_until_ready(state)
                if step == 0 and kind == "beside":
                    before = time.perf_counter()
                    writer.save(number, {"state": state}, {}, {}, {"frozen": training.frozen})
                    found["call"].append(time.perf_counter() - before)
            found[kind].append(time.perf_counter() - begin)
            writer.wait()
        writer.close()
    plain, beside, call = (statistics.median(times[1:]) for times in found.values())
    return {"step": plain / STEPS, "call": call, "extra": beside - plain, "bytes": size}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("import", "start", "save"))
    config, options = cases.arguments_of(parser, arguments)
    if options.only in (None, "import"):
        for module in IMPORTS:
            cases.tell(f"import {module}", f"{seconds_to_import(module, options.rounds):.2f} s")
    if options.only in (None, "start"):
        found: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for name, times in found.items():
                    workdir = Path(folder) / f"{name}_{number}"
                    times.append(seconds_to_first_step((), Path(folder) / "cache", workdir))
        for name, times in found.items():
            cases.tell(f"sprites: first step, {name} cache", f"{statistics.median(times):.1f} s")
    if options.only in (None, "save"):
        saved = save_beside_steps(config, options.rounds)
        print(cases.machine())
        step, what = saved["step"], f"{config.name}: a save of {saved['bytes'] / 1e6:.0f} MB"
        cases.tell(f"{config.name}: a step", f"{1e3 * step:.1f} ms")
        for key, told in (("call", "holds up the loop for"), ("extra", "costs in all")):
            remark = f"{saved[key] / step:.2f} steps" + ", goal less than one" * (key == "call")
            cases.tell(f"{what} {told}", f"{1e3 * saved[key]:.1f} ms", remark)
    return 0


if __name__ == "__main__":
    cases.run(main)
