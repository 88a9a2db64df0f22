"""Scores of predicted frames: of pixels, of masks and of boxes, frame by frame.

Those of SlotFormer (Wu et al. 2023, arXiv 2210.05861, section 4.2), as its program computes them.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from smoothsa_jax.evaluation.metrics import ari, contingency, iou
from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.interop.perceptual import find_lpips, load_lpips
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.perceptual import LPIPS, LPIPS_SCORE, refuse_small

LPIPS_BACKBONE = "vgg16"  # of SlotFormer's program
SIGMA, TRUNCATE = 1.5, 3.5  # of SSIM's window (Wang et al. 2004)
CONSTANTS = (0.01, 0.03)
HIT = 0.5  # the IoU of a box that is found
LEAST_MASK = 0.5  # below it, a pixel is the background's


def mse_of_frames(
    predicted: Float[Array, "*B H W C"], true: Float[Array, "*B H W C"]
) -> Float[Array, "*B"]:
    """Return the squared error of each frame, summed over pixels, a mean over channels."""
    return jnp.square(predicted - true).sum(axis=(-3, -2)).mean(axis=-1)


def psnr_of_frames(
    predicted: Float[Array, "*B H W C"], true: Float[Array, "*B H W C"]
) -> Float[Array, "*B"]:
    """Return the peak signal-to-noise ratio of each frame in dB; of colors from 0 to 1."""
    error = jnp.square(predicted - true).mean(axis=(-3, -2, -1))
    return -10.0 * jnp.log10(error)


def ssim_of_frames(
    predicted: Float[Array, "*B H W C"], true: Float[Array, "*B H W C"]
) -> Float[Array, "*B"]:
    """Return the structural similarity of each frame (Wang et al. 2004); of colors from 0 to 1.

    The window is Gaussian. The mean is over channels, and over the pixels that a whole window fits
    around.
    """
    radius = int(TRUNCATE * SIGMA + 0.5)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    window = jnp.asarray(window / window.sum(), jnp.float32)
    *lead, height, width, channels = predicted.shape

    def blurred(x: Array) -> Array:
        x = x.reshape(-1, height, width, channels)
        for axis in (1, 2):
            x = jnp.apply_along_axis(lambda line: jnp.convolve(line, window, "valid"), axis, x)
        return x

    mean_x, mean_y = blurred(predicted), blurred(true)
    var_x = blurred(predicted**2) - mean_x**2
    var_y = blurred(true**2) - mean_y**2
    both = blurred(predicted * true) - mean_x * mean_y
    first, second = (constant**2 for constant in CONSTANTS)
    found = (2 * mean_x * mean_y + first) * (2 * both + second)
    found = found / ((mean_x**2 + mean_y**2 + first) * (var_x + var_y + second))
    return found.mean(axis=(1, 2, 3)).reshape(lead)


class PerceptualDistance:
    """LPIPS with VGG16 of each frame (Zhang et al. 2018, arXiv 1801.03924); 0: they look the same.

    Args:
        folder: with its two files, see `interop.perceptual`. They are read when they are first
            used.
        size: (H, W) of the frames.

    Raises:
        UserError: a file is missing, or the frames are too small.
    """

    def __init__(self, folder: str, size: tuple[int, int]):
        self._key = f"eval.{LPIPS_SCORE}"
        find_lpips(folder, self._key, LPIPS_BACKBONE)
        refuse_small(LPIPS_BACKBONE, size)
        self._folder = folder

    def __call__(
        self, predicted: Float[Array, "B K H W 3"], true: Float[Array, "B K H W 3"]
    ) -> Float[Array, "B K"]:
        """Return the distance of each frame; of pixels from -1 to 1."""
        arrays, run = self._read
        return run(arrays, predicted, true)

    @functools.cached_property
    def _read(self) -> tuple[dict[str, np.ndarray], Callable[..., Array]]:
        """The arrays, and the compiled function of these and two stacks of frames."""
        arrays, _ = load_lpips(self._folder, self._key, LPIPS_BACKBONE)
        number = sum(name.endswith(".bias") for name in arrays)
        widths = [len(arrays[f"convs.{index}.bias"]) for index in range(number)]
        build = lambda: LPIPS(backbone=LPIPS_BACKBONE, widths=widths, rngs=nnx.Rngs(0))  # noqa: E731
        definition = split(nnx.eval_shape(build))[0]

        @jax.jit
        def run(arrays, predicted, true):
            model = definition.merge(arrays, differentiated=False)
            # One time step after the other: the features of all frames at once would be large.
            pairs = predicted.swapaxes(0, 1), true.swapaxes(0, 1)
            return jax.lax.map(lambda pair: model(*pair), pairs).swapaxes(0, 1)

        return arrays, run


def segments_with_background(
    masks: Float[np.ndarray, "*B N H W"], slot_mask: Bool[np.ndarray, "*B N"] | None = None
) -> Int[np.ndarray, "*B H W"]:
    """Return the slot of each pixel, as SlotFormer's program finds it.

    The slot with the smallest maximum is taken for the background, and has all pixels at which no
    slot exceeds 0.5.

    Args:
        masks: a softmax over slots.
        slot_mask: which slots are valid; the others, which that program does not have, are empty
            and no background. None: all.
    """
    masks = np.array(masks, np.float32)
    highest = masks.max(axis=(-2, -1))
    if slot_mask is not None:
        highest = np.where(slot_mask, highest, np.inf)
    background = highest.argmin(axis=-1)
    uncertain = masks.max(axis=-3) < LEAST_MASK
    chosen = np.arange(masks.shape[-3]) == background[..., None]
    filled = np.where(chosen[..., None, None] & uncertain[..., None, :, :], 1.0, masks)
    return filled.argmax(axis=-3)


def boxes_of_segments(
    segments: Int[np.ndarray, "*B H W"], number: int
) -> Float[np.ndarray, "*B N 4"]:
    """Return the first and last column and row of each segment: left, top, right, bottom.

    They are pixel indices, both ends included; -1 for a segment without pixels.
    """
    there = segments[..., None, :, :] == np.arange(number)[:, None, None]

    def ends(lines: Bool[np.ndarray, "*B N L"]) -> tuple[np.ndarray, np.ndarray]:
        last = lines.shape[-1] - 1 - lines[..., ::-1].argmax(axis=-1)
        return lines.argmax(axis=-1), last

    (left, right), (top, bottom) = ends(there.any(axis=-2)), ends(there.any(axis=-1))
    boxes = np.stack([left, top, right, bottom], axis=-1).astype(np.float64)
    return np.where(there.any(axis=(-2, -1))[..., None], boxes, -1.0)


def ari_of_frames(
    predicted: Int[np.ndarray, "B H W"], true: Int[np.ndarray, "B H W"], foreground: bool
) -> Float[np.ndarray, " B"]:
    """Return the adjusted Rand index of each frame; of the foreground, without true label 0."""
    counts = contingency(predicted.astype(np.uint8), true.astype(np.uint8))
    return ari(counts.without_column(0) if foreground else counts)


def miou_of_frames(
    predicted: Int[np.ndarray, "B H W"], true: Int[np.ndarray, "B H W"]
) -> Float[np.ndarray, " B"]:
    """Return the mean IoU of each frame, of a Hungarian matching with all true labels but 0.

    Labels up to the frame's largest count, whether they are there or not.
    """
    found = []
    for mine, theirs in zip(predicted, true, strict=True):
        counts = contingency(mine[None].astype(np.uint8), theirs[None].astype(np.uint8))
        table = iou(counts)[0, :, 1:]
        chosen = linear_sum_assignment(table, maximize=True)
        found.append(table[chosen].sum() / max(table.shape[1], 1))
    return np.array(found)


def scores_of_masks(
    masks: Float[np.ndarray, "B T N H W"],
    true: Int[np.ndarray, "B T H W"],
    slot_mask: Bool[np.ndarray, "B N"] | None = None,
) -> dict[str, Float[np.ndarray, "B T"]]:
    """Return the scores of predicted masks, frame by frame, as SlotFormer's program has them.

    Args:
        masks: a softmax over slots.
        true: 0 background, 1.. objects, 255 in no segment.
        slot_mask: which slots are valid; None: all.

    Returns:
        `ari`, `fg_ari`, `miou` of single frames, and `ar` and `ap`, the shares of the boxes around
        objects, and of those around slots, that are found; NaN: of none.
    """
    slots, true = masks.shape[2], np.asarray(true, np.uint8)
    valid = None if slot_mask is None else np.asarray(slot_mask)[:, None]
    predicted = segments_with_background(masks, valid)
    frames = predicted.reshape(-1, *predicted.shape[2:]), true.reshape(-1, *true.shape[2:])
    found = {
        "ari": ari_of_frames(*frames, False),
        "fg_ari": ari_of_frames(*frames, True),
        "miou": miou_of_frames(*frames),
    }
    counts = np.array([_found_in_frame(*pair, slots) for pair in zip(*frames, strict=True)], float)
    hits, objects, boxes = counts.T
    for name, number in (("ar", objects), ("ap", boxes)):
        found[name] = np.where(number > 0, hits / np.maximum(number, 1), np.nan)
    return {name: x.reshape(true.shape[:2]) for name, x in found.items()}


def _found_in_frame(
    predicted: Int[np.ndarray, "H W"], true: Int[np.ndarray, "H W"], slots: int
) -> tuple[int, int, int]:
    """Return what `found_boxes` does for the boxes around segments."""
    objects = np.where(true == NO_SEGMENT, 0, true)
    boxes = boxes_of_segments(objects, int(objects.max()) + 1)[1:]
    return found_boxes(boxes_of_segments(predicted, slots), boxes[(boxes >= 0).all(axis=1)])


def found_boxes(
    predicted: Float[np.ndarray, "N 4"], true: Float[np.ndarray, "K 4"]
) -> tuple[int, int, int]:
    """Return how many true boxes of a frame are found, how many there are, and are predicted.

    Each true box in turn takes its best predicted one, which is a hit if their IoU is at least 0.5
    and no other has taken it.
    """
    boxes = predicted[(predicted >= 0).all(axis=1)]
    taken: set[int] = set()
    for box in true:
        if not len(boxes):
            break
        overlaps = _box_iou(boxes, box)
        best = int(overlaps.argmax())
        if overlaps[best] >= HIT and best not in taken:
            taken.add(best)
    return len(taken), len(true), len(boxes)


def _box_iou(boxes: Float[np.ndarray, "N 4"], box: Sequence[float]) -> Float[np.ndarray, " N"]:
    box = np.asarray(box)
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.maximum(sides, 0.0).prod(axis=1)
    area = lambda x: (x[..., 2:] - x[..., :2]).prod(axis=-1)  # noqa: E731
    union = area(boxes) + area(box) - shared
    return shared / np.where(union > 0, union, 1.0)
