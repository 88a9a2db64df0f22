"""Evaluate a split in one pass: predict and measure every sample with every seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jaxtyping import Bool

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.resize import resize_labels

Batch = Mapping[str, Any]
Outputs = TypeVar("Outputs")
T = TypeVar("T")


class Evaluator(Protocol):
    """How the outputs of a task are scored.

    Attributes:
        metrics: names of the scores; any of them can choose the best checkpoint.
        outputs: names of the model's outputs that it reads.
        paper_differs: whether `match_paper` changes more than the slot mask.
        protocol: what `scores.json` states about it.

    An evaluator that reads no labels has `needs_labels` = False. One with metrics of which the
    lowest is best names them in `errors`.

    One that also scores rows beside the model's, such as its ceiling, names them in `rows`; their
    values have the row and a slash in front of their names.

    One that chooses something on the validation split has `fits_on_validation` = True, and
    `fitted(scores, rows)`, which returns the evaluator that then scores another split; both are
    those of the `Evaluation` of validation. One that names a metric in `best_of_paper` is scored
    with `match_paper` at every checkpoint that is kept: the paper has the best of them.

    An evaluator whose pictures are not the frames of a batch also has
    `kept(measured, batch, samples)` in place of `kept_samples`.
    """

    metrics: tuple[str, ...]
    outputs: tuple[str, ...]
    paper_differs: bool
    protocol: dict[str, Any]

    def measure(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Measured:
        """Measure each sample of a batch, on the device."""

    def per_sample(
        self, tables: Mapping[str, np.ndarray], match_paper: bool
    ) -> dict[str, np.ndarray]:
        """Return values (samples,) by name, from the tables of the valid samples."""

    def means(self, per_sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return each metric (...) from values (..., samples)."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluator found in a batch.

    Attributes:
        tables: small arrays (B, ...), on the device.
        segments: (B,T,H,W), the segment of each pixel, for pictures; None: there are none.
        rendered: (B,T,H,W,3) uint8, what the model predicts of the pixels; None: nothing.
    """

    tables: dict[str, jax.Array]
    segments: jax.Array | None = None
    rendered: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        scores: name -> (seeds, samples) float64; NaN leaves a sample out of this metric's mean.
        paper_scores: the same under the paper's protocol; None: not scored.
        names: names of the samples; "" if the data set has none.
        samples: the first few samples, each {"video" (T,H,W,3), "segmentations" (T,H,W),
            "masks" (T,H,W)}; the masks are predicted with the first seed. Of scenes, also
            "rendered" (T,H,W,3) and the "inputs" (V,H,W,3); they may have no masks. Of a
            tokenizer, "video" and "decoded" (T,H',W',3) alone.
        rows: the scores of the evaluator's other rows, by row.
    """

    scores: dict[str, np.ndarray]
    paper_scores: dict[str, np.ndarray] | None
    names: list[str]
    samples: list[dict[str, np.ndarray]]
    rows: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)


def evaluate(
    predict: Callable[[Batch, jax.Array, bool], Mapping[str, jax.Array]],
    batches: Iterable[Batch],
    evaluator: Evaluator,
    seeds: Sequence[int] = (0,),
    *,
    match_paper: bool = False,
    keep_samples: int = 0,
) -> Evaluation:
    """Predict a whole split once for every seed, and score each sample.

    Only scores are kept, so memory does not grow with the split.

    Args:
        predict: (batch, key, match_paper) -> the outputs that the evaluator reads.
        batches: each with "video", "segmentations" and optionally "slot_mask" (B, N), which keeps
            masked slots out of the masks; "valid" (B,) bool, false for padding of the last batch;
            "num_frames" (B,), the number of frames of each sample without padding; "name" (B,).
        evaluator: how outputs are scored.
        seeds: evaluation seeds, at least one; see `predictions`.
        match_paper: also score under the paper's protocol, with `paper_slot_mask` and the authors'
            arithmetic.
        keep_samples: number of first samples to keep for pictures.

    Raises:
        UserError: there is no seed or no sample, or the labels do not fit the predictions.
    """

    def measured(batch: Batch, key: jax.Array) -> dict[bool, Measured]:
        found = {False: evaluator.measure(predict(batch, key, False), batch)}
        if match_paper:
            own = batch.get("slot_mask")
            padded = None if own is None else paper_slot_mask(batch)
            same = own is None or np.array_equal(padded, own)
            if same and not evaluator.paper_differs:
                return {**found, True: found[False]}
            inputs = {**batch, "slot_mask": padded}
            found[True] = evaluator.measure(predict(inputs, key, evaluator.paper_differs), inputs)
        return found

    protocols = (False, True) if match_paper else (False,)
    rows = {paper: [[] for _ in seeds] for paper in protocols}
    names: list[str] = []
    samples: list[dict[str, np.ndarray]] = []
    for batch, number, found in predictions(measured, batches, seeds):
        at = scored(batch)
        # Only tables and the kept segments are copied to the host.
        tables = jax.device_get({paper: x.tables for paper, x in found.items()})
        for paper in protocols:
            mine = {name: x[at] for name, x in tables[paper].items()}
            rows[paper][number].append(evaluator.per_sample(mine, paper))
        if number > 0:
            continue
        names += [str(name) for name in batch["name"][at]] if "name" in batch else [""] * len(at)
        shown, kept = at[: keep_samples - len(samples)], getattr(evaluator, "kept", None)
        if kept is not None and len(shown):
            samples += kept(found[False], batch, shown)
        elif found[False].segments is not None and len(shown):
            samples += kept_samples(batch, np.asarray(found[False].segments), shown)
    stacked = {
        paper: {
            name: np.stack([np.concatenate([part[name] for part in of_seed]) for of_seed in found])
            for name in found[0][0]
        }
        for paper, found in rows.items()
    }
    stacked = {
        p: {n: x.astype(np.float64) for n, x in found.items()} for p, found in stacked.items()
    }
    own, beside = _apart(stacked[False], getattr(evaluator, "rows", ()))
    of_paper = None if True not in stacked else _apart(stacked[True], tuple(beside))[0]
    return Evaluation(own, of_paper, names, samples, beside)


def _apart(
    scores: Mapping[str, np.ndarray], rows: Iterable[str]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Return the model's scores, and those of other rows."""
    beside = {
        row: {n.removeprefix(f"{row}/"): x for n, x in scores.items() if n.startswith(f"{row}/")}
        for row in rows
    }
    taken = {f"{row}/{name}" for row, found in beside.items() for name in found}
    return {name: x for name, x in scores.items() if name not in taken}, beside


