"""Score predicted slots: against the slots of the true frames, and by what a decoder makes of them.

The rows beside the model's are `copy` (the last observed slots stay), `line` (they go on as they
went over the last two frames) and `seen` (the slots of the true frames, which is the ceiling).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.counting import counted_masks
from smoothsa_jax.evaluation.frames import (
    LPIPS_BACKBONE,
    PerceptualDistance,
    mse_of_frames,
    psnr_of_frames,
    scores_of_masks,
    ssim_of_frames,
)
from smoothsa_jax.evaluation.metrics import (
    Contingency,
    check_numbers,
    contingency_from_counts,
    iou,
    score_counts,
)
from smoothsa_jax.evaluation.scores import UNSEEN, mean_over_samples
from smoothsa_jax.evaluation.split import Batch, Measured
from smoothsa_jax.models.encoders.pixels import denormalize
from smoothsa_jax.models.perceptual import LPIPS_SCORE

MODEL, SEEN = "model", "seen"
ROWS = ("copy", "line", SEEN)  # beside the model's
SLOT_ERROR, DECODED_ERROR = "slot_error", "decoded_error"
OF_MASKS, OF_PIXELS = ("ari", "fg_ari", "miou"), ("psnr", "ssim")
PAPER = "paper"  # in front of what is measured as SlotFormer's program does


class PredictionEvaluator:
    """An evaluator of predicted frames; see `Evaluator`.

    Each score is one of each predicted frame, such as `fg_ari_1`, and their mean, `fg_ari`. ARI and
    FG-ARI are of single frames. IoU is that of one matching over all predicted frames of a clip, so
    that a slot has to keep its object. The slot error is divided by the variance of the split's
    true slots.

    With `match_paper`, masks are scored as in SlotFormer's program: there is a background slot,
    which has all pixels at which no slot exceeds 0.5, and a matching of each frame of its own; and
    there are scores of boxes around the masks, `ar` and `ap`, and `mse` of pixels.

    Args:
        has_masks: whether the decoder tells masks of predicted slots.
        decodes: whether the decoder also predicts of them what frames tell, such as features.
        pixels: the range of the pixels that it decodes; None: it decodes features.
        image_size: (H, W) of these pixels.
        observed: how many frames are observed, for `scores.json`.
        steps: how many predicted frames have scores of their own, from the first on. Clips may have
            fewer, or more, which are in the means alone.
        match_paper: whether `per_sample` may be asked for the paper's protocol.
        lpips: the folder of LPIPS's files, see `PerceptualDistance`; "": pixels have no such score.

    Attributes:
        tells_masks: as `has_masks`.
    """

    paper_differs = False
    errors = (SLOT_ERROR, DECODED_ERROR, LPIPS_SCORE)
    rows = ROWS

    def __init__(
        self,
        *,
        has_masks: bool,
        decodes: bool,
        pixels: str | None,
        image_size: tuple[int, int],
        observed: int,
        steps: int,
        match_paper: bool = False,
        lpips: str = "",
    ):
        if lpips and not pixels:
            raise UserError(
                f"eval.{LPIPS_SCORE} is {lpips}, but the decoder makes no pixels of slots alone, "
                f"which it would compare; set --config.eval.{LPIPS_SCORE}="
            )
        self._lpips = PerceptualDistance(lpips, image_size) if lpips else None
        self._of_paper = match_paper
        self.tells_masks, self._decodes, self._pixels = has_masks, decodes, pixels
        self._image_size, self._steps = image_size, steps
        self.needs_labels = has_masks
        names = [SLOT_ERROR, *((DECODED_ERROR,) if decodes else ())]
        names += [*(OF_PIXELS if pixels else ()), *((LPIPS_SCORE,) if lpips else ())]
        names += OF_MASKS if has_masks else ()
        self.metrics = tuple(names)
        rows = (MODEL, *ROWS)
        self.outputs = (
            *(f"{row}.slots" for row in rows),
            *(f"{row}.prediction" for row in rows if decodes),
            *(f"{row}.masks" for row in rows if has_masks),
            *(("target",) if decodes else ()),
            *(("observed.masks",) if has_masks else ()),
            "slot_mask",
        )
        self.protocol: dict[str, Any] = {
            "observed": observed,
            "slot_error": "divided by the variance of the slots",
            **({LPIPS_SCORE: LPIPS_BACKBONE} if lpips else {}),
        }

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Measure every predicted frame, on the device."""
        tables, segments = {}, None
        mask, true = outputs["slot_mask"], outputs[f"{SEEN}.slots"]
        valid = _valid_frames(batch, true.shape[1])
        tables["valid"] = valid
        tables["slots_mean"], tables["slots_square"] = _moments(true, mask, valid)
        for row in (MODEL, *ROWS):
            tables[f"{row}.{SLOT_ERROR}"] = _slot_errors(outputs[f"{row}.slots"], true, mask)
            if self._decodes:
                pair = outputs[f"{row}.prediction"], outputs["target"]
                tables[f"{row}.{DECODED_ERROR}"] = _decoded_errors(*pair)
                if self._pixels:
                    found = _of_pixels(*pair, self._pixels, self._image_size)
                    tables |= {f"{row}.{name}": x for name, x in found.items()}
                    if self._lpips is not None:
                        frames = _signed(*pair, self._pixels, self._image_size)
                        tables[f"{row}.{LPIPS_SCORE}"] = self._lpips(*frames)
                    if row == MODEL and self._of_paper:
                        tables[f"{PAPER}.mse"] = _mse(*pair, self._pixels, self._image_size)
        if self.tells_masks:
            labels = np.asarray(batch["segmentations"])
            check_numbers(labels, "labels")
            labels = labels.astype(np.uint8, copy=False)
            past = labels.shape[1] - true.shape[1]
            later = np.ascontiguousarray(labels[:, past:])
            lengths = valid.sum(axis=1, dtype=np.int32)  # padding would count in areas of slots
            for row in (MODEL, *ROWS):
                masks = outputs[f"{row}.masks"]
                counted = counted_masks(masks, later, mask, lengths, per_frame=True)
                tables[f"{row}.counts"] = counted.counts
                if row == MODEL:
                    predicted = counted.segments
                    if self._of_paper:
                        shape = (*masks.shape[:3], *later.shape[2:])
                        resized = np.asarray(jax.image.resize(masks, shape, "bilinear"))
                        found = scores_of_masks(resized, later, mask)
                        tables |= {f"{PAPER}.{name}": x for name, x in found.items()}
            before = np.ascontiguousarray(labels[:, :past])
            observed = counted_masks(outputs["observed.masks"], before, mask).segments
            segments = jnp.concatenate([observed, predicted], axis=1)
        return Measured(tables, segments)

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        """Return the scores (samples,), those of other rows with "row/" in front."""
        valid, found = tables["valid"], {}
        moments = {name: tables[f"slots_{name}"] for name in ("mean", "square")}
        for row in (MODEL, *ROWS):
            front = "" if row == MODEL else f"{row}/"
            steps: dict[str, np.ndarray] = {}
            for name in (SLOT_ERROR, DECODED_ERROR, *OF_PIXELS, LPIPS_SCORE):
                if f"{row}.{name}" in tables:
                    steps[name] = np.asarray(tables[f"{row}.{name}"], np.float64)
            if self.tells_masks:
                steps |= _of_masks(tables[f"{row}.counts"])
            if match_paper and row == MODEL:
                start = f"{PAPER}."
                steps |= {
                    k.removeprefix(start): x for k, x in tables.items() if k.startswith(start)
                }
            for name, values in steps.items():
                values = np.where(valid, values, np.nan)
                # A slot error means something only beside the variance of the whole split.
                key = f"{front}{UNSEEN if name == SLOT_ERROR else ''}{name}"
                found[key] = _mean(values)
                alone = np.full((len(values), self._steps), np.nan)
                alone[:, : values.shape[1]] = values[:, : self._steps]
                found |= {f"{key}_{k + 1}": alone[:, k] for k in range(self._steps)}
            found |= {
                f"{front}{UNSEEN}slots_{name}_{d}": x[:, d]
                for name, x in moments.items()
                for d in range(x.shape[1])
            }
        return found

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the means (...) of scores (..., samples)."""
        found = mean_over_samples(per_sample)
        start = f"{UNSEEN}slots_"
        of_channels = [name for name in found if name.startswith(f"{start}mean_")]
        squares = [found[name.replace("_mean_", "_square_")] for name in of_channels]
        variances = [
            square - found[name] ** 2 for name, square in zip(of_channels, squares, strict=True)
        ]
        variance = np.maximum(np.mean(variances, axis=0), np.finfo(np.float64).tiny)
        scores = {}
        for name, value in found.items():
            if name.startswith(f"{UNSEEN}{SLOT_ERROR}"):
                scores[name.removeprefix(UNSEEN)] = value / variance
            elif not name.startswith(UNSEEN):
                scores[name] = value
        return scores


def _valid_frames(batch: Batch, predicted: int) -> np.ndarray:
    """Return which predicted frames (B,K) a clip has."""
    total = np.asarray(batch["video"]).shape[1]
    places = np.arange(total - predicted, total)
    lengths = batch.get("num_frames", np.full(len(batch["video"]), total))
    return places < np.asarray(lengths)[:, None]


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the frames (samples, K) for which a score is defined; NaN: for none."""
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _of_masks(tables: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores (samples, K) of tables (samples, K, N+1, 256) of pixel counts."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in OF_MASKS}
    for table in tables:
        counts = contingency_from_counts(table)
        scores = score_counts(counts)
        rows["ari"].append(scores["ari"])
        rows["fg_ari"].append(scores["fg_ari"])
        rows["miou"].append(_miou_of_identities(counts))
    return {name: np.stack(found) for name, found in rows.items()}


def _miou_of_identities(counts: Contingency) -> np.ndarray:
    """Return the mean IoU (K,) of each frame, of one matching over all frames, without label 0.

    The mean is over the objects that a frame has.
    """
    whole = counts.together()
    objects = np.flatnonzero(whole.true_area[0, 1:]) + 1
    slots, matched = linear_sum_assignment(iou(whole)[0][:, objects], maximize=True)
    there = counts.true_area[:, objects] > 0  # (K, objects)
    found = np.zeros(there.shape)
    found[:, matched] = iou(counts)[:, slots, objects[matched]]
    total = np.where(there, found, 0.0).sum(axis=1)
    return np.where(there.any(axis=1), total / np.maximum(there.sum(axis=1), 1), np.nan)


@jax.jit
def _moments(slots, mask, valid):
    """Return mean and mean square (B,D) of the channels of the slots (B,K,N,D)."""
    weight = (mask[:, None, :, None] & valid[:, :, None, None]).astype(jnp.float32)
    count = jnp.maximum(weight.sum(axis=(1, 2)), 1.0)
    mean = lambda x: (weight * x).sum(axis=(1, 2)) / count  # noqa: E731
    return mean(slots), mean(slots**2)


@jax.jit
def _slot_errors(slots, true, mask):
    error = jnp.square(slots - true).mean(axis=-1)  # (B,K,N)
    weight = jnp.broadcast_to(mask[:, None], error.shape).astype(jnp.float32)
    return (weight * error).sum(axis=-1) / jnp.maximum(weight.sum(axis=-1), 1.0)


@jax.jit
def _decoded_errors(prediction, target):
    return jnp.square(prediction - target).mean(axis=tuple(range(2, prediction.ndim)))


def _colors(pixels: str, size: tuple[int, int], *found):
    """Return colors from 0 to 1 (B,K,H,W,3) of pixels (B,K,H*W,3)."""
    return [jnp.clip(denormalize(x, pixels), 0.0, 1.0) for x in _pictures(size, *found)]


def _pictures(size: tuple[int, int], *found):
    return [x.reshape(*x.shape[:2], *size, 3) for x in found]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _signed(prediction, target, pixels, size):
    """Return pixels of the range -1 to 1 (B,K,H,W,3), which are not cut off at its ends."""
    return [2.0 * denormalize(x, pixels) - 1.0 for x in _pictures(size, prediction, target)]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mse(prediction, target, pixels, size):
    return mse_of_frames(*_colors(pixels, size, prediction, target))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _of_pixels(prediction, target, pixels, size):
    """Return scores (B,K) of pixels (B,K,H*W,3)."""
    colors = _colors(pixels, size, prediction, target)
    return {"psnr": psnr_of_frames(*colors), "ssim": ssim_of_frames(*colors)}
