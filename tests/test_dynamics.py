"""The task `dynamics`: what it refuses, its windows and statistics, its scores, and whole runs."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import as_dynamics, tiny_batch, tiny_config

import main
from configs import clevrer
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.schema import check as check_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.metrics import contingency
from smoothsa_jax.evaluation.prediction import PredictionEvaluator, _miou_of_identities
from smoothsa_jax.evaluation.split import _apart
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.load import load_any, load_forecaster
from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.models.rollouters import SEEN
from smoothsa_jax.models.targets import flow_picture
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.tasks.dynamics import START, continued
from smoothsa_jax.training.step import build_training

FRAMES = 5


def config_of(decoder: str = "mlp_mixture", **rollouter):
    config = as_dynamics(tiny_config(FRAMES, decoder=decoder), **rollouter)
    config.data.update(min_objects=2, max_objects=3)
    return config


def refused(config, match):
    with pytest.raises(UserError, match=match):
        check(config)


def test_what_cannot_run_is_refused():
    refused(config_of("random_ar"), "decoder 'random_ar' makes no features or pixels of slots")
    few = config_of()
    few.data.num_frames = 3
    refused(few, "training needs clips of at least 4 frames")
    few = config_of(every=2)
    few.eval.observed = None
    refused(few, "training needs clips of at least 7 frames")
    early = config_of()
    early.eval.observed = 1
    refused(early, "eval.observed is 1, but the rollouter continues 2 frames")
    late = config_of()
    late.eval.observed = FRAMES
    refused(late, "5 frames are observed, so that none is left to predict")
    late.eval.update(num_frames=-1, windows=2)
    refused(late, "eval.windows is 2, but 5 frames are observed")
    refused(with_target(TOKENIZED), "decoder 'mlp_mixture' makes no features or pixels")
    refused(config_of(history=3), "history is 3, more than the 2 frames of")
    alone = config_of()
    alone.companions = {}
    refused(alone, "companions.slot_model is missing")
    other = config_of()
    other.model.decoder = {"name": "mlp_mixture"}
    refused(other, "model.decoder is not a part of a model of the task 'dynamics'")
    discovery = tiny_config()
    discovery.eval.observed = 2
    refused(discovery, "eval.observed is 2, which is for the task 'dynamics'")


def test_the_recipe_of_clevrer_has_windows_of_every_second_frame():
    config = load_config("configs/clevrer.py:savi_slotformer,stochastic,dynamics").unlock()
    config.companions.slot_model.model = load_config("configs/clevrer.py:savi_slotformer").model
    config.lock()
    check(config)
    every, history = config.model.rollouter.every, config.model.rollouter.window
    assert (every, config.data.last_entry) == (2, every * (history - 3))
    assert config.data.num_frames == config.eval.windows == build_task(config)._span
    given = re.findall(r"--config\.([\w.]+)=(\d+)", clevrer.__doc__)
    assert ("eval.windows", "95") in given  # 6 + 42 of every second frame
    assert build_task(config)._observed == 12 and 95 == every * (6 + 42 - 1) + 1
    config.eval.update(windows=None, num_frames=31)
    with pytest.raises(UserError, match="data.last_entry is 6, but eval.windows is None"):
        check_config(config)


TOKENIZED = {
    "name": "several",
    "codes": {"name": "codes", "width": 3},
    "features": {"name": "features"},
}


def with_target(target):
    config = config_of()
    config.companions.slot_model.model.target = target
    return config


def test_masks_are_predicted_where_the_target_needs_a_tokenizer():
    config = with_target(TOKENIZED)
    config.losses.decoded.weight = 0.0
    check(config)
    evaluator = build_task(config).evaluator
    assert evaluator.metrics == ("slot_error", "ari", "fg_ari", "miou")


@pytest.mark.more
def test_a_target_of_flow_is_that_of_the_predicted_frames():
    config = with_target({"name": "flow"})
    check(config)
    training = build_training(config)
    batch = tiny_batch(small(config))
    with pytest.raises(UserError, match="the data has no 'flow'"):
        training.place(batch)
    rng = np.random.default_rng(0)
    batch["flow"] = rng.standard_normal((*batch["video"].shape[:4], 2)).astype("f")
    batch, task = training.place(batch), training.task
    skeletons = {name: found.skeleton() for name, found in training.definitions.items()}

    @jax.jit
    def targets(frozen, batch):
        models = {"slot_model": training.definitions["slot_model"].merge(frozen)}
        draws = [task.draw(skeletons, jax.random.key(0), sizes(batch), x) for x in (False, True)]
        found = [task.constants(models, batch, x, False)["target"] for x in draws]
        return found, draws[1][START]

    frozen = {k: jnp.zeros(x.shape, x.dtype) for k, x in training.frozen.items()}
    found, starts = targets(frozen, batch)
    every = flow_picture(batch["flow"])
    windows = jnp.stack([x[s + 2 : s + 4] for x, s in zip(every, starts, strict=True)])
    for target, expected in zip(found, (every[:, 2:], windows), strict=True):
        np.testing.assert_allclose(target.reshape(expected.shape), expected, atol=1e-6)


def test_slots_alone_are_predicted_without_a_decoder():
    config = config_of("random_ar")
    config.losses.decoded.weight = 0.0
    evaluator = build_task(config).evaluator
    assert evaluator.metrics == ("slot_error",) and not evaluator.needs_labels


@pytest.mark.slow
def test_a_step_trains_the_rollouter_on_windows_and_counts_its_slots():
    """The frozen model stays; the statistics are those of all slots of the windows so far."""
    config = config_of(normalize=True)
    training = build_training(config)
    seen, state, frozen = [], training.state, training.frozen
    rng = np.random.default_rng(0)
    frozen = {
        k: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype) for k, x in frozen.items()
    }
    before = {k: np.asarray(x) for k, x in state.params.items()}
    skeletons = {name: found.skeleton() for name, found in training.definitions.items()}
    for step in range(2):
        batch = {k: jnp.asarray(x) for k, x in tiny_batch(small(config), seed=step).items()}
        draws = training.task.draw(skeletons, jax.random.key(step), sizes(batch), True)
        assert draws[START].max() <= 1  # windows of 4 of 5 frames
        models = {
            name: found.merge({**state.params, **frozen})
            for name, found in training.definitions.items()
        }
        constants = training.task.constants(models, batch, draws, False)
        outputs = training.task.forward(models, batch, constants, draws, {})
        window = np.asarray(outputs[SEEN])
        assert window.shape[1] == 4
        seen.append(window)
        state, metrics = training.train_step(state, frozen, batch, jax.random.key(step), draws)
        assert np.isfinite(float(metrics["loss"]))
    every = np.concatenate(seen).reshape(-1, seen[0].shape[-1])
    after = {k: np.asarray(x) for k, x in state.params.items()}
    np.testing.assert_allclose(after["rollouter.slot_mean"], every.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(after["rollouter.slot_scale"], every.std(axis=0), atol=1e-5)
    assert np.any(
        after["rollouter.in_projection.kernel"] != before["rollouter.in_projection.kernel"]
    )
    assert all(name.startswith("rollouter.") for name in after)


def small(config):
    """A config whose sizes `tiny_batch` can read."""
    other = config.copy_and_resolve_references()
    other.model = config.companions.slot_model.model
    return other


def sizes(batch):
    from smoothsa_jax.tasks.task import sizes_of

    return sizes_of(batch)


def test_the_rows_beside_the_model():
    past = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5)), jnp.float32)
    rows = continued(past, 2)
    np.testing.assert_array_equal(rows["copy"][:, 1], past[:, -1])
    line = past[:, -1] + 2 * (past[:, -1] - past[:, -2])
    np.testing.assert_allclose(rows["line"][:, 1], line, rtol=1e-6)
    np.testing.assert_array_equal(continued(past[:, :1], 2)["line"], rows_of_one(past[:, :1]))


def rows_of_one(past):
    return np.repeat(past, 2, axis=1)


def evaluated(slots_of):
    """Scores of predicted slots and masks, of one clip of two observed and three later frames."""
    evaluator = PredictionEvaluator(
        has_masks=True, decodes=True, pixels=None, image_size=(4, 4), observed=2, steps=3
    )
    labels = np.zeros((1, 5, 4, 4), np.uint8)
    labels[:, :, :2, :2], labels[:, :, 2:, 2:] = 1, 2
    batch = {"segmentations": labels, "video": np.zeros((1, 5, 4, 4, 3), np.uint8)}
    one_hot = (labels[:, :, None] == np.arange(3)[:, None, None]).astype("f")  # (1,5,3,4,4)
    rng = np.random.default_rng(0)
    true = rng.standard_normal((1, 3, 3, 6)).astype("f")
    outputs = {"slot_mask": np.ones((1, 3), bool), "observed.masks": one_hot[:, :2]}
    outputs["target"] = np.zeros((1, 3, 16, 2), "f")
    for row in ("model", "copy", "line", "seen"):
        slots, order = slots_of(row, true)
        outputs[f"{row}.slots"] = slots
        masks = one_hot[:, 2:]
        outputs[f"{row}.masks"] = np.stack([masks[:, k][:, o] for k, o in enumerate(order)], 1)
        outputs[f"{row}.prediction"] = outputs["target"] + (row == "model")
    outputs = {k: jnp.asarray(x) for k, x in outputs.items()}
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    own, rows = _apart(evaluator.per_sample(tables, False), evaluator.rows)
    assert not any("/" in name for name in own)
    return evaluator.means(own), evaluator.means(rows["seen"]), true


def test_clips_of_any_length_have_the_same_scores():
    """Whole videos differ in length, and with it batches."""
    evaluator = PredictionEvaluator(
        has_masks=False, decodes=False, pixels=None, image_size=(4, 4), observed=2, steps=3
    )
    rng, found = np.random.default_rng(0), []
    for frames, length in ((2, 1), (6, 5)):
        true = rng.standard_normal((1, frames, 3, 6)).astype("f")
        error = np.arange(1.0, frames + 1, dtype="f")[:, None, None]
        outputs = {f"{row}.slots": true + error for row in ("model", "copy", "line")}
        outputs |= {"seen.slots": true, "slot_mask": np.ones((1, 3), bool)}
        video = np.zeros((1, 2 + frames, 4, 4, 3), np.uint8)
        batch = {"video": video, "num_frames": np.array([2 + length])}
        outputs = {k: jnp.asarray(x) for k, x in outputs.items()}
        tables = jax.device_get(evaluator.measure(outputs, batch).tables)
        found.append(_apart(evaluator.per_sample(tables, False), evaluator.rows)[0])
        kept = true[:, :length].reshape(-1, 6)
        np.testing.assert_allclose(tables["slots_mean"][0], kept.mean(axis=0), atol=1e-6)
    assert found[0].keys() == found[1].keys()
    np.testing.assert_allclose(found[0]["_slot_error"], [1], rtol=1e-5)
    np.testing.assert_allclose(found[1]["_slot_error"], [(1 + 4 + 9 + 16 + 25) / 5], rtol=1e-5)
    assert np.isnan(found[0]["_slot_error_2"]) and "_slot_error_4" not in found[1]


def test_padded_frames_do_not_choose_the_slots_of_objects():
    evaluator = PredictionEvaluator(
        has_masks=True, decodes=False, pixels=None, image_size=(4, 4), observed=1, steps=2
    )
    labels = np.full((1, 3, 4, 4), NO_SEGMENT, np.uint8)  # the last frame is padding
    labels[:, :2, :2], labels[:, :2, 2:] = 1, 2
    slots = np.zeros((1, 3, 16), np.uint8)  # slot 0 finds object 1 best, slot 2 object 2
    slots[:, :2, 4:11], slots[:, :2, 11:] = 1, 2
    masks = (slots[:, :, None] == np.arange(3)[:, None]).reshape(1, 3, 3, 4, 4).astype("f")
    outputs = {"slot_mask": np.ones((1, 3), bool), "observed.masks": masks[:, :1]}
    for row in ("model", "copy", "line", "seen"):
        outputs |= {f"{row}.masks": masks[:, 1:], f"{row}.slots": np.zeros((1, 2, 3, 2), "f")}
    outputs = {k: jnp.asarray(x) for k, x in outputs.items()}
    video = np.zeros((1, 3, 4, 4, 3), np.uint8)
    batch = {"segmentations": labels, "video": video, "num_frames": np.array([2])}
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    np.testing.assert_allclose(evaluator.per_sample(tables, False)["miou"], (4 / 8 + 5 / 8) / 2)


def test_scores_see_identities_and_the_variance_of_slots():
    same, swapped = [0, 1, 2], [0, 2, 1]

    def slots_of(row, true):
        return (true if row == "seen" else true + 1), [same, same, swapped]

    scores, ceiling, true = evaluated(slots_of)
    assert ceiling["slot_error"] == 0
    variance = true.reshape(-1, 6).var(axis=0).mean()
    np.testing.assert_allclose(scores["slot_error"], 1 / variance, rtol=1e-4)
    np.testing.assert_allclose(scores["decoded_error"], 1.0)
    # In the last frame the two objects have each other's slots.
    assert [scores[f"fg_ari_{k}"] for k in (1, 2, 3)] == [1, 1, 1] and scores["fg_ari"] == 1
    assert [scores[f"miou_{k}"] for k in (1, 2, 3)] == [1, 1, 0]
    np.testing.assert_allclose(scores["miou"], 2 / 3)


def test_the_papers_scores_of_masks():
    """Frame by frame, with a background slot, and boxes; of the model's row alone."""
    settings = {"has_masks": True, "decodes": True, "pixels": "signed", "image_size": (12, 12)}
    evaluator = PredictionEvaluator(**settings, observed=1, steps=2, match_paper=True)
    labels = np.zeros((1, 3, 12, 12), np.uint8)
    labels[:, :, :4, :5], labels[:, :, 8:, 6:] = 1, 2
    masks = np.zeros((1, 3, 4, 12, 12), "f")  # the last slot is not valid
    masks[:, :, 0], masks[:, :, 1], masks[:, :, 2] = 0.4, 0.3, 0.3  # none exceeds 0.5
    masks[:, :, 0, 6] = 0.6  # but in a row, so that the invalid slot would take the rest
    masks[0, :, 1, :4, :5] = 0.8
    masks[0, 1, 2, 8:, 6:] = masks[0, 2, 2, 8:, 6:9] = 0.8  # in the last frame, half of it
    outputs = {"slot_mask": np.arange(4)[None] < 3, "observed.masks": masks[:, :1]}
    outputs["target"] = np.zeros((1, 2, 144, 3), "f")
    for row in ("model", "copy", "line", "seen"):
        outputs |= {f"{row}.masks": masks[:, 1:], f"{row}.slots": np.zeros((1, 2, 4, 2), "f")}
        outputs[f"{row}.prediction"] = outputs["target"] + 0.5
    outputs = {k: jnp.asarray(x) for k, x in outputs.items()}
    batch = {"segmentations": labels, "video": np.zeros((1, 3, 12, 12, 3), np.uint8)}
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    plain, _ = _apart(evaluator.per_sample(tables, False), evaluator.rows)
    paper, rows = _apart(evaluator.per_sample(tables, True), evaluator.rows)
    assert "ar" not in plain and "ar" not in rows["copy"]
    assert plain.keys() < paper.keys() and evaluator.means(plain).keys() < paper.keys() | {
        name.removeprefix("_") for name in paper
    }
    np.testing.assert_array_equal([paper["ar_1"], paper["ap_1"]], [[1.0], [2 / 3]])
    # The half's box is 2 wide, the whole one 5: ends are pixel indices.
    np.testing.assert_array_equal([paper["ar_2"], paper["ap_2"]], [[0.5], [1 / 3]])
    np.testing.assert_allclose([paper["miou_1"], paper["miou_2"]], [[1.0], [0.75]])
    np.testing.assert_allclose(paper["mse"], 144 * 0.25**2, rtol=1e-5)
    assert paper["ari"] == (paper["ari_1"] + paper["ari_2"]) / 2 and paper["ari_1"] == 1


