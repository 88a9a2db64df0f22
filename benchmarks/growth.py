"""How the training step's time grows: over frames, slots, image size and batch, one at a time.

    python benchmarks/growth.py                                    # a small ViT and short ranges, for a CPU
    python benchmarks/growth.py --full --config=configs/movi_c.py --config.model.backbone.weights=random   # a GPU

Any `--config.key=value` works as for main.py. Sizes of an axis take turns, several rounds; a figure is the best round, of
the processor's time on a CPU, which other programs disturb less. For frames, slots and batch a line a + b * size is
fitted: where the largest deviation from it is small, time is linear.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.train_step import header  # noqa: E402
from smoothsa_jax.config import config_from_command_line, split_command_line  # noqa: E402
from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.training.loop import check  # noqa: E402
from smoothsa_jax.training.runtime import keep_freed_memory  # noqa: E402
from smoothsa_jax.training.step import build_training  # noqa: E402

AXES = {  # name: key, sizes on a CPU, sizes with --full
    "frames": ("data.num_frames", (6, 12, 24, 48), (6, 12, 24, 48)),
    "slots": ("model.slot_attention.num_slots", (5, 10, 20, 40), (5, 10, 20, 40)),
    "image": ("data.image_size", (64, 128, 192), (224, 320, 416, 512)),
    "batch": ("train.batch_size", (1, 2, 4, 8), (1, 2, 4, 8, 16, 32)),
}
SMALL = {  # a ViT that a CPU takes quickly; patches of 16, without a resize
    "weights": "random",
    "width": 96,
    "depth": 2,
    "num_heads": 4,
    "patch": 16,
    "resize": 1.0,
}


def small(config: ConfigDict) -> ConfigDict:
    """The config with a small backbone and frames, the other parts at their full size."""
    config = config.copy_and_resolve_references().unlock()
    config.model.backbone.update(SMALL)
    config.data.image_size, config.data.num_frames, config.train.batch_size = 96, 6, 1
    return config


def step_of(config: ConfigDict) -> Callable[[], None]:
    """A function that does one training step and waits for it; the first call compiles."""
    check(config)
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
    state, key = [training.state], jax.random.key(0)

    def step() -> None:
        state[0], _ = jax.block_until_ready(
            training.train_step(state[0], training.frozen, placed, key)
        )

    return step


def measure(config: ConfigDict, key: str, sizes: Sequence[int], rounds: int) -> list[float]:
    """Seconds of a step at each size of one axis."""
    steps = []
    for size in sizes:
        other = config.copy_and_resolve_references().unlock()
        with other.ignore_type():
            other.update_from_flattened_dict({key: size})
        if key == "model.slot_attention.num_slots" and "max_objects" in other.data:
            other.data.max_objects = size - int(other.data.get("background_box", False))
        steps.append(step_of(other))
        steps[-1]()
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    best = [float("inf")] * len(sizes)
    for _ in range(rounds):
        for i, step in enumerate(steps):
            begin = clock()
            step()
            best[i] = min(best[i], clock() - begin)
    return best


def deviation(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The largest relative deviation from the straight line that fits best, each point weighing by its relative error."""
    design = np.stack([np.ones(len(sizes)), np.array(sizes, float)], axis=1)
    found = np.array(seconds)
    line = np.linalg.lstsq(design / found[:, None], np.ones(len(found)), rcond=None)[0]
    return float(np.abs(design @ line / found - 1).max())


def main(arguments: Sequence[str]) -> int:
    for_config, others = split_command_line(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the config's own backbone and sizes")
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(others)
    keep_freed_memory()
    default = str(Path(__file__).resolve().parent.parent / "configs" / "movi_c.py")
    try:
        config = config_from_command_line(for_config, default)
        config = config if given.full else small(config)
        about = header(config)
        print(f"{about['machine']}, {about['date']}")
        for axis in given.axes.split(","):
            key, short, whole = AXES[axis]
            sizes = whole if given.full else short
            seconds = measure(config, key, sizes, given.rounds)
            for size, found in zip(sizes, seconds, strict=True):
                print(f"{axis:<8}{size:>5}{1e3 * found:>12.1f} ms{1 / found:>10.2f} steps/s")
            if axis != "image":
                print(
                    f"{axis}: {deviation(sizes, seconds):.1%} off a straight line at most",
                    flush=True,
                )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
