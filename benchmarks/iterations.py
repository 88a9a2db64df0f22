"""Measure other numbers of iterations at inference than a model was trained with.

    python -m benchmarks.iterations --models sprites_gaussian runs/sprites --iterations 3,1 6,1 6,2
    python -m benchmarks.iterations --clips 256 --frames 6 --split test
    python -m benchmarks.iterations --cost

The rows are numbers of iterations of the first frame and of later ones; the first row is the
training's own. The columns are FG-ARI and mIoU in percent, of first frames, of later frames and of
whole clips, and the decoder's error, each a mean over models, clips and evaluation seeds. Behind
the FG-ARI of whole clips is the difference from the first row, with its standard error, paired over
clips. Models that start from boxes get the data's. With --cost, it times `segment` on one picture
and a frame of `stream`.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

import smoothsa_jax
from benchmarks.clips import clips_of, encoder_of, parser_of
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import contingency_from_counts, score_counts
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.asked import as_scheduled, iterations_of
from smoothsa_jax.models.interfaces import Scheduled, Sizes

BATCH = 32
Scores = dict[str, Float[np.ndarray, " clips"]]
PARTS = {"first": slice(0, 1), "later": slice(1, None), "all": slice(None)}
SEEN = ("features", "boxes", "slot_mask")  # by a model, of a batch
COLUMNS = [f"{metric} {part}" for part in PARTS for metric in ("fg_ari", "miou")]


class Clips:
    """The first clips of a split in batches, with the features of a model."""

    def __init__(self, model: Segmenter, split: str, clips: int, frames: int):
        samples = list(clips_of(model, split, clips, frames))
        names = ["video", "segmentations", "boxes", "slot_mask"]
        stacked = {n: np.stack([s[n] for s in samples]) for n in names if n in samples[0]}
        encode, self._batches = encoder_of(model), []
        for i in range(0, len(samples), BATCH):
            batch = {name: x[i : i + BATCH] for name, x in stacked.items()}
            batch["pictures"] = batch.pop("video")
            batch["features"] = encode(batch["pictures"])
            batch["pictures"] = batch["pictures"][:, 0]
            self._batches.append(batch)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self._batches)


def given_to(model: Any, features: Array) -> dict[str, Array]:
    """Return what a decoder may see of its target, of features."""
    return model.target({}, {"features": features}, None)


class Measure:
    """Scores of one model on some clips, of every clip."""

    def __init__(self, model: Segmenter, clips: Clips):
        self._model, self._clips = model, clips

        def run(params: Any, batch: dict[str, Array], key: Array, asked: Scheduled):
            whole = model.definition.merge(params, differentiated=False)
            features, boxes = batch["features"], batch.get("boxes")
            sizes = Sizes(*features.shape[:2], model.num_slots)
            draws = whole.draw(key, sizes, training=False)
            given = given_to(whole, features)
            mask = batch.get("slot_mask") if model.starts_from_boxes else None
            outputs = whole(features, given, draws, boxes, mask, asked)
            error = (outputs["prediction"] - given["target"]) ** 2
            names = [n for n in ("masks", "slot_mask", "iterations") if n in outputs]
            return {n: outputs[n] for n in names} | {"error": error.mean(axis=(2, 3))}

        self._run = jax.jit(run)

    def __call__(self, asked: Scheduled, seeds: Sequence[int]) -> Scores:
        """Return the scores of all clips, means over evaluation seeds."""
        found: dict[str, list[Any]] = {}
        for seed in seeds:
            rows: dict[str, list[Any]] = {}
            for number, batch in self._clips:
                key = jax.random.fold_in(jax.random.key(seed), number)
                seen = {name: x for name, x in batch.items() if name in SEEN}
                outputs = self._run(self._model.params, seen, key, asked)
                for name, x in scores_of(outputs, batch["segmentations"]).items():
                    rows.setdefault(name, []).append(x)
            for name, parts in rows.items():
                found.setdefault(name, []).append(np.concatenate(parts))
        return {name: np.mean(parts, axis=0) for name, parts in found.items()}


def scores_of(outputs: dict[str, Array], labels: np.ndarray) -> Scores:
    """Return the scores of each clip of a batch: of first and later frames, and of all together."""
    masks = outputs["masks"]
    counts = counted_masks(masks, labels, outputs.get("slot_mask"), None, True).counts
    counts, found = np.asarray(counts), {}
    for part, frames in PARTS.items():
        if counts[:, frames].shape[1]:
            scores = score_counts(contingency_from_counts(counts[:, frames].sum(axis=1)))
            found |= {f"{name} {part}": scores[name] for name in ("fg_ari", "miou")}
    found["error"] = np.asarray(outputs["error"]).mean(axis=1)
    if "iterations" in outputs:
        found["iterations"] = np.asarray(outputs["iterations"]).mean(axis=1)
    return found


def difference(one: Float[np.ndarray, " n"], two: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return the mean of one - two over clips, and its standard error; NaN clips are left out."""
    paired = (one - two)[np.isfinite(one - two)]
    return float(paired.mean()), float(paired.std(ddof=1) / np.sqrt(len(paired)))


