"""`weights` and `companions` of a config: frozen arrays, sources, moving averages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict
from run_config import get_config
from tiny import as_recognition, tiny_batch, tiny_config

from smoothsa_jax.checkpoints import sources
from smoothsa_jax.checkpoints.model_files import save_model
from smoothsa_jax.checkpoints.read import read_checkpoint, restore_state
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.config.values import canonical
from smoothsa_jax.devices import hosts
from smoothsa_jax.devices.host_arrays import on_host
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.split import Evaluation
from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.models.encoders.vit import ViT
from smoothsa_jax.models.layers import attention
from smoothsa_jax.models.parameters import frozen_patterns, matching, split
from smoothsa_jax.report.build import _weights_through_training
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check, check_sources
from smoothsa_jax.training import evaluating, loop
from smoothsa_jax.training.step import Training, build_training

DECAY = 0.75


def config_with(weights: dict | None = None, companions: dict | None = None) -> ConfigDict:
    """The smallest model of images, with a decoder of two layers."""
    config = tiny_config(num_frames=1).unlock()
    config.model.decoder.num_layers = 2
    config.optimizer.learning_rate.warmup = 0.0  # so that the first step changes something
    if weights is not None:
        config.weights = ConfigDict(weights)
    config.companions = ConfigDict(companions or {})
    return canonical(config)


@functools.cache
def plain() -> Training:
    """Of a frozen encoder alone, and no companion."""
    return build_training(config_with())


@functools.cache
def with_average() -> tuple[ConfigDict, Training]:
    config = config_with(companions=TEACHER)
    check(config)
    return config, build_training(config)


TEACHER = {"teacher": {"average_of": "model", "decay": DECAY}}
RANDOM = {"into": "", "source": "random"}
ENCODER = {"into": "encoder", "source": "random", "seed": 0, "frozen": ("*",)}


def one_step(training: Training, config: ConfigDict, frozen=None, params=None):
    """The state and the metrics after a step; the first state stays."""
    state = jax.tree.map(jnp.copy, training.state)
    state = state if params is None else state.replace(params=jax.tree.map(jnp.copy, params))
    frozen = training.frozen if frozen is None else frozen
    return training.train_step(state, frozen, training.place(tiny_batch(config)), jax.random.key(0))


def adam_state(state) -> optax.ScaleByAdamState:
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    return next(x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ----------------------------------------------------------------------------------------- patterns


def test_patterns_name_arrays():
    names = ("encoder.blocks.0.kernel", "encoder.blocks.9.kernel", "decoder.position", "decoder")
    assert matching(names, ("encoder.*",)) == {*names[:2]}
    assert matching(names, ("encoder.blocks.[0-7].*", "*position")) == {names[0], names[2]}
    assert matching(names, ()) == frozenset()
    assert matching(names, ("decoder",)) == {"decoder"}  # the whole name, nothing below it
    weights = {
        "a": {"into": "encoder", "frozen": ("*", "x.y")},
        "b": {"into": "", "frozen": ("z",)},
    }
    assert set(frozen_patterns(weights)) == {"encoder.*", "encoder.x.y", "z"}
    assert frozen_patterns({"a": {"into": "encoder"}}) == ()


@pytest.mark.more
@pytest.mark.parametrize(
    ("weights", "patterns"),
    [
        pytest.param(
            {"all": {**RANDOM, "frozen": ("encoder.*", "decoder.layers.0.*")}},
            ("decoder.layers.0.*",),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "encoder": ENCODER,
                "top": {**RANDOM, "into": "decoder", "frozen": ("layers.[0-0].*",)},
            },
            ("decoder.layers.0.*",),
            marks=pytest.mark.slow,
        ),
        (
            {"encoder": ENCODER, "rest": {**RANDOM, "frozen": ("aggregator.*", "*.log_std")}},
            ("aggregator.*", "*.log_std"),
        ),
    ],
)
def test_what_is_frozen_gets_no_gradient_and_no_moments(weights, patterns):
    config = config_with(weights)
    check(config)
    training = build_training(config)
    still = matching({*training.state.params, *training.frozen}, ("encoder.*", *patterns))
    assert still == training.frozen.keys() and len(still) > 3
    assert training.definitions["model"].frozen == still
    before, frozen = on_host(training.state.params), on_host(training.frozen)
    state, metrics = one_step(training, config)
    moments = adam_state(state)
    assert moments.mu.keys() == moments.nu.keys() == state.params.keys() == before.keys()
    assert not still & state.params.keys()
    assert_same(training.frozen, frozen)
    for name, array in before.items():
        assert np.any(state.params[name] != array), f"{name} does not learn"
    # The gradient of what is trained is the one of the whole model: only the norm is smaller.
    whole = plain()
    given = {**before, **{n: x for n, x in frozen.items() if n in whole.state.params}}
    given = {name: jnp.asarray(given[name]) for name in whole.state.params}
    fixed = {name: jnp.asarray(frozen[name]) for name in whole.frozen}
    reference, expected = one_step(whole, config, fixed, given)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    assert metrics["grad_norm"] < expected["grad_norm"]


class Encoder(nnx.Module):
    """A ViT at the place that it has in a model."""

    def __init__(self, depth: int):
        settings = {"width": 12, "num_heads": 2, "patch": 4, "registers": 1, "resize": 1.0}
        self.encoder = ViT((16, 16), depth=depth, final_norm=True, **settings, rngs=nnx.Rngs(0))


def up_to_block(number: int) -> tuple[str, ...]:
    """Patterns of all arrays in front of a block."""
    start = ("embed.*", "position", "class_token", "registers")
    names = (*start, *(f"blocks.{i}.*" for i in range(number)))
    return tuple(f"encoder.{name}" for name in names)


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        ((), [True, True, True]),
        (up_to_block(2), [False, False, True]),
        # A gradient passes through a frozen block to what is in front of it.
        ((*up_to_block(1), "encoder.blocks.2.*"), [False, True, True]),
        (up_to_block(3)[1:], [True, True, True]),
        (up_to_block(3), [False, False, False]),  # the last LayerNorm alone is trained
        ((*up_to_block(3), "encoder.norm.*"), [False, False, False]),
    ],
)
def test_which_blocks_a_gradient_passes_through(frozen, expected):
    definition, params, still = split(nnx.eval_shape(lambda: Encoder(3)), frozen=frozen)

    def look(params, still):
        blocks = definition.merge(params, still).encoder.blocks
        assert [block.differentiated for block in blocks] == expected
        blocks = definition.merge(params, still, differentiated=False).encoder.blocks
        assert not any(block.differentiated for block in blocks)

    jax.eval_shape(look, params, still)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "tpu, in turns"])
def test_frozen_leading_blocks_keep_nothing_for_the_gradient(kind, monkeypatch):
    """The gradient of the other blocks is the whole ViT's."""
    backend = Backend("tpu") if "tpu" in kind else CPU
    monkeypatch.setattr(attention, "ON_CHIP", 1)  # on a TPU, each image on its own
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))

    def gradient(depth: int, frozen: tuple[str, ...]):
        """The gradient, and how many numbers are kept for it."""
        definition, *arrays = split(Encoder(depth), backend=backend, frozen=frozen)

        @jax.jit
        def run(params, still):
            features = lambda p: definition.merge(p, still).encoder(images)["features"]  # noqa: E731
            found, back = jax.vjp(features, params)
            return back(jnp.cos(found))[0], jax.tree.leaves(back)

        found, kept = run(*arrays)
        return found, sum(x.size for x in kept)

    found, kept = gradient(2, up_to_block(1))
    whole, all_kept = gradient(2, ())
    assert found and all(name.startswith(("encoder.blocks.1.", "encoder.norm.")) for name in found)
    for name, x in found.items():
        assert np.any(x), name
        np.testing.assert_allclose(x, whole[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert kept < all_kept
    assert gradient(3, up_to_block(2))[1] == kept


def test_a_target_of_features_needs_a_frozen_encoder():
    """An encoder that is trained, in whole or in part, may not choose its own target."""
    config = tiny_config(num_frames=1).unlock()
    config.data.image_size = 8
    vit = {"width": 12, "depth": 2, "num_heads": 2, "patch": 4, "registers": 1, "swiglu": False}
    config.model.encoder = ConfigDict({"name": "vit", "resize": 1.0, **vit})
    for frozen in ((), ("blocks.0.*",)):
        config.weights = ConfigDict({"encoder": {**ENCODER, "frozen": frozen}})
        training = build_training(canonical(config))
        with pytest.raises(UserError, match="the encoder is trained"):
            one_step(training, config)


# -------------------------------------------------------------------------------- from another run


@pytest.fixture
def other(tmp_path) -> tuple[str, dict[str, np.ndarray]]:
    """A saved model of other values, and its arrays."""
    config = config_with()
    config = ConfigDict({**config.to_dict(), "seed": 5})
    training = build_training(config)
    arrays = on_host({**training.state.params, **training.frozen})
    save_model(tmp_path / "other", config, arrays, step=3)
    return str(tmp_path / "other"), arrays


def begun(weights: dict) -> tuple[Training, dict, dict, str]:
    config = config_with(weights)
    check(config)
    training = build_training(config)
    return training, *sources.begin(config, training, warn=pytest.fail)


def test_a_run_starts_from_anothers_weights(other):
    source, arrays = other
    training, params, frozen, words = begun(
        {"all": {"into": "", "source": source, "frozen": ("encoder.*",)}}
    )
    assert_same({**params, **frozen}, arrays)
    assert params.keys() == training.state.params.keys() and words == source
    state, _ = one_step(training, config_with(), frozen, params)
    assert state.params.keys() == params.keys()


def test_a_part_starts_from_anothers_weights(other):
    source, arrays = other
    training, params, frozen, _ = begun(
        {"encoder": ENCODER, "decoder": {"into": "decoder", "source": source}}
    )
    first = on_host(plain().state.params)
    for name, array in params.items():
        expected = arrays if name.startswith("decoder.") else first
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert_same(frozen, on_host(training.frozen))
    state, _ = one_step(training, config_with(), frozen, params)
    assert int(state.step) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("into", "without", "left_out"),
    [
        ("", ("decoder.layers.*", "*.position"), ("decoder.layers.*", "*.position")),
        ("decoder", ("layers.*", "position"), ("decoder.layers.*", "decoder.position")),
    ],
)
def test_arrays_can_be_left_out(other, into, without, left_out):
    """Arrays that are left out keep their initial values."""
    source, arrays = other
    entry = {"into": into, "source": source, "without": without}
    training, params, frozen, _ = begun({"encoder": ENCODER, "some": entry})
    first = on_host(plain().state.params)
    outside = matching(params, left_out)
    assert outside
    for name, array in params.items():
        mine = name in outside or not name.startswith(into)
        np.testing.assert_array_equal(array, (first if mine else arrays)[name], err_msg=name)
    state, _ = one_step(training, config_with(), frozen, params)
    assert int(state.step) == 1


def test_what_does_not_fit_is_refused(other, tmp_path):
    source, arrays = other
    whole = {"into": "", "source": source}
    for change, words in (
        ({"decoder.new": np.ones(3, "f")}, "has decoder.new, which this model does not have"),
        (
            {"decoder.position": np.ones(3, "f")},
            r"decoder.position has shape \[3\], this model has",
        ),
    ):
        folder = tmp_path / words[:8].strip()
        save_model(folder, config_with(), {**arrays, **change}, step=3)
        with pytest.raises(UserError, match=f"weights.all: .*{words}") as refused:
            begun({"encoder": ENCODER, "all": {**whole, "source": str(folder)}})
        assert "\n" not in str(refused.value)
    # Left out, it does not matter.
    begun({"encoder": ENCODER, "all": {**whole, "source": str(folder), "without": ("*.position",)}})
    with pytest.raises(UserError, match="expected one of these for into='decoder'"):
        begun({"encoder": ENCODER, "x": {"into": "decoder", "source": str(tmp_path / "nothing")}})


def test_arrays_are_placed_in_one_order(other, monkeypatch):
    """The order of a set differs between processes, which may have to wait for each other."""
    placed, place_array = [], sources.place_array

    def recorded(array, like):
        placed.append(like.shape)
        return place_array(array, like)

    monkeypatch.setattr(sources, "place_array", recorded)
    source, arrays = other
    begun({"encoder": ENCODER, "all": {"into": "", "source": source}})
    assert placed == [arrays[name].shape for name in sorted(arrays)]


def test_a_part_replaces_what_the_whole_model_has_set(other):
    """The shorter `into` applies first, then the name decides."""
    weights = {
        "a": {"into": "decoder", "source": "random", "seed": 3, "without": ("position",)},
        "b": {"into": "", "source": other[0]},
        "encoder": ENCODER,
    }
    assert [name for name, _ in sources.in_order(weights)] == ["b", "a", "encoder"]
    training, params, frozen, _ = begun(weights)
    first = {**training.state.params, **training.frozen}
    for name, array in {**params, **frozen}.items():
        random = name.startswith(("decoder.", "encoder.")) and name != "decoder.position"
        expected = (first if random else other[1])[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)
    found = sources.start_elsewhere(weights, params)
    assert found == sorted(n for n in params if n == "decoder.position" or "decoder" not in n)
    assert sources.start_elsewhere({"encoder": ENCODER, "all": RANDOM}, params) == []
    only_frozen = {"encoder": {**ENCODER, "source": other[0]}}
    assert sources.start_elsewhere(only_frozen, params) == []


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"x": {**RANDOM, "into": "decodr"}}, "weights.x.into is 'decodr'.*mean 'decoder'"),
        ({"x": {**RANDOM, "frozen": ("decoder.layer.*",)}}, "weights.x.frozen has 'decoder.layer"),
        ({"x": {**RANDOM, "without": ("nothing",)}}, "weights.x.without has 'nothing'"),
        ({"x": {**RANDOM, "into": "decoder.layers"}}, "expected '' or a whole part"),
        ({"x": {**RANDOM, "seed": 1}}, "remove weights.x.seed"),
        ({"x": {**RANDOM, "frozen": ("*",)}}, "freezes every array"),
    ],
)
def test_an_entry_that_does_nothing_is_refused(weights, words):
    with pytest.raises(UserError, match=words) as refused:
        check(config_with({"encoder": ENCODER, **weights}))
    assert "\n" not in str(refused.value)


