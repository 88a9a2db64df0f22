"""Match slots to objects, and score predicted categories and boxes (docs/design.md, section 6).

In every frame, slots are matched one-to-one to objects so that the total IoU of their masks is
largest (the Hungarian algorithm); pairs above `MATCH_IOU` are kept. The masks are those of *slot
attention*, not of the decoder. Everything here uses `jax.numpy` and fixed shapes, so a training
step matches on the device, in one program with the model. Matching on the host would make every
step wait for its masks.

Objects are numbered 0 .. K-1; object k has label k + 1. Label 0 is the background, which is not an
object; label 255 belongs to no segment.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smoothsa_jax.evaluation.split import Batch, Measured
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.losses.matching import assign, segment_iou
from smoothsa_jax.models.backend import CPU, Backend

MATCH_IOU = 0.1  # the IoU of a matched pair is above this
KEPT_BY_THE_AUTHORS = 2  # objects of each image: those numbered 0 and 1
RECOGNITION_METRICS = ("top1", "top3", "box_iou", "num_matches")


class Targets(NamedTuple):
    """What a head should predict for each slot of each frame.

    Attributes:
        object: number of the matched object; -1: none.
        category: its category; 0 if unmatched.
        box: its box in that frame, as normalized left, top, right, bottom; 0 if unmatched.
        iou: IoU of the slot's mask and the object's; 0 if unmatched.
    """

    object: Int[Array, "... N"]
    category: Int[Array, "... N"]
    box: Float[Array, "... N 4"]
    iou: Float[Array, "... N"]

    @property
    def matched(self) -> Bool[Array, "... N"]:
        """Which slots are matched."""
        return self.object >= 0


# --------------------------------------------------------------------------------------- matching


def match(
    iou: Float[Array, "... N K"],
    slot_mask: Bool[Array, "... N"] | None = None,
    allowed: Bool[Array, "... K"] | None = None,
) -> tuple[Int[Array, "... N"], Float[Array, "... N"]]:
    """Match slots to objects, and keep the pairs whose IoU exceeds `MATCH_IOU`.

    Args:
        iou: IoU of masks and objects; an absent object has 0 everywhere.
        slot_mask: true = valid; a masked slot never matches and takes no object from a valid slot.
        allowed: objects to keep. This applies after the matching, in which all objects take part.

    Returns:
        The object of each slot, -1 if unmatched, and their IoU, 0 if unmatched.
    """
    if slot_mask is not None:
        iou = jnp.where(slot_mask[..., :, None], iou, 0.0)
    found = assign(iou)
    at = jnp.maximum(found, 0)
    value = jnp.take_along_axis(iou, at[..., None], axis=-1)[..., 0]
    keep = (found >= 0) & (value > MATCH_IOU)
    if allowed is not None:
        keep &= jnp.take_along_axis(
            jnp.broadcast_to(allowed, (*at.shape[:-1], iou.shape[-1])), at, axis=-1
        )
    return jnp.where(keep, found, -1), jnp.where(keep, value, 0.0)


def kept_by_the_authors(present: Bool[Array, "... K"]) -> Bool[Array, "... K"]:
    """Return the objects that the authors' filter keeps, by a bug: numbers 0 and 1.

    They number the objects of a sample, so an object absent from all of its frames has no number
    (docs/design.md, section 7).
    """
    number = jnp.cumsum(present, axis=-1) - 1
    return present & (number < KEPT_BY_THE_AUTHORS)


def object_boxes(objects: Bool[Array, "H W K"]) -> Float[Array, "K 4"]:
    """Return boxes from one-hot labels: left, top, right, bottom pixel over width and height.

    Both ends are included. The box of an absent object is 0 (docs/design.md, section 6).
    """
    height, width, _ = objects.shape

    def ends(there, side):  # (side, K)
        return there.argmax(0) / side, (side - 1 - there[::-1].argmax(0)) / side

    (left, right), (top, bottom) = ends(objects.any(0), width), ends(objects.any(1), height)
    boxes = jnp.stack([left, top, right, bottom], axis=-1)
    return jnp.where(objects.any((0, 1))[:, None], boxes, 0.0)


def targets_of_slots(
    attention: Float[Array, "B T N h w"],
    segmentations: Int[Array, "B T H W"],
    categories: Int[Array, "B K"],
    slot_mask: Bool[Array, "B N"] | None = None,
    match_paper: bool = False,
    backend: Backend = CPU,
) -> Targets:
    """Match the slots of every frame to the objects of that frame; to be called in `jax.jit`.

    Args:
        attention: the attention of slot attention, not of the decoder.
        segmentations: labels: 0 background, k + 1 object k, 255 no segment.
        categories: categories of the objects; -1 if there is no such object or its category is
            unknown. Such an object never matches.
        slot_mask: true = valid; masked slots get no pixel and never match.
        match_paper: keep only objects numbered 0 and 1 of each sample, as the authors do; static.
        backend: the backend to compile for; static.

    Raises:
        UserError: the shape of the slot mask does not fit the attention.
    """
    num_slots, num_objects = attention.shape[2], categories.shape[-1]

    def of_frame(args):
        mask, labels = args
        objects = labels[..., None] == jnp.arange(1, num_objects + 1)
        slots = (mask[..., None] == jnp.arange(num_slots)).reshape(-1, num_slots)
        iou = segment_iou(slots, objects.reshape(-1, num_objects))
        return iou, object_boxes(objects), objects.any((0, 1))

    def of_sample(attention, labels, valid):
        masks = segments_from_masks(attention, labels.shape[-2:], valid, backend=backend)
        return jax.lax.map(of_frame, (masks, labels))

    # Frames in sequence, to save memory; samples in parallel, so that they stay on their devices.
    valid = (
        None if slot_mask is None else jnp.repeat(slot_mask[:, None], attention.shape[1], axis=1)
    )
    iou, boxes, present = jax.vmap(of_sample, in_axes=(0, 0, None if valid is None else 0))(
        attention, segmentations, valid
    )
    known = categories >= 0
    iou = jnp.where(known[:, None, None, :], iou, 0.0)
    allowed = kept_by_the_authors(present.any(1))[:, None] if match_paper else None
    found, value = match(iou, valid, allowed)
    at, matched = jnp.maximum(found, 0), found >= 0
    category = jnp.take_along_axis(categories[:, None, :], at, axis=-1)
    box = jnp.take_along_axis(boxes, at[..., None], axis=2)
    return Targets(
        found, jnp.where(matched, category, 0), jnp.where(matched[..., None], box, 0.0), value
    )


# ----------------------------------------------------------------------------------------- scores


def box_iou(predicted: Float[Array, "... 4"], true: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """Return the IoU of boxes (left, top, right, bottom) with sides right - left, bottom - top.

    NaN if both boxes are empty; means leave out such a pair. A negative side counts as 0.
    """

    def area(box):
        return jnp.maximum(box[..., 2:] - box[..., :2], 0.0).prod(-1)

    low = jnp.maximum(predicted[..., :2], true[..., :2])
    high = jnp.minimum(predicted[..., 2:], true[..., 2:])
    both = area(jnp.concatenate([low, high], axis=-1))
    union = area(predicted) + area(true) - both
    return jnp.where(union > 0, both / jnp.where(union > 0, union, 1.0), jnp.nan)


def in_top(
    logits: Float[Array, "... classes"], category: Int[Array, "..."], k: int
) -> Bool[Array, "..."]:
    """Tell whether fewer than `k` classes have a larger logit than the true one."""
    of_true = jnp.take_along_axis(logits, category[..., None], axis=-1)
    return (logits > of_true).sum(-1) < k


def count(
    logits: Float[Array, "B T N classes"], boxes: Float[Array, "B T N 4"], targets: Targets
) -> dict[str, Float[Array, " B"]]:
    """Sum what the scores need over the matched slots of all frames of each sample.

    Args:
        logits: predicted logits of the categories.
        boxes: predicted boxes.
        targets: what each slot is matched to.

    Returns:
        num_matches: number of matched slots; top1 and top3: how many of them have the true category
        among the first 1 or 3; num_boxes: how many have a defined box IoU; box_iou: the sum of it.
    """
    matched = targets.matched
    overlap = box_iou(boxes, targets.box)
    defined = matched & ~jnp.isnan(overlap)
    terms = {
        "num_matches": matched,
        "top1": matched & in_top(logits, targets.category, 1),
        "top3": matched & in_top(logits, targets.category, 3),
        "num_boxes": defined,
        "box_iou": jnp.where(defined, overlap, 0.0),
    }
    return {name: x.astype(jnp.float32).sum((1, 2)) for name, x in terms.items()}


def scores_of_counts(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of a split, with equal weight for every match.

    Args:
        counts: name -> (..., samples), as `count` returns them.

    Returns:
        top1, top3, box_iou -> (...) float64 in 0..1, NaN without a match; num_matches -> (...).
    """
    total = {name: np.asarray(x, np.float64).sum(-1) for name, x in counts.items()}

    def share(name, of):
        return np.where(total[of] > 0, total[name] / np.maximum(total[of], 1), np.nan)

    return {
        "top1": share("top1", "num_matches"),
        "top3": share("top3", "num_matches"),
        "box_iou": share("box_iou", "num_boxes"),
        "num_matches": total["num_matches"],
    }


class RecognitionEvaluator:
    """An evaluator of a head's categories and boxes over the matched slots; see `Evaluator`."""

    metrics = RECOGNITION_METRICS
    outputs = ("logits", "predicted_box", "object", "category", "box", "iou")
    paper_differs = True
    protocol = {"masks": "slot attention", "mean_over": "matches"}

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Count matches, correct categories and box overlaps of each sample."""
        del batch
        return Measured(_counted(dict(outputs)))

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        """Return the counts (samples,) by name."""
        del match_paper
        return dict(tables)

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the scores (...) of counts (..., samples)."""
        return scores_of_counts(per_sample)


@jax.jit
def _counted(outputs: dict[str, jax.Array]) -> dict[str, Float[Array, " B"]]:
    targets = Targets(*(outputs[name] for name in Targets._fields))
    return count(outputs["logits"], outputs["predicted_box"], targets)
