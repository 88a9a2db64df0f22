"""From a random-access source of samples to batches, with Grain's threads ahead of the device.

Batches are dicts of NumPy arrays; placing them on devices happens elsewhere.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import grain
import numpy as np

from smoothsa_jax.errors import UserError


class Source(Protocol):
    """Anything with a length and samples by index, see smoothsa_jax.inputs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class _WithValid:
    """A source filled up to whole batches: the last sample again, marked as not valid."""

    def __init__(self, source: Source, batch_size: int):
        self._source = source
        self._length = -(-len(source) // batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        last = len(self._source) - 1
        return {**self._source[min(index, last)], "valid": np.array(index <= last)}


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} samples was asked for; it needs at least 1")


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    num_threads: int = 1,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Endless batches in an order that depends on `seed` only, newly shuffled every epoch.

    `iterator.get_state()` and `set_state()` save and restore the position: a restored iterator goes
    on with the identical next batch. `num_threads` threads make up to `prefetch` batches ahead.
    Epochs are joined: a batch may hold the end of one and the start of the next, so a source may be
    smaller than a batch. Raises UserError for an empty source or batch.
    """
    _check_batch_size(batch_size)
    if len(source) < 1:
        raise UserError("the training split holds no sample; check the data folder and the split")
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)
    return iter(dataset.to_iter_dataset(_read_options(num_threads, prefetch)))


def evaluation_batches(
    source: Source, batch_size: int, *, num_threads: int = 1, prefetch: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """Every sample once, in order. All batches have the size `batch_size`.

    Each carries `valid` (B,) bool; the last one is filled up with copies that have `valid` false.
    """
    _check_batch_size(batch_size)
    dataset = grain.MapDataset.source(_WithValid(source, batch_size)).batch(batch_size)
    return iter(dataset.to_iter_dataset(_read_options(num_threads, prefetch)))


def _read_options(num_threads: int, prefetch: int) -> Any:
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