def test_a_pattern_that_leaves_nothing_out_is_refused(other):
    entry = {"into": "decoder", "source": other[0], "without": ("positoin",)}
    with pytest.raises(UserError, match="'positoin', which matches no array.*mean 'position'"):
        begun({"encoder": ENCODER, "x": entry})


def saved(folder, arrays: dict, companions: dict | None = None) -> str:
    save_model(folder, config_with(companions=companions), arrays, step=3)
    return str(folder)


def test_what_a_source_lacks(other, tmp_path):
    some = {k: x for k, x in other[1].items() if k != "decoder.position"}
    entry = {"into": "decoder", "source": saved(tmp_path / "some", some)}
    config, said = config_with({"encoder": ENCODER, "x": entry}), []
    training = build_training(config)
    params, _, _ = sources.begin(config, training, said.append)
    np.testing.assert_array_equal(
        params["decoder.position"], training.state.params["decoder.position"]
    )
    assert len(said) == 1 and "lacks decoder.position, which keep" in said[0]
    # Frozen arrays have no other initial values.
    config = config_with({"encoder": ENCODER, "x": {**entry, "frozen": ("*",)}})
    with pytest.raises(UserError, match="weights.x: nothing fills decoder.position, which is"):
        sources.begin(config, build_training(config), said.append)
    nothing = {k: x for k, x in some.items() if not k.startswith("decoder.")}
    entry = {"into": "decoder", "source": saved(tmp_path / "nothing", nothing)}
    with pytest.raises(UserError, match="has no array below into='decoder'"):
        begun({"encoder": ENCODER, "x": entry})


