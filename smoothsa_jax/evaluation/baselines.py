"""Baselines for comparison: segmentations that need no learning of objects.

Each function takes one clip and returns (T, H, W) uint8 segment numbers. All are deterministic.
"""

from __future__ import annotations

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inputs import NO_SEGMENT


def num_true_segments(segmentation: np.ndarray) -> int:
    """Count the segments in labels (T, H, W), with background but without 255; at least 1."""
    present = np.bincount(np.asarray(segmentation).ravel(), minlength=NO_SEGMENT + 1) > 0
    return max(int(present[:NO_SEGMENT].sum()), 1)


def boxes_kept_still(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill the first frame's boxes, and repeat them on every frame.

    Segment 0 is the area outside all boxes; segment n + 1 is box n. Where boxes overlap, the
    smaller one is on top. Objects that are absent from the first frame have no segment.

    Args:
        boxes: (T, N, 4) left, top, right, bottom pixel indices, both ends included, / width,
            height; all -1: padding, all 0: absent.
        size: (H, W) of the result.

    Returns:
        Segment numbers (T, H, W) uint8.
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


def block_pattern(num_segments: int, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Divide every frame into equal blocks, whatever it shows (DINOSAUR, arXiv 2209.14860).

    The blocks stand in about as many columns as rows; a column with fewer blocks is narrower. What
    does not score higher may have found regions, not objects.

    Args:
        num_segments: number of blocks, `num_true_segments` of the clip's labels.
        num_frames: T of the result.
        size: (H, W) of the result.

    Returns:
        Segment numbers (T, H, W) uint8.
    """
    height, width = size
    columns = np.array_split(np.arange(num_segments), round(np.sqrt(num_segments)))
    lengths = np.array([len(column) for column in columns])
    ends = np.cumsum(lengths)
    column = np.searchsorted(ends * width / num_segments, np.arange(width) + 0.5)
    above = (np.arange(height) + 0.5)[:, None] / height
    mask = (ends - lengths)[column] + (above * lengths[column]).astype(int)
    return np.broadcast_to(mask.astype(np.uint8), (num_frames, height, width)).copy()


def kmeans_on_features(
    features: np.ndarray,
    num_segments: int,
    size: tuple[int, int],
    seed: int = 0,
) -> np.ndarray:
    """Cluster the tokens of all frames together with k-means, so that clusters persist over time.

    The features are clustered as they are: not normalized, without positions. Clusters become
    pixels in the same way as attention: one-hot, bilinear, argmax.

    Args:
        features: (T, h, w, C).
        num_segments: number of clusters, `num_true_segments` of the clip's labels.
        size: (H, W) of the result.
        seed: of the random starts.

    Returns:
        Segment numbers (T, H, W) uint8.
    """
    features = np.asarray(features, np.float32)
    num_frames, h, w, width = features.shape
    points = features.reshape(-1, width)
    labels = nearest(kmeans(points, num_segments, seed), points.T).reshape(num_frames, -1)
    padded = -(-num_segments // 8) * 8  # few distinct shapes need few compilations
    one_hot = labels[:, None, :] == np.arange(padded)[:, None]
    maps = one_hot.astype(np.float32).reshape(num_frames, padded, h, w)
    return np.asarray(segments_from_masks(maps, size))


def kmeans_on_rgb(
    video: np.ndarray, num_segments: int, seed: int = 0, num_fitted: int = 4096
) -> np.ndarray:
    """Cluster the colors of all pixels of the clip together with k-means, without positions.

    The clusters are fitted to `num_fitted` random pixels; then each pixel takes its nearest center.

    Args:
        video: (T, H, W, 3) uint8.
        num_segments: number of clusters, `num_true_segments` of the clip's labels.
        seed: of the random starts and pixels.
        num_fitted: number of pixels to fit.

    Returns:
        Segment numbers (T, H, W) uint8.
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
    """Run Lloyd's algorithm from k-means++ starts, and return the best restart.

    A cluster that loses all its points keeps its center.

    Args:
        points: (P, C) float.
        num_clusters: number of clusters K.
        seed: of the random starts.
        num_restarts: number of starts.
        num_iterations: maximum number of iterations per start.

    Returns:
        Centers (K, C).

    Raises:
        UserError: there are no points, or fewer than one cluster is requested.
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
    """The index of the nearest center of each point: (K, C), (C, P) -> (P,) int."""
    # |p - c|^2 without |p|^2, which is the same for all centers. einsum instead of @: for such thin
    # matrices, the threads of a busy BLAS cost ten times the arithmetic. Points along the last axis
    # keep einsum's inner loop long.
    closeness = np.einsum("kc,cp->kp", centres, np.ascontiguousarray(across))
    return (closeness - 0.5 * (centres**2).sum(axis=1)[:, None]).argmax(axis=0)


def _plus_plus(points: np.ndarray, num_clusters: int, rng: np.random.Generator) -> np.ndarray:
    centres = [points[rng.integers(len(points))]]
    distance = np.full(len(points), np.inf)
    while len(centres) < num_clusters:
        distance = np.minimum(distance, ((points - centres[-1]) ** 2).sum(axis=1, dtype=np.float64))
        total = np.cumsum(distance)
        # If all points are centers already (fewer distinct points than clusters), repeat any.
        drawn = np.searchsorted(total, rng.random() * total[-1]) if total[-1] > 0 else 0
        centres.append(points[min(int(drawn), len(points) - 1)])
    return np.stack(centres)
