"""Recognition: matching, scores, the head, and training on frozen slots; see also test_golden."""

import dataclasses
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from run_config import get_config
from scipy.optimize import linear_sum_assignment
from tiny import WithCategories, as_recognition, tiny_batch, tiny_config

from smoothsa_jax.checkpoints.read import FOLDER, read_checkpoint
from smoothsa_jax.config.values import canonical
from smoothsa_jax.devices.compiling import advice_for_training
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation import recognition
from smoothsa_jax.evaluation.metrics import contingency, iou
from smoothsa_jax.evaluation.split import evaluate
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inputs import build
from smoothsa_jax.inputs.boxes import boxes_from_segmentation
from smoothsa_jax.losses.recognition import box_loss, category_loss
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.heads import RecognitionHead
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.parameters import split
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.tasks.recognition import check_labels
from smoothsa_jax.training import evaluating, loop
from smoothsa_jax.training.step import build_training

GRID, SIZE = (4, 5), (12, 15)
SLOTS, OBJECTS, CLASSES = 4, 3, 6


def random_case(seed: int, frames: int = 3, batch: int = 2) -> dict[str, np.ndarray]:
    """Random overlapping attention and label maps, with labels 255 and absent objects."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 2, 3, 255], (batch, frames, 4, 5), p=[0.2, 0.25, 0.25, 0.2, 0.1])
    labels = coarse.repeat(3, axis=2).repeat(3, axis=3).astype(np.uint8)
    labels[:, -1][labels[:, -1] == 2] = 0
    return {
        "attention": rng.random((batch, frames, SLOTS, *GRID), dtype=np.float32),
        "segmentations": labels,
        "categories": rng.integers(0, CLASSES, (batch, OBJECTS)).astype(np.int32),
    }


count = jax.jit(recognition.count)


def targets(case: dict, slot_mask=None, match_paper: bool = False) -> recognition.Targets:
    run = jax.jit(recognition.targets_of_slots, static_argnums=4)
    found = run(
        case["attention"],
        case["segmentations"],
        case["categories"],
        slot_mask,
        match_paper,
    )
    return jax.device_get(found)


def best_by_trying(table: np.ndarray) -> dict[int, int]:
    """slot -> object of the best of all one-to-one matchings, of pairs above the threshold."""
    slots, objects = table.shape
    # Objects beyond the last stand for "none".
    wide = np.concatenate([table, np.zeros((slots, slots))], axis=1)
    tries = itertools.permutations(range(objects + slots), slots)
    best = max(tries, key=lambda chosen: sum(wide[n, k] for n, k in enumerate(chosen)))
    return {n: k for n, k in enumerate(best) if wide[n, k] > recognition.MATCH_IOU}


# ----------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_trying_everything(seed):
    case = random_case(seed)
    found = targets(case)
    masks = np.asarray(segments_from_masks(case["attention"], SIZE))
    boxes = np.stack([boxes_from_segmentation(x, (1, 2, 3)) for x in case["segmentations"]])
    for b, t in np.ndindex(masks.shape[:2]):
        counts = contingency(masks[b, t][None], case["segmentations"][b, t][None], SLOTS, 4)
        table = iou(counts)[0][:, 1:]
        expected = best_by_trying(table)
        got = {n: k for n, k in enumerate(found.object[b, t]) if k >= 0}
        assert got == expected
        for n, k in got.items():
            assert found.iou[b, t, n] == pytest.approx(table[n, k], rel=1e-6)
            assert found.category[b, t, n] == case["categories"][b, k]
            np.testing.assert_allclose(found.box[b, t, n], boxes[b, t, k], rtol=1e-6)
    assert (found.object >= 0).any() and (found.object < 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (1, 4), (4, 1)])
def test_any_number_of_slots_and_objects(shape):
    table = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    found = np.asarray(recognition.assign(jnp.asarray(table)))
    for one, objects in zip(table, found, strict=True):
        slots, expected = linear_sum_assignment(one, maximize=True)
        np.testing.assert_array_equal(objects[slots], expected)
        assert (objects >= 0).sum() == min(shape)


def test_masked_slots_never_match_and_change_nothing():
    """A masked problem is the smaller problem."""
    case = random_case(7)
    mask = np.ones((2, SLOTS), bool)
    mask[:, -1] = False
    case["attention"][:, :, -1] = 2.0  # would win every pixel
    found = targets(case, mask)
    smaller = targets({**case, "attention": case["attention"][:, :, :-1]})
    assert (found.object[..., -1] == -1).all()
    for ours, theirs in zip(found, smaller, strict=True):
        np.testing.assert_array_equal(ours[:, :, :-1], theirs)
    everything_off, _ = recognition.match(
        jnp.ones((1, SLOTS, OBJECTS)), jnp.zeros((1, SLOTS), bool)
    )
    assert (everything_off == -1).all()


def test_an_object_without_category_never_matches():
    case = random_case(3)
    case["categories"][:, 1] = -1
    found = targets(case)
    assert (found.object != 1).all() and (found.object >= 0).any()
    assert (found.category >= 0).all()


def test_the_authors_filter_keeps_the_first_two_objects_that_a_sample_has():
    case = random_case(4)
    labels = case["segmentations"]
    labels[1][labels[1] == 1] = (
        0  # in no frame of the second sample: its objects 1 and 2 have numbers 0 and 1
    )
    every, paper = targets(case), targets(case, match_paper=True)
    kept = np.array([[True, True, False], [False, True, True]])
    for b in range(2):
        of_slot = every.object[b]
        expected = np.where((of_slot >= 0) & kept[b][of_slot], of_slot, -1)
        np.testing.assert_array_equal(paper.object[b], expected)
    assert (paper.object != every.object).any()


# ------------------------------------------------------------------------------------------- scores


def guesses(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, CLASSES)).astype(np.float32)
    corners = np.sort(rng.random((*shape, 2, 2)), axis=-2).reshape(*shape, 4)
    return logits, corners.astype(np.float32)


@pytest.mark.parametrize("match_paper", [False, True])
def test_the_order_of_slots_changes_no_score(match_paper):
    case = random_case(11)
    logits, boxes = guesses(1, (2, 3, SLOTS))
    counts = count(logits, boxes, targets(case, match_paper=match_paper))
    order = np.array([2, 0, 3, 1])
    turned = targets({**case, "attention": case["attention"][:, :, order]}, None, match_paper)
    again = count(logits[:, :, order], boxes[:, :, order], turned)
    assert counts["num_matches"].sum() > 0
    for name in counts:
        np.testing.assert_allclose(again[name], counts[name], rtol=1e-6)


def test_scores_of_known_guesses():
    """Four matches of category 0 with ranks 1 to 4; one box right, one off, two empty."""
    found = recognition.Targets(
        object=np.array([[[0, 1, 2, 3, -1]]]),
        category=np.zeros((1, 1, 5), int),
        box=np.array([[[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0.5] * 4, [0] * 4]]]),
        iou=np.ones((1, 1, 5)),
    )
    logits = np.zeros((1, 1, 5, CLASSES))
    for slot in range(4):
        logits[..., slot, 1 : slot + 1] = 1.0
        logits[..., slot, slot + 1 :] = -1.0
    boxes = np.array([[[[0, 0, 1, 1], [0, 0, 0.5, 1], [0.2] * 4, [0.7, 0.7, 0.6, 0.6], [0] * 4]]])
    counts = count(jnp.asarray(logits), jnp.asarray(boxes), found)
    scores = recognition.scores_of_counts(jax.device_get(counts))
    assert scores["num_matches"] == 4
    assert (scores["top1"], scores["top3"], scores["box_iou"]) == (0.25, 0.75, 0.75)
    empty = recognition.scores_of_counts({name: np.zeros(3) for name in counts})
    assert np.isnan(empty["top1"]) and np.isnan(empty["box_iou"]) and empty["num_matches"] == 0


def outputs_of(matched: np.ndarray) -> dict[str, jax.Array]:
    """What the evaluator reads, for slots (B,T,N) of which these match an object."""
    return {
        "logits": jnp.zeros((*matched.shape, CLASSES)),
        "predicted_box": jnp.zeros((*matched.shape, 4)),
        "object": jnp.where(matched, 0, -1),
        "category": jnp.zeros(matched.shape, int),
        "box": jnp.zeros((*matched.shape, 4)),
        "iou": matched.astype(jnp.float32),
    }


EVALUATOR = recognition.RecognitionEvaluator()
COUNTS = {"num_matches", "top1", "top3", "num_boxes", "box_iou"}


def test_copies_that_fill_the_last_batch_are_not_counted():
    batches = [{"valid": np.array([True, i == 0])} for i in range(2)]
    predict = lambda batch, key, paper: outputs_of(np.ones((2, 1, 1), bool))  # noqa: E731
    found = evaluate(predict, batches, EVALUATOR, (0, 1))
    assert {name: x.shape for name, x in found.scores.items()} == dict.fromkeys(COUNTS, (2, 3))
    assert (found.scores["num_matches"] == 1).all() and found.paper_scores is None
    with pytest.raises(UserError, match="found 0 samples"):
        evaluate(predict, [], EVALUATOR, (0,))


def test_both_protocols_are_counted_in_one_run():
    batch = {"slot_mask": np.array([[True, False, False], [True, True, False]])}
    batch |= {"valid": np.array([True, True]), "name": np.array(["one", "two"])}

    def predict(batch, key, paper):
        return outputs_of(batch["slot_mask"][:, None].repeat(6 if paper else 1, axis=1))

    found = evaluate(predict, [batch], EVALUATOR, (0,), match_paper=True)
    np.testing.assert_array_equal(found.scores["num_matches"], [[1, 2]])
    np.testing.assert_array_equal(found.paper_scores["num_matches"], [[12, 12]])
    assert found.names == ["one", "two"]


def test_the_authors_filter_is_scored_although_slots_are_the_same():
    """With every slot valid the paper's slot mask is the own one; its matching differs."""
    batch = {"slot_mask": np.ones((2, 3), bool), "valid": np.array([True, True])}
    asked = []

    def predict(batch, key, paper):
        asked.append(paper)
        return outputs_of(np.ones((2, 1, 3), bool))

    evaluate(predict, [batch], EVALUATOR, (0,), match_paper=True)
    assert asked == [False, True]


