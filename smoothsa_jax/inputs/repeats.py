"""Indices that come several times each, without a list of them all."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

BLOCK = 256  # indices of which one sum is kept


class Repeats(Sequence[int]):
    """The numbers 0, 1, ... in order, number i `counts[i]` times: `np.repeat` without its memory.

    It also tells where each number begins, so that it finds the records of a clip's frames. Equal
    counts take no memory. Others take a byte each, or as many as the largest needs, and every
    `BLOCK` of them one sum.

    Args:
        counts: how often each number comes; 0: not at all.
    """

    def __init__(self, counts: Int[np.ndarray, " samples"]):
        self._number = len(counts)
        first = int(counts[0]) if len(counts) else 0
        self._each = first if (counts == first).all() else None  # None: they differ
        if self._each is not None:
            self._length = self._number * self._each
            self._present = self._number if self._each else 0
            return
        # A copy: the counts may be a view of something larger.
        self._counts = counts.astype(np.min_scalar_type(int(counts.max())))
        sums = np.add.reduceat(counts, np.arange(0, len(counts), BLOCK), dtype=np.int64)
        self._ends = np.cumsum(sums)
        self._length = int(self._ends[-1])
        self._present = int(np.count_nonzero(counts))

    @property
    def number(self) -> int:
        """How many numbers have a count, of which some may be 0."""
        return self._number

    @property
    def present(self) -> int:
        """How many numbers come at least once."""
        return self._present

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        """The number at a position; slices are not taken."""
        position = int(position)
        if not -self._length <= position < self._length:
            raise IndexError(f"position {position} is not in 0..{self._length - 1}")
        position %= self._length
        if self._each is not None:
            return position // self._each
        block = int(np.searchsorted(self._ends, position, side="right"))
        before = int(self._ends[block - 1]) if block else 0
        ends = np.cumsum(self._counts[block * BLOCK : (block + 1) * BLOCK], dtype=np.int64)
        return block * BLOCK + int(np.searchsorted(ends, position - before, side="right"))

    def __iter__(self) -> Iterator[int]:
        for number in range(self._number):
            yield from [number] * self.count_of(number)

    def count_of(self, number: int) -> int:
        """How often a number comes."""
        return int(self._each if self._each is not None else self._counts[number])

    def begin(self, number: int) -> int:
        """The position of a number's first place: the sum of the counts before it."""
        if self._each is not None:
            return number * self._each
        block = number // BLOCK
        before = int(self._ends[block - 1]) if block else 0
        return before + int(self._counts[block * BLOCK : number].sum(dtype=np.int64))


def distinct(indices: Sequence[int]) -> int:
    """How many different indices there are."""
    if isinstance(indices, Repeats):
        return indices.present
    return len(indices) if isinstance(indices, range) else len(np.unique(np.asarray(indices)))
