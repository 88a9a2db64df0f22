"""Cached features in place of pixels, as written by `python -m data.store`.

A record holds one frame, so that a window of a clip reads only its own frames.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from jaxtyping import Shaped
from tensorflow_datasets.proto import tf_example_pb2

from smoothsa_jax.errors import UserError
from smoothsa_jax.files import expanded
from smoothsa_jax.inputs.manifest import MANIFEST, fingerprint, frame_counts
from smoothsa_jax.inputs.records import Records

AUTO = "auto"  # value of data.features: beside data.folder
TOKENS = np.dtype("<i4")
MADE_TOKENS = "tokenizer"  # what a folder says of the tokenizer whose tokens it holds
STORED = np.dtype("<u2")  # the 16 bits of a bfloat16, which not all programs support


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
    if named == AUTO:
        return beside(data["folder"])
    return expanded(named) if named else None


def beside(folder: str | Path) -> Path:
    """The default folder of the features of a prepared folder."""
    folder = expanded(folder)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return Path(f"{folder}_features")


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


class CachedFeatures:
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
        self._source, self._split = source, split
        folder = expanded(folder)
        if not (folder / MANIFEST).is_file():
            raise UserError(
                f"data.features {folder} has no {MANIFEST}, expected a finished folder of "
                "features; make it with python -m data.store CONFIG, or leave "
                "data.features empty"
            )
        self._ends = np.cumsum(frame_counts(folder, split))  # raises on a damaged manifest
        self.made_of: dict[str, Any] = json.loads((folder / MANIFEST).read_text()).get(
            "made_of", {}
        )
        self._with_tokens = with_tokens and MADE_TOKENS in self.made_of
        self._with_pixels = with_pixels and not self._with_tokens
        self._records = Records(folder, split)
        if len(self._ends) < len(source):
            raise UserError(
                f"data.features {folder} holds {len(self._ends)} clips, training has "
                f"{len(source)}: set data.num_samples={len(self._ends)}, or remove that folder and "
                "store the features of all with python -m data.store"
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.draw(index, np.random.default_rng(index))

    def epoch(self) -> Sequence[int]:
        """The indices of one training epoch, as given by the source."""
        own = getattr(self._source, "epoch", None)
        return own() if own else np.arange(len(self))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sample `index`, with a window of frames drawn from `rng`.

        Raises:
            UserError: a record is unreadable.
        """
        sample, which = self._source.without_pixels(index, rng)
        if self._with_pixels:
            sample = {**sample, "video": self._source.fixed_pixels(index, which)}
        begin = self._ends[index - 1] if index else 0
        frames = [self._frame(int(begin) + t) for t in which]
        found = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
        return {**sample, **found, "features": found["features"].view(ml_dtypes.bfloat16)}

    @property
    def folder(self) -> Path:
        return self._records.folder

    def fingerprint(self) -> str | None:
        """A hash of the stored features; None: unknown."""
        return fingerprint(self._records.folder, self._split)

    def _frame(self, number: int) -> dict[str, Shaped[np.ndarray, "M ..."]]:
        example = tf_example_pb2.Example.FromString(self._records[number]).features.feature
        bits = np.frombuffer(example["features"].bytes_list.value[0], STORED)
        found = {"features": bits.reshape(self.made_of["shape"])}
        if self._with_tokens:
            tokens = np.frombuffer(example["tokens"].bytes_list.value[0], TOKENS)
            found["tokens"] = tokens.astype(np.int32)
        return found