# ---------------------------------------------------------------------------------- head and losses


def test_head():
    """D -> 2D -> classes + 4, torch's initial values; dropout with draws only."""
    head = RecognitionHead(16, num_classes=CLASSES, dropout_rate=0.1, rngs=nnx.Rngs(0))
    _, params, frozen = split(head)
    assert {name: x.shape for name, x in params.items()} == {
        "mlp.hidden.kernel": (16, 32),
        "mlp.hidden.bias": (32,),
        "mlp.out.kernel": (32, CLASSES + 4),
        "mlp.out.bias": (CLASSES + 4,),
    }
    assert not frozen
    for name, bound in (("hidden", 16**-0.5), ("out", 32**-0.5)):
        for leaf in ("kernel", "bias"):
            largest = np.abs(params[f"mlp.{name}.{leaf}"]).max()
            assert 0.5 * bound < largest <= bound
    slots = jax.random.normal(jax.random.key(0), (2, 3, 16))
    run = nnx.jit(RecognitionHead.__call__)
    logits, boxes = run(head, slots)
    assert logits.shape == (2, 3, CLASSES) and boxes.shape == (2, 3, 4)
    assert (run(head, slots)[0] == logits).all()
    sizes = Sizes(1, 2, 3)
    draws = head.draw([jax.random.key(1)], sizes, True)
    assert head.draw([jax.random.key(1)], sizes, False) is None
    assert (run(head, slots[None], draws)[0] != logits[None]).any()
    # Kept units are scaled up, which preserves the mean.
    many = head.draw([jax.random.key(2)], Sizes(50, 10, 10), True)
    assert many.shape == (50, 10, 10, 32) and abs(many.mean() - 0.9) < 0.01
    dropped = run(head, jnp.broadcast_to(slots[0, 0], (50, 10, 10, 16)), many)[0].mean((0, 1, 2))
    np.testing.assert_allclose(dropped, logits[0, 0], atol=0.01)


