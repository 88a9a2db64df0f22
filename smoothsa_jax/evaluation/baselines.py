"""What a method has to beat: segmentations that need no learning of objects.

Each function takes one clip and gives (T, H, W) uint8 segment numbers. All are deterministic.
"""

from __future__ import annotations

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inputs import NO_SEGMENT


def num_true_segments(segmentation: np.ndarray) -> int:
    """Number of segments in a clip's labels (T, H, W), background included, 255 not; at least 1."""
    present = np.bincount(np.asarray(segmentation).ravel(), minlength=NO_SEGMENT + 1) > 0
    return max(int(present[:NO_SEGMENT].sum()), 1)


def boxes_kept_still(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The first frame's boxes, filled, on every frame.

    Segment 0 is what no box covers, segment n + 1 is box n. Where boxes overlap the smaller one is
    on top. Objects that are absent from the first frame have none.

    Args:
        boxes: (T, N, 4) left, top, right, bottom pixel indices, both ends included, / width,
            height; all -1 padding, all 0 absent.
        size: (H, W) of the result.
    """
    height, width = size
    first = np.asarray(boxes[0], np.float64)
    there = (first >= 0).all(axis=1) & (first > 0).any(axis=1)
    pixels = np.rint(first * [width, height, width, height]).astype(int)
    area = (pixels[:, 2] - pixels[:, 0] + 1) * (pixels[:, 3] - pixels[:, 1] + 1)
    mask = np.zeros((height, width), np.uint8)
    for n in np.argsort(-area, kind="stable"):
        if there[n]:
            left, top, right, bottom = pixels[n]
            mask[top : bottom + 1, left : right + 1] = n + 1
    return np.broadcast_to(mask, (len(boxes), height, width)).copy()


def kmeans_on_features(
    features: np.ndarray,
    num_segments: int,
    size: tuple[int, int],
    seed: int = 0,
) -> np.ndarray:
    """k-means over all tokens of the clip together, so that clusters go through time.

    The features are clustered as they are (not normalised, without positions). The clusters become
    pixels as attention does: one-hot, bilinear, argmax.

    Args:
        features: (T, h, w, C).
        num_segments: number of clusters, `num_true_segments` of the clip's labels.
        size: (H, W) of the result.
    """
    features = np.asarray(features, np.float32)
    num_frames, h, w, width = features.shape
    points = features.reshape(-1, width)
    labels = nearest(kmeans(points, num_segments, seed), points.T).reshape(num_frames, -1)
    padded = -(-num_segments // 8) * 8  # few different shapes, so few compilations
    one_hot = labels[:, None, :] == np.arange(padded)[:, None]
    maps = one_hot.astype(np.float32).reshape(num_frames, padded, h, w)
    return np.asarray(segments_from_masks(maps, size))


def kmeans_on_rgb(
    video: np.ndarray, num_segments: int, seed: int = 0, num_fitted: int = 4096
) -> np.ndarray:
    """k-means over the colours of all pixels of the clip together, without positions.

    Fitted on `num_fitted` pixels drawn at random; then every pixel takes its nearest centre.

    Args:
        video: (T, H, W, 3) uint8.
        num_segments: number of clusters, `num_true_segments` of the clip's labels.
    """
    video = np.asarray(video)
    points = video.reshape(-1, 3).astype(np.float32) / 255
    chosen = points
    if len(points) > num_fitted:
        rng = np.random.default_rng([seed, 1])
        chosen = points[np.sort(rng.choice(len(points), num_fitted, replace=False))]
    labels = nearest(kmeans(chosen, num_segments, seed), points.T)
    return labels.reshape(video.shape[:-1]).astype(np.uint8)


def kmeans(
    points: np.ndarray,
    num_clusters: int,
    seed: int = 0,
    num_restarts: int = 4,
    num_iterations: int = 50,
) -> np.ndarray:
    """Centres (num_clusters, C): Lloyd's algorithm from k-means++ starts, best of the restarts.

    A cluster that loses all its points keeps its centre.

    Args:
        points: (P, C) float.

    Raises:
        UserError: no points, or fewer than one cluster asked for.
    """
    if len(points) == 0 or num_clusters < 1:
        raise UserError(
            f"k-means found {len(points)} points and {num_clusters} clusters, "
            "expected at least 1 of each"
        )
    across = np.ascontiguousarray(points.T)
    best, best_error = None, np.inf
    for restart in range(num_restarts):
        centres = _plus_plus(points, num_clusters, np.random.default_rng([seed, 0, restart]))
        labels = None
        for _ in range(num_iterations):
            previous, labels = labels, nearest(centres, across)
            if previous is not None and (labels == previous).all():
                break
            members = (labels == np.arange(num_clusters)[:, None]).astype(points.dtype)
            count = members.sum(axis=1, keepdims=True)
            total = np.einsum("kp,cp->kc", members, across)
            centres = np.where(count > 0, total / np.maximum(count, 1), centres)
        error = float(((points - centres[labels]) ** 2).sum())
        if error < best_error:
            best, best_error = centres, error
    return best


def nearest(centres: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Number of the nearest centre of each point: (K, C), (C, P) -> (P,) int."""
    # |p - c|^2 without |p|^2, which is the same for all centres. einsum and not @: on matrices this
    # thin the threads of a busy BLAS cost ten times the arithmetic; points along the last axis
    # keep einsum's inner loop long.
    closeness = np.einsum("kc,cp->kp", centres, np.ascontiguousarray(across))
    return (closeness - 0.5 * (centres**2).sum(axis=1)[:, None]).argmax(axis=0)


def _plus_plus(points: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    centres = [points[rng.integers(len(points))]]
    distance = np.full(len(points), np.inf)
    while len(centres) < num_clusters:
        distance = np.minimum(distance, ((points - centres[-1]) ** 2).sum(axis=1, dtype=np.float64))
        total = np.cumsum(distance)
        # All points are centres already (fewer different points than clusters): repeat any.
        drawn = np.searchsorted(total, rng.random() * total[-1]) if total[-1] > 0 else 0
        centres.append(points[min(int(drawn), len(points) - 1)])
    return np.stack(centres)
