"""What evaluating adds to the forward passes: masks, counts and scores, with tables made on the device and by NumPy.

    python benchmarks/evaluation.py                                # sprites, as main.py scores them
    python benchmarks/evaluation.py --config=configs/movi_c.py --config.model.backbone.weights=random --clips=2

Any `--config.key=value` works as for main.py. Random clips lie in memory; the ways take turns, and the figures are the best
of the rounds. On a CPU they are its time, all cores together: the clock would count what other programs take. `device` is `evaluation.protocol.evaluate` itself, `numpy` brings every mask to the host and counts there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.train_step import header  # noqa: E402
from smoothsa_jax.config import config_from_command_line, split_command_line  # noqa: E402
from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.evaluation.masks import masks_from_attention  # noqa: E402
from smoothsa_jax.evaluation.metrics import contingency, score_counts  # noqa: E402
from smoothsa_jax.evaluation.predictions import predictions  # noqa: E402
from smoothsa_jax.evaluation.protocol import evaluate  # noqa: E402
from smoothsa_jax.models.build import takes_weights  # noqa: E402
from smoothsa_jax.training.loop import check  # noqa: E402
from smoothsa_jax.training.runtime import keep_freed_memory  # noqa: E402
from smoothsa_jax.training.step import build_training  # noqa: E402


def random_batches(config: ConfigDict, num_clips: int) -> list[dict[str, np.ndarray]]:
    """Batches in memory, of the shapes that `config.eval` asks for; labels are smooth blobs, as real ones are."""
    rng = np.random.default_rng(0)
    batch, frames = config.eval.batch_size, max(config.eval.get("num_frames") or 1, 1)
    side, slots = config.data.image_size, config.model.slot_attention.num_slots
    coarse = max(side // 16, 1)
    batches = []
    for _ in range(-(-num_clips // batch)):
        blobs = rng.integers(0, slots, (batch, frames, coarse, coarse), np.uint8)
        nearest = np.arange(side) * coarse // side
        batches.append(
            {
                "video": rng.integers(0, 256, (batch, frames, side, side, 3), np.uint8),
                "segmentations": blobs[:, :, nearest][:, :, :, nearest],
                "boxes": np.sort(rng.random((batch, frames, slots, 4), np.float32), axis=-1),
                "slot_mask": np.ones((batch, slots), bool),
            }
        )
    return batches


def measure(config: ConfigDict, num_clips: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way over the clips, the best round's.

    Raises:
        UserError: a config that cannot run on this machine.
    """
    check(config, ("eval.batch_size",))
    if takes_weights(config.model.backbone):
        raise UserError(
            "the time does not depend on the values of the backbone; set --config.model.backbone.weights=random"
        )
    training, batches = build_training(config), random_batches(config, num_clips)
    grid = training.grid

    def predict(batch: dict, key: jax.Array) -> dict[str, jax.Array]:
        return training.predict(training.state.params, training.frozen, training.place(batch), key)

    def forward() -> None:
        for _, _, outputs in predictions(predict, batches, (0,)):
            jax.block_until_ready(outputs)

    def with_numpy() -> list[float]:
        def masks_of(batch: dict, key: jax.Array) -> jax.Array:
            attention, size = predict(batch, key)["decoder_attention"], (config.data.image_size,)
            return masks_from_attention(attention, grid, size * 2, batch["slot_mask"])

        return [
            score_counts(contingency(masks[b][None], batch["segmentations"][b][None]))["ari"][0]
            for batch, _, found in predictions(masks_of, batches, (0,))
            for masks in (np.asarray(found),)
            for b in range(len(masks))
        ]

    def on_device() -> list[float]:
        return list(evaluate(predict, batches, grid).scores["ari"][0])

    forward()  # compiles
    if with_numpy() != on_device():
        raise AssertionError("the two ways differ in their scores")
    ways: dict[str, Callable] = {"forward": forward, "numpy": with_numpy, "device": on_device}
    times: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for _ in range(rounds):
        for name, way in ways.items():
            begin = clock()
            way()
            times[name].append(clock() - begin)
    return {name: min(found) for name, found in times.items()}


def report(config: ConfigDict, num_clips: int, found: dict[str, float]) -> str:
    """The figures as lines for people."""
    about = header(config)
    lines = [
        f"{about['machine']}, {about['date']}",
        f"{config.name}: {num_clips} clips of {config.eval.num_frames} frames, {config.eval.batch_size} a batch, image "
        f"size {config.data.image_size}, {config.model.slot_attention.num_slots} slots",
        f"forward passes                 {found['forward']:.3f} s",
    ]
    for name, what in (("numpy", "counted by NumPy"), ("device", "counted on the device")):
        added = found[name] / found["forward"] - 1
        lines.append(f"scored, {what:<23}{found[name]:.3f} s, {added:+.1%}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    for_config, others = split_command_line(arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(others)
    keep_freed_memory()
    default = str(Path(__file__).resolve().parent.parent / "configs" / "sprites.py")
    try:
        config = config_from_command_line(for_config, default)
        print(report(config, given.clips, measure(config, given.clips, given.rounds)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