def test_losses_are_means_over_matches():
    logits, boxes = guesses(2, (5,))
    true = np.array([1, 0, 5, 2, 3])
    matched = np.array([True, False, True, True, False])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, true)[matched].mean()
    assert jax.jit(category_loss)(logits, true, matched) == pytest.approx(float(expected), rel=1e-6)
    assert jax.jit(box_loss)(boxes, boxes + 0.25, matched) == pytest.approx(0.25, rel=1e-6)
    nothing = np.zeros(5, bool)
    value, grad = jax.jit(jax.value_and_grad(category_loss))(jnp.asarray(logits), true, nothing)
    assert value == 0 and (grad == 0).all()
    value, grad = jax.jit(jax.value_and_grad(box_loss))(jnp.asarray(boxes), boxes * np.nan, nothing)
    assert value == 0 and (grad == 0).all()


# ----------------------------------------------------------------------------------------- training


def discovery_config(num_frames: int = 3) -> ConfigDict:
    """Of the slot model."""
    return tiny_config(num_frames=num_frames, decoder="mlp_mixture")


def recognition_config(match_paper: bool = False) -> ConfigDict:
    config = as_recognition(discovery_config(), CLASSES)
    config.optimizer.learning_rate.peak = 1e-2
    config.optimizer.clip_norm = 0.0
    config.train.match_paper = match_paper
    return config


