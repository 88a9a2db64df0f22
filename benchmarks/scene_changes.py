"""Measure starting anew: at cuts between scenes, and where objects enter.

    python -m benchmarks.scene_changes --models runs/seed_0 runs/seed_1 runs/seed_2 --clips 256
    python -m benchmarks.scene_changes --entering --clips 64

Cuts: each video joins two clips of `--frames` frames. A table of how the two signals of
`--shot-cuts` tell cuts from motion, then FG-ARI behind the cut: if nothing starts anew; if the
features or the decoder's error tell; and if the true cut is known. The differences from nothing are
paired over videos, with their standard errors.

With --entering: clips of sprites that leave, played backwards, of which an object enters after the
first frame. FG-ARI and mIoU of the frames from the first on which all of them are there, and FG-ARI
of these and the frames before; as it is, with `--requery`, with more slots pruned, and with both.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

import smoothsa_jax
from benchmarks.clips import clips_of, encoder_of, parser_of
from benchmarks.iterations import difference
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.metrics import contingency_from_counts, score_counts
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.shot_cuts import DEFAULT_REQUERY, DEFAULTS
from smoothsa_jax.models.anew import (
    SIGNALS,
    Anew,
    anew_of,
    feature_distance,
    first_errors,
    relative_error,
    remembered,
)
from smoothsa_jax.models.asked import as_scheduled
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.pruning import prune_of

BATCH = 32
FEWEST = 20  # pixels of an object that is there


def joined(
    model: Segmenter, split: str, number: int, frames: int
) -> tuple[UInt8[np.ndarray, "B T H W 3"], UInt8[np.ndarray, "B T H W"]]:
    """Return videos and labels of two scenes each, with the cut after `frames` frames."""
    samples = list(clips_of(model, split, 2 * number, frames))
    pairs = list(zip(samples[::2], samples[1::2], strict=True))
    join = lambda name: np.stack([np.concatenate([a[name], b[name]]) for a, b in pairs])  # noqa: E731
    return join("video"), join("segmentations")


def entering(
    model: Segmenter, split: str, number: int, frames: int
) -> tuple[UInt8[np.ndarray, "..."], UInt8[np.ndarray, "..."], Int[np.ndarray, " clips"]]:
    """Return clips in which an object enters, and the frame from which on all objects are there.

    A clip of `frames` frames qualifies if, played backwards, an object of the last frame is missing
    on the first one.
    """
    videos, labels, begins = [], [], []
    for sample in clips_of(model, split, 40 * number, frames):
        video, true = sample["video"][::-1], sample["segmentations"][::-1]
        objects = np.unique(true[-1][(true[-1] > 0) & (true[-1] < 255)])
        there = np.array([[(x == n).sum() >= FEWEST for n in objects] for x in true])
        if len(objects) < 2 or there[0].all() or not there[0].any() or not there[-1].all():
            continue
        begin = frames - int(there.all(axis=1)[::-1].cumprod().sum())
        if begin > frames - 3:  # too few frames are left to find it
            continue
        videos.append(video)
        labels.append(true)
        begins.append(begin)
        if len(videos) == number:
            break
    return np.stack(videos), np.stack(labels), np.array(begins)


class Runner:
    """A model on batches of videos; features are computed once."""

    def __init__(self, model: Segmenter, video: UInt8[np.ndarray, "B T H W 3"]):
        self._model = model
        encode = encoder_of(model)
        self.features = [encode(video[i : i + BATCH]) for i in range(0, len(video), BATCH)]

        def run(params: Any, features: Array, key: Array, mask: Array, asked: Any):
            whole = model.definition.merge(params, differentiated=False)
            draws = whole.draw(key, Sizes(*features.shape[:2], mask.shape[1]), training=False)
            given = whole.target({}, {"features": features}, None)
            outputs = whole(features, given, draws, None, mask, asked)
            error = jnp.square(outputs["prediction"] - given["target"]).mean(axis=(2, 3))
            names = [n for n in ("masks", "slot_mask", "cold") if n in outputs]
            return {n: outputs[n] for n in names} | {"error": error}

        self._run = jax.jit(run)

    def __call__(self, slots: int, asked: Any, seed: int) -> Iterator[dict[str, Array]]:
        for number, features in enumerate(self.features):
            key = jax.random.fold_in(jax.random.key(seed), number)
            mask = jnp.ones((len(features), slots), bool)
            yield self._run(self._model.params, features, key, mask, asked)


def counts_of(runner: Runner, slots: int, asked: Any, seed: int, labels: np.ndarray):
    """Return counts (clips,T,N+1,256) and the outputs that are small."""
    counts, others, at = [], [], 0
    for outputs in runner(slots, asked, seed):
        true = labels[at : at + len(outputs["masks"])]
        at += len(true)
        mask = outputs.get("slot_mask")
        counts.append(np.asarray(counted_masks(outputs["masks"], true, mask, None, True).counts))
        rest = {name: np.asarray(x) for name, x in outputs.items() if name != "masks"}
        others.append(rest)
    return np.concatenate(counts), {n: np.concatenate([x[n] for x in others]) for n in others[0]}


def scores(counts: np.ndarray, frames: Any) -> dict[str, np.ndarray]:
    """Return the scores of each clip over some of its frames; a mask (clips,T) or a slice."""
    if isinstance(frames, slice):
        chosen = counts[:, frames].sum(axis=1)
    else:
        chosen = (counts * frames[..., None, None]).sum(axis=1)
    return score_counts(contingency_from_counts(chosen))


def signals(features: list[Array], error: np.ndarray, cut: int) -> dict[str, np.ndarray]:
    """Return both signals of every frame after the first, if slots follow, (clips,T-1)."""
    distance = [feature_distance(x[:, :-1], x[:, 1:]) for x in features]
    errors, found = first_errors(jnp.asarray(error[:, 0])), []
    for frame in range(1, error.shape[1]):
        new = jnp.asarray(error[:, frame])
        found.append(relative_error(errors, new))
        errors = remembered(errors, new, jnp.full(len(new), frame == cut))
    return {"features": np.concatenate(distance), "error": np.stack(found, axis=1)}


def cuts(models: dict[str, Segmenter], options: argparse.Namespace) -> None:
    cut = options.frames
    video, labels = joined(
        next(iter(models.values())), options.split, options.clips, options.frames
    )
    rows: dict[str, list[np.ndarray]] = {}
    found: dict[str, list[np.ndarray]] = {name: [] for name in SIGNALS}
    hits: dict[str, list[np.ndarray]] = {}
    behind = slice(cut, None)
    for model in models.values():
        runner = Runner(model, video)
        # The second scene alone is what a known cut gives: the same queries on its first frame.
        alone = Runner(model, video[:, cut:])
        for seed in options.seeds:
            each = lambda asked, runner=runner, model=model, seed=seed: counts_of(  # noqa: E731
                runner, model.num_slots, asked, seed, labels
            )
            follow, small = each(as_scheduled())
            for name, x in signals(runner.features, small["error"], cut).items():
                found[name].append(x)
            rows.setdefault("none", []).append(scores(follow, behind)["fg_ari"])
            for name in SIGNALS:
                anew = anew_of(options.thresholds[name], name)
                counts, small = each(as_scheduled(anew=anew))
                rows.setdefault(name, []).append(scores(counts, behind)["fg_ari"])
                hits.setdefault(name, []).append(small["cold"])
            known, _ = counts_of(alone, model.num_slots, as_scheduled(), seed, labels[:, cut:])
            rows.setdefault("oracle", []).append(scores(known, slice(None))["fg_ari"])
    print("signal      within clips: median, 99 %, largest    at cuts: smallest, 1 %, median")
    for name, x in found.items():
        signal = np.stack(x)
        at, within = signal[..., cut - 1], np.delete(signal, cut - 1, axis=-1)
        cells = [np.median(within), np.quantile(within, 0.99), within.max()]
        cells += [at.min(), np.quantile(at, 0.01), np.median(at)]
        print(f"{name:10s}  " + "  ".join(f"{value:.3f}" for value in cells), flush=True)
    print("\nstart anew by  threshold  cuts found  false ones  FG-ARI behind  above none")
    none = np.mean(rows["none"], axis=0)
    for name, x in rows.items():
        mean, threshold, told = np.mean(x, axis=0), "", "         -           -"
        if name in hits:
            cold = np.stack(hits[name])
            wrong = np.delete(cold[..., 1:], cut - 1, axis=-1)
            right = cold[..., cut]
            told = f"{right.sum():5d}/{right.size:<4d}  {wrong.sum():4d}/{wrong.size}"
            threshold = f"{options.thresholds[name]:g}"
        above, error = difference(mean, none)
        print(
            f"{name:13s}  {threshold:>9s}  {told}  {100 * np.nanmean(mean):13.1f}  "
            f"{100 * above:+.1f} ± {100 * error:.1f}",
            flush=True,
        )


def entries(models: dict[str, Segmenter], options: argparse.Namespace) -> None:
    video, labels, begins = entering(
        next(iter(models.values())), options.split, options.clips, options.frames
    )
    after = np.arange(options.frames) >= begins[:, None]
    pruned = prune_of("auto")
    ways: dict[str, tuple[int | None, Any, Anew | None]] = {
        "as it is": (None, None, None),
        "requery": (None, None, anew_of(None, requery=options.requery)),
        f"{options.slots} slots, pruned": (options.slots, pruned, None),
        f"{options.slots} slots, pruned, requery": (
            options.slots,
            pruned,
            anew_of(None, requery=options.requery),
        ),
    }
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    for model in models.values():
        runner = Runner(model, video)
        for seed in options.seeds:
            for name, (slots, prune, anew) in ways.items():
                asked = as_scheduled(prune, None, anew)
                counts, small = counts_of(runner, slots or model.num_slots, asked, seed, labels)
                of_after, whole = scores(counts, after), scores(counts, slice(None))
                row = {
                    "after": of_after["fg_ari"],
                    "miou": of_after["miou"],
                    "all": whole["fg_ari"],
                }
                used = small.get("slot_mask")
                if used is not None:
                    used = used if used.ndim == 3 else used[:, None].repeat(options.frames, axis=1)
                    row |= {"first": used[:, 0].sum(-1), "last": used[:, -1].sum(-1)}
                rows.setdefault(name, []).append(row)
    print(
        f"{len(video)} clips of {options.frames} frames; all objects are there from frame "
        f"{begins.mean() + 1:.1f} on\n\n{'':26s}FG-ARI, mIoU behind the entry  FG-ARI of all  "
        "behind, above `as it is`  slots: first, last"
    )
    base = np.mean([row["after"] for row in rows["as it is"]], axis=0)
    for name, of_models in rows.items():
        mean = {n: np.mean([row[n] for row in of_models], axis=0) for n in of_models[0]}
        above, error = difference(mean["after"], base)
        slots = [f"{mean[n].mean():.2f}" for n in ("first", "last") if n in mean]
        fg_ari, miou, whole = (100 * np.nanmean(mean[n]) for n in ("after", "miou", "all"))
        print(
            f"{name:26s}{fg_ari:6.1f}, {miou:5.1f}{whole:25.1f}          {100 * above:+.1f} ± "
            f"{100 * error:.1f}          {', '.join(slots)}",
            flush=True,
        )


def main() -> None:
    parser = parser_of(__doc__, "test", 64, 12)
    parser.add_argument("--slots", type=int, default=8, help="of pruned videos")
    parser.add_argument("--features", type=float, default=DEFAULTS["features"])
    parser.add_argument("--error", type=float, default=DEFAULTS["error"])
    parser.add_argument("--requery", type=float, default=DEFAULT_REQUERY)
    parser.add_argument("--entering", action="store_true")
    options = parser.parse_args()
    options.thresholds = {"features": options.features, "error": options.error}
    models = {name: smoothsa_jax.load(name) for name in options.models}
    print(f"{', '.join(models)}, {options.split}, evaluation seeds {options.seeds}\n", flush=True)
    (entries if options.entering else cuts)(models, options)


if __name__ == "__main__":
    main()
