"""One's own pictures and videos, without labels: from a folder to a trained model."""

import json
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import av
import jax
import numpy as np
import pytest
import run_config
from command import ROOT, here
from PIL import Image

from data import prepare
from smoothsa_jax.checkpoints.read import best_step
from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.features import features_folder
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.training.evaluating import evaluate_split, source_of_split, training_clips
from smoothsa_jax.training.logging import read_log
from smoothsa_jax.training.step import build_training

CONFIG = f"{ROOT / 'configs' / 'own.py'}"
LOSSES = {"loss", "loss/distillation", "loss/reconstruction"}


def picture(rng, height=48, width=64):
    pixels = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(3):
        top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
        pixels[top : top + 12, left : left + 12] = rng.integers(0, 256, 3)
    return pixels


def write_video(path, num_frames, rng):
    background = picture(rng)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(num_frames):
            frame = background.copy()
            frame[10:26, t : t + 16] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def prepared(source, out, *more):
    arguments = ["folder", "--source", str(source), "--out", str(out), "--workers", "1", *more]
    assert prepare.main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The prepared folder of 20 pictures without labels."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    (folder / "my_pictures").mkdir()
    for i in range(20):
        Image.fromarray(picture(rng)).save(folder / "my_pictures" / f"IMG_{i:02d}.jpg")
    return prepared(folder / "my_pictures", folder / "own")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The prepared folder of 4 videos without labels."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(1)
    (folder / "my_videos").mkdir()
    for i, num_frames in enumerate((6, 30, 9, 12)):
        write_video(folder / "my_videos" / f"clip_{i}.mp4", num_frames, rng)
    return prepared(folder / "my_videos", folder / "own")


def train(words, folder, workdir, *more):
    arguments = [f"--config={CONFIG}:{words}", f"--config.data.folder={folder}"]
    return here(*arguments, f"--workdir={workdir}", *more)


def rows_of_sheet(path):
    """The number of rows of a contact sheet: below 20 pixels, 128 and a gap of 4 for each."""
    with Image.open(path) as sheet:
        return (sheet.height - 20) / 132


# ------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_twenty_pictures_without_labels(pictures, tmp_path, capfd):
    best = "--config.eval.checkpoint=best"
    assert train("smoke", pictures, tmp_path / "run", best) == 0
    out, err = capfd.readouterr()
    table = out[: out.index("scores  ")]
    assert "reconstruction" in table and "FG-ARI" not in table
    assert not re.search(r"\s-(\s|$)", table)  # a score that is not defined
    assert "the validation split has no labels" in err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["metrics"]) == LOSSES and scores["baselines"] == {}
    total = sum(scores["metrics"][name]["mean"] for name in LOSSES - {"loss"})
    assert scores["metrics"]["loss"]["mean"] == pytest.approx(total, rel=1e-5)
    # Of each validated step the log has the losses, and the lowest is the best checkpoint.
    validated = {
        row["step"]: row["validation/loss"]
        for row in read_log(tmp_path / "run" / "log.jsonl")
        if "validation/loss" in row
    }
    assert set(validated) == {3, 6}
    chosen = min(validated, key=validated.get)
    assert best_step(tmp_path / "run", "validation/loss", "min") == scores["step"] == chosen
    # Frames and masks, without a row for labels.
    (sheet,) = (tmp_path / "run" / "pictures").iterdir()
    assert rows_of_sheet(sheet) == 2
    # The same losses again from the workdir alone; and a report without scores.
    before = (tmp_path / "run" / "scores.json").read_bytes()
    assert here("--mode=evaluate", f"--workdir={tmp_path / 'run'}") == 0
    assert (tmp_path / "run" / "scores.json").read_bytes() == before
    assert here("--mode=report", f"--workdir={tmp_path / 'run'}") == 0
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    page = re.sub(r"base64,[^\"]*", "", page)
    assert "without labels" in page and "true segments" not in page and "nan" not in page


@pytest.mark.slow
def test_four_videos_without_labels(videos, tmp_path, capfd):
    assert train("video,smoke", videos, tmp_path / "run") == 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert set(scores["metrics"]) == LOSSES | {"loss/slot_contrast"}
    held_out = PreparedFolder(videos, "validation", num_slots=4, num_frames=None, boxes=False)
    lengths = [len(held_out[i]["video"]) for i in range(len(held_out))]
    assert lengths and scores["protocol"]["num_samples"] == len(lengths)
    with Image.open(tmp_path / "run" / "pictures" / "validation_00.gif") as animation:
        assert animation.n_frames == min(lengths[0], 24)
    assert rows_of_sheet(tmp_path / "run" / "pictures" / "validation_00.png") == 2
    assert "loss" in capfd.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_features_are_stored_once_before_training(pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "own")
    auto = "--config.data.features=auto"
    assert train("smoke", folder, tmp_path / "run", auto) == 0
    stored = tmp_path / "own_features"
    before = {path.name: path.stat().st_mtime_ns for path in stored.iterdir()}
    assert "MANIFEST.json" in before
    assert train("smoke", folder, tmp_path / "run", auto) == 0  # finished: evaluates
    assert {path.name: path.stat().st_mtime_ns for path in stored.iterdir()} == before
    assert load_config(CONFIG).data.features == "auto"  # what the config does without `smoke`
    with pytest.raises(UserError, match="this data set has none"):
        features_folder({"name": "sprites", "features": "auto"})


