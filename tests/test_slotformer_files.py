"""Files of SlotFormer's program: SAVi, rollouters and readouts become runs and come back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER, golden
from ml_collections import ConfigDict
from recipes import quick
from run_config import get_config
from safetensors.numpy import save_file
from test_convert import assert_same, told
from test_golden_readouts import filled as readout_filled
from test_golden_slotformer import filled, savi_config
from tiny import as_answers, as_dynamics

import smoothsa_jax as ssa
from smoothsa_jax.checkpoints import catalogue, on_slots, published
from smoothsa_jax.checkpoints.read import restore_latest
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import canonical
from smoothsa_jax.convert import read_workdir, write_workdir
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.slotformer import ALOE, ROLLOUTER, SAVI, of_tokenizer
from smoothsa_jax.models.build import (
    ReadoutSizes,
    build_readout_model,
    build_rollout_model,
    build_slot_model,
    model_shapes,
)
from smoothsa_jax.models.parameters import split

LAYOUTS = json.loads((FOLDER / "slotformer_state_dicts.json").read_text())
# The name of a layout -> its recipe, and how the recipe's models differ.
SAVI_OF_PHYRE = {"decoder.cells": 16, "encoder.strides": (2, 1, 1, 1)}
RECIPES = {
    "savi_obj3d_params": ("movi_c:gaussian,savi_slotformer", {}, {"num_slots": 6}),
    "stosavi_clevrer_params": ("clevrer:savi_slotformer,stochastic", {}, {}),
    "savi_phyre_params-fold0": (
        "physion:savi_slotformer",
        {"data.image_size": 128},
        {"num_slots": 8, **SAVI_OF_PHYRE},
    ),
    "slotformer_obj3d_params": (
        "movi_c:gaussian,savi_slotformer,dynamics",
        {"model.rollouter.width": 128, "model.rollouter.mlp_size": 512},
        {"num_slots": 6},
    ),
    "slotformer_clevrer_params": ("clevrer:savi_slotformer,stochastic,dynamics", {}, {}),
    "slotformer_phyre_params-fold0": (
        "physion:savi_slotformer,dynamics",
        {"model.rollouter.num_layers": 8, "data.image_size": 128},
        SAVI_OF_PHYRE,
    ),
    "slotformer_physion_params": (
        "physion:steve,slotformer,dynamics",
        {"model.rollouter.num_layers": 8, "model.rollouter.window": 15},
        {},
    ),
    "dvae_physion_params": ("physion:steve,slotformer,tokenizer", {}, {}),
    "steve_physion_params": ("physion:steve,slotformer", {}, {}),
    "aloe_clevrer_params": ("clevrer:savi_slotformer,stochastic,answers", {}, {}),
    "aloe_clevrer_params-rollout": ("clevrer:savi_slotformer,stochastic,answers", {}, {}),
    "readout_physion_params": ("physion:steve,slotformer,answers", {}, {}),
    "readout_phyre_params-fold0": ("physion:savi_slotformer,answers", {}, {"num_slots": 8}),
}
UNREAD = "prior_slot_layer."


def file_of(layout: str) -> dict[str, np.ndarray]:
    """A state dict of a layout, with small random values and its constants."""
    return (readout_filled if layout.startswith(("readout", "aloe")) else filled)(layout)


def config_of(layout: str):
    """The recipe of a layout, and its name."""
    name, own, of_slots = RECIPES[layout]
    data, _, words = name.partition(":")
    path = f"{published.CONFIGS / data}.py:{words}"
    config = published.completed(load_config(path), path).unlock()
    model = config.companions.slot_model.model if "slot_model" in config.companions else None
    config.update_from_flattened_dict(own)
    with config.ignore_type():
        (config.model if model is None else model).update_from_flattened_dict(of_slots)
    return name, canonical(config)


def test_every_layout_has_a_recipe():
    assert RECIPES.keys() == LAYOUTS.keys()


PUBLISHED = [name for name, facts in catalogue.published().items() if facts.called in LAYOUTS]


@pytest.mark.more
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_has_the_config_of_its_layout(name):
    facts = catalogue.facts_of(name)
    config, state_dict = canonical(catalogue.config_of(facts)), file_of(facts.called)
    config = published.fitted({name: config}, state_dict)[name]
    assert published.configs_of(state_dict, {name: config}) == [name]


QUICK = ("stosavi_clevrer_params", "slotformer_clevrer_params", "aloe_clevrer_params")
QUICK += ("readout_physion_params", "readout_phyre_params-fold0", "dvae_physion_params")
QUICK += ("steve_physion_params",)


@pytest.mark.parametrize("layout", quick(list(RECIPES), *QUICK))
def test_a_layout_fits_its_recipe(layout):
    """Every key and shape, those of constants too; and the arrays come back."""
    name, config = config_of(layout)
    state_dict = file_of(layout)
    config = published.fitted({name: config}, state_dict)[name]
    family = published.family_of(state_dict)
    assert family.program is published.program_of(config)
    assert published.configs_of(state_dict, {name: config}) == [name]
    read = {k: x for k, x in state_dict.items() if layout[:4] != "slot" or not of_tokenizer(k)}
    arrays, kept = published.from_state_dict(state_dict, config)
    back = published.to_state_dict(arrays, config, json.loads(json.dumps(kept)))
    assert back.keys() == read.keys()
    for key, x in read.items():
        assert back[key].dtype == x.dtype
        np.testing.assert_allclose(back[key], x, atol=1e-6, err_msg=key)
    # A run that no file has told of has the same keys.
    again = published.to_state_dict(arrays, config, {})
    assert {k: x.shape for k, x in again.items()} == {k: x.shape for k, x in back.items()}
    assert on_slots.number_unread(state_dict, config) == len(state_dict) - len(read)


def named(layout: str, match: str, **changed):
    """The line about a file that does not fit its recipe."""
    name, config = config_of(layout)
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict({k.replace("__", "."): x for k, x in changed.items()})
    with pytest.raises(UserError, match=match):
        published.configs_of(file_of(layout), {name: config})


@pytest.mark.slow
def test_files_of_other_sizes_are_refused():
    named(
        "slotformer_obj3d_params",
        r"its rollouter has width 128, unlike the config .*--config\.model\.rollouter\.width=128$",
        model__rollouter__width=256,
    )
    of_slots = "companions__slot_model__model__num_slots"
    named("readout_physion_params", "reads 6 slots of a frame, and .* has 5", **{of_slots: 5})
    size = "companions__slot_model__model__slot_size"
    named("aloe_clevrer_params", "reads 128 channels of a slot, and .* has 64", **{size: 64})
    cells = {"model__decoder__cells": 8, "data__image_size": 64}
    named("savi_phyre_params-fold0", r"decoder_pos_embedding\.grid \(found float32\[1, 16", **cells)
    name, config = config_of("slotformer_clevrer_params")
    with pytest.raises(UserError, match="it is a checkpoint of SlotFormer's readout of Physion"):
        published.configs_of(file_of("readout_physion_params"), {name: config})


# ------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def savi(tmp_path_factory):
    """A small file of SAVi as a run, and its config."""
    with golden("model_savi_slotformer_stochastic", parts=()) as file:
        recorded = file.group("param/")
    size = recorded["encoder_pos_embedding.grid"].shape[1]
    config = get_config("gaussian")
    config.data.update(image_size=size, boxes=False, num_frames=4)
    config.eval.num_frames = 4
    config.model, config.title = savi_config(recorded, (size, size)), "SAVi"
    config.losses = {"reconstruction": {"weight": 1.0}}
    config.weights = {}
    config = canonical(config)
    folder = tmp_path_factory.mktemp("savi") / "run"
    write_workdir(recorded, config, folder)
    return folder, config


def drawn(config) -> dict[str, np.ndarray]:
    """A file of a config of a rollouter or a readout, with random values."""
    rng = np.random.default_rng(1)
    shapes = on_slots.shapes_on_slots(config)
    arrays = {k: rng.standard_normal(x.shape, np.float32) for k, x in shapes.items()}
    return published.to_state_dict(arrays, config, {})


def with_model(config, slots):
    """A config whose companion has the model of another config."""
    config = config.copy_and_resolve_references().unlock()
    config.companions.slot_model.update(title=slots.title, model=slots.model)
    return canonical(config)


@pytest.mark.slow
def test_a_rollouter_becomes_a_run_and_comes_back(savi, tmp_path):
    folder, slots = savi
    config = with_model(as_dynamics(slots, str(folder)), slots)
    state_dict = drawn(config)
    own = read_workdir(folder, pytest.fail)
    with pytest.raises(UserError, match="its decoder is not that of .*, which differs in decoder"):
        write_workdir(state_dict, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    state_dict |= {k: x for k, x in own.items() if k in state_dict}
    write_workdir(state_dict, config, tmp_path / "run")
    assert_same(read_workdir(tmp_path / "run", pytest.fail), state_dict)
    # The run holds the whole slot model.
    arrays = restore_latest(tmp_path / "run", warn=pytest.fail).weights
    of_slots = restore_latest(folder, warn=pytest.fail).weights
    for name, x in of_slots.items():
        np.testing.assert_array_equal(arrays[f"slot_model.{name}"], x)
    missing = with_model(as_dynamics(slots, str(tmp_path / "none")), slots)
    with pytest.raises(UserError, match="it holds no slot model, and .*none is no run of one"):
        write_workdir(state_dict, missing, tmp_path / "other")
    with pytest.raises(UserError, match="not finite"):
        key = "rollouter.in_proj.bias"
        bad = {**state_dict, key: np.full_like(state_dict[key], np.inf)}
        write_workdir(bad, config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    save_file(state_dict, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="it reads .* channels of a slot, and .* has 128"):
        ssa.load(tmp_path / "file.safetensors")


@pytest.mark.slow
def test_a_readout_becomes_a_run_and_comes_back(savi, tmp_path):
    folder, slots = savi
    config = as_answers(slots, str(folder))
    config = published.as_published(with_model(config, slots))
    assert config.model.beside == () and config.model.readout.positions == "token"
    state_dict = drawn(config)
    write_workdir(state_dict, config, tmp_path / "run")
    assert_same(read_workdir(tmp_path / "run", pytest.fail), state_dict)


@pytest.mark.parametrize(
    "layout, config",
    [
        ("readout_phyre_params-fold0", "physion:savi_slotformer,answers"),
        ("slotformer_obj3d_params", "slotformer_obj3d"),
    ],
)
def test_the_line_for_a_file_without_a_slot_model(layout, config, tmp_path, capsys):
    save_file(
        {k: np.ascontiguousarray(x) for k, x in file_of(layout).items()},
        tmp_path / "file.safetensors",
    )
    flags = [f"--config={config}"]
    line = told(capsys, tmp_path / "file.safetensors", tmp_path / "run", *flags)
    assert "it holds no slot model" in line and "companions.slot_model.source" in line


@pytest.fixture(scope="module")
def small_steve():
    """The config of a small STEVE with its tokenizer, and a file of it."""
    spec = f"{published.CONFIGS}/sprites.py:gaussian,steve,slotformer"
    config = published.completed(load_config(spec), spec).unlock()
    config.data.update(image_size=16, num_frames=4, boxes=False)
    model = config.model
    model.update(num_slots=3, slot_size=8)
    with model.encoder.ignore_type():
        model.encoder.update(width=6, strides=(2, 1))
    model.projection.hidden_size = 8
    model.transition.update(mlp_size=12, state_size=10, num_heads=2)
    model.decoder.update(token_size=8, num_heads=2)
    model.target.update(vocabulary=6, width=6, grid=(4, 4))
    tokenizer = config.companions.tokenizer.model.tokenizer
    tokenizer.update(vocabulary=6, hidden_size=4)
    config = canonical(config)
    rng = np.random.default_rng(5)
    expected = published.expected_keys(config)
    shapes = {k: json.loads(x[x.index("[") :]) for k, x in expected.items()}
    state_dict = {k: rng.standard_normal(x, np.float32) for k, x in shapes.items()}
    constants = [k for k in expected if k.endswith((".grid", "self_attn_mask"))]
    zeros = {k: np.zeros(x, np.float32) for k, x in shapes.items() if k not in constants}
    arrays, _ = published.from_state_dict(zeros, config)
    written = published.to_state_dict(arrays, config, {})
    return config, state_dict | {k: written[k] for k in constants}


@pytest.mark.slow
def test_steve_has_the_slots_of_savi_without_a_kernel(small_steve):
    """The kernel of SAVi is the identity here; SAVi itself is compared with recorded numbers."""
    config, state_dict = small_steve
    arrays, _ = published.from_state_dict(state_dict, config)
    table, start = arrays["decoder.table"], state_dict["trans_decoder.tok_emb.weight"]
    np.testing.assert_array_equal(table[0], start[-1])  # their start is the last token
    np.testing.assert_array_equal(table[1:], start[:-1])
    theirs = {k: x for k, x in state_dict.items() if not k.startswith(("trans_dec", "dvae."))}
    steve, savi = config.model, config.model.copy_and_resolve_references()
    size = steve.slot_size
    kernel = {"kernel": "linear", "stochastic": False, "name": "drawn_queries"}
    savi.aggregator = ConfigDict({**savi.aggregator, **kernel})
    theirs["kernel_dist_layer.0.weight"] = np.eye(2 * size, size, dtype=np.float32)
    theirs["kernel_dist_layer.0.bias"] = np.zeros(2 * size, np.float32)
    video = np.random.default_rng(6).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    draws = dict.fromkeys(("initializer", "transition", "aggregator", "decoder", "target"))

    def slots(model, arrays):
        definition, params, rest = split(build_slot_model(model, (16, 16), 0))
        arrays = {**params, **rest, **arrays}

        @jax.jit
        def run(arrays):
            model = definition.merge(arrays)
            return model(model.encode(video)["features"], {}, draws)["slots"]

        return run(as_device(arrays))

    own = {k: x for k, x in arrays.items() if not k.startswith("tokenizer.")}
    expected = slots(savi, SAVI.to_ours(theirs, model_shapes_of(savi)))
    found = slots(steve, own)
    assert np.std(found) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def model_shapes_of(model):
    """The names of a slot model's arrays."""
    _, params, rest = split(model_shapes(model, (16, 16)))
    return {**params, **rest}


