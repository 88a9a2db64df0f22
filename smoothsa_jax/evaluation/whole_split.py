"""A split's result from the parts that several processes have of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def whole_split(parts: Sequence[T], batch_size: int, num_samples: int) -> T:
    """What one process would have found that scored all samples, in the order of the split.

    Args:
        parts: of each process; process p has the batches p, p + P, p + 2P, ... of P processes, as `evaluation_batches` shares
            them out. Lists with one entry a sample, arrays (..., samples), None, or mappings and dataclasses of these.
        batch_size: samples of a batch; only the last one of a split has fewer.
        num_samples: of the split; entries beyond it are dropped.
    """
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {
            name: whole_split([part[name] for part in parts], batch_size, num_samples)
            for name in first
        }
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        fields = whole_split(
            [{name: getattr(part, name) for name in names} for part in parts],
            batch_size,
            num_samples,
        )
        return dataclasses.replace(first, **fields)
    if isinstance(first, np.ndarray):
        columns = [np.moveaxis(part, -1, 0) for part in parts]
        return np.stack(_in_order(columns, batch_size, num_samples), axis=-1)
    return _in_order(parts, batch_size, num_samples)


def _in_order(parts: Sequence[Sequence[Any]], batch_size: int, num_samples: int) -> list[Any]:
    found = {
        ((i // batch_size) * len(parts) + process) * batch_size + i % batch_size: entry
        for process, part in enumerate(parts)
        for i, entry in enumerate(part)
    }
    return [found[place] for place in sorted(found) if place < num_samples]
