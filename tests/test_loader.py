"""Batches: endless and resumable in training, each sample exactly once in evaluation."""

import itertools
import json

import numpy as np
import pytest
from fake_training import fake_training
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import build
from smoothsa_jax.inputs.loader import evaluation_batches, filled_length, training_batches
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.training.logging import DataWaits
from smoothsa_jax.training.loop import _placed_ahead


class Numbers:
    """A source whose samples tell their index."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"index": np.array(index), "video": np.full((2, 3), index, np.uint8)}


def _indices(batches, count):
    return [batch["index"].tolist() for batch in itertools.islice(batches, count)]


def test_training_is_endless_and_sees_every_sample_once_an_epoch():
    seen = np.concatenate(_indices(training_batches(Numbers(12), 4, seed=0), 9)).reshape(3, 12)
    for epoch in seen:
        assert sorted(epoch) == list(range(12))
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()


def test_order_depends_on_the_seed_and_not_on_threads():
    first = _indices(training_batches(Numbers(50), 4, seed=3), 20)
    assert (
        _indices(training_batches(Numbers(50), 4, seed=3, num_threads=4, prefetch=9), 20) == first
    )
    assert _indices(training_batches(Numbers(50), 4, seed=4), 20) != first


@pytest.mark.parametrize("position", [0, 1, 7])
def test_a_restored_iterator_goes_on_with_the_identical_batches(position):
    def make():
        return training_batches(Sprites(num_frames=2, num_samples=20), 3, seed=1, num_threads=2)

    whole = make()
    for _ in range(position):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    resumed = make()
    resumed.set_state(state)
    for _ in range(3):
        want, got = next(whole), next(resumed)
        assert want.keys() == got.keys()
        for key in want:
            np.testing.assert_array_equal(got[key], want[key], err_msg=key)


def test_a_source_may_be_smaller_than_a_batch():
    batch = next(training_batches(Numbers(3), 8, seed=0))
    assert batch["video"].shape == (8, 2, 3) and set(batch["index"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("length", [1, 4, 10, 12])
def test_evaluation_covers_each_sample_once_in_order(length):
    batches = list(evaluation_batches(Numbers(length), 4, num_threads=3))
    assert len(batches) == -(-length // 4)
    for batch in batches:
        assert batch["index"].shape == batch["valid"].shape == (4,)
        assert batch["valid"].dtype == bool
    seen = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(length))


def test_clips_of_all_lengths_need_few_programs():
    filled = [filled_length(t) for t in range(1, 200)]
    assert all(t <= f <= 1.5 * t for t, f in enumerate(filled, start=1))
    assert sorted(set(filled)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]


def test_batches_stack_the_samples():
    source = Sprites(num_frames=2, split="test", num_samples=3)
    (batch,) = evaluation_batches(source, 3)
    for i in range(3):
        for key, values in source[i].items():
            np.testing.assert_array_equal(batch[key][i], values)


def test_empty_batches_and_sources_are_refused():
    with pytest.raises(UserError, match="batch size is 0"):
        training_batches(Numbers(3), 0, seed=0)
    with pytest.raises(UserError, match="batch size is -1"):
        evaluation_batches(Numbers(3), -1)
    with pytest.raises(UserError, match="no sample"):
        training_batches(Numbers(0), 2, seed=0)


class _Shrinking:
    """Clips of a folder: one is shorter than the others."""

    def __init__(self, split: str, num_frames: int):
        self._num_frames = num_frames

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        frames = self._num_frames - (index == 4)
        return {"video": np.zeros((frames, 8, 8, 3), np.uint8)}


def test_a_data_set_has_to_take_what_the_program_gives(monkeypatch):
    monkeypatch.setitem(build.DATASETS, "shrinking", _Shrinking)
    assert build.check_data({"name": "shrinking", "num_frames": 3}, ()) is _Shrinking
    for config, options, expected in [
        ({"num_frames": 3}, ("num_slots",), "takes no 'num_slots', which the program gives it"),
        ({}, (), "data.name='shrinking' needs data.num_frames"),
        ({"num_frames": 3, "split": "test"}, (), "data.split is not a setting"),
        ({"num_frames": 3, "num_slots": 3}, (), "data.num_slots is not a setting"),
        ({"num_frame": 3}, (), "data.num_frame is not an option of .*mean 'num_frames'"),
    ]:
        with pytest.raises(UserError, match=expected):
            build.check_data({"name": "shrinking", **config}, options)


def test_a_clip_shorter_than_asked_is_named(monkeypatch):
    monkeypatch.setitem(build.DATASETS, "shrinking", _Shrinking)
    source = build.build_dataset({"name": "shrinking", "num_frames": 3}, "train")
    message = "clip 4 has 2 frames, but 3 are expected; lower eval.num_frames"
    for batches in (training_batches(source, 2, seed=0), evaluation_batches(source, 2)):
        with pytest.raises(UserError, match=message):
            for _ in range(4):
                next(batches)


@pytest.mark.parametrize("match_paper", [False, True])
def test_slots_of_a_training_batch(match_paper):
    """Each clip has its own number or, padded as in the paper, that of the fullest clip."""
    source = Sprites(num_frames=1, min_objects=2, max_objects=4, num_samples=12)
    batches = training_batches(source, 4, seed=0)
    placed = _placed_ahead(
        batches, fake_training(ConfigDict({"seed": 0})), DataWaits(), match_paper
    )
    numbers = set()
    for want, (got, _) in zip(training_batches(source, 4, seed=0), placed, strict=False):
        found, own = np.asarray(got["slot_mask"]).sum(1), want["slot_mask"].sum(1)
        np.testing.assert_array_equal(found, own.max() if match_paper else own)
        numbers |= set(own.tolist())
        if len(numbers) > 2:
            break
    np.testing.assert_array_equal(got["boxes"], want["boxes"])
