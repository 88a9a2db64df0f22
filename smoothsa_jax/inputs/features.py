"""Stored features, or slots, in place of pixels, as written by `python -m data.store`.

A record holds one frame, so that a window of a clip reads only its own frames.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from tensorflow_datasets.proto import tf_example_pb2

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.inputs.addresses import is_remote
from smoothsa_jax.inputs.manifest import MANIFEST, fingerprint, frame_counts
from smoothsa_jax.inputs.records import Records
from smoothsa_jax.inputs.remote import local_folder
from smoothsa_jax.inputs.repeats import Repeats

AUTO = "auto"  # value of data.features: beside data.folder
TOKENS = np.dtype("<i4")
MADE_TOKENS = "tokenizer"  # what a folder says of the tokenizer whose tokens it holds
STORED = np.dtype("<u2")  # the 16 bits of a bfloat16, which not all programs support
HALF = np.dtype("<f2")  # of slots, attention and masks
# Bytes of a split's slots that stay in memory once they were read, in each process that reads.
MOST_KEPT = 128 * 2**20
# Of a frame, as far as the slot model has them; the last one is the mean of its features.
SLOT_ARRAYS = ("slots", "attention", "masks", "pooled")


def features_folder(data: Mapping[str, Any]) -> Path | None:
    """The folder of the features to train on; None: training sees pixels.

    Args:
        data: the `data` part of a config.

    Raises:
        UserError: "auto" for a data set without a folder.
    """
    named = data.get("features")
    if named == AUTO and "folder" not in data:
        raise UserError(
            f"data.features is {AUTO!r}, which is beside data.folder, but this data set has none; "
            "name a folder"
        )
    if named == AUTO and is_remote(data["folder"]):
        raise UserError(
            f"data.features is {AUTO!r}, which is beside data.folder, and {data['folder']} is not "
            "on this machine; store them with python -m data.store --out, and name that folder"
        )
    if named == AUTO:
        return beside(data["folder"])
    return local_folder(named, data.get("cache")) if named else None


def slots_folder(data: Mapping[str, Any]) -> Path | None:
    """The folder of the slots to train on; None: a frozen model finds them.

    Args:
        data: the `data` part of a config.

    Raises:
        UserError: "auto", which main.py replaces before it trains.
    """
    named = data.get("slots")
    if named == AUTO:
        raise UserError(
            f"data.slots is {AUTO!r}, which main.py makes a folder of the workdir; name a folder "
            "that python -m data.store has written, or set --config.data.slots="
        )
    return local_folder(named, data.get("cache")) if named else None


def beside(folder: str | Path, what: str = "features") -> Path:
    """The default folder of the features, or slots, of a prepared folder."""
    folder = expanded(folder)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return Path(f"{folder}_{what}")


class FixedViewSource(Protocol):
    """A source that can give a training sample without pixels, for a fixed view of every frame."""

    def __len__(self) -> int: ...

    def without_pixels(
        self, index: int, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], range]:
        """The sample without "video", and the frames of the clip that it holds."""
        ...

    def fixed_pixels(self, index: int, which: range) -> np.ndarray:
        """These frames (T,H,W,3) of a sample in the fixed view, as they were stored."""
        ...


class _Stored:
    """What was stored of each frame of a split's clips.

    Args:
        source: a source of the same clips.
        folder: a folder written by `python -m data.store`.
        split: the split of both.
        key: the key of the config that names the folder, for messages.
        what: what it holds.

    Raises:
        UserError: the folder is unreadable, holds something else, or has fewer clips than the
            source.
    """

    def __init__(
        self, source: FixedViewSource, folder: str | Path, split: str, key: str, what: str
    ):
        self._source, self._split = source, split
        folder = expanded(folder)
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"{key} {folder} has no {MANIFEST}, expected a finished folder of {what}; make it "
                f"with python -m data.store CONFIG, or leave {key} empty"
            )
        manifest = json.loads((folder / MANIFEST).read_text())
        if (found := manifest.get("metadata", {}).get("kind", what)) != what:
            raise UserError(
                f"{key} {folder} holds {found}, expected {what}; give a folder that python -m "
                f"data.store has made of them, or leave {key} empty"
            )
        self._clips = Repeats(frame_counts(folder, split))  # raises on a damaged manifest
        self.made_of: dict[str, Any] = manifest.get("made_of", {})
        self._records = Records(folder, split)
        if (number := self._clips.number) < len(source):
            raise UserError(
                f"{key} {folder} holds {number} clips, training has "
                f"{len(source)}: set data.num_samples={number}, or remove that folder and "
                f"store the {what} of all with python -m data.store"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.draw(index, np.random.default_rng(index))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def epoch(self) -> Sequence[int]:
        """The indices of one training epoch, as given by the source."""
        self._refuse_full_disk()
        own = getattr(self._source, "epoch", None)
        return own() if own else range(len(self))

    def _refuse_full_disk(self) -> None:
        self._records.refuse_full_disk(len(self._records))

    @property
    def folder(self) -> Path:
        return self._records.folder

    def fingerprint(self) -> str | None:
        """A hash of what is stored; None: unknown."""
        return fingerprint(self._records.folder, self._split)

    def _frames(
        self, index: int, which: Sequence[int], read: Mapping[str, tuple[np.dtype, Sequence[int]]]
    ) -> dict[str, Shaped[np.ndarray, "T ..."]]:
        """Read arrays of these frames of a clip.

        Args:
            index: of the clip.
            which: its frames.
            read: name -> dtype and shape, of a frame.
        """
        begin = self._clips.begin(index)
        found: dict[str, list[np.ndarray]] = {name: [] for name in read}
        for t in which:
            record = self._records[begin + t]
            example = tf_example_pb2.Example.FromString(record).features.feature
            for name, (dtype, shape) in read.items():
                array = np.frombuffer(example[name].bytes_list.value[0], dtype)
                found[name].append(array.reshape(shape))
        return {name: np.stack(arrays) for name, arrays in found.items()}


class CachedFeatures(_Stored):
    """A source of training samples with "features" (T, M, C) bfloat16 in place of "video".

    Windows of frames are drawn as without the cache. Every frame is seen in the fixed view that was
    stored. Folders of systems of tokens also hold "tokens" (T, M) int32.

    Args:
        source: a source of the same clips.
        folder: a folder written by `python -m data.store`.
        split: the split of both.
        with_pixels: whether samples also have "video", in the view that was stored.
        with_tokens: whether samples have "tokens", where these are stored. The pixels are not
            needed then: they would be what tokens are made of.

    Raises:
        UserError: the folder is unreadable, or has fewer clips than the source.
    """

    def __init__(
        self,
        source: FixedViewSource,
        folder: str | Path,
        split: str,
        with_pixels: bool = False,
        with_tokens: bool = False,
    ):
        super().__init__(source, folder, split, "data.features", "features")
        self._with_tokens = with_tokens and MADE_TOKENS in self.made_of
        self._with_pixels = with_pixels and not self._with_tokens

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sample `index`, with a window of frames drawn from `rng`.

        Raises:
            UserError: a record is unreadable.
        """
        sample, which = self._source.without_pixels(index, rng)
        if self._with_pixels:
            sample = {**sample, "video": self._source.fixed_pixels(index, which)}
        read = {"features": (STORED, self.made_of["shape"])}
        if self._with_tokens:
            read["tokens"] = (TOKENS, (-1,))
        found = self._frames(index, which, read)
        if self._with_tokens:
            found["tokens"] = found["tokens"].astype(np.int32)
        return {**sample, **found, "features": found["features"].view(ml_dtypes.bfloat16)}


