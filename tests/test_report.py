"""`--mode=report`: the numbers behind the plots, the page, and errors for missing files."""

import base64
import io
import shutil
import types
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from command import here
from ml_collections import ConfigDict
from PIL import Image
from run_config import get_config
from tiny import tiny_config

from smoothsa_jax.checkpoints.read import read_checkpoint
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.values import canonical
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.answers import MODEL
from smoothsa_jax.evaluation.metrics import FOREGROUND_METRICS, METRICS, score_batch
from smoothsa_jax.evaluation.sample_scores import Scored, read_sample_scores, write_sample_scores
from smoothsa_jax.losses.answers import ANSWER_LOGITS
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.report import answers, figures
from smoothsa_jax.report.build import report
from smoothsa_jax.report.clips import COLD, WARM, Clip, Observer, clips, iterations_of_first_frame
from smoothsa_jax.report.curves import Curve, curves, smoothed
from smoothsa_jax.report.distances import around_the_warmer, by_iteration, relative_distance
from smoothsa_jax.report.ranking import best_first, rank
from smoothsa_jax.report.stages import stage
from smoothsa_jax.report.trajectories import centres_of_mass, principal_plane
from smoothsa_jax.tasks.discovery import scoring_of
from smoothsa_jax.training.evaluating import batches_of, source_of_split
from smoothsa_jax.training.evaluating import report as score
from smoothsa_jax.training.logging import RunLog
from smoothsa_jax.training.step import build_training

RNG = np.random.default_rng(0)
SAMPLES = 5  # more than a batch of 2, and not a whole number of them


def scored_run(workdir: Path, variant: str, initializer: str) -> ConfigDict:
    """A workdir of a finished run, with an untrained model."""
    config = get_config(variant)
    config.model.initializer.cold.name = initializer
    config.data.boxes = initializer == "boxes"
    config.eval.update(num_samples=SAMPLES, num_frames=1 if variant == "image" else 3)
    config.eval.update(num_pictures=0, baselines=variant == "image")
    if variant == "image":
        config.eval.update(score_at=11, per_frame=True, foreground=True)
    config = canonical(config)
    training = build_training(config)
    workdir.mkdir()
    log = RunLog(workdir, first_step=0, num_steps=4, log_every=1, stream=io.StringIO())
    for step in range(1, 5):
        terms = {"loss/distillation": 2.0 / step, "loss/reconstruction": 1.0}
        scores = {"validation/fg_ari": 0.1 * step} if variant == "" else {}
        log.record(step, {"loss": 1 + 2.0 / step, **terms, "grad_norm": 1.0, **scores})
    log.close()
    writer = CheckpointWriter(workdir, config)
    for step in (2, 4):
        params = jax.tree.map(lambda x, step=step: x * (1 - 0.05 * step), training.state.params)
        state = training.state.replace(step=jax.numpy.asarray(step, "int32"), params=params)
        progress = {"frozen_from": ""}
        writer.save(step, {"state": state, "frozen": training.frozen}, progress, {"loss": 1.0})
    writer.wait()
    writer.close()
    score(config, training, params, 4, workdir)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, ConfigDict]]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: (folder / name, scored_run(folder / name, variant, initializer))
        for name, variant, initializer in (("video", "", "gaussian"), ("image", "image", "boxes"))
    }


def samples_of(config: ConfigDict):
    return batches_of(config, source_of_split(config, 4, "test", SAMPLES))


