"""From a random-access source of samples to batches, with Grain's threads ahead of the device.

Batches are dicts of NumPy arrays; placing them on devices happens elsewhere.
"""

import atexit
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import NO_SEGMENT


class Source(Protocol):
    """Anything with a length and samples by index, see smoothsa_jax.inputs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@runtime_checkable
class RandomSource(Source, Protocol):
    """A source whose samples differ each time that training sees them: crops, windows, flips."""

    def epoch(self) -> Sequence[int]:
        """The indices that one epoch of training goes through; an index may repeat, or be left out."""
        ...

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sample `index`, all that is random of it drawn from `rng`."""
        ...

    def fingerprint(self) -> str | None:
        """Differs where the samples do; None: not known."""
        ...


class Batches(Protocol):
    """Endless batches whose position can be saved, as JSON, and restored."""

    def __iter__(self) -> "Batches": ...

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


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


def _stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    frames = "features" if "features" in samples[0] else "video"
    lengths = sorted({len(sample[frames]) for sample in samples})
    if len(lengths) > 1:
        raise UserError(
            f"a batch has clips of {', '.join(map(str, lengths))} frames, expected one length; set "
            "data.num_frames (or eval.num_frames) to a length that all have; eval.num_frames=-1 scores whole clips"
        )
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def filled_length(num_frames: int) -> int:
    """The number of frames that a clip is filled up to: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, ...

    So clips of all lengths need few compiled programs, and none grows by more than half.
    """
    power = 1 << (num_frames - 1).bit_length()
    return power * 3 // 4 if power > 2 and num_frames <= power * 3 // 4 else power


PER_FRAME = ("video", "segmentations", "boxes")


def _fill(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A batch of clips of any lengths, with `num_frames` (B,) of each: later frames repeat its last one, in no segment."""
    lengths = [len(sample["video"]) for sample in samples]
    target = filled_length(max(lengths))

    def filled(key: str, sample: dict[str, np.ndarray]) -> np.ndarray:
        value = sample[key]
        if key not in PER_FRAME or len(value) == target:
            return value
        last = np.full_like(value[-1:], NO_SEGMENT) if key == "segmentations" else value[-1:]
        return np.concatenate([value, np.repeat(last, target - len(value), axis=0)])

    batch = {key: np.stack([filled(key, sample) for sample in samples]) for key in samples[0]}
    return {**batch, "num_frames": np.array(lengths, np.int32)}


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    num_threads: int = 1,
    prefetch: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless batches in an order that depends on `seed` only, newly shuffled every epoch.

    `iterator.get_state()` and `set_state()` save and restore the position: a restored iterator goes
    on with the identical next batch, whatever the numbers of threads and workers. Epochs are
    joined: a batch may hold the end of one and the start of the next, so a source may be smaller
    than a batch.

    Args:
      source: its samples are shuffled; of a `RandomSource`, each is drawn anew every time, with a
        generator that depends on `seed` and the place in the order only.
      batch_size: samples of a batch of this process.
      num_threads: threads that make batches ahead, in each worker if there are any.
      prefetch: batches made ahead by them.
      num_workers: worker processes that make the batches; 0: this process does. The source has to
        be picklable, and the program's main file importable.
      process_index, process_count: of this host among those that train together with the same
        seed. Hosts share the samples out: the batches number i of all hosts, one after the other,
        are what one host's batch number i of `process_count * batch_size` would be.

    Raises:
      UserError: an empty source or batch, or a process that is not one of `process_count`.
    """
    _check_batch_size(batch_size)
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process {process_index} of {process_count} was asked for; expected 0 to {process_count - 1}"
        )
    if len(source) < 1:
        raise UserError("the training split holds no sample; check the data folder and the split")
    dataset = _shuffled(source, seed)
    # Nothing remains of what has no end; the length of batches of one sample would not fit an integer.
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=_stack)
    options = _read_options(num_threads, prefetch)
    # Shared out after shuffling and drawing: what is drawn does not depend on the number of hosts.
    if process_count > 1:
        dataset = dataset[process_index::process_count]
    if num_workers > 0:
        return _WorkerBatches(dataset, options, num_workers)
    return iter(dataset.to_iter_dataset(options))


def _shuffled(source: Source, seed: int) -> grain.MapDataset:
    """Samples without end, in random order, each of an epoch's once an epoch."""
    if isinstance(source, RandomSource):
        dataset = grain.MapDataset.source(source.epoch()).seed(seed).shuffle().repeat()
        return dataset.random_map(source.draw)
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _ignore_interrupts(index: int, count: int) -> None:
    # Ctrl-C reaches the workers too; when to leave is for the run to decide, which ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _WorkerBatches:
    """Batches made by worker processes, in the order of `dataset`.

    The position is the number of batches given out, in the form of Grain's iterator without
    workers: a run may be resumed with another number of them. (Grain's own state with workers holds
    a part for each, and is only good for as many.)
    """

    def __init__(self, dataset: grain.MapDataset, options: grain.ReadOptions, num_workers: int):
        self._dataset, self._options, self._num_workers = dataset, options, num_workers
        self._given = 0
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> "_WorkerBatches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:  # workers start late: a resumed run sets its position first
            self._iterator = self._start()
        batch = next(self._iterator)
        self._given += 1
        return batch

    def _start(self) -> grain.DatasetIterator:
        # Grain reads absl's flags to start workers; outside of absl's app.run nobody parsed them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = self._dataset[self._given :].to_iter_dataset(self._options)
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
        # Left to the interpreter's end, they would complain of modules that are gone already.
        atexit.register(self.close)
        return iter(batches.mp_prefetch(workers, worker_init_fn=_ignore_interrupts))

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        self._given = state["next_index"]

    def close(self) -> None:
        """Ends the workers; the next batch starts new ones."""
        if self._iterator is not None:
            atexit.unregister(self.close)
            self._iterator.close()
            self._iterator = None


def evaluation_batches(
    source: Source,
    batch_size: int,
    *,
    fill_lengths: bool = False,
    num_threads: int = 1,
    prefetch: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every sample once, in order. All batches have the size `batch_size`.

    Each carries `valid` (B,) bool; the last one is filled up with copies that have `valid` false, and
    `batch_number`, its place in the split.

    Args:
      fill_lengths: clips may differ in length: those of a batch are filled up to one `filled_length`, and
        `num_frames` (B,) says how many frames of each count. As no frame influences an earlier one, what a model
        says of those does not change.
      process_index, process_count: of this host among those that share a split out: it gets every `process_count`-th
        batch. One for which there is none gets the last.

    Raises:
      UserError: clips of a batch that differ in length, unless `fill_lengths`.
    """
    _check_batch_size(batch_size)
    dataset = grain.MapDataset.source(_WithValid(source, batch_size))
    dataset = dataset.batch(batch_size, batch_fn=_fill if fill_lengths else _stack)
    dataset = dataset.map_with_index(lambda i, batch: {**batch, "batch_number": i})
    if process_count > 1:
        dataset = dataset[min(process_index, len(dataset) - 1) :: process_count]
    return iter(dataset.to_iter_dataset(_read_options(num_threads, prefetch)))


def _read_options(num_threads: int, prefetch: int) -> Any:
    return grain.ReadOptions(
        num_threads=num_threads,
        prefetch_buffer_size=max(prefetch, num_threads),  # more threads than that would not run
    )
