"""The training step on stored features beside the one on pixels, in turn in one process.

    python benchmarks/cached_features.py --config=configs/movi_c.py --config.model.backbone.weights=random --config.train.batch_size=1

Any `--config.key=value` works as for main.py. Batches are on the device already; a figure is the best of the rounds, on a
CPU of its time, all cores together, which other programs disturb less than the clock; the ratio is that of the two.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.train_step import header  # noqa: E402
from smoothsa_jax.config import config_from_command_line, split_command_line  # noqa: E402
from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.models.build import takes_weights  # noqa: E402
from smoothsa_jax.training.loop import check  # noqa: E402
from smoothsa_jax.training.runtime import keep_freed_memory  # noqa: E402
from smoothsa_jax.training.step import build_training  # noqa: E402


def measure(config: ConfigDict, rounds: int) -> dict[str, Any]:
    """Seconds of a step on pixels and on features.

    Raises:
        UserError: a config that cannot run on this machine.
    """
    check(config)
    if takes_weights(config.model.backbone):
        raise UserError(
            "the time does not depend on the values of the backbone; set --config.model.backbone.weights=random"
        )
    training, rng = build_training(config), np.random.default_rng(0)
    batch, frames = config.train.batch_size, config.data.num_frames
    side, slots = config.data.image_size, config.model.slot_attention.num_slots
    beside = {
        "boxes": np.sort(rng.random((batch, frames, slots, 4), np.float32), axis=-1),
        "slot_mask": np.ones((batch, slots), bool),
    }
    video = rng.integers(0, 256, (batch, frames, side, side, 3), np.uint8)
    shape = (batch, frames, training.grid[0] * training.grid[1], config.model.backbone.width)
    features = rng.standard_normal(shape, np.float32).astype(jnp.bfloat16)
    ways = {
        "pixels": training.place({**beside, "video": video}),
        "features": training.place({**beside, "features": features}),
    }
    state, key = training.state, jax.random.key(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for number in range(rounds + 1):
        for name, placed in ways.items():
            begin = clock()
            state, _ = jax.block_until_ready(
                training.train_step(state, training.frozen, placed, key)
            )
            if number:  # the first compiles
                times[name].append(clock() - begin)
    return {name: min(found) for name, found in times.items()}


def main(arguments: Sequence[str]) -> int:
    for_config, others = split_command_line(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args(others)
    keep_freed_memory()
    default = str(Path(__file__).resolve().parent.parent / "configs" / "sprites.py")
    try:
        config = config_from_command_line(for_config, default)
        found = measure(config, given.rounds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = header(config)
    print(f"{about['machine']}, {about['date']}")
    print(
        f"{config.name}: {config.train.batch_size} clips of {config.data.num_frames} frames, {config.dtype}"
    )
    for name, seconds in found.items():
        print(f"on {name:<9} {1e3 * seconds:10.1f} ms a step, {1 / seconds:.3f} steps/s")
    print(f"stored features are {found['pixels'] / found['features']:.2f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
