"""Segment a part with a model: videos side by side, in places that are filled across files."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from smoothsa_jax.bulk import reading
from smoothsa_jax.bulk.corpus import Tables
from smoothsa_jax.bulk.rows import Rows, Segmented
from smoothsa_jax.config.values import from_json, to_json
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.side_by_side import SideBySide

PLACES = {"cpu": 8}  # videos, or pictures, at once
PLACES_OF_ACCELERATORS = 32
KEPT = 64  # frames of a long video, before their masks are reduced to boxes and areas


def shipped(model: Segmenter) -> dict[str, Any]:
    """A model as plain values, which every process can make it of."""
    params = {name: np.asarray(x) for name, x in model.params.items()}
    return {"config": to_json(model.config), "params": params, "step": model.step}


class Worker:
    """Holds a model, and segments parts with it.

    Args:
        model: what `shipped` has made.
        options: arguments of `SideBySide`.
        masks: how masks are stored; see `rows`.
        places: how many videos run at once; None: by the kind of device.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        options: Mapping[str, Any],
        masks: str | None,
        places: int | None = None,
    ):
        made = Segmenter(from_json(model["config"]), model["params"], model["step"])
        self.image_size, self._masks = made.image_size, masks
        kind = jax.local_devices()[0].platform
        self._places = places or PLACES.get(kind, PLACES_OF_ACCELERATORS)
        self._step = SideBySide(made, self._places, **options)

    def __call__(self, entries: list[Any]) -> list[Any]:
        """Segment a part.

        Args:
            entries: what `reading.decoded` returned.

        Returns:
            In the same order, a `rows.Segmented` or `rows.Rows` for each video, and `reading.Bad`.
        """
        outcomes, self._tables = list(entries), Tables()
        waiting = deque(i for i, x in enumerate(entries) if not isinstance(x, reading.Bad))
        places: list[_Place | None] = [None] * self._places
        frames = np.zeros((self._places, *self.image_size, 3), np.uint8)
        while True:
            begins = np.zeros(self._places, bool)
            for number in range(self._places):
                begins[number] = self._fill(places, number, waiting, entries, outcomes, frames)
            if not any(places):
                return outcomes
            found = self._step(frames, begins)
            for number, place in enumerate(places):
                if place is not None:
                    place.add([x[number].copy() for x in found])

    def _fill(
        self,
        places: list["_Place | None"],
        number: int,
        waiting: deque[int],
        entries: list[Any],
        outcomes: list[Any],
        frames: np.ndarray,
    ) -> bool:
        """Put the next frame into a place; return whether it is the first one of a video."""
        while True:
            begins = places[number] is None
            if begins:
                if not waiting:
                    return False
                index = waiting.popleft()
                places[number] = _Place(
                    index, entries[index], self._tables, self.image_size, self._masks
                )
            place = places[number]
            try:
                frames[number] = next(place.frames)
                return begins
            except StopIteration:
                outcomes[place.index] = place.outcome()
            except Exception as error:  # in the middle of a long video
                outcomes[place.index] = reading.bad(entries[place.index].item, error)
            places[number] = None


class _Place:
    """A video in a place, and what has been found in it."""

    def __init__(
        self, index: int, entry: Any, tables: Tables, size: tuple[int, int], masks: str | None
    ):
        self.index, self._entry, self._masks = index, entry, masks
        self._source: reading.Frames | None = None
        if isinstance(entry, reading.Long):
            self._source = reading.Frames(entry.item, tables, size)
        self.frames: Iterator[np.ndarray] = iter(self._source or entry.frames)
        self._found: list[list[np.ndarray]] = []
        self._rows: list[Rows] = []

    def add(self, found: list[np.ndarray]) -> None:
        self._found.append(found)
        if self._source is not None and len(self._found) == KEPT:
            self._reduce()

    def _reduce(self) -> None:
        """Keep rows of a long video alone, so that memory hardly grows with its length."""
        if self._found:
            self._rows.append(Rows.of(self._segmented(), self._masks))
            self._found = []

    def _segmented(self) -> Segmented:
        name, size, note = (
            (self._entry.name, self._entry.size, self._entry.note)
            if self._source is None
            else (self._entry.item.name, self._source.size, self._source.note)
        )
        arrays = [np.stack(x) for x in zip(*self._found, strict=True)]
        return Segmented(name, size, note, *arrays)

    def outcome(self) -> Any:
        if self._source is None:
            return self._segmented()
        self._reduce()
        return Rows.joined(self._rows)._replace(note=self._source.note)
