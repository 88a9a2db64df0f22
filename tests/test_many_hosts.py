"""The loader of hundreds of hosts, simulated in one process: shares, resuming, and the order."""

import itertools
import json
import pickle

import numpy as np
import pytest

from data import shards
from smoothsa_jax.inputs.loader import evaluation_batches, training_batches
from smoothsa_jax.inputs.records import Records
from smoothsa_jax.inputs.repeats import BLOCK, Repeats, distinct

HOSTS = 256
DESCRIBED = "dataset_info.json"


def write_records(folder, number, per_shard):
    """A split of records that are their own numbers."""
    pieces = [range(i, min(i + per_shard, number)) for i in range(0, number, per_shard)]
    for index, piece in enumerate(pieces):
        file = folder / shards.shard_name("mini", "train", index, len(pieces))
        shards.write_shard(file, (str(record).encode() for record in piece))
    lengths = [str(len(piece)) for piece in pieces]
    info = {"name": "mini", "splits": [{"name": "train", "shardLengths": lengths}]}
    (folder / DESCRIBED).write_text(json.dumps(info))
    return folder


class Clips:
    """Clips of a folder, of which some come several times an epoch, with a random number."""

    def __init__(self, folder, counts=None):
        self._records = Records(folder, "train")
        number = len(self._records)
        self._epoch = range(number) if counts is None else Repeats(counts)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return {"index": np.array(int(self._records[index])), "video": np.zeros((1, 1))}

    def epoch(self):
        return self._epoch

    def draw(self, index, rng):
        return {**self[index], "drawn": rng.integers(1 << 40)}

    def fingerprint(self):
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"), 1031, 300)


def host(source, index, batch_size, hosts=HOSTS):
    """The batches of one host, made without threads."""
    return training_batches(
        source,
        batch_size,
        seed=5,
        num_threads=0,
        prefetch=0,
        process_index=index,
        process_count=hosts,
    )


def seen(batches, count):
    """(clip, number drawn for it) of each sample of so many batches: (count, B, 2)."""
    taken = itertools.islice(batches, count)
    return np.array([np.stack([b["index"], b["drawn"]], axis=-1) for b in taken])


