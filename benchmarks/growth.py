"""Measure how the training step's time grows with frames, slots, image size and batch.

    python benchmarks/growth.py                   # a small ViT and short ranges, for a CPU
    python benchmarks/growth.py --full --config=configs/movi_c.py \\
        --config.weights.encoder.source=random    # a GPU

Any `--config.key=value` works as for main.py. The sizes of an axis are compiled in parallel and
then take turns; a figure is the best round. A size that fails is reported, and the exit status is
1. For frames, slots and batch the script fits a straight line a + b * size and prints the largest
relative deviation: where it is small, time is linear.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.errors import UserError

AXES = {  # name: key, sizes of the small model, sizes with --full
    "frames": ("data.num_frames", (6, 12, 24, 48), (6, 12, 24, 48)),
    "slots": ("model.num_slots", (5, 10, 20, 40), (5, 10, 20, 40)),
    "image": ("data.image_size", (224, 320, 416, 512), (224, 322, 420, 518)),
    "batch": ("train.batch_size", (1, 2, 4, 8), (1, 2, 4, 8, 16, 32)),
}
SMALL = {  # a ViT that is quick on a CPU; patches of 16, without a resize
    "width": 96,
    "depth": 2,
    "num_heads": 4,
    "patch": 16,
    "resize": 1.0,
}


def small(config: ConfigDict) -> ConfigDict:
    """Return the config with a small encoder and small frames, the other parts at full size."""
    config = cases.without_weights(config).unlock()
    config.model.encoder.update(SMALL)
    config.data.image_size, config.data.num_frames, config.train.batch_size = 96, 6, 1
    return config


def with_size(config: ConfigDict, key: str, size: int) -> ConfigDict:
    """Return the config with another size along one axis, and whatever depends on it."""
    other = config.copy_and_resolve_references().unlock()
    with other.ignore_type():
        other.update_from_flattened_dict({key: size})
    if key == "model.num_slots" and "max_objects" in other.data:
        other.data.max_objects = size - int(other.data.get("background_box", False))
    if key == "data.image_size":
        other.model.encoder.resize = 1.0  # the ViT sees that size
    return other


def measure(
    config: ConfigDict, key: str, sizes: Sequence[int], rounds: int
) -> dict[int, cases.Timed]:
    """Time the step at each size along one axis."""
    configs = [with_size(config, key, size) for size in sizes]
    return dict(zip(sizes, cases.time_steps(configs, rounds), strict=True))


def deviation(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the largest relative deviation from the best straight line; the fit minimizes relative
    errors."""
    design = np.stack([np.ones(len(sizes)), np.array(sizes, float)], axis=1)
    found = np.array(seconds)
    line = np.linalg.lstsq(design / found[:, None], np.ones(len(found)), rcond=None)[0]
    return float(np.abs(design @ line / found - 1).max())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the config's own encoder and sizes")
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--rounds", type=int, default=5)
    config, options = cases.arguments_of(parser, arguments, "movi_c")
    config = config if options.full else small(config)
    print(f"{cases.machine()}\n{cases.of_config(config)}")
    axes, failed = options.axes.split(","), False
    if unknown := next((axis for axis in axes if axis not in AXES), None):
        raise UserError(f"--axes has {unknown!r}; expected some of {','.join(AXES)}")
    for axis in axes:
        key, short, whole = AXES[axis]
        found = measure(config, key, whole if options.full else short, options.rounds)
        for size, timed in found.items():
            figure = "failed" if timed.failed else f"{1e3 * timed.seconds:.1f} ms"
            cases.tell(f"a step with {axis} = {size}", figure, timed.failed)
        good = {size: timed.seconds for size, timed in found.items() if not timed.failed}
        failed |= len(good) < len(found)
        if axis != "image" and len(good) > 2:
            off = deviation(list(good), list(good.values()))
            cases.tell(f"{axis}: farthest from a straight line", f"{off:.1%}")
    return int(failed)


if __name__ == "__main__":
    cases.run(main)
