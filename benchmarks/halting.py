"""Measure halting: does stopping each sample when it is ready beat the same number for everybody?

    python -m benchmarks.halting --models runs/seed_0 runs/seed_1 runs/seed_2 --clips 256
    python -m benchmarks.halting --cost

For each way to start, every sample runs `--most` iterations once, and each state is decoded and
scored. Fixed numbers and thresholds (`model.aggregator.halting`) then only choose among these
states. The ways to start: "warm", the queries of the first frame; "cold", its samples without the
warmer; "cut", the queries that the slots of another scene give behind a cut; "later", the last
frame of the clip, which starts from what the training's number of iterations found before.

Under each threshold stands the mean number of iterations m, and for FG-ARI, mIoU (in %) and the
decoder's error how far they are above the straight line between the fixed numbers around m, with
standard errors. Everything is paired: means over models and evaluation seeds for each clip, then
over clips. Halting may be claimed to help only where FG-ARI is above the line by more than two
standard errors; the last column says so. With --cost, it times `segment`.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import smoothsa_jax
from benchmarks.clips import parser_of
from benchmarks.iterations import SEEN, Clips, difference, given_to, own_numbers, without_halting
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import contingency_from_counts, score_counts
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.aggregators.slot_attention import relative_change
from smoothsa_jax.models.interfaces import Sizes

METRICS = ("fg_ari", "miou", "error")
Row = dict[str, Float[np.ndarray, "clips I"]]


class Measure:
    """What every iteration gives, of one model on some clips."""

    def __init__(self, model: Segmenter, clips: Clips, most: int, signal: str):
        self._model, self._clips = model, clips

        def way(whole: Any, queries: Array, features: Array, mask: Array | None, first: bool):
            prepared = whole.aggregator.prepare(whole.projection(features))
            found = whole.aggregator(prepared, queries, mask, None, first=first, iterations=most)
            starts = jnp.concatenate([queries[None], found.states[:-1]])
            change = jax.vmap(relative_change, (0, 0, None))(found.states, starts, mask)
            given = {n: x[:, 0] for n, x in given_to(whole, features[:, None]).items()}

            def decoded(slots: Array) -> tuple[Array, Array]:
                prediction, masks = whole.decoder(slots, mask, given, None)
                return masks, jnp.square(prediction - given["target"]).mean(axis=(1, 2))

            masks, error = jax.lax.map(decoded, found.states)
            moved = change.max(axis=2) if signal == "max_slot" else change.mean(axis=2)
            found = {"masks": masks, "error": error, "change": moved}
            return {name: x.swapaxes(0, 1) for name, x in found.items()}

        def run(params: Any, batch: dict[str, Array], key: Array) -> dict[str, dict[str, Array]]:
            whole = model.definition.merge(params, differentiated=False)
            features, boxes = batch["features"], batch.get("boxes")
            mask = batch.get("slot_mask") if model.starts_from_boxes else None
            sizes = Sizes(*features.shape[:2], model.num_slots)
            draws = whole.draw(key, sizes, training=False)
            tokens, boxes = whole.projection(features), None if boxes is None else boxes[:, 0]
            first, extras = whole.first_frame(tokens[:, 0], draws, boxes, mask)
            found = {"warm": way(whole, extras["queries"], features[:, 0], mask, True)}
            if "cold_queries" in extras:
                found["cold"] = way(whole, extras["cold_queries"], features[:, 0], mask, True)
            if whole.transition is None or features.shape[1] < 2:
                return found

            def queries_of(slots: Array, tokens: Array, memory: Any) -> Array:
                pair = jnp.stack([tokens, tokens], axis=1)
                prepared = jax.tree.map(lambda x: x[:, 0], whole.transition.prepare(pair, None))
                memory = whole.transition.start(slots, None) if memory is None else memory
                return whole.transition(slots, memory, prepared, mask)[0]

            other = jnp.roll(features[:, 1], 1, axis=0)
            queries = queries_of(first.slots, whole.projection(other), None)
            found["cut"] = way(whole, queries, other, mask, False)
            slots, memory = first.slots, None
            for frame in range(1, features.shape[1] - 1):
                slots, _, memory = whole.next_frame(slots, tokens[:, frame], mask, memory)
            queries = queries_of(slots, tokens[:, -1], memory)
            found["later"] = way(whole, queries, features[:, -1], mask, False)
            return found

        self._run = jax.jit(run)

    def __call__(self, seeds: Sequence[int]) -> list[dict[str, Row]]:
        """Return for each evaluation seed and start the metrics and the change, (clips, I)."""
        found = []
        for seed in seeds:
            rows: dict[str, dict[str, list[Any]]] = {}
            for number, batch in self._clips:
                labels = batch["segmentations"]
                seen = {name: x for name, x in batch.items() if name in SEEN}
                key = jax.random.fold_in(jax.random.key(seed), number)
                outputs = self._run(self._model.params, seen, key)
                for start, of_start in outputs.items():
                    true = {"cut": np.roll(labels[:, :2], 1, axis=0)[:, -1], "later": labels[:, -1]}
                    scores = scores_of(of_start, true.get(start, labels[:, 0]))
                    for name, x in scores.items():
                        rows.setdefault(start, {}).setdefault(name, []).append(x)
            joined = lambda row: {n: np.concatenate(x) for n, x in row.items()}  # noqa: E731
            found.append({start: joined(row) for start, row in rows.items()})
        return found


def scores_of(found: dict[str, Array], labels: Int[np.ndarray, "B H W"]) -> Row:
    """Return FG-ARI, mIoU, error and change of each sample after each iteration."""
    masks = found["masks"]
    repeated = np.repeat(labels[:, None], masks.shape[1], axis=1)
    counts = np.asarray(counted_masks(masks, repeated, None, None, True).counts)
    scores = score_counts(contingency_from_counts(counts.reshape(-1, *counts.shape[2:])))
    row = {name: scores[name].reshape(masks.shape[:2]) for name in ("fg_ari", "miou")}
    return row | {name: np.asarray(found[name]) for name in ("error", "change")}


def iterations_used(change: Float[np.ndarray, "clips I"], threshold: float) -> np.ndarray:
    """Return how many iterations each sample runs: up to the first whose change is smaller."""
    small = change < threshold
    small[:, -1] = True
    return small.argmax(axis=1) + 1


def above_the_line(row: Row, threshold: float) -> dict[str, Float[np.ndarray, " clips"]]:
    """Return for each clip how far halting is above the line between fixed numbers.

    The line is that at the mean number of iterations over all clips.
    """
    used = iterations_used(row["change"], threshold)
    mean, most = used.mean(), row["change"].shape[1]
    below = min(int(mean), most - 1)
    share = mean - below
    found = {"iterations": used.astype(float)}
    for name in METRICS:
        x = row[name]
        line = (1 - share) * x[:, below - 1] + share * x[:, below]
        found[name] = x[np.arange(len(x)), used - 1] - line
    return found


def table(rows: dict[str, list[Row]], options: argparse.Namespace) -> None:
    """Print what fixed numbers give, and how far halting is from them."""
    for start, of_models in rows.items():
        print(f"\n{start}\nfixed        FG-ARI   mIoU   error")
        for number in range(options.most):
            fg_ari, miou, error = (
                np.nanmean([row[name][:, number] for row in of_models]) for name in METRICS
            )
            print(f"{number + 1:5d}        {100 * fg_ari:6.1f} {100 * miou:6.1f}  {error:.4f}")
        print("threshold    iterations   above the line: FG-ARI, mIoU, error")
        for threshold in options.thresholds:
            each = [above_the_line(row, threshold) for row in of_models]
            mean = {name: np.mean([x[name] for x in each], axis=0) for name in each[0]}
            (one, se), (two, se_two), (error, se_error) = (
                difference(mean[name], np.zeros_like(mean[name])) for name in METRICS
            )
            claim = "more than two standard errors" if one > 2 * se else "no claim"
            print(
                f"{threshold:9g}    {mean['iterations'].mean():10.2f}   {100 * one:+.2f} ± "
                f"{100 * se:.2f}, {100 * two:+.2f} ± {100 * se_two:.2f}, {error:+.5f} ± "
                f"{se_error:.5f}  {claim}",
                flush=True,
            )


def cost(name: str, model: Segmenter, options: argparse.Namespace, rounds: int = 50) -> None:
    """Print mean iterations and the best time of `segment`, of one picture and of 16."""
    clips = Clips(model, options.split, 16, 1)
    pictures = next(iter(clips))[1]["pictures"]
    settings: dict[str, Any] = {"as trained": None}
    settings |= {f"threshold {t:g}": t for t in (0.0, *options.thresholds)}
    models = {}
    for text, threshold in settings.items():
        config = model.config.copy_and_resolve_references().unlock()
        if threshold is not None:
            halting = {"signal": options.signal, "threshold": threshold}
            halting |= {"minimum": 1, "maximum": options.most}
            config.model.aggregator.halting = halting
        models[text] = Segmenter(config, model.params)
    print(f"{name}: mean iterations and milliseconds of `segment`, of one picture and of 16")
    best = {text: [np.inf, np.inf] for text in models}
    used = {}
    for _ in range(rounds):
        for text, one in models.items():
            for place, given in enumerate((pictures[0], pictures)):
                begin = time.perf_counter()
                found = one.segment(given)
                best[text][place] = min(best[text][place], time.perf_counter() - begin)
            mean = own_numbers(model)[0] if found.iterations is None else found.iterations.mean()
            used[text] = float(mean)
    for text, (one, many) in best.items():
        print(f"{text:16s} {used[text]:.2f}  {1e3 * one:7.2f}  {1e3 * many:7.2f}", flush=True)


def main() -> None:
    parser = parser_of(__doc__, "test", 64, 3)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--signal", default="max_slot", choices=["max_slot", "mean_slot"])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.3, 0.1, 0.05, 0.02, 0.01])
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    rows: dict[str, list[Row]] = {}
    for name in options.models:
        model = smoothsa_jax.load(name)
        if options.cost:
            cost(name, model, options)
            continue
        model = without_halting(model)  # it would stop the states that are compared
        clips = Clips(model, options.split, options.clips, options.frames)
        for of_seed in Measure(model, clips, options.most, options.signal)(options.seeds):
            for start, row in of_seed.items():
                rows.setdefault(start, []).append(row)
    if rows:
        print(
            f"{', '.join(options.models)}: {options.clips} {options.split} clips of "
            f"{options.frames} frames, evaluation seeds {options.seeds}, signal {options.signal}"
        )
        table(rows, options)


if __name__ == "__main__":
    main()