@pytest.mark.slow
def test_steve_and_its_rollouter_become_runs_and_come_back(small_steve, tmp_path):
    config, state_dict = small_steve
    write_workdir(state_dict, config, tmp_path / "steve")
    assert_same(read_workdir(tmp_path / "steve", pytest.fail), state_dict)
    dynamics = with_model(as_dynamics(config, str(tmp_path / "steve")), config).unlock()
    dynamics.optimizer.rates = ConfigDict()
    dynamics.losses = ConfigDict({"slots": {"weight": 1.0, "decay": 1.0}})
    dynamics = canonical(dynamics)
    of_rollouter = drawn(dynamics)
    decoder = {k.removeprefix("trans_"): x for k, x in state_dict.items() if k.startswith("trans_")}
    assert decoder.keys() == {k for k in of_rollouter if k.startswith("decoder.")}
    tokenizer = {k: x for k, x in state_dict.items() if k.startswith("dvae.")}
    of_rollouter |= {**decoder, **tokenizer}
    write_workdir(of_rollouter, dynamics, tmp_path / "rollouter")
    assert_same(read_workdir(tmp_path / "rollouter", pytest.fail), of_rollouter)
    key = "decoder.head.weight"
    with pytest.raises(UserError, match="which differs in decoder.readout.kernel"):
        other = {**of_rollouter, key: of_rollouter[key] + 1}
        write_workdir(other, dynamics, tmp_path / "other")
    key = "dvae.decoder.11.bias"
    with pytest.raises(UserError, match="its tokenizer is not that of .*, which differs in"):
        other = {**of_rollouter, key: of_rollouter[key] + 1}
        write_workdir(other, dynamics, tmp_path / "other")
    # Without the run of its slot model, there is no tokenizer to write.
    (tmp_path / "steve").rename(tmp_path / "moved")
    lines = []
    back = read_workdir(tmp_path / "rollouter", lines.append)
    assert len(lines) == 1 and "steve is no longer the run of the slot model" in lines[0]
    assert back.keys() == of_rollouter.keys() - tokenizer.keys()


