"""Make batches from a random-access source of samples, prefetched by Grain's threads.

Batches are dicts of NumPy arrays; other modules place them on devices.
"""

import atexit
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import NO_SEGMENT, OPTIONAL


class Source(Protocol):
    """Anything with a length and samples by index; see smoothsa_jax.inputs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@runtime_checkable
class RandomSource(Source, Protocol):
    """A source whose samples vary between epochs through random crops, windows and flips."""

    def epoch(self) -> Sequence[int]:
        """The indices of one training epoch; indices may repeat or be left out."""
        ...

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Sample `index`, with all randomness drawn from `rng`."""
        ...

    def fingerprint(self) -> str | None:
        """A hash that differs if the samples differ; None: unknown."""
        ...


class Batches(Protocol):
    """Endless batches whose position can be saved as JSON and restored."""

    def __iter__(self) -> "Batches": ...

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _WithValid:
    """Pads a source to whole batches by repeating the last sample, marked as not valid."""

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
        raise UserError(f"the batch size is {batch_size}; it needs at least 1 sample")


def _stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    frames = next(name for name in ("features", "slots", "video") if name in samples[0])
    lengths = sorted({len(sample[frames]) for sample in samples})
    if len(lengths) > 1:
        raise UserError(
            f"a batch has clips of {', '.join(map(str, lengths))} frames, expected one length; set "
            "data.num_frames (or eval.num_frames) to a length that all have; eval.num_frames=-1 "
            "scores whole clips"
        )
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def filled_length(num_frames: int) -> int:
    """The number of frames to which a clip is padded: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, ....

    With few distinct lengths, few programs are compiled; no clip grows by more than half.
    """
    power = 1 << (num_frames - 1).bit_length()
    return power * 3 // 4 if power > 2 and num_frames <= power * 3 // 4 else power


PER_FRAME = ("video", "segmentations", "boxes", *OPTIONAL)


def _fill(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batch clips of any lengths by repeating last frames, labeled as in no segment.

    `num_frames` (B,) holds the original lengths.
    """
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
    """Make endless batches, reshuffled every epoch, in an order that depends only on `seed`.

    `get_state()` and `set_state()` of the iterator save and restore its position. A restored
    iterator continues with the identical next batch, for any numbers of threads and workers.
    Epochs are joined: a batch may hold the end of one and the start of the next, so a source may be
    smaller than a batch.

    Args:
        source: its samples are shuffled. A `RandomSource` draws each sample every time, with a
            generator that depends only on `seed` and the position in the order.
        batch_size: samples per batch of this process.
        seed: of the order, and of a `RandomSource`'s draws.
        num_threads: threads that prefetch batches, per worker if there are workers.
        prefetch: number of batches to prefetch.
        num_workers: worker processes that make the batches; 0: this process makes them. With
            workers, the source must be picklable, and the program's main file importable.
        process_index: index of this host among those that train together with the same seed.
        process_count: number of hosts. They share the samples: concatenated, the hosts' batches
            number i are batch number i of a single host with batch size `process_count *
            batch_size`.

    Raises:
        UserError: the source or batch is empty, or `process_index` is out of range.
    """
    _check_batch_size(batch_size)
    if not 0 <= process_index < process_count:
        raise UserError(
            f"process {process_index} of {process_count} was requested; expected 0 to "
            f"{process_count - 1}"
        )
    if len(source) < 1:
        raise UserError("the training split holds no sample; check the data folder and the split")
    dataset = _shuffled(source, seed)
    # drop_remainder affects nothing in an endless dataset; without it, the length of batches of one
    # sample overflows.
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=_stack)
    options = _read_options(num_threads, prefetch)
    # Shard after shuffling and drawing, so that samples do not depend on the number of hosts.
    if process_count > 1:
        dataset = dataset[process_index::process_count]
    if num_workers > 0:
        return _WorkerBatches(dataset, options, num_workers)
    return iter(dataset.to_iter_dataset(options))


def _shuffled(source: Source, seed: int) -> grain.MapDataset:
    """Shuffle a source endlessly; each index of an epoch comes once per epoch."""
    if isinstance(source, RandomSource):
        dataset = grain.MapDataset.source(source.epoch()).seed(seed).shuffle().repeat()
        return dataset.random_map(source.draw)
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _ignore_interrupts(index: int, count: int) -> None:
    # Ctrl-C also reaches the workers; the run decides when to stop, and ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _WorkerBatches:
    """Batches made by worker processes, in the order of `dataset`.

    The position is the number of batches returned, in the same form as that of Grain's iterator
    without workers. A run can therefore resume with another number of workers; Grain's own state
    has a part for each worker and only suits the same number.
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
        # Grain reads absl's flags to start workers; without absl's app.run they are not parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = self._dataset[self._given :].to_iter_dataset(self._options)
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers)
        # Closed only at interpreter exit, workers would report errors about unloaded modules.
        atexit.register(self.close)
        return iter(batches.mp_prefetch(workers, worker_init_fn=_ignore_interrupts))

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        self._given = state["next_index"]

    def close(self) -> None:
        """Stop the workers; the next batch starts new ones."""
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
    """Yield every sample once, in order, in batches of size `batch_size`.

    Each batch has `batch_number`, its position in the split, and `valid` (B,) bool. The last batch
    is padded with copies for which `valid` is false.

    Args:
        source: the samples.
        batch_size: samples per batch.
        fill_lengths: whether clips may differ in length. If so, the clips of a batch are padded to
            one `filled_length`, and `num_frames` (B,) holds their lengths. No frame influences an
            earlier one, so padding does not change the predictions of real frames.
        num_threads: threads that prefetch batches.
        prefetch: number of batches to prefetch.
        process_index: index of this host among those that share the split.
        process_count: number of hosts. Each gets every `process_count`-th batch; a host with no
            batch left gets the last one.

    Raises:
        UserError: the clips of a batch differ in length, unless `fill_lengths` is set.
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
        prefetch_buffer_size=max(prefetch, num_threads),  # more threads would stay idle
    )
