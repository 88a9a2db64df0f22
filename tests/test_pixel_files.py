"""Files of SAVi's, BO-QSA's and the original program: recognized, converted both ways, refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from golden_files import FOLDER, golden
from recipes import quick
from test_convert import assert_same, run
from test_golden_pixels import SYSTEMS, Case

from smoothsa_jax.checkpoints import published
from smoothsa_jax.checkpoints.read import restore_latest
from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import flax_files, state_dicts

LAYOUTS = {
    f"{system}-{name}": keys
    for system in ("savi", "boqsa", "original")
    for name, keys in json.loads((FOLDER / f"{system}_state_dicts.json").read_text()).items()
}
RECIPES = {
    "savi-savi_conditional_small": "movi_a:savi",
    "savi-savi_conditional_medium": "movi_a:savi,medium",
    "savi-savi_conditional_large": "movi_a:savi,large",
    "savi-savi++_conditional": "movi_e:savi_plus",
    "original-object_discovery": "clevr:slot_attention",
    "boqsa-transformer_coco": "coco:boqsa,transformer",
}
MIXTURE = "clevrtex:boqsa,mixture"
SMALL = "savi-savi_conditional_small"


def config_of(name: str):
    recipe = RECIPES.get(name, MIXTURE)
    data, _, words = recipe.partition(":")
    config = load_config(f"{published.CONFIGS / data}.py:{words}")
    if recipe == MIXTURE:
        (number,) = (x[0] for key, x in LAYOUTS[name].items() if key.endswith("slots_init.weight"))
        with config.unlocked():
            config.model.num_slots = number
    return recipe, config


def filled(name: str) -> dict[str, np.ndarray]:
    """Small random values, and the functions of the place as each program computes them."""
    rng, found = np.random.default_rng(0), {}
    for key, shape in LAYOUTS[name].items():
        found[key] = np.float32(0.02) * rng.standard_normal(shape, np.float32)
        if key.endswith("pos_embedding"):
            sides = [jnp.linspace(-1.0, 1.0, n) for n in shape[1:3]]
            found[key] = np.stack(np.meshgrid(*sides, indexing="ij"), -1)[None].astype("f")
        elif key.endswith("pos_emb.grid"):
            sides = [np.linspace(0.0, 1.0, n, dtype="f") for n in shape[1:3]]
            place = np.stack(np.meshgrid(*sides, indexing="ij"), -1)[None]
            found[key] = np.concatenate([place, 1 - place], axis=-1)
        elif key.endswith("self_attn_mask"):
            found[key] = np.triu(np.ones(shape, bool), 1)
    return found


@pytest.mark.parametrize(
    "name", quick(list(LAYOUTS), SMALL, "boqsa-mixture_clevrtex", "boqsa-transformer_coco")
)
def test_a_file_is_recognized_and_comes_back_bit_for_bit(name):
    recipe, config = config_of(name)
    state_dict = filled(name)
    assert published.configs_of(state_dict, {recipe: config}) == [recipe]
    arrays, kept = published.from_state_dict(state_dict, config)
    kept = json.loads(json.dumps(kept))  # as in a checkpoint
    assert_same(published.to_state_dict(arrays, config, kept), state_dict)


def test_published_files_have_a_word_in_front():
    name = "boqsa-mixture_clevrtex"
    recipe, config = config_of(name)
    state_dict = {f"model.{key}": x for key, x in filled(name).items()}
    assert published.configs_of(state_dict, {recipe: config}) == [recipe]
    arrays, kept = published.from_state_dict(state_dict, config)
    assert_same(published.to_state_dict(arrays, config, kept), state_dict)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_a_run_of_ours_becomes_a_file(name):
    """The recorded arrays come back; the heads of `savi_plus_model` are not in the usual order."""
    with golden(f"{name}_model", parts=()) as file:
        case = Case(name, file)
    program, model = case.system.program, case.model.to_dict()
    names = {"decoder.layers.layers.0.kernel"} | {
        f"decoder.layers.layers.{i}.kernel" for i in range(len(model["decoder"]["strides"]))
    }
    arrays = program.to_ours(case.theirs, names, model)
    kept = json.loads(json.dumps(program.kept(case.theirs)))
    assert_same(program.to_theirs(arrays, model, kept), case.theirs)


@pytest.mark.slow
def test_convert_and_back(tmp_path):
    """A file of flax, with the state of the optimizer around it, at full size."""
    state_dict = filled(SMALL)
    tree = {"step": 7, "optimizer": {"target": traverse_util.unflatten_dict(state_dict, sep="/")}}
    source, workdir, target = (tmp_path / x for x in ("ckpt.flax", "run", "back.msgpack"))
    source.write_bytes(serialization.msgpack_serialize(tree))
    assert run(source, workdir, f"--config={RECIPES[SMALL]}") == 0
    assert restore_latest(workdir, warn=pytest.fail).step == 100_000
    assert run(workdir, target) == 0
    assert_same(state_dicts.read(target), state_dict)


def test_places_of_another_grid_are_refused():
    _, config = config_of(SMALL)
    state_dict = filled(SMALL)
    key = next(key for key in state_dict if key.endswith("pos_embedding"))
    with pytest.raises(UserError, match="does not hold the places of a grid"):
        published.from_state_dict({**state_dict, key: 2 * state_dict[key]}, config)


@pytest.mark.parametrize(
    "content", [b"", b"no msgpack", serialization.msgpack_serialize({"a": "b"})]
)
def test_a_file_that_is_no_msgpack(tmp_path, content):
    path = tmp_path / "a.msgpack"
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.msgpack (cannot be read|holds no dictionary)"):
        flax_files.read_msgpack(path)
    with pytest.raises(UserError, match="is not a file"):
        flax_files.read_msgpack(tmp_path / "b.msgpack")