# ---------------------------------------------------------------------- what the program has not

SIZES = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_size": 12, "dropout_rate": 0.0}


def random_model(make):
    """A definition and random arrays."""
    definition, params, rest = split(make())
    rng = np.random.default_rng(2)
    arrays = {
        k: rng.standard_normal(x.shape).astype(x.dtype) for k, x in {**params, **rest}.items()
    }
    return definition, arrays


def test_normalized_slots_become_part_of_the_layers():
    """The file's rollouter has no normalization, and predicts the same."""
    past = np.random.default_rng(3).standard_normal((2, 3, 4, 6), np.float32)

    def model(normalize):
        settings = {"name": "slotformer", "window": 3, "normalize": normalize, **SIZES}
        config = ConfigDict({"rollouter": settings, "future": 1})
        return random_model(lambda: build_rollout_model(config, 4, 6, 0)), settings

    (definition, arrays), settings = model(True)
    arrays["rollouter.slot_scale"] = np.abs(arrays["rollouter.slot_scale"]) + 0.5
    predicted = definition.merge(as_device(arrays)).rollouter(past, 2)
    params = {k: x for k, x in arrays.items() if k != "rollouter.seen"}
    (plain, names), _ = model(False)
    found = ROLLOUTER.to_ours(ROLLOUTER.to_theirs(params, {"rollouter": settings}), names)
    assert found.keys() == names.keys()
    again = plain.merge(as_device(found)).rollouter(past, 2)
    np.testing.assert_allclose(again, predicted, rtol=1e-4, atol=1e-4)
    for key, value in (("residual", True), ("positions", "token")):
        with pytest.raises(UserError, match=f"model.rollouter.{key} is {value!r}, which"):
            ROLLOUTER.to_theirs(params, {"rollouter": {**settings, key: value}})


