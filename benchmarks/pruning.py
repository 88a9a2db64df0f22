"""Measure pruning at inference: scores over slots, distances and ways to start again.

    python -m benchmarks.pruning --models sprites_gaussian runs/sprites_image --split validation
    python -m benchmarks.pruning --frames 12 --clips 64 --videos fixed renewed
    python -m benchmarks.pruning --models sprites_gaussian --cost
    python -m benchmarks.pruning --untrained configs/coco.py --cost

The rows are settings, the columns FG-ARI and ARI in percent, the slots that stay, how far their
number is from the number of true segments (mean absolute error), the correlation of the two, and
the share of clips with one slot. Settings are chosen on the validation split and reported on the
test split. With --cost, it compares `segment` at 24 slots with the same iterations without pruning;
--untrained adds a config's model with random weights, on which the time does not depend.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import smoothsa_jax
from benchmarks import cases
from benchmarks.clips import clips_of, encoder_of, parser_of
from smoothsa_jax.config.load import load_config
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.masks import MaskEvaluator
from smoothsa_jax.evaluation.slots import num_slots
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.asked import as_scheduled
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.pruning import Prune

BATCH = 50
OFF = -1.0  # no slot is left out
METRICS = ("fg_ari", "ari", "slots", "slots_error", "slots_correlation", "one_slot")
PERCENT = ("fg_ari", "ari", "one_slot")


class Data:
    """The first clips of a split as batches of pixels and labels."""

    def __init__(self, model: Segmenter, split: str, clips: int, frames: int):
        samples = list(clips_of(model, split, clips, frames))
        stack = lambda name: np.stack([sample[name] for sample in samples])  # noqa: E731
        self.video, self.labels = stack("video"), stack("segmentations")

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for i in range(0, len(self.video), BATCH):
            at = slice(i, i + BATCH)
            yield i // BATCH, self.video[at], self.labels[at]


class Measure:
    """Scores of one model on some clips; features are computed once."""

    def __init__(self, model: Segmenter, data: Data):
        self._params, encode = model.params, encoder_of(model)
        self._batches = [(i, encode(video), labels) for i, video, labels in data]

        def run(params, features, key, slot_mask, prune):
            whole = model.definition.merge(params, differentiated=False)
            sizes = Sizes(*features.shape[:2], slot_mask.shape[1])
            draws = whole.draw(key, sizes, training=False)
            given = whole.target({}, {"features": features}, None)
            outputs = whole(features, given, draws, None, slot_mask, as_scheduled(prune))
            return outputs["masks"], outputs["slot_mask"]

        self._run = jax.jit(run)

    def __call__(self, slots: int, prune: Prune | None, seeds: list[int]) -> dict[str, float]:
        """Return the means over clips and seeds, and over seeds the deviation of FG-ARI."""
        evaluator, per_seed = MaskEvaluator(pruning={}), []
        for seed in seeds:
            rows = []
            for i, features, labels in self._batches:
                key = jax.random.fold_in(jax.random.key(seed), i)
                valid = jnp.ones((len(labels), slots), bool)
                masks, kept = self._run(self._params, features, key, valid, prune)
                counts = counted_masks(masks, labels, kept).counts
                tables = {"counts": counts, "slots": num_slots(kept, None)}
                rows.append(evaluator.per_sample(jax.device_get(tables), False))
            whole = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
            per_seed.append(evaluator.means(whole))
        found = {name: float(np.mean([x[name] for x in per_seed])) for name in METRICS}
        return found | {"std": float(np.std([x["fg_ari"] for x in per_seed]))}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row: how many slots, and how they are pruned."""

    slots: int
    distance: float  # OFF: no pruning
    of_median: bool
    restart: str  # "" with OFF: the model as it is
    iterations: int
    video: str

    @property
    def prune(self) -> Prune | None:
        if not self.restart:
            return None
        return Prune(self.distance, self.restart, self.iterations, self.video, self.of_median)

    def __str__(self) -> str:
        how = "as it is"
        if self.restart in ("none", "merge"):
            how = {"none": "pruned alone", "merge": "merged"}[self.restart]
        elif self.restart:
            how = f"{self.restart} J {self.iterations}"
        at = "" if self.distance == OFF else "auto " * self.of_median + f"{self.distance:g}"
        return f"{self.slots:2d}  {how:12s} {at:8s} {self.video:7s}"


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """Yield all rows that the options ask for."""
    distances = [(x, False) for x in options.distances] + [(x, True) for x in options.auto]
    for slots in options.slots:
        yield Setting(slots, OFF, False, "", 1, "")
        for text in options.restarts:
            restart, _, iterations = text.partition(":")
            iterations = int(iterations or 1)
            if restart in ("slots", "queries"):  # the same iterations, no pruning
                yield Setting(slots, OFF, False, restart, iterations, options.videos[0])
            for video in options.videos:
                for distance, of_median in distances:
                    yield Setting(slots, distance, of_median, restart, iterations, video)


