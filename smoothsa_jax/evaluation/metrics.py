"""ARI, FG-ARI, mBO and mIoU of predicted against true segments.

All metrics follow from one table of counts per sample: the number of pixels in predicted segment p
and true segment k. Counts and pair counts are exact integers. A sample is one image or one whole
video (all T * H * W pixels together, including the first frame).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import NO_SEGMENT

METRICS = ("ari", "fg_ari", "mbo", "miou")
FOREGROUND_METRICS = ("fg_mbo", "fg_miou")  # on request
COUNT_METRICS = ("segments_found", "count_error")  # on request


@dataclasses.dataclass(frozen=True)
class Contingency:
    """Pixel counts of a batch, int64, with P predicted and K true segments.

    Attributes:
        table: (B, P, K) pixels in predicted segment p and true segment k.
        predicted_area: (B, P) pixels in p, including those in no true segment.
        true_area: (B, K) pixels in k, including those in no predicted segment.
    """

    table: np.ndarray
    predicted_area: np.ndarray
    true_area: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """(B,) bool: the sample has a pixel in a true segment. Means leave out other samples."""
        return self.true_area.any(axis=1)

    def without_column(self, column: int | Sequence[int] | np.ndarray) -> Contingency:
        """Move the pixels of one true segment to "in no segment".

        Args:
            column: the label to drop, one for all samples or (B,).
        """
        columns = np.broadcast_to(column, self.table.shape[:1])
        samples = np.arange(len(columns))
        table, true_area = self.table.copy(), self.true_area.copy()
        table[samples, :, columns] = 0
        true_area[samples, columns] = 0
        return Contingency(table, self.predicted_area, true_area)

    def together(self) -> Contingency:
        """Take all samples, such as the frames of a video, for a single one."""
        arrays = (self.table, self.predicted_area, self.true_area)
        return Contingency(*(x.sum(axis=0, keepdims=True) for x in arrays))


def contingency(
    predicted: np.ndarray,
    true: np.ndarray,
    num_predicted: int | None = None,
    num_true: int | None = None,
) -> Contingency:
    """Count pixels in maps of segment numbers.

    Args:
        predicted: (B, ...) integers in 0 .. num_predicted - 1, or 255 = in no segment.
        true: (B, ...), the same shape, integers in 0 .. num_true - 1, or 255.
        num_predicted: number of predicted segments, at most 255; default: 1 + the largest found.
        num_true: number of true segments, at most 255; default: 1 + the largest found.

    Raises:
        UserError: the shapes differ, or a segment number is out of range.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.shape != true.shape:
        raise UserError(
            f"predicted masks have shape {predicted.shape}, labels have shape {true.shape}: "
            "make the masks at the size of the labels"
        )
    check_numbers(predicted, "predicted masks")
    check_numbers(true, "labels")
    side = NO_SEGMENT + 1
    counts = np.zeros((len(true), side, side), np.int64)
    for i in range(len(true)):
        pairs = predicted[i].astype(np.uint16).ravel() * np.uint16(side) + true[i].ravel()
        counts[i] = np.bincount(pairs, minlength=side * side).reshape(side, side)
    return contingency_from_counts(counts, num_predicted, num_true)


def check_numbers(segments: np.ndarray, name: str) -> None:
    """Raise UserError unless the numbers are integers in 0..254, or 255 = in no segment."""
    if segments.dtype.kind not in "iub":
        raise UserError(f"{name} are {segments.dtype}, expected integer segment numbers")
    if segments.dtype == np.uint8 or not segments.size:
        return
    if segments.min() < 0 or segments.max() > NO_SEGMENT:
        raise UserError(
            f"{name} hold numbers from {segments.min()} to {segments.max()}, expected 0..254, "
            "or 255 for a pixel in no segment"
        )


def contingency_from_counts(
    counts: np.ndarray, num_predicted: int | None = None, num_true: int | None = None
) -> Contingency:
    """Make counts from tables of `counting.count_pixels`, which also count "in no segment".

    Args:
        counts: (B, P + 1, 256) integers; the last row and column are "in no segment".
        num_predicted: as for `contingency`.
        num_true: as for `contingency`.

    Raises:
        UserError: a segment number is out of range.
    """
    counts = np.asarray(counts, np.int64)
    predicted_area, true_area = counts.sum(axis=2)[:, :-1], counts.sum(axis=1)[:, :-1]
    num_predicted = _num_segments(predicted_area, num_predicted, "predicted masks")
    num_true = _num_segments(true_area, num_true, "labels")
    return Contingency(
        counts[:, :num_predicted, :num_true],
        predicted_area[:, :num_predicted],
        true_area[:, :num_true],
    )


