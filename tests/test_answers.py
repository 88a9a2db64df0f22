"""The task `answers`: what it refuses, losses, scores, what is beside the model, and runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny import TinyQuestions, as_answers, as_dynamics, tiny_config

import main
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.answers import AnswerEvaluator, majority_of
from smoothsa_jax.evaluation.split import _apart
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.inputs.sprite_questions import SpriteQuestions
from smoothsa_jax.losses.answers import answer_loss, choice_loss
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.basic import split_key
from smoothsa_jax.tasks.answers import OTHER_CLIP
from smoothsa_jax.tasks.build import build_task, stored_splits
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training


def config_of(**readout) -> ConfigDict:
    return as_answers(tiny_config(decoder="mlp_mixture"), **readout)


def ahead(config: ConfigDict, window: int = 2) -> ConfigDict:
    """With an untrained rollouter."""
    dynamics = as_dynamics(tiny_config(decoder="mlp_mixture"), window=window)
    companion = {"source": "", "title": "SlotFormer", "model": dynamics.model}
    config.companions.rollouter = ConfigDict(companion)
    return config


def refused(config, match):
    with pytest.raises(UserError, match=match):
        check(config)


def test_what_cannot_run_is_refused():
    check(ahead(config_of()))
    refused(ahead(config_of(), window=4), "3 observed frames, but companions.rollouter continues 4")
    config = config_of()
    config.optimizer.clip_norm = 1.0
    refused(config, "optimizer.clip_norm is 1.0, which would let the readouts of model.beside")
    config = config_of()
    config.eval.observed = 2
    refused(config, "eval.observed is 2, but questions say what is observed")
    config = config_of()
    config.losses.beside.weight = 0.0
    refused(config, "model.beside is .*, but no loss trains them")
    config = config_of()
    config.model.beside = ("words",)
    refused(config, "model.beside is 'words'; expected one of .*words_only")
    config = config_of()
    config.model.future, config.model.kinds = 2, ()
    refused(config, "model.kinds is empty")
    config = config_of()
    config.model.rollouter = ConfigDict({"name": "slotformer"})
    refused(config, "model.rollouter is not a part of a model of the task 'answers'")
    config = config_of()
    config.companions = {}
    refused(config, "companions.slot_model is missing")
    config = config_of()
    config.companions.rollouter = config.companions.slot_model
    refused(config, "companions.rollouter holds SmoothSA, which is no rollouter")
    config = config_of(name="pairs")
    config.model.readout = ConfigDict({"name": "pairs", "hidden_size": 4})
    refused(config, "'pairs', which tells two answers apart, but there are 3")
    refused(config_of(choice_length=0), "losses.choice needs choice_logits")
    config = config_of()
    config.data.name = "sprites"
    refused(config, "model.beside has 'true_state', which the data set 'sprites' does not have")


def batch_of(config: ConfigDict, **changed) -> dict[str, np.ndarray]:
    """All three questions, each with random slots."""
    rng, (frames, slots, size) = np.random.default_rng(0), (3, 4, 8)
    questions = [TinyQuestions()[index] for index in range(3)]
    found = {key: np.stack([x[key] for x in questions]) for key in questions[0]}
    found["slots"] = rng.standard_normal((3, frames, slots, size)).astype("f")
    found["pooled"] = rng.standard_normal((3, frames, 12)).astype("f")
    found["slot_mask"] = np.ones((3, slots), bool)
    state = [TinyQuestions().state(clip) for clip in found["clip"]]
    found["state"], found["state_mask"] = map(np.stack, zip(*state, strict=True))
    return {**found, **changed}


def test_bad_questions_are_refused():
    config = config_of()
    task, good = build_task(config), batch_of(config)
    task.check_batch(good)
    for name, change, match in (
        ("question", lambda x: x + 4, "question holds word number 9, but model.words lists 6"),
        ("choices", lambda x: x - 1, "choices holds word number"),
        ("answer", lambda x: x + 1, "an answer is number 3, but model.answers lists 3"),
        ("choice_answers", lambda x: -np.ones_like(x), "both an answer and choices, or neither"),
        ("choice_answers", lambda x: np.ones_like(x), "both an answer and choices, or neither"),
        ("allowed", lambda x: ~x, "the right answer of a question is not among those"),
        ("allowed", lambda x: x[:, :2], "an answer is number 2, but model.answers"),
    ):
        with pytest.raises(UserError, match=match):
            task.check_batch({**good, name: change(good[name])})
    with pytest.raises(UserError, match="the data has no 'kind'"):
        task.check_batch({k: x for k, x in good.items() if k != "kind"})
    with pytest.raises(UserError, match="a question has no answer"):
        build_task(config_of(choice_length=0)).check_batch(good)


def test_other_questions_are_refused():
    config = config_of()
    source = build_dataset(config.data, "train")
    build_task(config).check_source(source)
    config.model.words = (*TinyQuestions.words[:-1], "blue")
    with pytest.raises(UserError, match="the questions have words such as 'red', but model.words"):
        build_task(config).check_source(source)
    config.model.words = TinyQuestions.words
    config.model.kinds = ("count",)
    with pytest.raises(UserError, match="the questions have 3 kinds, but model.kinds lists 1"):
        build_task(config).check_source(source)
    with pytest.raises(UserError, match="data.name is .*, which holds no questions"):
        build_task(config).check_source(source.clips)


# ----------------------------------------------------------------------------------------- losses


def test_cross_entropy_is_over_allowed_answers_and_questions_that_have_one():
    logits = jnp.asarray([[1.0, 2.0, 9.0], [0.5, -1.0, 0.0], [7.0, 7.0, 7.0]])
    allowed = jnp.asarray([[1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    answer = jnp.asarray([0, 2, -1])
    value, gradient = jax.value_and_grad(answer_loss)(logits, answer, allowed)
    first = np.log(np.exp(1) + np.exp(2)) - 1
    second = np.log(np.exp([0.5, -1.0, 0.0]).sum())
    np.testing.assert_allclose(value, (first + second) / 2, rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[2].any() and gradient[0, 2] == 0
    assert float(answer_loss(logits, -jnp.ones(3, int), allowed)) == 0


def test_binary_cross_entropy_is_over_all_choices_of_a_batch():
    logits, right = jnp.asarray([[0.3, -2.0], [4.0, 5.0]]), jnp.asarray([[1, 0], [0, -1]])
    terms = np.log1p(np.exp([-0.3, -2.0, 4.0]))
    np.testing.assert_allclose(choice_loss(logits, right), terms.mean(), rtol=1e-6)
    assert float(choice_loss(logits, -jnp.ones((2, 2), int))) == 0


# ----------------------------------------------------------------------------------------- scores


def evaluator_of(**changed) -> AnswerEvaluator:
    settings = {"kinds": ("count", "why"), "answers": ("no", "yes"), "rows": ("other",)}
    settings |= {"has_choices": True, "protocol": {}, **changed}
    return AnswerEvaluator(**settings)


def test_scores_by_kind_answer_and_choice():
    evaluator = evaluator_of()
    batch = {
        "kind": np.array([0, 0, 0, 0, 1, 1]),
        "answer": np.array([0, 1, 1, 1, -1, -1]),
        "allowed": np.ones((6, 2), bool),
        "choice_answers": np.array([[-1, -1]] * 4 + [[1, 0], [1, -1]]),
    }
    said = np.array([0, 1, 1, 0, 0, 0])
    logits = np.where(np.arange(2) == said[:, None], 1.0, -1.0)
    choices = np.array([[0.0, 0.0]] * 4 + [[2.0, 2.0], [0.1, 3.0]])
    rows = {"model": (logits, choices), "other": (-logits, -choices)}
    outputs = {}
    for row, (of_answers, of_choices) in rows.items():
        outputs[f"{row}.answer_logits"] = jnp.asarray(of_answers)
        outputs[f"{row}.choice_logits"] = jnp.asarray(of_choices)
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    own, beside = _apart(evaluator.per_sample(tables, False), evaluator.rows)
    scores, other = evaluator.means(own), evaluator.means(beside["other"])
    np.testing.assert_array_equal(own["right"], [1, 1, 1, 0, 0, 1])
    assert scores["accuracy/count"] == 0.75 and scores["accuracy/why"] == 0.5
    assert scores["accuracy"] == 0.625
    np.testing.assert_allclose(scores["question_accuracy"], 4 / 6)
    np.testing.assert_allclose(scores["option_accuracy"], 2 / 3)
    np.testing.assert_allclose(scores["option_accuracy/why"], 2 / 3)
    assert np.isnan(scores["option_accuracy/count"])
    assert scores["accuracy_of/no"] == 1
    np.testing.assert_allclose(scores["accuracy_of/yes"], 2 / 3)
    assert other["accuracy/count"] == 0.25 and set(evaluator.metrics) <= scores.keys()


def test_a_rule_for_some_kinds_has_no_score_of_all():
    evaluator = evaluator_of(has_choices=False, kinds=("count", "why"), rows=())
    questions = {"kind": np.array([0, 0, 1]), "answer": np.array([0, 1, 1])}
    found = evaluator.of_questions(questions, np.array([1.0, 0.5, np.nan]))
    scores = evaluator.means(found)
    assert scores["accuracy/count"] == 0.75
    assert all(np.isnan(scores[x]) for x in ("accuracy", "accuracy/why", "question_accuracy"))
    whole = evaluator.means(evaluator.of_questions(questions, np.array([1.0, 0.5, 0.0])))
    assert whole["accuracy"] == 0.375 and whole["question_accuracy"] == 0.5


def test_answers_that_are_not_allowed_are_not_given():
    evaluator = evaluator_of(has_choices=False, answers=("a", "b", "c"), rows=())
    batch = {"kind": np.array([0]), "answer": np.array([1])}
    batch["allowed"] = np.array([[True, True, False]])
    outputs = {"model.answer_logits": jnp.asarray([[0.0, 1.0, 5.0]])}
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    assert evaluator.means(evaluator.per_sample(tables, False))["accuracy"] == 1


def test_the_paper_has_the_best_of_several_thresholds():
    evaluator = evaluator_of(has_choices=False, kinds=("contact",), rows=())
    yes = np.array([0.42, 0.44, 0.3, 0.7])
    logits = np.stack([np.zeros(4), np.log(yes / (1 - yes))], axis=1)
    batch = {"kind": np.zeros(4, int), "answer": np.array([1, 1, 0, 1])}
    batch["allowed"] = np.ones((4, 2), bool)
    outputs = {"model.answer_logits": jnp.asarray(logits)}
    tables = jax.device_get(evaluator.measure(outputs, batch).tables)
    plain, paper = (evaluator.means(evaluator.per_sample(tables, x)) for x in (False, True))
    assert plain["accuracy"] == 0.5 and paper["accuracy"] == 1.0


def test_the_threshold_is_chosen_on_validation():
    evaluator = evaluator_of(has_choices=False, kinds=("contact",), rows=("other",))

    def values(evaluator, yes, answer, other=None):
        """The values of the model and of the row beside it, whose probabilities are `other`."""
        logits = {"model": yes, "other": yes if other is None else other}
        logits = {row: np.stack([0 * x, np.log(x / (1 - x))], axis=1) for row, x in logits.items()}
        batch = {"kind": np.zeros(len(yes), int), "answer": np.array(answer)}
        batch["allowed"] = np.ones((len(yes), 2), bool)
        outputs = {f"{row}.answer_logits": jnp.asarray(x) for row, x in logits.items()}
        tables = jax.device_get(evaluator.measure(outputs, batch).tables)
        own, beside = _apart(evaluator.per_sample(tables, False), ("other",))
        return ({k: x[None] for k, x in found.items()} for found in (own, beside["other"]))

    later = np.array([0.61, 0.62, 0.3, 0.7])
    own, other = values(evaluator, np.array([0.43, 0.44, 0.41, 0.7]), [1, 1, 0, 1], later)
    fitted = evaluator.fitted(own, {"other": other})
    assert evaluator.protocol["threshold"] == 0.5 and fitted.protocol["threshold"] == 0.4
    assert evaluator.fits_on_validation and not evaluator_of().fits_on_validation
    # 0.4 would take the third one as well: between 0.4 and 0.45 there is no better threshold. All
    # from 0.4 to 0.6 are as good for the other row, whose middle one stays.
    assert fitted.protocol["thresholds_beside"] == {"other": 0.5}
    own, other = values(fitted, np.array([0.42, 0.46, 0.3]), [1, 0, 0])
    np.testing.assert_array_equal(own["right"], [[1, 0, 1]])
    np.testing.assert_array_equal(other["right"], [[0, 1, 1]])
    # A row beside the model has the threshold that is best for it.
    later = np.array([0.61, 0.62, 0.58, 0.7])
    own, other = values(evaluator, np.array([0.9, 0.9, 0.1, 0.9]), [1, 1, 0, 1], later)
    fitted = evaluator.fitted(own, {"other": other})
    assert fitted.protocol["threshold"] == 0.5
    assert fitted.protocol["thresholds_beside"] == {"other": 0.6}


def test_the_majority_is_that_of_the_training_questions():
    questions = TinyQuestions(num_samples=9)
    answers, choices = majority_of((questions[j] for j in range(9)), 3, 3)
    np.testing.assert_array_equal(answers[:2], [2, 1])
    assert not choices[2]  # one of two is right


# ------------------------------------------------------------------------------ beside the model


def test_questions_have_what_is_known_of_their_clips():
    config = config_of()
    source = build_dataset(config.data, "train", reads=("state",), scores=True)
    for index in range(3):
        sample = source[index]
        clip = int(sample["clip"])
        for name, number in (("video", clip), ("other_video", 1 - clip)):
            np.testing.assert_array_equal(sample[name], source.clips[number]["video"])
        assert (sample["state"] == clip).all()
    assert "other_video" not in build_dataset(config.data, "train")[0]
    assert stored_splits(config) == ("train", "validation", "test")


def stepped(config: ConfigDict, steps: int = 2):
    """The arrays after some steps, and the last metrics."""
    training = build_training(config)
    batch = {k: jnp.asarray(x) for k, x in batch_of(config).items()}
    state = training.state
    frozen = {k: jnp.ones(x.shape, x.dtype) for k, x in training.frozen.items()}
    for step in range(steps):
        state, metrics = training.train_step(state, frozen, batch, jax.random.key(step))
    return {k: np.asarray(x) for k, x in state.params.items()}, metrics


@pytest.mark.slow
def test_what_is_trained_beside_the_model_does_not_reach_it():
    config, alone = config_of(dropout_rate=0.1), config_of(dropout_rate=0.1)
    config.model.beside = ("words_only", "observed_frames")
    alone.model.beside, alone.losses.beside.weight = (), 0.0
    (params, metrics), (expected, metrics_alone) = stepped(config), stepped(alone)
    assert set(expected) == {name for name in params if name.startswith("readout.")}
    for name, x in expected.items():
        np.testing.assert_allclose(params[name], x, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(metrics["loss/answer"], metrics_alone["loss/answer"], rtol=1e-5)
    beside = {name.split(".")[1] for name in params if name.startswith("beside.")}
    # Without predicted frames, the model itself sees observed frames alone.
    assert beside == {"words_only"}


def test_no_readout_draws_what_another_does():
    training = build_training(config_of(dropout_rate=0.1))
    models = {name: x.skeleton() for name, x in training.definitions.items()}
    drawn = training.task.draw(models, jax.random.key(3), Sizes(5, 3, 4), True)
    keys = [x for name, x in drawn.items() if name != "slot_model"]
    keys += [split_key(x, 5).ravel() for x in keys]  # as layers do
    data = np.concatenate([jax.random.key_data(x) for x in keys])
    assert len(np.unique(data, axis=0)) == len(data) == 4 * 5 * 6


def test_each_row_sees_what_its_name_says():
    config = ahead(config_of())
    training = build_training(config)
    batch = {k: jnp.asarray(x) for k, x in batch_of(config).items()}
    batch |= {f"other_{k}": x[::-1] for k, x in batch.items() if k in ("slots", "slot_mask")}
    rng = np.random.default_rng(0)
    arrays = {**training.state.params, **training.frozen}
    arrays = {k: jnp.asarray(0.5 * rng.standard_normal(x.shape), "f") for k, x in arrays.items()}

    @jax.jit
    def run(batch):
        models = {name: x.merge(arrays) for name, x in training.definitions.items()}
        constants = training.task.constants(models, batch, draws, False)
        return constants, training.task.forward(models, batch, constants, draws, {})

    empty = dict.fromkeys(("readout", *config.model.beside))
    draws = {"slot_model": {}, **empty}
    constants, before = run(batch)
    assert constants["slots"].shape[1] == 5  # three observed, two predicted
    changes = {
        "slots": {"model", "observed frames", "last frame copied"},
        "other_slots": {OTHER_CLIP},
        "pooled": {"pooled features"},
        "state": {"true state"},
    }
    for name, rows in changes.items():
        _, after = run({**batch, name: batch[name] + 1})
        end = ".answer_logits"
        keys = [k for k in before if k.endswith(end) and not k.startswith("beside")]
        found = {k.removesuffix(end) for k in keys if np.any(before[k] != after[k])}
        assert found == rows, name
    assert before["beside.answer_logits"].shape == (3, 4, 3)


class ChosenFrames(TinyQuestions):
    """Questions of which each chooses the frames that it is answered from."""

    def __init__(
        self,
        image_size=16,
        num_frames=3,
        past=2,
        future=2,
        split="train",
        num_samples=None,
        num_slots=None,
        boxes=True,
    ):
        super().__init__(image_size, num_frames, split, num_samples, num_slots, boxes)


@pytest.mark.more
def test_a_readout_sees_the_frames_that_questions_choose():
    config = ahead(config_of())
    config.model.beside = ("words_only", "observed_frames", "pooled_features")
    config.data.update(name="test_answers:ChosenFrames", past=2, future=2)
    check(config)
    training = build_training(config)
    rng = np.random.default_rng(0)
    slots = rng.standard_normal((3, 7, 4, 8)).astype("f")  # and two predicted frames
    places = np.array([[0, 3, 8], [1, 2, 0], [3, 4, 7]])
    batch = batch_of(config, slots=slots, places=places)
    batch |= {f"other_{k}": batch[k][::-1] for k in ("slots", "slot_mask", "places")}
    arrays = {**training.state.params, **training.frozen}
    arrays = {k: jnp.asarray(0.5 * rng.standard_normal(x.shape), "f") for k, x in arrays.items()}
    draws = {"slot_model": {}, **dict.fromkeys(("readout", *config.model.beside))}

    @jax.jit
    def run(batch):
        models = {name: x.merge(arrays) for name, x in training.definitions.items()}
        constants = training.task.constants(models, batch, draws, False)
        return constants["slots"], training.task.forward(models, batch, constants, draws, {})

    def rows_that_change(clip, frame):
        changed = slots.copy()
        changed[clip, frame] += 1
        after = run({**batch, "slots": changed})[1]
        key = lambda row: f"{row}.answer_logits"  # noqa: E731
        rows = ("model", "observed frames", "last frame copied", OTHER_CLIP)
        return {x for x in rows if np.any(before[key(x)][clip] != after[key(x)][clip])}

    whole, before = run(batch)
    assert whole.shape[1] == 9
    assert rows_that_change(0, 6) == {"model", "last frame copied"}  # through a predicted frame
    assert rows_that_change(0, 5) == {"model"}
    assert rows_that_change(1, 6) == rows_that_change(0, 4) == set()
    assert rows_that_change(0, 3) == {"model", "last frame copied"}
    assert rows_that_change(0, 1) == {"observed frames"}
    config.data.future = 3
    refused(config, "model.future is 2, but data.future is 3")


# ------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_from_slots_to_answers(tmp_path, capsys):
    """Slots, a rollouter on them, and a readout on both; other slots, and prediction, refused."""
    sprites = "sprites"
    few = ["--config.train.num_steps=2", "--config.train.batch_size=2"]
    few += ["--config.checkpoint.every=2", "--config.eval.batch_size=2"]
    few += ["--config.eval.num_samples=3", "--config.eval.validation_samples=2"]
    run = lambda words, folder, *more: main.main(  # noqa: E731
        [f"--config={sprites}{words}", f"--workdir={tmp_path / folder}", *few, *more]
    )
    clips = "--config.data.num_samples=4"
    for folder, seed in (("slots", 0), ("others", 1)):
        assert run("", folder, clips, f"--config.seed={seed}", "--config.eval.baselines=False") == 0
    companion = "--config.companions.slot_model.source="
    own, others = f"{companion}{tmp_path / 'slots'}", f"{companion}{tmp_path / 'others'}"
    assert run(":dynamics", "dynamics", clips, own) == 0
    questions = ["--config.data.num_samples=8", "--config.data.num_clips=64"]
    rollouter = f"--config.companions.rollouter.source={tmp_path / 'dynamics'}"
    assert run(":answers", "answers", *questions, own, rollouter) == 0
    folder = tmp_path / "answers"
    assert (folder / "slots" / "MANIFEST.json").is_file()
    scores = json.loads((folder / "scores.json").read_text())
    rows = {"words only", "observed frames", "pooled features", "true state", OTHER_CLIP}
    rows |= {"last frame copied", "majority answer", "chance", "untrained readout"}
    rows |= {*SpriteQuestions.rules}
    assert rows == scores["baselines"].keys()
    assert scores["protocol"]["predicted"] == 6 and "accuracy/quarter" in scores["metrics"]
    stored = scores["metrics"]
    assert main.main(["--mode=evaluate", f"--workdir={folder}"]) == 0
    assert json.loads((folder / "scores.json").read_text())["metrics"] == stored
    assert main.main(["--mode=report", f"--workdir={folder}"]) == 0
    assert "will touch" in (folder / "report" / "index.html").read_text()
    manifest = folder / "slots" / "MANIFEST.json"
    stored = manifest.read_text()
    for key, text in (("clips", "holds slots of other clips"), ("weights", "of other weights")):
        found = json.loads(stored)
        changed = {"train": "", "test": ""} if key == "clips" else "0"
        found["made_of"][key] = changed
        manifest.write_text(json.dumps(found))
        capsys.readouterr()
        assert main.main(["--mode=evaluate", f"--workdir={folder}"]) == 2
        assert text in capsys.readouterr().err
    manifest.write_text(stored)
    capsys.readouterr()
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "x.png")
    predict = ["--mode=predict", f"--workdir={folder}", f"--input={tmp_path / 'x.png'}"]
    predict += [f"--output={tmp_path / 'found'}"]
    slots = f"--config.data.slots={folder / 'slots'}"
    for wrong, text in (
        (lambda: main.main(predict), "holds a model of the task 'answers'"),
        (
            lambda: run(":answers", "b", *questions, others, rollouter, slots),
            "continues slots of another model",
        ),
        (
            lambda: run(":answers", "c", *questions, others, slots),
            "holds slots of other weights",
        ),
        (
            lambda: run(":answers", "d", *questions, own, slots, "--config.data.seed=5"),
            "holds slots of other clips",
        ),
    ):
        assert wrong() == 2
        assert text in capsys.readouterr().err
