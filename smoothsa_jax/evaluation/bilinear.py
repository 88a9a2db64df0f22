"""The weights of bilinear resizing; without JAX, for processes that only write results."""

import numpy as np


def interpolation_matrix(num_out: int, num_in: int) -> np.ndarray:
    """Return the weights (num_out, num_in) of bilinear resizing along one axis.

    Half-pixel centers, edges repeated, no antialiasing. Each row has at most two non-zero entries
    and sums to 1.
    """
    # Centers and weights are rounded to float32, as in the authors' program: two slots can be
    # within 1e-7 of each other, and the argmax should then agree with theirs.
    scale = np.float32(num_in) / np.float32(num_out)
    centre = (np.arange(num_out, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    centre = np.clip(centre, 0, num_in - 1)
    low = np.floor(centre).astype(np.int64)
    high = np.minimum(low + 1, num_in - 1)
    fraction = centre - low.astype(np.float32)
    matrix = np.zeros((num_out, num_in), np.float32)
    rows = np.arange(num_out)
    np.add.at(matrix, (rows, low), np.float32(1) - fraction)
    np.add.at(matrix, (rows, high), fraction)
    return matrix