def contingency_from_one_hot(predicted: np.ndarray, true: np.ndarray) -> Contingency:
    """Count pixels in one-hot rows; a row of zeros is a pixel in no segment.

    Args:
        predicted: (B, pixels, P) bool or 0/1.
        true: (B, pixels, K) bool or 0/1.

    Raises:
        UserError: the batch sizes or numbers of pixels differ.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.ndim != 3 or true.ndim != 3 or predicted.shape[:2] != true.shape[:2]:
        raise UserError(
            f"one-hot predictions have shape {predicted.shape}, labels {true.shape}: "
            "expected (B, pixels, segments) with the same B and pixels"
        )
    # float64 sums of ones are exact up to 2**53 and use a fast matrix product.
    table = np.matmul(predicted.astype(np.float64).swapaxes(1, 2), true.astype(np.float64))
    return Contingency(
        table.astype(np.int64),
        predicted.sum(axis=1, dtype=np.int64),
        true.sum(axis=1, dtype=np.int64),
    )


def ari(counts: Contingency, match_paper: bool = False) -> np.ndarray:
    """Adjusted Rand index (B,) float64 over the pixels with both a true and a predicted segment.

    The value is 1 where the denominator is 0, as for a sample without pixels (see
    `Contingency.valid`).

    The result is exact by default. `match_paper=True` repeats the authors' arithmetic: the product
    of the two pair counts wraps at 64 bits, which makes the scores of large videos too high, and
    later steps use float32. Use it only for comparison with published numbers.
    """
    return np.array([_ari_of_table(table, match_paper) for table in counts.table], np.float64)


def mbo(counts: Contingency) -> np.ndarray:
    """Mean best overlap (B,) float64: each true segment's best IoU, averaged over non-empty ones.

    NaN for a sample without true pixels.
    """
    return _mean_over_true(iou(counts).max(axis=1, initial=0).sum(axis=1), counts)


def miou(counts: Contingency) -> np.ndarray:
    """Mean IoU (B,) float64 of the best one-to-one (Hungarian) matching of true segments.

    The mean is over non-empty true segments; an unmatched one counts as 0. NaN for a sample without
    true pixels.
    """
    # Imported here because it takes a sixth of the program's import time.
    from scipy.optimize import linear_sum_assignment

    scores = iou(counts)
    total = [table[linear_sum_assignment(table, maximize=True)].sum() for table in scores]
    return _mean_over_true(np.array(total, np.float64), counts)


def iou(counts: Contingency) -> np.ndarray:
    """Intersection over union (B, P, K) float64 of every pair; 0 if both are empty."""
    union = counts.predicted_area[:, :, None] + counts.true_area[:, None, :] - counts.table
    return counts.table / np.maximum(union, 1)


def count_segments(counts: Contingency) -> dict[str, np.ndarray]:
    """Compare the number of segments found with the true number.

    A segment is found if a slot wins a pixel. So a model whose slots cannot be left out is measured
    as one that prunes them is. The background counts on both sides, since it needs a slot.

    Args:
        counts: of a batch.

    Returns:
        name -> (B,) float64: "segments_found", and "count_error", the absolute difference from the
        true number, of which programs that count objects report the mean. NaN for a sample without
        true pixels.
    """
    found = (counts.predicted_area > 0).sum(axis=1).astype(np.float64)
    error = np.abs(found - (counts.true_area > 0).sum(axis=1))
    return {
        "segments_found": np.where(counts.valid, found, np.nan),
        "count_error": np.where(counts.valid, error, np.nan),
    }


def score_batch(
    predicted: np.ndarray,
    segmentations: np.ndarray,
    *,
    match_paper: bool = False,
    background_column_always: bool = False,
) -> dict[str, np.ndarray]:
    """Compute all metrics for a batch of images or videos.

    FG-ARI leaves out background pixels. By default, the background is label 0 only: a sample whose
    crop contains no background loses no segment. With `match_paper`, the first label column is left
    out. The authors renumber the segments present in a sample, so this is the smallest label in the
    sample: the background if there is any, otherwise the first object. If their labels always have
    a background column, even an empty one (COCO), set `background_column_always`; then
    `match_paper` also drops label 0.

    Args:
        predicted: (B, H, W) or (B, T, H, W) slot numbers.
        segmentations: the same shape, 0 background, 1.. objects, 255 in no segment.
        match_paper: whether to use the authors' wrapping ARI and their choice of the column for
            FG-ARI.
        background_column_always: see above; no effect without `match_paper`.

    Returns:
        name -> (B,) float64 for "ari", "fg_ari", "mbo", "miou". NaN: the sample is left out of this
        metric's mean, because it has no true pixels (for "fg_ari", no foreground pixels).

    Raises:
        UserError: shapes differ, or a number is out of range.
    """
    counts = contingency(predicted, segmentations)
    return score_counts(
        counts, match_paper=match_paper, background_column_always=background_column_always
    )


def score_counts(
    counts: Contingency,
    *,
    match_paper: bool = False,
    background_column_always: bool = False,
    of_foreground: bool = False,
) -> dict[str, np.ndarray]:
    """Compute all metrics from counts; see `score_batch`.

    Args:
        counts: of a batch.
        match_paper: see `score_batch`.
        background_column_always: see `score_batch`.
        of_foreground: also compute "fg_mbo" and "fg_miou", in which the segment that FG-ARI leaves
            out is no true segment. Its pixels still count toward predicted areas. These are the
            mBO and mIoU of programs that know objects alone, such as VideoSAUR's and
            SlotContrast's.
    """
    if counts.true_area.shape[1] == 0:
        names = METRICS + (FOREGROUND_METRICS if of_foreground else ())
        return {name: np.full(len(counts.table), np.nan) for name in names}
    column = np.zeros(len(counts.table), np.int64)
    if match_paper and not background_column_always:
        column = (counts.true_area > 0).argmax(axis=1)
    foreground = counts.without_column(column)
    more = {"fg_mbo": mbo(foreground), "fg_miou": miou(foreground)} if of_foreground else {}
    return {
        "ari": np.where(counts.valid, ari(counts, match_paper), np.nan),
        "fg_ari": np.where(foreground.valid, ari(foreground, match_paper), np.nan),
        "mbo": mbo(counts),
        "miou": miou(counts),
        **more,
    }


def _ari_of_table(table: np.ndarray, match_paper: bool) -> float:
    # Twice the usual numbers of pairs; they fit int64, being below 2**63 for fewer than 3e9 pixels.
    both = int((table * (table - 1)).sum())
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    predicted = int((rows * (rows - 1)).sum())
    true = int((columns * (columns - 1)).sum())
    pixels = int(table.sum())
    pairs = max(pixels * (pixels - 1), 1)
    if match_paper:
        return _wrapped_ari(both, predicted, true, pairs)
    # (both - product / pairs) / ((predicted + true) / 2 - product / pairs), with numerator and
    # denominator times 2 * pairs. Python integers are exact, so only the final division rounds.
    product = predicted * true
    denominator = (predicted + true) * pairs - 2 * product
    return 1.0 if denominator == 0 else 2 * (both * pairs - product) / denominator


def _wrapped_ari(both: int, predicted: int, true: int, pairs: int) -> float:
    # The authors' steps in their types: one wrapping int64 product, the rest in float32.
    product = (predicted * true + 2**63) % 2**64 - 2**63
    expected = np.float32(product) / np.float32(pairs)
    denominator = np.float32(predicted + true) / np.float32(2) - expected
    return 1.0 if denominator == 0 else float((np.float32(both) - expected) / denominator)


def _mean_over_true(total: np.ndarray, counts: Contingency) -> np.ndarray:
    num = (counts.true_area > 0).sum(axis=1)
    return np.where(num > 0, total / np.maximum(num, 1), np.nan)


def _num_segments(area: np.ndarray, num: int | None, name: str) -> int:
    found = int(np.flatnonzero(area.any(axis=0)).max(initial=-1)) + 1
    if num is None:
        return found
    if found > num:
        raise UserError(f"{name} hold segment number {found - 1}, expected less than {num}")
    return num