def test_an_object_that_a_frame_lacks_is_not_in_its_iou():
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[:, :2], labels[0, 2:] = 1, 2
    counts = contingency(labels, labels)
    np.testing.assert_array_equal(_miou_of_identities(counts), [1, 1])


@pytest.mark.slow
def test_from_slots_to_predicted_frames(tmp_path, capsys):
    """The slots, a rollouter on them that stores them first, its scores, and frames ahead."""
    slots, runs = tmp_path / "slots", tmp_path / "dynamics"
    data = ["--config.data.num_samples=6", "--config.eval.num_samples=2"]
    data += ["--config.eval.validation_samples=1", "--config.eval.num_pictures=1"]
    few = ["--config.train.num_steps=4", "--config.train.batch_size=2", *data]
    few += ["--config.checkpoint.every=2", "--config.eval.batch_size=2"]
    sprites = "sprites"
    assert main.main([f"--config={sprites}", f"--workdir={slots}", *few]) == 0
    more = [f"--config={sprites}:dynamics", f"--workdir={runs}", *few]
    source = f"--config.companions.slot_model.source={slots}"
    assert main.main([*more, source]) == 0
    assert (runs / "slots" / "MANIFEST.json").is_file()
    scores = json.loads((runs / "scores.json").read_text())
    assert scores["baselines"]["seen"]["slot_error"] == 0
    assert {"copy", "line", "seen", "untrained rollouter"} <= scores["baselines"].keys()
    assert {f"fg_ari_{k}" for k in range(1, 7)} <= scores["metrics"].keys()
    assert scores["protocol"]["observed"] == 6 and (runs / "pictures" / "test_00.png").is_file()
    assert main.main([*more, source]) == 0  # finished: it evaluates
    evaluate = ["--mode=evaluate", f"--workdir={runs}", "--config.eval.num_frames=8"]
    assert main.main(evaluate) == 0
    assert "fg_ari_3" not in json.loads((runs / "scores.json").read_text())["metrics"]
    sample = Sprites(60, 6, 4, 2, "test", num_slots=5)[0]
    folder = tmp_path / "clip"
    folder.mkdir()
    for t, frame in enumerate(sample["video"]):
        Image.fromarray(frame).save(folder / f"{t:03d}.png")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"clip": [[0, 0, 20, 20], [30, 30, 50, 50]]}))
    predict = ["--mode=predict", f"--workdir={runs}", f"--boxes={boxes}", f"--input={folder}"]
    out = tmp_path / "found"
    assert main.main([*predict, f"--output={out}", "--future=3"]) == 0
    rows = json.loads((out / "clip" / "boxes.json").read_text())["frames"]
    assert [row.get("predicted", False) for row in rows] == [False] * 6 + [True] * 3
    with np.load(out / "clip" / "slots.npz") as file:
        assert file["slots"].shape[0] == 9
    assert len(list((out / "clip" / "labels").iterdir())) == 9
    capsys.readouterr()
    for wrong, text in (
        ([*predict, f"--output={out}2", "--future=0"], "--future is 0"),
        ([*predict, f"--output={out}2", "--future=2", "--reconstruct"], "does not go with"),
        ([*predict, f"--output={out}2", "--future=2", "--requery"], "--requery does not go with"),
        ([*predict, f"--output={out}2"], "predict frames with --future"),
        (
            [x.replace(str(runs), str(slots)) for x in predict]
            + [f"--output={out}2", "--future=2"],
            "a model of the task 'discovery'",
        ),
    ):
        assert main.main(wrong) == 2
        assert text in capsys.readouterr().err
    forecaster = load_forecaster(runs)
    assert isinstance(forecaster, Forecaster) and isinstance(load_any(runs), Forecaster)
    assert load_any(slots).num_slots == forecaster.segmenter.num_slots
    with pytest.raises(UserError, match="there are 0 frames, but the rollouter continues at least"):
        next(forecaster.future([], 2))
