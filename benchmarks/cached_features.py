"""Time the training step on stored features beside the one on pixels, in turns in one process.

    python benchmarks/cached_features.py --config=configs/movi_c.py \\
        --config.weights.encoder.source=random --config.train.batch_size=1

Any `--config.key=value` works as for main.py. Batches are on the device already; a figure is the
best round.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.tasks.task import MODEL


def measure(config: ConfigDict, rounds: int) -> dict[str, float]:
    """Return the seconds of a step on pixels and of one on features."""
    training, batch = cases.training_of(config), cases.random_batch(config)
    beside = {name: x for name, x in batch.items() if name != "video"}
    encoder = training.definitions[MODEL].skeleton().encoder
    tokens = encoder.grid[0] * encoder.grid[1]
    shape = (*batch["video"].shape[:2], tokens, encoder.width)
    features = np.random.default_rng(0).standard_normal(shape, np.float32).astype(jnp.bfloat16)
    ways = {"pixels": batch, "features": {**beside, "features": features}}
    steps = [cases.stepper(training, given, training.train_step) for given in ways.values()]
    for step in steps:  # compiles
        step()
    return dict(zip(ways, map(min, cases.in_turn(steps, rounds)), strict=True))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    config, options = cases.arguments_of(parser, arguments)
    found = measure(config, options.rounds)
    print(f"{cases.machine()}\n{cases.of_config(config)}")
    for name, seconds in found.items():
        cases.tell(f"{config.name}: a step on {name}", f"{1e3 * seconds:.1f} ms")
    ratio = found["pixels"] / found["features"]
    cases.tell(f"{config.name}: stored features are faster by", f"{ratio:.2f} x", "goal 1.7")
    return 0


if __name__ == "__main__":
    cases.run(main)