def test_the_companions_of_a_source_stay_behind(other, tmp_path):
    arrays = {**other[1], **{f"teacher.{name}": x for name, x in other[1].items()}}
    source = saved(tmp_path / "both", arrays, {"teacher": {"source": "x"}})
    assert_same(sources.open_trained(source, pytest.fail).arrays, other[1])
    _, params, frozen, _ = begun({"all": {"into": "", "source": source, "frozen": ("encoder.*",)}})
    assert_same({**params, **frozen}, other[1])


@pytest.mark.parametrize("name", ["model", "decoder"])
def test_a_companion_has_a_name_of_its_own(name):
    with pytest.raises(UserError, match=f"companions.{name} has the name of the trained model or"):
        check(config_with(companions={name: TEACHER["teacher"]}))


def test_a_companion_that_nothing_uses_is_refused():
    config = config_with()
    companion = {"source": "", "title": "x", "model": config.model.to_dict()}
    with pytest.raises(UserError, match="companions.teacher is used by nothing"):
        check(config_with(companions={"teacher": companion}))
    head = as_recognition(config, 3).unlock()
    head.companions.slot_modle = head.companions.slot_model
    with pytest.raises(UserError, match="slot_modle is used by nothing.*mean 'slot_model'"):
        check_sources(head, build_task(head), build_task(head).build(shapes_only=True))