def with_random_slots(config: ConfigDict):
    """A `Training` whose frozen model is an untrained one."""
    training = build_training(config)
    size = (config.data.image_size,) * 2
    companion = config.companions.slot_model.model
    _, params, rest = split(build_slot_model(companion, size, 0), prefix="slot_model.")
    frozen = jax.device_put({**params, **rest}, replicated(training.mesh))
    assert frozen.keys() == training.frozen.keys()
    return dataclasses.replace(training, frozen=frozen)


def recognition_batch() -> dict[str, np.ndarray]:
    """Quarters of the frame are objects: some slot overlaps one of them."""
    batch = tiny_batch(discovery_config())
    labels = np.array([[0, 1], [2, 3]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    batch["segmentations"] = np.broadcast_to(labels, batch["video"].shape[:4]).copy()
    categories = np.random.default_rng(0).integers(0, CLASSES, (len(batch["video"]), OBJECTS))
    return {**batch, "categories": categories.astype(np.int32)}


@pytest.fixture(scope="module")
def case():
    config = recognition_config()
    training = with_random_slots(config)
    return config, training, training.place(recognition_batch())


def fresh(training):
    return jax.tree.map(jnp.copy, training.state)


@pytest.mark.slow
def test_no_gradient_reaches_the_frozen_model(case):
    _, training, batch = case
    before = jax.device_get(training.frozen)

    def loss(frozen):
        return training.train_step(fresh(training), frozen, batch, jax.random.key(0))[1]["loss"]

    value, grads = jax.value_and_grad(loss)(training.frozen)
    assert value > 0
    assert all(not np.any(grad) for grad in grads.values())
    state, metrics = training.train_step(fresh(training), training.frozen, batch, jax.random.key(0))
    assert metrics["num_matches"] > 0 and metrics["grad_norm"] > 0
    moments = next(x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x)).mu
    assert all(np.any(moment) for moment in moments.values())
    assert moments.keys() == training.state.params.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(training.frozen[name], array)


def is_adam(x) -> bool:
    return isinstance(x, optax.ScaleByAdamState)


@pytest.mark.slow
@pytest.mark.parametrize("match_paper", [False, True])
def test_the_frozen_model_is_in_training_mode_only_as_the_authors_have_it(case, match_paper):
    config, training, batch = case
    if match_paper:
        paper = build_training(recognition_config(match_paper=True))
        training = dataclasses.replace(paper, frozen=training.frozen)
    key = jax.random.key(5)
    sizes = Sizes(config.train.batch_size, 3, config.companions.slot_model.model.num_slots)
    models = {name: x.skeleton() for name, x in training.definitions.items()}
    slots_key, dropout_key = jax.random.split(key)
    dropout = models["model"].draw([dropout_key], sizes, True)
    draws = {
        as_paper: {
            "slot_model": models["slot_model"].draw(slots_key, sizes, as_paper),
            "model": dropout,
        }
        for as_paper in (False, True)
    }

    def loss(draws=None):
        state = fresh(training)
        return float(training.train_step(state, training.frozen, batch, key, draws)[1]["loss"])

    assert loss() == pytest.approx(loss(draws[match_paper]), rel=1e-6)
    assert loss() != pytest.approx(loss(draws[not match_paper]), rel=1e-6)


@pytest.mark.slow
def test_synthetic_slots_are_told_apart():
    """Slots are noisy codes of a category, boxes follow from them: top-1 rises to 1, boxes fit."""
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(CLASSES, 16))
    category = rng.integers(0, CLASSES, (8, 2, SLOTS))
    slots = (codes[category] + 0.1 * rng.normal(size=(8, 2, SLOTS, 16))).astype(np.float32)
    low = 0.3 * rng.random((CLASSES, 2))
    box = np.concatenate([low, low + 0.3], axis=1)[category].astype(np.float32)
    matched = rng.random((8, 2, SLOTS)) < 0.7
    category[~matched], box[~matched] = 0, 0.0
    found = recognition.Targets(np.where(matched, 0, -1), category, box, matched.astype(float))
    head = RecognitionHead(16, num_classes=CLASSES, dropout_rate=0.1, rngs=nnx.Rngs(0))
    definition, params, _ = split(head)
    optimizer = optax.adam(3e-3)

    def loss_function(params, key):
        draws = head.draw([key], Sizes(*slots.shape[:3]), True)
        logits, boxes = definition.merge(params, {})(slots, draws)
        return category_loss(logits, category, matched) + box_loss(boxes, box, matched)

    @jax.jit
    def step(params, state, key):
        updates, state = optimizer.update(jax.grad(loss_function)(params, key), state)
        return optax.apply_updates(params, updates), state

    def scores():
        counts = count(*definition.merge(params, {})(slots), found)
        return recognition.scores_of_counts(jax.device_get(counts))

    before, state = scores(), optimizer.init(params)
    for i in range(400):
        params, state = step(params, state, jax.random.key(i))
    assert before["top1"] < 0.6
    assert scores()["top1"] == 1.0 and scores()["box_iou"] > 0.7 > before["box_iou"]


