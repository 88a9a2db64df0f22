"""Paths of slots: in the plane of greatest variance, and over the picture."""

import numpy as np
from jaxtyping import Float, Int


def principal_plane(points: Float[np.ndarray, "*lead D"]) -> Float[np.ndarray, "*lead 2"]:
    """Project points on their first two principal axes, with mean zero.

    The sign of an axis is that of its largest component.
    """
    flat = points.reshape(-1, points.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    axes = np.linalg.svd(flat, full_matrices=False)[2][:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    plane = flat @ axes.T
    plane = np.pad(
        plane, ((0, 0), (0, 2 - plane.shape[1]))
    )  # of a single point, or slots of width 1
    return plane.reshape(*points.shape[:-1], 2)


def centres_of_mass(masks: Int[np.ndarray, "T H W"], num_slots: int) -> Float[np.ndarray, "T N 2"]:
    """The x and y of each mask's center of mass, in pixels; NaN for empty masks."""
    rows, columns = np.mgrid[: masks.shape[1], : masks.shape[2]]
    centres = np.full((len(masks), num_slots, 2), np.nan)
    for t, mask in enumerate(masks):
        area = np.bincount(mask.ravel(), minlength=num_slots)[:num_slots]
        seen = area > 0
        for axis, places in enumerate((columns, rows)):
            total = np.bincount(mask.ravel(), places.ravel(), minlength=num_slots)[:num_slots]
            centres[t, seen, axis] = total[seen] / area[seen]
    return centres