# ------------------------------------------------------------------ several simulated processes


def beside(monkeypatch, change) -> None:
    """Another process with another result."""
    monkeypatch.setattr(hosts, "is_multi_process", lambda: True)
    monkeypatch.setattr(
        hosts, "gather", lambda mine: [mine, {name: change(x) for name, x in mine.items()}]
    )


def test_all_processes_read_the_same_source(other, monkeypatch):
    config = config_with({"encoder": ENCODER, "x": {"into": "decoder", "source": other[0]}})
    training = build_training(config)
    beside(monkeypatch, lambda found: found)
    sources.begin(config, training, pytest.fail)
    beside(monkeypatch, lambda found: found.replace("step 3", "step 2"))
    with pytest.raises(UserError, match="process 1 has what weights.x.source=.*step 2"):
        sources.begin(config, training, pytest.fail)


@pytest.mark.parametrize("fails_here", [True, False])
def test_a_source_that_one_process_cannot_read_is_refused_by_all(other, monkeypatch, fails_here):
    companions = ConfigDict({"companions": {"slot_model": {"source": other[0]}}})
    beside(monkeypatch, lambda found: None)
    if fails_here:

        def fail(*_):
            raise OSError("Input/output error")

        monkeypatch.setattr(sources, "open_trained", fail)
    # The companions of the workdir's config are compared first, and are none in both.
    found = "Input/output error" if fails_here else "step 3"
    with pytest.raises(UserError, match=f"what companions.slot_model.source=.*{found}"):
        sources.with_companions(companions, None, pytest.fail)


