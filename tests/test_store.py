"""Stored features: equal to the encoder's, in windows, resumed, and refused if they differ."""

import itertools
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import run_config
from prepared_folders import blobs, five_clips, write_folder

from data import store as command
from data.check import check
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.tasks.stored import refuse_other_features
from smoothsa_jax.training import loop
from smoothsa_jax.training.evaluating import source_of_split
from smoothsa_jax.training.step import build_training

SLOTS = {"num_slots": 4}


def files_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Clips of 7 frames, of which training sees 2."""
    config = run_config.get_config()
    config.data = five_clips(tmp_path_factory.mktemp("clips") / "mini")
    return config


@pytest.fixture(scope="module")
def stored(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("stored") / "features"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "SHARD_BYTES", 2 * 7 * 16 * 12 * 2)  # two clips
        command.store(config, out)
    return out


def extractor(training):
    """Pixels (B,T,H,W,3) -> the encoder's features (B,T,M,C)."""
    arrays = training.state.params, training.frozen

    @jax.jit
    def extract(video):
        return training.definitions["model"].merge(*arrays).encode(video)["features"]

    return extract


def using(config, folder):
    other = config.copy_and_resolve_references()
    other.data.features = str(folder)
    return other


@pytest.mark.slow
def test_windows_of_clips_have_the_features_of_their_frames(config, stored):
    whole = build_dataset({**config.data, "num_frames": None}, "train", **SLOTS)
    cached = build_dataset(using(config, stored).data, "train", **SLOTS)
    training = build_training(config)
    extract = extractor(training)
    seen = set()
    for index, seed in itertools.product(range(5), range(4)):
        sample = cached.draw(index, np.random.default_rng([index, seed]))
        clip = whole[index]
        _, which = cached._source.without_pixels(index, np.random.default_rng([index, seed]))
        expected = extract(clip["video"][None, list(which)])[0].astype(jnp.bfloat16)
        assert sample["features"].dtype == ml_dtypes.bfloat16 and "video" not in sample
        # Stored features were computed with other frames in the batch, so the last bit of a
        # bfloat16 may differ.
        np.testing.assert_allclose(
            sample["features"].astype(np.float32), expected.astype(np.float32), atol=0.01
        )
        shown = sample["segmentations"] > 0  # objects are renumbered in each window
        np.testing.assert_array_equal(shown, clip["segmentations"][list(which)] > 0)
        seen.add(which.start)
    assert seen == {0, 2, 4, 5}
    assert check(stored) == []


@pytest.mark.slow
def test_a_step_on_stored_features_runs_no_encoder():
    config = run_config.get_config("image")
    training = build_training(config)
    source = build_dataset(config.data, "train", **SLOTS)
    pixels = training.place(next(training_batches(source, 2, seed=0)))
    extract = extractor(training)
    stored = {name: x for name, x in pixels.items() if name != "video"}
    stored["features"] = extract(pixels["video"]).astype(jnp.bfloat16)
    nothing = jax.tree.map(lambda x: x * jnp.nan, training.frozen)
    copy = lambda: jax.tree.map(jnp.copy, training.state)  # noqa: E731
    key = jax.random.key(0)
    _, found = training.train_step(copy(), nothing, stored, key)
    _, expected = training.train_step(copy(), training.frozen, pixels, key)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0.02, err_msg=name)


def test_an_interrupted_command_goes_on_and_a_finished_one_does_nothing(
    config, stored, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "SHARD_BYTES", 2 * 7 * 16 * 12 * 2)
    written, write = [], command.write_shard

    def interrupted(path, records):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, records)

    out = tmp_path / "features"
    monkeypatch.setattr(command, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.store(config, out)
    assert not (out / "MANIFEST.json").exists()
    monkeypatch.setattr(command, "write_shard", write)
    capsys.readouterr()
    command.store(config, out)
    text = capsys.readouterr().out
    assert "1 of 3 shards are finished" in text
    assert "features of 5 clips, 35 frames of 16x12 in bfloat16: 1.34e-05 GB" in text
    assert "random crops and flips" in text and "--config.data.features" in text
    assert files_of(out) == files_of(stored)
    monkeypatch.setattr(command, "write_shard", None)
    command.store(config, out)
    assert "finished already" in capsys.readouterr().out
    assert files_of(out) == files_of(stored)


def test_features_of_anything_else_are_refused(config, stored, tmp_path, monkeypatch):
    def refused(change, match):
        other = using(config, stored)
        change(other)
        training = build_training(other)
        with pytest.raises(UserError, match=match):
            source = build_dataset(other.data, "train", **SLOTS)
            refuse_other_features(source, other, training.frozen)

    refused(lambda c: c.weights.encoder.update(seed=1), "other weights")
    refused(lambda c: c.model.encoder.update(bandwidth=1.0), "other encoder")
    refused(lambda c: c.data.update(image_size=32), "other image_size")
    other_way = "other interpolation: found bilinear, the run has bicubic"
    refused(lambda c: c.data.update(interpolation="bicubic"), other_way)
    more = write_folder(tmp_path / "more", [blobs(np.random.default_rng(1), 7, 20, 30, 2)] * 6)
    refused(lambda c: c.data.update(folder=str(more)), "holds 5 clips, training has 6")
    other = write_folder(tmp_path / "other", [blobs(np.random.default_rng(1), 7, 20, 30, 2)] * 5)
    refused(lambda c: c.data.update(folder=str(other)), "other clips")
    refused(lambda c: c.data.update(features=str(tmp_path)), "no MANIFEST.json")

    def teach(c, **encoder):
        teacher = c.model.copy_and_resolve_references()
        teacher.encoder.update(encoder)
        c.companions.teacher = {"source": "", "model": teacher}

    refused(lambda c: teach(c, bandwidth=1.0), "companions.teacher has another encoder")
    changed = using(config, "")
    changed.weights.encoder.seed = 1
    with pytest.raises(UserError, match="nothing was changed"):
        command.store(changed, stored)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
    with pytest.raises(UserError, match="features need .* GB free"):
        command.store(config, tmp_path / "full")


@pytest.mark.slow
def test_sprites_come_in_the_same_order_with_their_features(tmp_path, monkeypatch):
    """A whole run: generated clips are the same each time, so nothing but the rounding differs."""
    config = run_config.get_config("image")
    config.data.num_samples, config.data.features = 6, ""
    config.train.update(num_steps=4)
    config.eval.baselines = False
    out = tmp_path / "features"
    command.store(config, out)
    assert json.loads((out / "MANIFEST.json").read_text())["splits"]["train"]["num_examples"] == 6
    cached = using(config, out)
    one, two = (
        training_batches(build_dataset(c.data, "train", **SLOTS), 2, seed=3)
        for c in (config, cached)
    )
    for _ in range(5):
        np.testing.assert_array_equal(next(one)["boxes"], next(two)["boxes"])
    assert "video" in source_of_split(cached, 4, "test", 1)[0]  # evaluation sees pixels
    scores = loop.train(cached, tmp_path / "run")
    assert scores["step"] == 4
