"""Measure how well distances of features find shot cuts, and what a restart at a cut is worth.

    python benchmarks/shot_cuts.py --workdir=runs/gaussian

Prints Markdown. Two clips of sprites in a row make a video with one cut in its middle. The first
table gives three distances between neighboring frames of the validation split, within clips and at
cuts; the default threshold was chosen from it. The second table scores the frames after the cut on
the test split: FG-ARI of the second clip alone.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from smoothsa_jax.evaluation.metrics import score_batch
from smoothsa_jax.inference.load import load
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.shot_cuts import DEFAULT_THRESHOLD, feature_distance
from smoothsa_jax.inputs.sprites import Sprites

Pair = tuple[np.ndarray, np.ndarray]  # video of two clips; labels of the second


def cosine_distance(before: jnp.ndarray, after: jnp.ndarray) -> jnp.ndarray:
    """Return one minus the cosine of tokens in the same place, averaged."""
    product = (before * after).sum(-1)
    return 1 - (product / jnp.linalg.norm(before, axis=-1) / jnp.linalg.norm(after, axis=-1)).mean(
        -1
    )


def distance_of_means(before: jnp.ndarray, after: jnp.ndarray) -> jnp.ndarray:
    """Return `feature_distance` of the frames' mean tokens, which ignores motion."""
    spread = sum(x.var(axis=-2).sum(-1) for x in (before, after))
    return jnp.square(after.mean(-2) - before.mean(-2)).sum(-1) / spread


DISTANCES: dict[str, Callable] = {
    "feature_distance (used)": feature_distance,
    "1 - cosine": cosine_distance,
    "distance of mean tokens": distance_of_means,
}


def pairs(model: Segmenter, split: str, count: int, frames: int) -> list[Pair]:
    """Join clips 0 and 1, 2 and 3, and so on."""
    data = model.config.data
    clips = Sprites(
        image_size=data.image_size,
        num_frames=frames,
        min_objects=data.min_objects,
        max_objects=data.max_objects,
        seed=data.seed,
        split=split,
        num_samples=2 * count,
        boxes=False,
    )
    found = []
    for index in range(0, 2 * count, 2):
        first, second = clips[index], clips[index + 1]
        video = np.concatenate([first["video"], second["video"]])
        found.append((video, second["segmentations"]))
    return found


def distances(model: Segmenter, videos: Sequence[np.ndarray]) -> dict[str, tuple]:
    """Return, by the name of a distance, those within clips and those at cuts."""
    rows: dict[str, list] = {name: [] for name in DISTANCES}
    for video in videos:
        found = [model._constants(model.params, frame)["features"][0, 0] for frame in video]
        features = jnp.stack(found)
        for name, distance in DISTANCES.items():
            rows[name].append(np.asarray(distance(features[:-1], features[1:])))
    found = {}
    for name, values in rows.items():
        values = np.stack(values)
        cut = np.arange(values.shape[1]) == values.shape[1] // 2
        found[name] = values[:, ~cut].ravel(), values[:, cut].ravel()
    return found


def fg_ari_behind_the_cut(
    model: Segmenter, tests: Sequence[Pair], shot_cuts: float | None, whole: bool = True
) -> np.ndarray:
    """Return FG-ARI of each second clip; with `whole=False` of the clip shown alone."""
    scores = []
    for video, labels in tests:
        frames = video if whole else video[-len(labels) :]
        masks = np.stack([found.masks for found in model.stream(frames, shot_cuts=shot_cuts)])
        scores.append(score_batch(masks[None, -len(labels) :], labels[None])["fg_ari"][0])
    return np.array(scores)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", nargs="+", required=True, help="trained sprites:gaussian")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--frames", type=int, default=12, help="of each of the two clips")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD)
    given = parser.parse_args(arguments)
    models = [load(workdir) for workdir in given.workdir]

    print("| distance | within clips: median, 99 %, largest | at cuts: smallest, 1 %, median |")
    print("|---|---|---|")
    videos = [video for video, _ in pairs(models[0], "validation", given.videos, given.frames)]
    for name, (within, cuts) in distances(models[0], videos).items():
        inner = np.quantile(within, [0.5, 0.99, 1])
        outer = np.quantile(cuts, [0, 0.01, 0.5])
        print(
            f"| {name} | {', '.join(f'{x:.3f}' for x in inner)} "
            f"| {', '.join(f'{x:.3f}' for x in outer)} |"
        )

    tests = pairs(models[0], "test", given.videos, given.frames)
    found = distances(models[0], [video for video, _ in tests])["feature_distance (used)"]
    print(
        f"\nTest split, threshold {given.threshold:g}: {(found[1] > given.threshold).sum()} of "
        f"{len(found[1])} cuts found, {(found[0] > given.threshold).sum()} of {len(found[0])} "
        "other frames taken for one.\n"
    )
    print("| model | without | with --shot-cuts | second clip alone |")
    print("|---|---|---|---|")
    for workdir, model in zip(given.workdir, models, strict=True):
        row = (
            fg_ari_behind_the_cut(model, tests, None),
            fg_ari_behind_the_cut(model, tests, given.threshold),
            fg_ari_behind_the_cut(model, tests, None, whole=False),
        )
        print(
            f"| {Path(workdir).name} | {' | '.join(f'{100 * np.nanmean(x):.1f}' for x in row)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
