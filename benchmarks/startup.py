"""What a run costs before and beside its steps: importing, the first step with a cold and a warm cache, a save.

    python benchmarks/startup.py                           # sprites
    python benchmarks/startup.py --config=configs/movi_c.py --config.model.backbone.weights=random --config.train.batch_size=1

Any `--config.key=value` works as for main.py; the time to the first step is measured on sprites only, whose data need no
folder. Each start is a process of its own; cold and warm take turns, each cold one with an empty cache. A save holds up
training from the call until it returns; its writing goes on beside the next steps.
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
    """Median over processes of processor time, which other programs do not disturb; the interpreter's own start not counted."""
    code = f"import time; b = time.process_time(); import {module}; print(time.process_time() - b)"
    found = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, **_text()).stdout)
        for _ in range(rounds)
    ]
    return statistics.median(found)


def seconds_to_first_step(arguments: Sequence[str], cache: Path, workdir: Path) -> float:
    """From the start of a process until the metrics of its first step are on the host."""
    arguments = [*arguments, f"--workdir={workdir}"]
    code = FIRST_STEP.format(root=str(ROOT), arguments=arguments)
    environment = {**os.environ, "SMOOTHSA_JAX_CACHE": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, **_text())
    line = next(x for x in done.stdout.splitlines() if x.startswith("first step"))
    return float(line.split()[-1])


def _text() -> dict:
    return {"capture_output": True, "text": True, "check": True}


def save_beside_steps(arguments: Sequence[str], rounds: int) -> dict[str, float]:
    """Seconds of a step, of the call that saves, and how large the state is."""
    import jax
    import numpy as np

    from smoothsa_jax.config import config_from_command_line, split_command_line
    from smoothsa_jax.training.checkpoint_writer import CheckpointWriter
    from smoothsa_jax.training.step import build_training

    default = str(ROOT / "configs" / "sprites.py")
    config = config_from_command_line(split_command_line(arguments)[0], default)
    training, rng = build_training(config), np.random.default_rng(0)
    batch, frames = config.train.batch_size, config.data.num_frames
    side, slots = config.data.image_size, config.model.slot_attention.num_slots
    placed = training.place(
        {
            "video": rng.integers(0, 256, (batch, frames, side, side, 3), np.uint8),
            "boxes": np.sort(rng.random((batch, frames, slots, 4), np.float32), axis=-1),
            "slot_mask": np.ones((batch, slots), bool),
        }
    )
    state, key, steps, saves = training.state, jax.random.key(0), [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(folder, config)
        for number in range(2 * rounds + 1):
            begin = time.perf_counter()
            state, _ = jax.block_until_ready(
                training.train_step(state, training.frozen, placed, key)
            )
            steps.append(time.perf_counter() - begin)
            if number % 2:
                begin = time.perf_counter()
                writer.save(number, {"state": state}, {}, {}, {"frozen": training.frozen})
                saves.append(time.perf_counter() - begin)
                writer.wait()
        writer.close()
    size = sum(x.nbytes for x in jax.tree.leaves((state, training.frozen)))
    return {"step": statistics.median(steps[1:]), "save": statistics.median(saves), "bytes": size}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("import", "start", "save"))
    given, for_config = parser.parse_known_args(arguments)
    if given.only in (None, "import"):
        for module in IMPORTS:
            print(f"import {module:<28}{seconds_to_import(module, given.rounds):8.2f} s")
    if given.only in (None, "start"):
        found: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for name, times in found.items():
                    workdir = Path(folder) / f"{name}_{number}"
                    times.append(seconds_to_first_step((), Path(folder) / "cache", workdir))
        for name, times in found.items():
            print(f"first step, {name} cache {statistics.median(times):20.1f} s")
    if given.only in (None, "save"):
        saved = save_beside_steps(for_config, given.rounds)
        print(
            f"a save of {saved['bytes'] / 1e6:.0f} MB holds up training for {1e3 * saved['save']:.0f} ms, a step takes "
            f"{1e3 * saved['step']:.0f} ms: {saved['save'] / saved['step']:.2f} steps"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