def table(name: str, measure: Measure, options: argparse.Namespace) -> None:
    """Print the rows of a model as they are measured."""
    print(
        f"\n{name}, {options.clips} {options.split} clips of {options.frames} frames, seeds", end=""
    )
    print(
        f" {options.seeds}\n{'N   how          distance video  ':34s}{'  '.join(METRICS)}",
        flush=True,
    )
    for setting in settings(options):
        found = measure(setting.slots, setting.prune, options.seeds)
        cells = [f"{100 * found[x]:5.1f}" if x in PERCENT else f"{found[x]:5.2f}" for x in METRICS]
        cells[0] += f" ±{100 * found['std']:.1f}"
        print(f"{setting}  {'  '.join(cells)}", flush=True)


def untrained(path: str) -> Segmenter:
    """Return the model of a config, with random weights."""
    config = cases.without_weights(load_config(path))
    training = cases.training_of(config)
    return Segmenter(config, {**training.frozen, **training.state.params})


def cost(model: Segmenter, slots: int, rounds: int) -> None:
    """Print the time of `segment` with pruning over that of the same iterations without.

    The runs alternate, and the best of each counts: other load on the machine matters little.
    """
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*model.image_size, 3), dtype=np.uint8)
    with_pruning = lambda: model.segment(picture, num_slots=slots, prune=0.5)  # noqa: E731
    plain, config = model.config.copy_and_resolve_references().unlock(), model.config
    plain.model.aggregator.first = config.model.aggregator.first + 1
    longer = Segmenter(plain, model.params)
    without = lambda: longer.segment(picture, num_slots=slots)  # noqa: E731
    times = {run: [] for run in (with_pruning, without)}
    for number in range(rounds + 2):
        for run, found in times.items():
            start = time.perf_counter()
            run()
            found += [time.perf_counter() - start] if number >= 2 else []
    one, two = (min(found) for found in times.values())
    print(f"{slots} slots: {1e3 * one:.2f} ms pruned, {1e3 * two:.2f} ms without: {one / two:.3f}")


def main() -> None:
    parser = parser_of(__doc__, "validation", 200, 1, models="*")
    parser.add_argument("--slots", type=int, nargs="+", default=[5, 8, 12])
    parser.add_argument(
        "--distances", type=float, nargs="*", default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    )
    parser.add_argument("--auto", type=float, nargs="*", default=[0.7, 0.8])
    parser.add_argument("--restarts", nargs="+", default=["slots:1"], help="such as slots:3 none")
    parser.add_argument("--videos", nargs="+", default=["fixed"], help="fixed, renewed")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=200, help="of --cost")
    parser.add_argument("--untrained", nargs="*", default=[], help="config files, for --cost")
    options = parser.parse_args()
    if options.cost:
        for path in options.untrained:
            print(path, end=": ")
            cost(untrained(path), 24, options.rounds)
    for name in options.models:
        model = smoothsa_jax.load(name)
        if options.cost:
            print(name, end=": ")
            cost(model, 24, options.rounds)
        else:
            data = Data(model, options.split, options.clips, options.frames)
            table(name, Measure(model, data), options)


if __name__ == "__main__":
    main()
