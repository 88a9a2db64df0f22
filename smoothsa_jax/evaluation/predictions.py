"""A model over a whole split, once for every evaluation seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from smoothsa_jax.errors import UserError

Batch = Mapping[str, Any]
Outputs = TypeVar("Outputs")


def predictions(
    predict: Callable[[Batch, jax.Array], Outputs], batches: Iterable[Batch], seeds: Sequence[int]
) -> Iterator[tuple[Batch, int, Outputs]]:
    """Gives (batch, number of the seed, what `predict` made of them), every seed on every batch.

    Queries are random at evaluation. The key of batch i (its "batch_number", where it has one: a host may have some
    batches of a split only) under seed s is `fold_in(key(s), i)`, so what is
    predicted depends on seed and batching, and on nothing else. Each is given out one step late: the device is
    then at work on the next one while the host looks at it.

    Raises:
        UserError: no seed or no batch.
    """
    if not seeds:
        raise UserError("eval.seeds is empty: expected at least one seed, for example (0,)")
    waiting = None
    for i, batch in enumerate(batches):
        i = int(batch.get("batch_number", i))
        for number, seed in enumerate(seeds):
            outputs = predict(batch, jax.random.fold_in(jax.random.key(int(seed)), i))
            if waiting is not None:
                yield waiting
            waiting = (batch, number, outputs)
    if waiting is None:
        raise UserError("the split has no batch: found 0 samples, expected at least 1")
    yield waiting


def scored(batch: Batch) -> np.ndarray:
    """The numbers of a batch's samples that count; the others only fill up the last batch."""
    if "valid" not in batch:
        return np.arange(len(batch["segmentations"]))
    return np.flatnonzero(batch["valid"])


def num_frames_of(batch: Batch, b: int) -> int:
    """How many frames of sample `b` count; those after them only fill it up."""
    return int(batch["num_frames"][b]) if "num_frames" in batch else batch["segmentations"].shape[1]


def paper_slot_mask(batch: Batch) -> np.ndarray:
    """(B, N) bool, the slots that take part where the paper's protocol pads (method section 7, trap 2).

    Every sample of a batch gets as many slots as the one with the most boxes; those without a box of their own
    start from a box of -1. Valid slots come first.
    """
    mask = np.asarray(batch["slot_mask"])
    most = mask[scored(batch)].sum(axis=1).max()
    return np.broadcast_to(np.arange(mask.shape[1]) < most, mask.shape)