def kept_samples(
    batch: Batch, segments: np.ndarray, at: Iterable[int]
) -> list[dict[str, np.ndarray]]:
    """Copy samples of a batch, for pictures. A view would keep the whole batch in memory."""
    found = []
    for b in at:
        length = num_frames_of(batch, b)
        arrays = {"video": batch["video"], "segmentations": batch["segmentations"]}
        arrays["masks"] = segments
        sample = {name: np.array(x[b][:length]) for name, x in arrays.items()}
        # Masks may have been scored at another size.
        sample["masks"] = resize_labels(sample["masks"], sample["segmentations"].shape[1:])
        found.append(sample)
    return found


def predictions(
    predict: Callable[[Batch, jax.Array], Outputs], batches: Iterable[Batch], seeds: Sequence[int]
) -> Iterator[tuple[Batch, int, Outputs]]:
    """Predict every batch with every seed.

    Queries are random at evaluation. The key of batch i under seed s is `fold_in(key(s), i)`, so
    predictions depend on the seed and the batching alone. The "batch_number" of a batch, if it has
    one, replaces i: a host may have only some batches of a split. Predictions are yielded one step
    late, so that the device works on the next one while the host processes the last.

    Args:
        predict: (batch, key) -> outputs.
        batches: the batches of a split.
        seeds: evaluation seeds, at least one.

    Yields:
        (batch, index of the seed, outputs).

    Raises:
        UserError: there is no seed or no batch.
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
    """Return the indices of a batch's valid samples; the others are padding."""
    if "valid" not in batch:
        return np.arange(len(batch["segmentations"]))
    return np.flatnonzero(batch["valid"])


def num_frames_of(batch: Batch, b: int) -> int:
    """Return the number of frames of sample `b` without padding."""
    return int(batch["num_frames"][b]) if "num_frames" in batch else batch["segmentations"].shape[1]


def paper_slot_mask(batch: Batch) -> Bool[np.ndarray, "B N"]:
    """Return the slots that are valid in the authors' program, padding included.

    Every sample of a batch gets as many slots as the sample with the most boxes; slots without a
    box start from a box of -1. Valid slots come first.
    """
    mask = np.asarray(batch["slot_mask"])
    most = mask[scored(batch)].sum(axis=1).max()
    return np.broadcast_to(np.arange(mask.shape[1]) < most, mask.shape)


def whole_split(parts: Sequence[T], batch_size: int, num_samples: int) -> T:
    """Merge the results of several processes into those of a single process, in split order.

    Args:
        parts: the results of each process: lists with one entry per sample, arrays (..., samples),
            None, or mappings and dataclasses of these. Process p of P has the batches p, p + P,
            p + 2P, ..., as `evaluation_batches` distributes them.
        batch_size: samples per batch; only the last batch of a split may have fewer.
        num_samples: number of samples of the split; entries beyond it are dropped.
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