def test_stopping_while_features_are_stored(pictures, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("data.store.store", lambda *ignored: signal.raise_signal(signal.SIGTERM))
    folder = shutil.copytree(pictures, tmp_path / "own")
    assert train("smoke", folder, tmp_path / "run", "--config.data.features=auto") == 143
    assert capfd.readouterr().err.endswith("stopped by SIGTERM; the same command resumes\n")


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("prepared/own", "prepared/own_features"), ("own/", "own_features"), ("~/own", "HOME")],
)
def test_features_are_beside_the_folder(folder, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / "own_features" if expected == "HOME" else Path(expected)
    assert features_folder({"folder": folder, "features": "auto"}) == expected
    monkeypatch.chdir(tmp_path)
    assert features_folder({"folder": ".", "features": "auto"}) == Path(f"{tmp_path}_features")


# --------------------------------------------------------------------- without a validation split


@pytest.mark.slow
def test_without_a_validation_split(pictures, tmp_path, capfd):
    """A folder that holds nothing out is scored on its training split, where asked."""
    source = pictures.parent / "my_pictures"
    folder = prepared(source, tmp_path / "own", "--holdout=0")
    assert train("smoke", folder, tmp_path / "run") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert "has no split 'validation'" in error and "--config.eval.split" in error
    assert train("smoke", folder, tmp_path / "run", "--config.eval.split=train") == 0
    out, err = capfd.readouterr()
    assert "there is no validation split: the best checkpoints go by the loss" in err
    assert best_step(tmp_path / "run", "loss", "min") in (3, 6)
    assert "on the train split" in out


# ------------------------------------------------------------------------------- the losses


@pytest.mark.slow
def test_the_loss_of_a_sample_is_that_of_training():
    """A sample alone has the loss of a training step on it, whatever its neighbors are."""
    config = run_config.get_config("image")
    training = build_training(config)
    frozen, key = training.frozen, jax.random.key(3)
    rng = np.random.default_rng(0)
    size = config.data.image_size
    batch = {
        "video": rng.integers(0, 256, (2, 1, size, size, 3), dtype=np.uint8),
        "boxes": np.full((2, 1, config.model.num_slots, 4), 0.5, np.float32),
        "slot_mask": np.ones((2, config.model.num_slots), bool),
    }
    params = jax.tree.map(np.asarray, training.state.params)
    both = training.losses(params, frozen, training.place(batch), key)
    swapped = {name: np.stack([x[0], x[0]]) for name, x in batch.items()}
    other = training.losses(params, frozen, training.place(swapped), key)
    assert both["loss"].shape == (2,)
    np.testing.assert_array_equal(both["loss"][0], other["loss"][0])
    alone = training.place({name: x[:1] for name, x in batch.items()})
    found = training.losses(params, frozen, alone, key)
    _, metrics = training.train_step(training.state, frozen, alone, key)
    for name, values in found.items():
        np.testing.assert_allclose(values, [metrics[name]], rtol=1e-5, err_msg=name)


def test_videos_shorter_than_a_training_clip_have_no_loss(tmp_path):
    rng = np.random.default_rng(2)
    for split, lengths in (("train", (6,)), ("validation", (3, 8, 5))):
        (tmp_path / "in" / split).mkdir(parents=True)
        for i, num_frames in enumerate(lengths):
            write_video(tmp_path / "in" / split / f"clip_{i}.mp4", num_frames, rng)
    config = load_config(f"{CONFIG}:video,smoke")
    config.data.folder = str(prepared(tmp_path / "in", tmp_path / "own"))
    clips = training_clips(config, 7, "validation", None)
    assert [str(clips[i]["name"]) for i in range(len(clips))] == ["clip_1", "clip_2"]
    assert all(len(clips[i]["video"]) == 4 for i in range(len(clips)))
    # As many as asked for, without the short ones before them; pictures are of the same.
    for source in (training_clips, source_of_split):
        (first,) = source(config, 7, "validation", 1)
        assert str(first["name"]) == "clip_1"
    config.data.num_frames = 9
    with pytest.raises(UserError, match="none of the 3 samples to score has the 9 frames"):
        training_clips(config, 7, "validation", None)


def test_clips_that_have_a_loss_are_not_padded(videos):
    """Scored videos may be padded to another length, the clips of their losses never are."""
    config = load_config(f"{CONFIG}:video,smoke")
    config.data.folder, config.data.num_frames = str(videos), 5  # padded, they would have 6
    assert config.eval.num_frames < 0
    training = SimpleNamespace(
        cast=lambda params: params,
        cast_frozen={},
        task=SimpleNamespace(slot_model=config.model, evaluator=None),
        place=lambda batch: batch,
        losses=lambda params, frozen, batch, key: {"loss": np.full(1, batch["video"].shape[1])},
    )
    found = evaluate_split(config, training, {}, "validation", None, (0,))
    assert (found.scores["loss"] == 5).all()