def test_bad_labels_are_told():
    labels = np.array([[[[0, 1], [2, 255]]]], np.uint8)
    good = {"segmentations": labels, "categories": np.array([[5, -1]])}
    check_labels(good, 6)
    for change, match in (
        ({"categories": np.array([[6, 0]])}, "0 to 6, expected .* set model.num_classes"),
        ({"categories": np.array([[-2, 0]])}, "from -2 to 0"),
        ({"categories": np.array([[1]])}, "object 2, but there are categories for 1"),
    ):
        with pytest.raises(UserError, match=match):
            check_labels({**good, **change}, 6)
    with pytest.raises(UserError, match="no 'categories'"):
        check_labels({"segmentations": labels}, 6)


# --------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow  # the chains of test_recipes.py go the same way
def test_a_run_on_a_trained_model(tmp_path, monkeypatch, capsys):
    """Train SmoothSA, then the head on its slots; stop half-way, resume: same weights; evaluate."""
    monkeypatch.setitem(build.DATASETS, "sprites", WithCategories)
    config = get_config("image")
    config.train.num_steps = 2
    smoothsa = canonical(config)
    config = as_recognition(config, 3, str(tmp_path / "smoothsa"))
    config.train.num_steps = 6
    config.checkpoint.update(every=3, best_metric="top1", best_mode="max")
    config.optimizer.clip_norm = 0.0
    config = canonical(config)

    with pytest.raises(UserError, match="no usable checkpoint found in .*smoothsa"):
        loop.train(config, tmp_path / "head")
    loop.train(smoothsa, tmp_path / "smoothsa")
    scores = loop.train(config, tmp_path / "head")
    assert set(scores["metrics"]) == set(recognition.RECOGNITION_METRICS)
    assert scores["metrics"]["num_matches"]["mean"] > 0
    assert set(scores["baselines"]) == {"untrained head"}
    assert "top-1" in capsys.readouterr().out

    frozen, trained = (
        read_checkpoint(tmp_path / name, step).arrays
        for name, step in (("smoothsa", 2), ("head", 6))
    )
    for name, array in frozen.items():
        if name.startswith(("state/params/", "frozen/")):
            stem = name.removeprefix("state/params/").removeprefix("frozen/")
            np.testing.assert_array_equal(trained[f"frozen/slot_model.{stem}"], array)

    shutil.rmtree(tmp_path / "head" / FOLDER / "6")
    shutil.rmtree(tmp_path / "smoothsa")  # a run that has begun no longer needs it
    assert loop.train(config, tmp_path / "head") == scores
    for name, array in read_checkpoint(tmp_path / "head", 6).arrays.items():
        np.testing.assert_array_equal(array, trained[name], err_msg=name)
    assert evaluating.evaluate_run(tmp_path / "head") == scores


def test_no_gradient_of_the_frozen_model_is_computed_again():
    config = as_recognition(get_config("image"), 3)
    config.checkpoint.best_metric = None
    config.train.remat = "none"
    check(config)
    assert "remat" not in advice_for_training(config)
    config.train.remat = "all"
    with pytest.raises(UserError, match="train.remat is 'all', .* set --config.train.remat=none"):
        check(config)


@pytest.mark.slow
def test_another_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(build.DATASETS, "sprites", WithCategories)
    config = get_config("image")
    config.train.num_steps = 1
    loop.train(canonical(config), tmp_path / "smoothsa")
    other = config.copy_and_resolve_references().unlock()
    other.model.aggregator.first = 1
    head = as_recognition(other, 3)
    head.companions.slot_model.source = str(tmp_path / "smoothsa")  # next to the other model
    head.checkpoint.best_metric = None
    with pytest.raises(UserError, match="aggregator.first .found 2, asked 1"):
        loop.train(canonical(head), tmp_path / "head")