# ------------------------------------------------------------------------- the untrained baseline


def test_without_first_values_there_is_no_untrained_baseline(other, monkeypatch, tmp_path):
    """A resumed run and an evaluation do not have the values that the run started from."""
    said = []
    monkeypatch.setattr(evaluating, "say", said.append)
    monkeypatch.setattr(evaluating, "_baselines", lambda *_: {})
    found = Evaluation({"ari": np.ones((1, 2))}, None, ["a", "b"], [])
    monkeypatch.setattr(evaluating, "evaluate_split", lambda *_, **__: found)
    monkeypatch.setattr(evaluating, "evaluator_of", lambda config, task, split: task.evaluator)
    for weights, baselines in (
        ({"encoder": ENCODER}, {"untrained model"}),
        ({"encoder": ENCODER, "x": {"into": "decoder", "source": other[0]}}, set()),
    ):
        config = config_with(weights)
        training = build_training(config)
        params = training.state.params
        scores = evaluating.report(config, training, params, 3, tmp_path)
        assert set(scores["baselines"]) == baselines
        lines = []
        steps = [step for step, _ in _weights_through_training(tmp_path, config, {}, lines.append)]
        assert steps == [0] * len(baselines)
        assert any("untrained model is left out" in line for line in said) == (not baselines)
        assert any("step 0 is left out" in line for line in lines) == (not baselines)


@pytest.mark.slow
def test_a_run_from_a_source_has_the_same_scores_again(tmp_path):
    """After training, resumed when finished, and evaluated: from the same workdir, the same."""
    config = get_config("image")
    config.train.num_steps, config.mesh.data = 2, 1
    config.eval.num_pictures = 0
    training = build_training(canonical(config))
    arrays = {n: x + 1 for n, x in on_host(training.state.params).items()}
    save_model(tmp_path / "other", canonical(config), {**arrays, **on_host(training.frozen)}, 3)
    config.unlock().weights.start = {"into": "", "source": str(tmp_path / "other")}
    config, workdir = canonical(config), tmp_path / "run"
    first = loop.train(config, workdir)
    assert "untrained model" not in first["baselines"] and first["baselines"]
    expected = (workdir / "scores.json").read_bytes()
    for again in (lambda: loop.train(config, workdir), lambda: evaluating.evaluate_run(workdir)):
        (workdir / "scores.json").unlink()
        again()
        assert (workdir / "scores.json").read_bytes() == expected