class CachedSlots(_Stored):
    """A source of samples with what a frozen slot model finds: "slots" (T, N, D) float16, and more.

    Windows of frames are drawn as without the store, but the slots are those of whole clips. The
    slot mask is the store's.

    Args:
        source: a source of the same clips.
        folder: a folder written by `python -m data.store`.
        split: the split of both.
        reads: which of `SLOT_ARRAYS` samples have: "slots", "attention" (T, N, h, w), "masks" of
            the decoder, and "pooled" (T, C), the mean of a frame's features.
        with_pixels: whether samples also have "video", in the view that was stored.

    Raises:
        UserError: the folder is unreadable, lacks what is read, or has fewer clips than the source.
    """

    matched_by_name = False  # whether clips and what is stored of them are
    _kept: dict[int, dict[str, np.ndarray]] | None = None  # clips that were read, if all fit

    def __init__(
        self,
        source: FixedViewSource,
        folder: str | Path,
        split: str,
        reads: Sequence[str] = ("slots",),
        with_pixels: bool = False,
    ):
        super().__init__(source, folder, split, "data.slots", "slots")
        shapes = self.made_of["shapes"]
        for name in reads:
            if name not in shapes:
                raise UserError(
                    f"data.slots {self.folder} has no {name}, which is read; it has "
                    f"{', '.join(shapes)}; store them for this config, or set --config.data.slots="
                )
        self._read = {name: (HALF, shapes[name]) for name in reads}
        self._read["slot_mask"] = (np.dtype("u1"), (-1,))
        self._with_pixels = with_pixels
        numbers = sum(math.prod(shapes[name]) for name in reads)
        if len(self._records) * numbers * HALF.itemsize <= MOST_KEPT:
            self._kept = {}

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sample `index`, with a window of frames drawn from `rng`.

        Raises:
            UserError: a record is unreadable.
        """
        sample, which = self._source.without_pixels(index, rng)
        if self._with_pixels:
            sample = {**sample, "video": self._source.fixed_pixels(index, which)}
        return {**sample, **self._stored(index, which)}

    @property
    def is_random(self) -> bool:
        """Whether windows of frames are drawn anew each time."""
        return not hasattr(self._source, "window")

    def of_clip(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What is stored of a clip, with the slot mask, and nothing of the source.

        Args:
            index: of the clip.
            rng: draws the window of frames.
        """
        if self.is_random:
            return self._stored(index, self._source.without_pixels(index, rng)[1])
        return self._stored(index, self._source.window(index))

    def length(self, index: int) -> int:
        """The number of stored frames of a clip."""
        return self._clips.count_of(index)

    def of_frames(self, index: int, which: Sequence[int]) -> dict[str, np.ndarray]:
        """What is stored of these frames of a clip, with the slot mask."""
        return self._stored(index, which)

    def _stored(self, index: int, which: Sequence[int]) -> dict[str, np.ndarray]:
        if self._kept is None:
            found = self._frames(index, which, self._read)
        else:
            if (whole := self._kept.get(index)) is None:
                whole = self._frames(index, range(self._clips.count_of(index)), self._read)
                self._kept[index] = whole
            found = {name: x[list(which)] for name, x in whole.items()}
        found["slot_mask"] = found["slot_mask"].astype(bool).all(axis=0)
        return found