def test_positions_of_frames_become_those_of_tokens():
    """A readout with a position for each frame is in a file, and answers the same."""
    rng = np.random.default_rng(4)
    slots = rng.standard_normal((2, 3, 4, 6), np.float32)
    question, choices = np.array([[1, 2], [2, 0]]), np.array([[[3], [0]], [[0], [0]]])
    settings = {"name": "aloe", "word_size": 3, "hidden_size": 5, **SIZES}
    settings |= {"question_length": 2, "choice_length": 1}

    def model(positions):
        config = ConfigDict({"readout": {**settings, "positions": positions}})
        sizes = ReadoutSizes(4, 6, 3, 5, 3)
        return random_model(lambda: build_readout_model(config, sizes, {}, 0))

    (mine, arrays), (theirs, names) = model("time"), model("token")
    of_file = {"readout": {**settings, "positions": "time"}}
    found = ALOE.to_ours(ALOE.to_theirs(arrays, of_file, {"slots": 4}), names)
    assert {k: x.shape for k, x in found.items()} == {k: x.shape for k, x in names.items()}
    run = lambda found: found.readout(slots, None, question, choices)  # noqa: E731
    expected = jax.jit(lambda x: run(mine.merge(x)))(as_device(arrays))
    answers = jax.jit(lambda x: run(theirs.merge(x)))(as_device(found))
    for name, x in expected.items():
        np.testing.assert_allclose(answers[name], x, rtol=1e-4, atol=1e-5)


def as_device(arrays):
    return {k: jnp.asarray(x) for k, x in arrays.items()}