class Page(HTMLParser):
    """The text of a page, and everything that it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.pictures, self.fetched, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "data", "srcset", "poster"):
                kind, _, data = value.partition(",")
                if kind == "data:image/png;base64":
                    self.pictures.append(base64.b64decode(data))
                else:
                    self.fetched.append(value)

    def handle_data(self, data):
        self.text += data


# -------------------------------------------------------------------------------------- whole pages


@pytest.mark.parametrize("name", [pytest.param("video", marks=pytest.mark.slow), "image"])
def test_a_page_shows_everything_and_fetches_nothing(runs, name, capsys):
    workdir, _ = runs[name]
    assert here("--mode=report", f"--workdir={workdir}") == 0
    path = workdir / "report" / "index.html"
    assert capsys.readouterr().out.split() == ["report", str(path)]
    text = path.read_text()
    page = Page(text)
    assert not page.fetched and "@import" not in text and "url(" not in text
    assert f"{workdir}, step 4 of 60" in page.text

    files = {file.name: file.read_bytes() for file in path.parent.glob("*.png")}
    assert sorted(page.pictures) == sorted(files.values())
    singles = {"scores", "losses", "distances"}
    # Five samples: four are shown with their masks, two closely, and none is among the best and the
    # worst.
    several = {f"masks_{i:03d}" for i in range(4)}
    several |= {f"{what}_{i:03d}" for what in ("attention", "trajectories") for i in range(2)}
    several |= {"best_1", "best_2", "best_3", "worst_1", "worst_2"}
    assert files.keys() == {f"{name}.png" for name in singles | several}
    for data in files.values():
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.getextrema() != ((255, 255),) * len(picture.getbands())
    assert ("untrained model" in page.text) == (name == "image")


def test_what_is_shown_is_what_was_scored(runs):
    """The masks of any sample give the score in the table of samples."""
    workdir, config = runs["video"]
    scores = read_sample_scores(workdir / "scores.csv")[0].per_sample
    observer, params = Observer(config), read_checkpoint(workdir, 4).weights
    found = clips(
        lambda batch, key: observer(params, batch, key),
        samples_of(config),
        0,
        {1, 4},
    )
    assert found.keys() == {1, 4}
    for number, clip in found.items():
        again = score_batch(clip.masks[None], clip.labels[None])
        for metric, values in scores.items():
            np.testing.assert_allclose(values[number], again[metric][0], atol=1e-6)


def test_a_checkpoint_is_scored_by_the_protocol_of_the_run(runs):
    """At another size and without background, though not frame by frame."""
    workdir, config = runs["image"]
    batch, weights = next(samples_of(config)), read_checkpoint(workdir, 4).weights
    found = Observer(config)(weights, batch, jax.random.fold_in(jax.random.key(0), 0))
    assert found["masks"].shape[-2:] == (11, 11)
    scores = stage(4, found, batch, scoring_of(config.eval)).scores
    assert tuple(scores) == METRICS + FOREGROUND_METRICS
    of_samples = read_sample_scores(workdir / "scores.csv")[0].per_sample
    for name, mean in scores.items():
        np.testing.assert_allclose(mean, np.nanmean(of_samples[name][:2]), atol=1e-6)
    clip = clips(lambda *_: found, samples_of(config), 0, {0})[0]
    assert clip.masks.shape == clip.labels.shape  # pictures stay at the size of the video


def test_iterations_one_by_one_end_where_the_model_ends(runs):
    workdir, config = runs["video"]
    batch = next(samples_of(config))
    batch["slot_mask"][0, -1] = False
    observer = Observer(config)
    found = observer(read_checkpoint(workdir, 4).weights, batch, jax.random.key(1))
    states, attention = found["states"][WARM], found["attention"][WARM]
    assert states.shape == (2, 3, 4, 8) and attention.shape == (2, 2, 4, 4, 4)
    valid = batch["slot_mask"]
    np.testing.assert_allclose(states[:, -1][valid], found["slots"][:, 0][valid], atol=1e-5)
    np.testing.assert_allclose(attention.sum(axis=2), 1, atol=1e-5)
    assert np.abs(states[:, 0] - found["states"][COLD][:, 0]).max() > 0.1


def test_without_a_warmer_there_is_only_the_cold_way():
    config = tiny_config(num_frames=1, initializer="gaussian", decoder="mlp_mixture")
    config.model.initializer = config.model.initializer.cold

    def way(key):
        model = build_slot_model(config.model, (16, 16), 0)
        draws = model.draw(key, Sizes(2, 1, 4), training=False)
        features = jax.numpy.ones((2, 1, 16, 12))
        outputs = model(features, {"target": features}, draws)
        return iterations_of_first_frame(model, outputs, None)

    found = jax.eval_shape(way, jax.random.key(0))
    assert {name: states.shape for name, (states, _) in found.items()} == {COLD: (2, 3, 4, 8)}


# ------------------------------------------------------------------------------------------ numbers


def test_distances_are_those_of_the_definition():
    slots, mask = RNG.normal(size=(2, 3, 4)), np.array([[True, True, False], [True, False, False]])
    assert relative_distance(slots, slots, mask) == 0
    assert relative_distance(0 * slots, slots, mask) == pytest.approx(1)
    queries = slots * np.array([3, 5, 9])[:, None]
    # Twice a slot's length for three slots' first, four times for the second; masked ones do not
    # count.
    assert relative_distance(queries, slots, mask) == pytest.approx((2 + 4 + 2) / 3)
    states = {COLD: np.stack([queries, 9 * slots], 1), WARM: np.stack([2 * slots, slots], 1)}
    found = around_the_warmer(states, mask)
    assert found == pytest.approx({"before the warmer": (2 + 4 + 2) / 3, "after the warmer": 1})
    assert by_iteration(states[WARM], mask) == pytest.approx([1, 0])
    assert around_the_warmer({COLD: states[WARM]}, mask) == pytest.approx({"before the warmer": 1})


def test_ranking():
    found = rank(np.array([0.5, np.nan, 0.9, 0.1, 0.9]), 2)
    assert found.best == [(2, 0.9), (4, 0.9)] and found.worst == [(3, 0.1), (0, 0.5)]
    few = rank(np.array([0.5, 0.2, 0.7]), 4)
    assert few.best == [(2, 0.7), (0, 0.5)] and few.worst == [(1, 0.2)]
    assert rank(np.array([np.nan]), 4) == ([], [])
    rows = [
        Scored("SmoothSA", "default", 0, {"ari": np.array([0.1, np.nan, 0.3])}),
        Scored("SmoothSA", "default", 1, {"ari": np.array([0.9, 0.9, 0.9])}),
    ]
    np.testing.assert_array_equal(best_first(rows, "ari")["SmoothSA"], [0.3, 0.1])


def test_the_principal_plane_keeps_distances_of_points_in_a_plane():
    corners = RNG.normal(size=(3, 4, 2))
    axes = np.linalg.qr(RNG.normal(size=(6, 2)))[0]
    plane = principal_plane(corners @ axes.T + RNG.normal(size=6))
    assert plane.shape == (3, 4, 2)

    def between(x):
        flat = x.reshape(-1, 2)
        return np.linalg.norm(flat[:, None] - flat, axis=-1)

    np.testing.assert_allclose(between(plane), between(corners), atol=1e-9)
    assert plane[..., 0].var() >= plane[..., 1].var()
    assert principal_plane(np.ones((1, 5))).tolist() == [[0, 0]]


def test_centres_of_mass():
    masks = RNG.integers(0, 3, (2, 5, 7))
    masks[1][masks[1] == 2] = 0
    centres = centres_of_mass(masks, 4)
    for t in range(2):
        for slot in range(4):
            rows, columns = np.nonzero(masks[t] == slot)
            expected = [columns.mean(), rows.mean()] if len(rows) else [np.nan] * 2
            np.testing.assert_allclose(centres[t, slot], expected)


def test_curves():
    log = [{"step": s, "a/x": float(s), "a/y": None, "b": 1.0} for s in range(1, 201)]
    log[0].pop("b")
    found = curves(log, "a/")
    assert found.keys() == {"x"}
    assert curves(log)["b"].steps[0] == 2
    smooth = smoothed(found["x"])  # over 4 of 200 rows
    assert smooth.values[:5].tolist() == [1, 1.5, 2, 2.5, 3.5]
    assert len(smooth.steps) == 200


def test_scores_of_samples_are_read_as_they_were_written(tmp_path):
    rows = [
        Scored("SmoothSA", "default", 0, {"ari": np.array([0.25, np.nan]), "mbo": np.ones(2)}),
        Scored("k-means, on RGB", "match_paper", 3, {"ari": np.zeros(2), "mbo": np.ones(2)}),
    ]
    write_sample_scores(tmp_path / "a.csv", ["one", "a,b"], rows)
    for found, expected in zip(read_sample_scores(tmp_path / "a.csv"), rows, strict=True):
        assert found[:3] == expected[:3] and found.per_sample.keys() == expected.per_sample.keys()
        for name, values in expected.per_sample.items():
            np.testing.assert_array_equal(found.per_sample[name], values)


def test_a_model_without_warmer_or_motion_can_be_drawn():
    slots, frame = 3, RNG.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    mask = np.array([True, True, False])
    states, attention = RNG.normal(size=(4, slots, 8)), RNG.random((3, slots, 4, 4))
    masks = np.zeros((1, 16, 16), np.uint8)
    clip = Clip(0, frame, masks, masks, states[-1:], mask, {COLD: states}, {COLD: attention})
    for draw in (figures.attention, figures.trajectories):
        assert draw(clip).startswith(b"\x89PNG")
    zero = Curve(np.arange(3.0), np.zeros(3))  # no logarithm of it
    assert figures.losses({"loss": zero}, {}).startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("log.jsonl", None, "log.jsonl cannot be read .No such file or directory.; python main.py"),
        ("log.jsonl", "", "log.jsonl is empty"),
        ("log.jsonl", '{"step": 1', "log.jsonl is damaged"),
        ("scores.json", None, "--mode=evaluate --workdir=.* makes it"),
        ("scores.csv", None, "--mode=evaluate --workdir=.* makes it"),
        ("scores.csv", "sample,name\n0,1\n", "scores.csv is damaged .expected lines of sample,"),
        ("checkpoints", None, "no checkpoint found in .*; train first"),
    ],
)
def test_what_is_missing_is_told(runs, tmp_path, capsys, file, content, message):
    workdir = shutil.copytree(runs["image"][0], tmp_path / "run")
    if content is not None:
        (workdir / file).write_text(content)
    elif file == "checkpoints":
        shutil.rmtree(workdir / file)
    else:
        (workdir / file).unlink()
    with pytest.raises(UserError, match=message) as error:
        report(workdir)
    assert "\n" not in str(error.value)


def test_a_missing_plotting_library_is_told_first(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'smoothsa_jax\[report\]'"):
        report(tmp_path)


@pytest.mark.parametrize(("threshold", "said"), [(None, "no"), (0.3, "yes"), (0.45, "no")])
def test_the_second_of_two_answers_is_given_above_the_threshold(threshold, said):
    """As in the scores: there, Physion's threshold is chosen on validation."""
    names = {"kinds": ("collide",), "words": (), "answers": ("no", "yes")}
    share = np.log([[0.6, 0.4]])
    text = answers._caption(
        ConfigDict({"model": names}),
        types.SimpleNamespace(text=lambda number: "do they touch?"),
        {"kind": [0], "answer": [1], "allowed": np.ones((1, 2), bool)},
        {f"{MODEL}.{ANSWER_LOGITS}": share},
        0,
        threshold,
    )
    verdict = "right" if said == "yes" else "wrong"
    share = {"no": 60, "yes": 40}[said]
    assert text.endswith(f"Answer: yes. Model: {said} ({share} %), {verdict}.")
