"""Find the batch that fits into 16, 24 and 80 GB, from the memory that the compiler plans.

    python benchmarks/memory.py --config=configs/movi_c.py
    python benchmarks/memory.py --config=configs/movi_c.py --config.train.accumulate=4 \\
        --batches=16,64,256

Compiles the training step for three batches, puts a parabola through them (slot contrast compares
all slots of a batch with each other), and solves it for each memory size less 10 %, a reserve for
libraries and fragmentation. Runs nothing and loads no weights. What a CPU's compiler plans is an
estimate for a GPU, whose compiler fuses other operations and whose libraries need workspace. On a
GPU the command prints what the GPU's own compiler plans.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# For the CPU: no optimization of code that never runs, and a schedule that saves memory, as on GPU
# and TPU.
PLAN_ONLY = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)
os.environ.setdefault("XLA_FLAGS", PLAN_ONLY)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.devices.compiling import memory_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.training.step import Training, build_training

SIZES = (16, 24, 80)  # GB
USABLE = 0.9


def step_arguments(training: Training, config: ConfigDict, batch: int) -> tuple[Any, ...]:
    """Return the arguments of the training step, with a batch of shapes only."""
    inputs = {
        name: jax.ShapeDtypeStruct(*x, sharding=training.batch_sharding)
        for name, x in cases.batch_shapes(config, batch).items()
    }
    return training.state, training.frozen, inputs, jax.random.key(0)


def lowered_step(training: Training, config: ConfigDict, batch: int) -> Any:
    """Return the training step lowered for the shapes of a batch."""
    return training.train_step.lower(*step_arguments(training, config, batch))


def measure(config: ConfigDict, batches: Sequence[int]) -> dict[str, Any]:
    """Return the planned GB of each of three batches, and the batch for each of `SIZES`."""
    training = build_training(config)
    peaks = [memory_of(lowered_step(training, config, batch).compile()).peak for batch in batches]
    curve = np.polynomial.Polynomial.fit(batches, np.array(peaks) / 1e9, 2)
    step = max(1, config.train.accumulate)
    tried = np.arange(step, 1 << 15, step)
    # Up to the first that does not fit: far beyond the three batches the parabola may bend down.
    fits = {
        size: int(tried[np.cumprod(curve(tried) <= USABLE * size, dtype=bool)].max(initial=0))
        for size in SIZES
    }
    return {"gb": dict(zip(batches, (peak / 1e9 for peak in peaks), strict=True)), "fits": fits}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--batches", type=cases.numbers, default=[8, 32, 128], help="three batches to compile for"
    )
    config, options = cases.arguments_of(parser, arguments)
    if len(options.batches) != 3:
        raise UserError(f"--batches is {options.batches}; expected three, such as 8,32,128")
    print(cases.machine())
    found = measure(config, options.batches)
    name = f"{config.name}, {config.dtype}, accumulate {config.train.get('accumulate', 1)}"
    for batch, gb in found["gb"].items():
        cases.tell(f"{name}: batch {batch} takes", f"{gb:.2f} GB", "planned")
    for size, batch in found["fits"].items():
        cases.tell(f"{name}: fits in {size} GB", f"{batch}", "planned")
    return 0


if __name__ == "__main__":
    cases.run(main)
