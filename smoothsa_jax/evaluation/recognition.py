"""Which object each slot stands for, and how well its category and box are told (method section 6, "Recognition").

A slot is matched to an object where its mask, by *slot* attention, overlaps the object's: in every frame the one-to-one
matching (Hungarian) of largest total IoU, of which the pairs above `MATCH_IOU` stay. Everything here is written with
`jax.numpy` and fixed shapes, so that a training step matches on the device, in one program with the model: matching on the
host would make every step wait for its masks.

Objects are numbered 0 .. K-1: object k has label k + 1. The background, label 0, is no object; 255 is in no segment.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from optax.assignment import hungarian_algorithm

from smoothsa_jax.evaluation.split import Batch, Measured
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.models.backend import CPU, Backend

MATCH_IOU = 0.1  # a matched pair has more
KEPT_BY_THE_AUTHORS = 2  # objects of each image: those numbered 0 and 1
RECOGNITION_METRICS = ("top1", "top3", "box_iou", "num_matches")


class Targets(NamedTuple):
    """What each slot of each frame should tell.

    Attributes:
        object: number of the matched object, -1 where there is none.
        category: its category; 0 where nothing is matched.
        box: its box in that frame: normalised left, top, right, bottom; 0 where nothing is matched.
        iou: of the slot's mask and the object's; 0 where nothing is matched.
    """

    object: Int[Array, "... N"]
    category: Int[Array, "... N"]
    box: Float[Array, "... N 4"]
    iou: Float[Array, "... N"]

    @property
    def matched(self) -> Bool[Array, "... N"]:
        return self.object >= 0


# ------------------------------------------------------------------------------------------------------- matching


def segment_iou(
    predicted: Bool[Array, "... P N"], true: Bool[Array, "... P K"]
) -> Float[Array, "... N K"]:
    """Intersection over union of every pair of segments, from one-hot pixels; 0 where both are empty.

    A pixel in no true segment counts in the predicted area. Exact below 2**24 pixels.
    """
    predicted, true = predicted.astype(jnp.float32), true.astype(jnp.float32)
    both = jnp.einsum(
        "...pn,...pk->...nk", predicted, true
    )  # zeros and ones: exact at any precision
    areas = predicted.sum(-2)[..., :, None] + true.sum(-2)[..., None, :]
    return both / jnp.maximum(areas - both, 1.0)


def assign(iou: Float[Array, "... N K"]) -> Int[Array, "... N"]:
    """The one-to-one matching of largest total IoU: each slot's object, -1 for a slot without one."""
    *lead, num_slots, num_objects = iou.shape

    def one(table):
        slots, objects = hungarian_algorithm(-table)
        return jnp.full(num_slots, -1, jnp.int32).at[slots].set(objects.astype(jnp.int32))

    assigned = jax.vmap(one)(iou.reshape(-1, num_slots, num_objects))
    return assigned.reshape(*lead, num_slots)


def match(
    iou: Float[Array, "... N K"],
    slot_mask: Bool[Array, "... N"] | None = None,
    allowed: Bool[Array, "... K"] | None = None,
) -> tuple[Int[Array, "... N"], Float[Array, "... N"]]:
    """Each slot's object, -1 where none overlaps it by more than `MATCH_IOU`; and their IoU, 0 where -1.

    Args:
        iou: of masks and objects; an absent object has 0 throughout.
        slot_mask: true = valid; another slot never matches and takes no object from a valid one.
        allowed: objects that are kept. It is looked at after the matching: the others do take part in it.
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
    """The objects that the authors' filter lets through, by a slip: numbers 0 and 1 (method section 7, trap 3).

    They number the objects that a sample has, so an object that is in no frame of it has no number.
    """
    number = jnp.cumsum(present, axis=-1) - 1
    return present & (number < KEPT_BY_THE_AUTHORS)


def object_boxes(objects: Bool[Array, "H W K"]) -> Float[Array, "K 4"]:
    """Boxes from one-hot labels: left, top, right, bottom pixel, both ends included, over width and height.

    0 for an absent object (method section 6.1).
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
    """Matches the slots of every frame to the objects of that frame; made to be called inside `jax.jit`.

    Args:
        attention: of slot attention, not of the decoder.
        segmentations: 0 background, k + 1 object k, 255 in no segment.
        categories: of the objects; -1: there is no such object, or its category is unknown: it never matches.
        slot_mask: true = valid; other slots get no pixel and never match.
        match_paper: keep only objects numbered 0 and 1 of each sample, as the authors do; static.
        backend: what to compile for; static.

    Raises:
        UserError: the slot mask does not fit the attention.
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

    # Frames one after another, to keep memory small; samples side by side, so that they stay on their devices.
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


# --------------------------------------------------------------------------------------------------------- scores


def box_iou(predicted: Float[Array, "... 4"], true: Float[Array, "... 4"]) -> Float[Array, "..."]:
    """Intersection over union of boxes (left, top, right, bottom), in the plane: sides are right - left.

    NaN where both boxes are empty: such a pair is left out of means. A side that is negative counts as 0.
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
    """Whether fewer than `k` classes have a larger logit than the true one."""
    of_true = jnp.take_along_axis(logits, category[..., None], axis=-1)
    return (logits > of_true).sum(-1) < k


def count(
    logits: Float[Array, "B T N classes"], boxes: Float[Array, "B T N 4"], targets: Targets
) -> dict[str, Float[Array, " B"]]:
    """What the scores are made of, summed over the matched slots of all frames of each sample.

    Returns:
        num_matches; top1 and top3: of them with the category among the first 1 or 3; num_boxes: of them where the box IoU
        is defined, and box_iou: its sum.
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
    """Scores over all matches of a split, each match weighing the same.

    Args:
        counts: name -> (..., samples), as `count` gives them.

    Returns:
        top1, top3, box_iou -> (...) float64 in 0..1, NaN where nothing is matched; num_matches -> (...).
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
    """Counts of a head's right categories and box overlaps over the matched slots."""

    metrics = RECOGNITION_METRICS
    outputs = ("logits", "predicted_box", "object", "category", "box", "iou")
    paper_differs = True
    protocol = {"masks": "slot attention", "mean_over": "matches"}

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        del batch
        return Measured(_counted(dict(outputs)))

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        del match_paper
        return dict(tables)

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return scores_of_counts(per_sample)


@jax.jit
def _counted(outputs: dict[str, jax.Array]) -> dict[str, Float[Array, " B"]]:
    targets = Targets(*(outputs[name] for name in Targets._fields))
    return count(outputs["logits"], outputs["predicted_box"], targets)
