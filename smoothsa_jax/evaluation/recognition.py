"""Which object each slot stands for, and how well its category and box are told (method section 6, "Recognition").

A slot is matched to an object where its mask, by *slot* attention, overlaps the object's: in every frame the one-to-one
matching (Hungarian) of largest total IoU, of which the pairs above `MATCH_IOU` stay. Everything here is written with
`jax.numpy` and fixed shapes, so that a training step matches on the device, in one program with the model: matching on the
host would make every step wait for its masks.

Objects are numbered 0 .. K-1: object k has label k + 1. The background, label 0, is no object; 255 is in no segment.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from optax.assignment import hungarian_algorithm

from smoothsa_jax.evaluation.masks import masks_from_attention
from smoothsa_jax.evaluation.predictions import Batch, paper_slot_mask, predictions, scored
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
    attention: Float[Array, "B T N M"],
    grid: tuple[int, int],
    segmentations: Int[Array, "B T H W"],
    categories: Int[Array, "B K"],
    slot_mask: Bool[Array, "B N"] | None = None,
    match_paper: bool = False,
    backend: Backend = CPU,
) -> Targets:
    """Matches the slots of every frame to the objects of that frame; made to be called inside `jax.jit`.

    Args:
        attention: of slot attention, not of the decoder.
        grid: (h, w) with h * w = M; static.
        segmentations: 0 background, k + 1 object k, 255 in no segment.
        categories: of the objects; -1: there is no such object, or its category is unknown: it never matches.
        slot_mask: true = valid; other slots get no pixel and never match.
        match_paper: keep only objects numbered 0 and 1 of each sample, as the authors do; static.
        backend: what to compile for; static.

    Raises:
        UserError: the grid or the slot mask does not fit the attention.
    """
    num_slots, num_objects = attention.shape[2], categories.shape[-1]

    def of_frame(args):
        mask, labels = args
        objects = labels[..., None] == jnp.arange(1, num_objects + 1)
        slots = (mask[..., None] == jnp.arange(num_slots)).reshape(-1, num_slots)
        iou = segment_iou(slots, objects.reshape(-1, num_objects))
        return iou, object_boxes(objects), objects.any((0, 1))

    def of_sample(attention, labels, valid):
        masks = masks_from_attention(attention, grid, labels.shape[-2:], valid, backend=backend)
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


@dataclasses.dataclass(frozen=True)
class RecognitionEvaluation:
    """What `evaluate_recognition` found.

    Attributes:
        counts: name -> (seeds, samples) float64, as `count` gives them.
        paper_counts: the same by the paper's protocol, where it was asked for.
        names: of the samples, "" where the data set has none.
    """

    counts: dict[str, np.ndarray]
    paper_counts: dict[str, np.ndarray] | None
    names: list[str]


def evaluate_recognition(
    predict: Callable[[Batch, jax.Array, bool], Mapping[str, jax.Array]],
    batches: Iterable[Batch],
    seeds: Sequence[int] = (0,),
    *,
    match_paper: bool = False,
) -> RecognitionEvaluation:
    """Counts of every sample of a split, for every seed; batches and seeds as for `protocol.evaluate`.

    Args:
        predict: (batch, key, match_paper) -> counts of each sample, as `count` gives them.
        match_paper: count by the paper's protocol as well: `paper_slot_mask` and `kept_by_the_authors`.

    Raises:
        UserError: no seed or no sample.
    """

    def counts_of(batch: Batch, key: jax.Array) -> dict[bool, Mapping[str, jax.Array]]:
        found = {False: predict(batch, key, False)}
        if match_paper:
            padded = {**batch, "slot_mask": paper_slot_mask(batch)}
            found[True] = predict(padded, key, True)
        return found

    rows = {paper: [[] for _ in seeds] for paper in ((False, True) if match_paper else (False,))}
    names: list[str] = []
    for batch, number, found in predictions(counts_of, batches, seeds):
        at = scored(batch)
        for paper, counts in jax.device_get(found).items():
            rows[paper][number].append({name: x[at] for name, x in counts.items()})
        if number == 0:
            names += (
                [str(name) for name in batch["name"][at]] if "name" in batch else [""] * len(at)
            )
    stacked = {
        paper: {
            name: np.stack([np.concatenate([c[name] for c in row]) for row in of_seeds]).astype(
                float
            )
            for name in of_seeds[0][0]
        }
        for paper, of_seeds in rows.items()
    }
    return RecognitionEvaluation(stacked[False], stacked.get(True), names)