def over_models(rows: Sequence[Scores]) -> Scores:
    """Return the means over models, clip by clip."""
    return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}


def pair_from(text: str) -> tuple[int, int]:
    """Parse 6 or 6,2: iterations of the first frame and of later ones."""
    numbers = tuple(int(part) for part in text.split(","))
    return (*numbers, *numbers)[:2]


def own_numbers(model: Segmenter) -> tuple[int, int]:
    """Return the numbers of iterations that a model was trained with."""
    aggregator = model.config.model.aggregator
    return aggregator.first, aggregator.later or aggregator.first


def without_halting(model: Segmenter) -> Segmenter:
    """Return a model that was trained with halting with its largest number for every sample."""
    halting = model.config.model.aggregator.get("halting")
    if halting is None:
        return model
    config = model.config.copy_and_resolve_references().unlock()
    aggregator, most = config.model.aggregator, halting.maximum
    aggregator.halting, aggregator.first, aggregator.later = None, most, most
    return Segmenter(config, model.params)


def table(models: dict[str, Segmenter], options: argparse.Namespace) -> None:
    """Print a row for each pair of numbers, over all models together."""
    measures = {}
    for name, model in models.items():
        measures[name] = Measure(model, Clips(model, options.split, options.clips, options.frames))
    own = own_numbers(next(iter(models.values())))
    columns = [c for c in COLUMNS if options.frames > 1 or c.endswith("all")]
    print(
        f"{', '.join(models)}: {options.clips} {options.split} clips of {options.frames} frames, "
        f"evaluation seeds {options.seeds}\nfirst later  {'  '.join(columns)}  error  difference",
        flush=True,
    )
    baseline = None
    for first, later in [own, *(pair for pair in options.iterations if pair != own)]:
        asked = as_scheduled(iterations=iterations_of((first, later)))
        rows = over_models([measure(asked, options.seeds) for measure in measures.values()])
        baseline = baseline or rows
        cells = [f"{100 * np.nanmean(rows[name]):{len(name)}.1f}" for name in columns]
        mean, error = difference(rows["fg_ari all"], baseline["fg_ari all"])
        print(
            f"{first:5d} {later:5d}  {'  '.join(cells)}  {rows['error'].mean():.4f}  "
            f"{100 * mean:+.1f} ± {100 * error:.1f}",
            flush=True,
        )


def cost(name: str, model: Segmenter, options: argparse.Namespace, rounds: int = 100) -> None:
    """Print the times of one picture and of a later frame of a video; the best of many counts.

    The settings alternate, so that other load on the machine matters little.
    """
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, *model.image_size, 3), dtype=np.uint8)
    boxes = {"boxes": [[4, 4, 20, 20], [30, 30, 50, 50]]} if model.starts_from_boxes else {}
    own = own_numbers(model)
    pairs = [own, *(pair for pair in options.iterations if pair != own)]
    best = {pair: [np.inf, np.inf] for pair in pairs}
    for _ in range(rounds):
        for pair in pairs:
            times = [time.perf_counter()]
            for _ in model.stream(frames, iterations=pair, **boxes):
                times.append(time.perf_counter())
            best[pair] = [min(*x) for x in zip(best[pair], np.diff(times), strict=True)]
    print(f"{name}: milliseconds of the first frame of `stream`, and of a later one")
    for pair, (one, two) in best.items():
        print(f"{pair[0]:5d} {pair[1]:5d}  {1e3 * one:.2f}  {1e3 * two:.2f}", flush=True)


def main() -> None:
    parser = parser_of(__doc__, "test", 64, 6)
    pairs = [(n, 1) for n in (4, 6, 8)] + [(3, 2), (6, 2), (6, 3)]
    parser.add_argument(
        "--iterations", type=pair_from, nargs="+", default=pairs, help="such as 6 or 6,2"
    )
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    models = {name: without_halting(smoothsa_jax.load(name)) for name in options.models}
    if options.cost:
        for name, model in models.items():
            cost(name, model, options)
    else:
        table(models, options)


if __name__ == "__main__":
    main()
