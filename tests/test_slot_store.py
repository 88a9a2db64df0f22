"""Stored slots: equal to the slot model's, in windows, resumed, and refused if they differ."""

import jax
import numpy as np
import pytest
from tiny import as_dynamics, tiny_config

from data import store as command
from data.check import check
from smoothsa_jax.checkpoints.sources import begin
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import features
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.tasks.checks import check as check_config
from smoothsa_jax.tasks.discovery import features_of
from smoothsa_jax.tasks.frozen_slots import find_slots
from smoothsa_jax.tasks.stored import refuse_other_slots
from smoothsa_jax.training.step import build_training

FRAMES, CLIPS = 5, 3


@pytest.fixture(scope="module")
def config():
    config = as_dynamics(tiny_config(FRAMES, decoder="mlp_mixture"))
    config.data.update(num_samples=CLIPS, min_objects=2, max_objects=3)
    config.eval.update(num_frames=FRAMES, validation_samples=1, num_samples=2)
    return config


def stored_in(config, out, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "SLOT_SHARD_BYTES", 1)  # one clip in a shard
        command.store(config, out, **options)
    return out


@pytest.fixture(scope="module")
def stored(config, tmp_path_factory):
    return stored_in(config, tmp_path_factory.mktemp("stored") / "slots")


def files_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def using(config, folder):
    other = config.copy_and_resolve_references()
    other.data.slots = str(folder)
    return other


def begun(config):
    """The training of a config and its frozen arrays."""
    training = build_training(config)
    return training, begin(config, training, pytest.fail)[1]


def source_of(config, *reads, **options):
    return build_dataset(config.data, "train", reads=reads, num_slots=4, **options)


def test_a_store_holds_what_the_slot_model_finds(config, stored):
    training, frozen = begun(config)
    model = training.definitions["slot_model"].merge(frozen)
    names = ("slots", "attention", "masks")
    cached = source_of(using(config, stored), *names, with_pixels=True)
    assert len(cached) == CLIPS and check(stored) == []
    find = jax.jit(lambda *x: find_slots(model, x[0], features_of(model, x[0]), x[1], decodes=True))
    for index in range(CLIPS):
        sample, clip = cached[index], source_of(config)[index]
        batch = {name: clip[name][None] for name in ("video", "boxes", "slot_mask")}
        key = jax.random.fold_in(jax.random.key(command.SEED), index)
        found = find(batch, model.draw(key, Sizes(1, FRAMES, 4), False))
        for name in names:
            assert sample[name].dtype == np.float16
            np.testing.assert_allclose(sample[name], found[name][0], rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(sample["slot_mask"], clip["slot_mask"])
        np.testing.assert_array_equal(sample["video"], clip["video"])
    assert not cached[0].keys() & {"features", "tokens"}
    for split, number in (("validation", 1), ("test", 2)):
        assert f"slots-{split}.array_record-00000-of-0000{number}" in str(list(stored.iterdir()))


def test_clips_in_memory_are_those_of_the_folder(config, stored, monkeypatch):
    kept = source_of(using(config, stored), "slots")
    monkeypatch.setattr(features, "MOST_KEPT", 0)
    read = source_of(using(config, stored), "slots")
    for _ in range(2):
        for index, which in ((0, range(FRAMES)), (1, [2, 0])):
            one, two = (x.of_frames(index, which) for x in (kept, read))
            assert one.keys() == two.keys() and len(one["slots"]) == len(which)
            for name, value in one.items():
                np.testing.assert_array_equal(value, two[name])
    kept._records, read._records = None, None
    assert len(kept.of_frames(0, [1])["slots"]) == 1
    with pytest.raises(TypeError):
        read.of_frames(0, [1])


def test_a_step_on_stored_slots_runs_no_slot_model(config, stored):
    config = config.copy_and_resolve_references()
    config.losses.decoded.weight = 0.0
    training = build_training(config)
    source = source_of(using(config, stored), *training.task.inputs)
    batch = training.place(next(training_batches(source, 2, seed=0)))
    batch.pop("video", None)
    nothing = {k: np.full(x.shape, np.nan, x.dtype) for k, x in training.frozen.items()}
    state = training.state
    _, metrics = training.train_step(state, nothing, batch, jax.random.key(0))
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
def test_an_interrupted_command_goes_on(config, stored, tmp_path, monkeypatch, capsys):
    written, write = [], command.write_shard

    def interrupted(path, records):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, records)

    out = tmp_path / "slots"
    monkeypatch.setattr(command, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored_in(config, out)
    monkeypatch.setattr(command, "write_shard", write)
    stored_in(config, out)
    assert "2 of 6 shards are finished; resuming" in capsys.readouterr().out
    assert files_of(out) == files_of(stored)
    stored_in(config, out)
    assert "finished already" in capsys.readouterr().out


def test_slots_of_anything_else_are_refused(config, stored, tmp_path):
    frozen = {}

    def refused(change, match):
        other = using(config, stored)
        change(other)
        if not frozen:
            frozen.update(begun(other)[1])
        with pytest.raises(UserError, match=match):
            refuse_other_slots(source_of(other, "slots"), other, frozen)

    same = using(config, stored)
    frozen |= begun(same)[1]
    refuse_other_slots(source_of(same, "slots"), same, frozen)
    refused(lambda c: c.data.update(seed=1), "slots of other clips")
    refused(lambda c: c.companions.slot_model.model.aggregator.update(first=3), "other model")
    refused(lambda c: c.data.update(num_samples=9), "holds 3 clips, training has 9")
    refused(lambda c: c.data.update(slots=str(tmp_path)), "no MANIFEST.json")
    refused(lambda c: c.data.update(slots="auto"), "main.py makes a folder of the workdir")
    name = next(iter(frozen))
    frozen[name] = frozen[name] + 1
    refused(lambda c: None, "slots of other weights")
    features = using(config, "")
    features.data.features = str(stored)
    with pytest.raises(UserError, match="holds slots, expected features"):
        source_of(features, "features")
    discovery = tiny_config(3, decoder="mlp_mixture")
    discovery.data.slots = str(stored)
    with pytest.raises(UserError, match="the task 'discovery' reads no stored slots"):
        check_config(discovery)
    with pytest.raises(UserError, match="nothing was changed"):
        changed = config.copy_and_resolve_references()
        changed.seed = 1  # of the untrained slot model
        stored_in(changed, stored)