# ------------------------------------------------------------------------------- the first command


def test_the_command_of_a_run_whose_words_have_underscores(monkeypatch, tmp_path):
    (tmp_path / "some_set.py").write_text(
        "from configs import sprites\n"
        "WORDS = {'savi': 'system', 'savi_plus': 'system', 'plus': 'version', 'smoke': 'smoke'}\n"
        "def get_config(words=''):\n"
        "    config = sprites.get_config()\n"
        "    config.name = '_'.join(['some_set', *filter(None, words.split(','))])\n"
        "    return config\n"
    )
    monkeypatch.setattr(sources, "CONFIGS", tmp_path)
    start = "python main.py --config=configs/some_set.py"
    assert sources.command_for("some_set") == start
    assert sources.command_for("some_set_savi_plus_smoke") == f"{start}:savi_plus,smoke"
    assert sources.command_for("some_set_savi_smoke") == f"{start}:savi,smoke"
    for name in ("some_set_other", "some_set_savi_", "another"):
        assert sources.command_for(name) is None


# ----------------------------------------------------------------------------------------- averages


@pytest.mark.slow
def test_an_average_follows_the_parameters():
    config, training = with_average()
    first = on_host(training.state.params)
    assert_same(on_host(training.state.averages), {f"teacher.{n}": x for n, x in first.items()})
    state, _ = one_step(training, config)
    assert state.averages.keys() == training.state.averages.keys()
    for name, new in state.params.items():
        expected = DECAY * first[name] + (1 - DECAY) * np.asarray(new)
        found = state.averages[f"teacher.{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    # And the next one continues from there.
    before = jax.device_get((state.params, state.averages))
    batch = training.place(tiny_batch(config))
    state, _ = training.train_step(state, training.frozen, batch, jax.random.key(1))
    for name, new in state.params.items():
        expected = DECAY * before[1][f"teacher.{name}"] + (1 - DECAY) * np.asarray(new)
        found = state.averages[f"teacher.{name}"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_an_average_changes_no_training():
    """Nothing reads it here: losses and parameters equal those of a run without it."""
    config, training = with_average()
    expected, metrics = jax.device_get(one_step(plain(), config))
    state, others = jax.device_get(one_step(training, config))
    assert_same(others, metrics)
    assert_same(state.params, expected.params)


@pytest.mark.more
def test_a_run_with_an_average_can_be_evaluated():
    config, training = with_average()
    batch, key = training.place(tiny_batch(config)), jax.random.key(0)
    outputs, expected = (
        on_host(x.predict(x.state.params, x.frozen, batch, key)) for x in (training, plain())
    )
    assert_same(outputs, expected)


@pytest.mark.slow
def test_an_average_comes_back_from_a_checkpoint(tmp_path):
    config, training = with_average()
    state, _ = one_step(training, config)
    writer = CheckpointWriter(tmp_path, config)
    writer.save(1, {"state": state}, {}, {}, {"frozen": training.frozen})
    writer.wait()
    writer.close()
    template = {"state": training.state, "frozen": training.frozen}
    checkpoint = read_checkpoint(tmp_path, 1)
    restored = restore_state(template, checkpoint)["state"]
    for found, expected in zip(*map(jax.tree.leaves, (restored, state)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert checkpoint.config.companions == config.companions
    assert not any(name.startswith("teacher.") for name in checkpoint.weights)
    # Another run without the average refuses the checkpoint, naming an array.
    plain = dataclasses.replace(training, state=training.state.replace(averages={}))
    with pytest.raises(UserError, match="state/averages/teacher"):
        restore_state({"state": plain.state, "frozen": plain.frozen}, checkpoint)


def test_an_average_is_of_the_trained_model():
    config = config_with(companions={"teacher": {"average_of": "other", "decay": DECAY}})
    with pytest.raises(UserError, match="teacher.average_of is 'other'; expected 'model'"):
        check(config)