# Repeated: a clip in three comes twice an epoch, and some never come.
@pytest.mark.parametrize("batch_size, repeated", [(1, False), (3, False), (2, True)])
def test_hosts_share_each_epoch_exactly_and_evenly(folder, batch_size, repeated):
    counts = np.array([2, 1, 1, 0, 1, 1] * 200)[:1031] if repeated else np.ones(1031, int)
    source = Clips(folder, counts)
    length = int(counts.sum())
    # Three epochs, and none is a whole number of batches.
    steps = -(-3 * length // (HOSTS * batch_size))
    assert length % (HOSTS * batch_size)
    found = np.stack([seen(host(source, i, batch_size), steps) for i in range(HOSTS)], axis=1)
    alone = seen(host(source, 0, HOSTS * batch_size, hosts=1), steps)
    np.testing.assert_array_equal(found.reshape(alone.shape), alone)

    order = found.reshape(-1, 2)
    hosts = np.tile(np.repeat(np.arange(HOSTS), batch_size), steps)
    epochs = [slice(k * length, (k + 1) * length) for k in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.bincount(order[epoch, 0], minlength=1031), counts)
        shares = np.bincount(hosts[epoch], minlength=HOSTS)
        assert shares.max() - shares.min() <= batch_size
    assert (order[epochs[0], 0] != order[epochs[1], 0]).any()
    assert len(np.unique(order[:, 1])) == len(order)  # each draws anew each time


def test_every_host_resumes_at_every_step(folder):
    source = Clips(folder)
    for index in (0, 1, 100, HOSTS - 1):
        batches = host(source, index, 2)
        whole = seen(batches, 9)
        batches = host(source, index, 2)
        for step in range(8):
            state = json.loads(json.dumps(batches.get_state()))
            resumed = host(source, index, 2)
            resumed.set_state(state)
            np.testing.assert_array_equal(seen(resumed, 2), whole[step : step + 2])
            next(batches)


def test_a_run_resumes_on_another_number_of_hosts(folder):
    """The same batches of all hosts together: 4 of 256 hosts are 16 of 64."""
    source = Clips(folder)
    expected = seen(host(source, 0, 1024, hosts=1), 4)[2:]
    for hosts in (64, 256):
        parts = []
        for index in range(hosts):
            batches = host(source, index, 1024 // hosts, hosts)
            batches.set_state({"next_index": 2})
            parts.append(seen(batches, 2))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


@pytest.mark.parametrize("length, hosts", [(3, 256), (1031, 256), (1024, 256), (10, 3), (1, 1)])
def test_evaluation_takes_each_sample_once_over_all_hosts(tmp_path, length, hosts):
    source = Clips(write_records(tmp_path, length, 300))
    batches: dict[int, list[int]] = {}
    shares = []
    for index in range(hosts):
        own = list(
            evaluation_batches(
                source, 4, num_threads=0, prefetch=0, process_index=index, process_count=hosts
            )
        )
        shares.append(len(own))
        for batch in own:
            batches[int(batch["batch_number"])] = batch["index"][batch["valid"]].tolist()
    assert sum((batches[i] for i in sorted(batches)), []) == list(range(length))
    assert max(shares) - min(shares) <= 1


# ------------------------------------------------------------------------------------------ order


def test_the_order_is_that_of_runs_of_earlier_versions(folder):
    """Recorded before epochs became ranges: an old checkpoint resumes into the same order."""
    repeated = Clips(folder, np.array([1, 1, 3, 0, 2, 1] + [0] * 1025))
    for source, expected in [
        (Clips(folder), [668, 84, 161, 284, 1025, 460, 985, 877]),
        (repeated, [5, 1, 0, 2, 2, 2, 4, 4]),
    ]:
        batches = training_batches(source, 8, seed=7)
        assert next(batches)["index"].tolist() == expected


def test_a_billion_samples_are_shuffled_without_a_list_of_them():
    """Each place of the order is computed alone."""

    class Billion(Clips):
        def __init__(self):
            self._epoch = range(10**9)

        def __len__(self):
            return 10**9

        def draw(self, index, rng):
            return {"index": np.array(index), "video": np.zeros((1, 1))}

    batches = host(Billion(), 200, 64)
    first = next(batches)["index"]
    assert len(set(first.tolist())) == 64 and first.min() < 10**8 < 9 * 10**8 < first.max()
    batches.set_state({"next_index": 10**6})  # far into a later epoch
    assert len(set(next(batches)["index"].tolist())) == 64


# ---------------------------------------------------------------------------------------- repeats

COUNTS = [
    np.zeros(0, int),
    np.zeros(5, int),
    np.full(7, 3),
    np.array([0, 2, 0, 0, 1]),
    np.array([300, 1, 70_000]),
    np.arange(3 * BLOCK + 1) % 4,
    np.random.default_rng(0).integers(0, 3, 2 * BLOCK),
]


@pytest.mark.parametrize("counts", COUNTS, ids=lambda counts: f"{len(counts)}_{counts.sum()}")
def test_repeats_are_those_of_numpy(counts):
    repeats, expected = Repeats(counts), np.repeat(np.arange(len(counts)), counts)
    assert (len(repeats), repeats.number) == (len(expected), len(counts))
    places = range(len(expected)) if len(expected) < 5000 else range(0, len(expected), 997)
    assert [repeats[i] for i in places] == expected[list(places)].tolist()
    assert list(repeats) == expected.tolist()
    assert distinct(repeats) == len(set(expected.tolist())) == distinct(expected)
    begins = np.cumsum(counts) - counts
    assert [repeats.begin(i) for i in range(len(counts))] == begins.tolist()
    assert [repeats.count_of(i) for i in range(len(counts))] == counts.tolist()
    for outside in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError, match="is not in"):
            repeats[outside]


def test_repeats_take_a_byte_each():
    def size(counts):
        return len(pickle.dumps(Repeats(counts)))

    assert 100_000 < size(np.arange(100_000) % 5) < 105_000
    assert size(np.full(100_000, 5)) < 500
