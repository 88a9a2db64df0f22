"""Time what evaluation adds to the forward passes: masks, counts and scores.

    python benchmarks/evaluation.py                                # sprites, as main.py scores them
    python benchmarks/evaluation.py --config=configs/movi_c.py \\
        --config.weights.encoder.source=random --clips=2

Any `--config.key=value` works as for main.py. Random clips are in memory; two ways take turns, and
a figure is the best round. `device` is `evaluation.split.evaluate` itself; `numpy` copies every
mask to the host and counts pixels there.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import contingency, contingency_from_counts, score_counts
from smoothsa_jax.evaluation.split import evaluate, predictions
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.tasks.task import MODEL


def random_batches(config: ConfigDict, num_clips: int) -> list[dict[str, np.ndarray]]:
    """Return batches of the shapes that `config.eval` asks for; labels are smooth blobs."""
    other = config.copy_and_resolve_references()
    frames = config.eval.get("num_frames") or config.data.num_frames
    if frames < 1:
        raise UserError(
            f"eval.num_frames is {frames}, which means whole clips; give a number of frames, such "
            "as --config.eval.num_frames=24"
        )
    batch, other.data.num_frames = config.eval.batch_size, frames
    seen = cases.random_batch(other, batch)
    frames, side = seen["video"].shape[1:3]
    coarse, slots = max(side // 16, 1), config.model.num_slots
    nearest = np.arange(side) * coarse // side
    rng, batches = np.random.default_rng(0), []
    for _ in range(-(-num_clips // batch)):
        blobs = rng.integers(0, slots, (batch, frames, coarse, coarse), np.uint8)
        batches.append({**seen, "segmentations": blobs[:, :, nearest][:, :, :, nearest]})
    return batches


def measure(config: ConfigDict, num_clips: int, rounds: int) -> dict[str, float]:
    """Return the seconds of each way over all clips, in its best round."""
    training, batches = cases.training_of(config), random_batches(config, num_clips)
    evaluator = training.task.evaluator
    (output,) = evaluator.outputs

    def predict(batch: dict, key: jax.Array, match_paper: bool = False) -> dict[str, jax.Array]:
        arrays = training.state.params, training.frozen
        return training.predict(*arrays, training.place(batch), key, match_paper)

    def forward() -> None:
        for _, _, outputs in predictions(predict, batches, (0,)):
            jax.block_until_ready(outputs)

    def with_numpy() -> list[float]:
        def masks_of(batch: dict, key: jax.Array) -> jax.Array:
            soft = predict(batch, key)[output]
            size, backend = image_size_of(config), training.definitions[MODEL].backend
            return segments_from_masks(soft, size, batch["slot_mask"], backend=backend)

        return [
            score_counts(contingency(masks[b][None], batch["segmentations"][b][None]))["ari"][0]
            for batch, _, found in predictions(masks_of, batches, (0,))
            for masks in (np.asarray(found),)
            for b in range(len(masks))
        ]

    def on_device() -> list[float]:
        return list(evaluate(predict, batches, evaluator).scores["ari"][0])

    forward()  # compiles
    with_numpy(), on_device()
    # The same masks for both: another program may break a tie between two slots differently.
    for batch, _, outputs in predictions(predict, batches, (0,)):
        labels = batch["segmentations"]
        counted = counted_masks(outputs[output], labels, batch["slot_mask"])
        tables = contingency_from_counts(np.asarray(counted.counts))
        expected = contingency(np.asarray(counted.segments), labels)
        if not np.array_equal(tables.table, expected.table):
            raise AssertionError("the two ways differ in their counts")
    ways: dict[str, Callable] = {"forward": forward, "numpy": with_numpy, "device": on_device}
    return dict(zip(ways, map(min, cases.in_turn(list(ways.values()), rounds)), strict=True))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    config, options = cases.arguments_of(parser, arguments)
    batch = config.eval.batch_size
    clips = -(-options.clips // batch) * batch  # whole batches
    found = measure(config, clips, options.rounds)
    print(f"{cases.machine()}\n{cases.of_config(config)}, {config.eval.num_frames} scored")
    cases.tell(f"forward passes of {clips} clips", f"{found['forward']:.3f} s")
    for way, goal in (("numpy", ""), ("device", "goal 10 %")):
        added = found[way] / found["forward"] - 1
        cases.tell(f"masks, counts ({way}) and scores add", f"{added:+.1%}", goal)
    return 0


if __name__ == "__main__":
    cases.run(main)
