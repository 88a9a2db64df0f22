"""Published files of other systems than SmoothSA at full size, and what is said of others."""

import json

import numpy as np
import pytest
from golden_files import golden
from recipes import quick
from safetensors.numpy import load_file, save_file
from test_convert import assert_same, look_at_a_frame, run, told
from test_golden_systems import Recorded
from test_state_dicts import ALIKE, LAYOUTS, is_later, recipe_of

import smoothsa_jax as ssa
from smoothsa_jax import convert
from smoothsa_jax.checkpoints import published, sources
from smoothsa_jax.checkpoints.read import restore_latest
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.interop.programs import GENERA1Z, OCLF, SPOT
from smoothsa_jax.models.layers.positions import functions_of_place

ALL = [
    f"{system}-{layout}"
    for system, found in LAYOUTS.items()
    for layout in found
    if not is_later(system, layout) and layout not in ALIKE
]
MASKS = {"self_attn_mask": ("bool", 1, 0), ".mask": ("float32", -np.inf, 0)}
COUNTS = ("idx_buffer", "buffer_ptr")
RATES = ("clust_prob", "vq.alpha")


def filled(name: str, zeros: bool = False, **masks: tuple) -> dict[str, np.ndarray]:
    """A state dict of a layout, with small random values, or zeros that take no memory."""
    system, _, layout = name.partition("-")
    rng, found = np.random.default_rng(0), {}
    for key, shape in LAYOUTS[system][layout].items():
        kind = next((x for ending, x in {**MASKS, **masks}.items() if key.endswith(ending)), None)
        if kind is not None:
            dtype, hidden, seen = kind
            later = np.triu(np.ones(shape, bool), 1)
            found[key] = np.where(later, hidden, seen).astype(dtype)
        elif key.endswith("encoder.pos.pe"):  # functions of the place
            found[key] = functions_of_place(tuple(shape[2:]), "centers").transpose(2, 0, 1)[None]
        elif key.endswith(COUNTS):
            found[key] = rng.integers(0, 9, shape)
        elif key.endswith(RATES):
            found[key] = rng.random(shape, np.float32)
        elif zeros:
            found[key] = np.broadcast_to(np.float32(0), shape)
        else:
            found[key] = np.float32(0.02) * rng.standard_normal(shape, np.float32)
    return {key: np.asarray(x) for key, x in found.items()}


@pytest.fixture(scope="module")
def recipes():
    return published.recipes()


# ------------------------------------------------------------------------------------ both ways


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    quick(
        ALL,
        "metaslot-dinosaur_r-coco",
        "dinosaur-dinosaur_r-voc",
        "generative-vqdino_mlp_r-clevrtex",
        "generative-vqvae-clevrtex-c256",
    ),
)
def test_a_file_comes_back_bit_for_bit(name, recipes):
    """All keys, the program's masks and MetaSlot's state too."""
    system, _, layout = name.partition("-")
    config, state_dict = recipes[recipe_of(system, layout)], filled(name)
    buffers = [f"aggregator.{x}" for x in ("queue", "pointer", "slots_share")]
    arrays, kept = published.from_state_dict(state_dict, config, buffers)
    kept = json.loads(json.dumps(kept))  # as in a checkpoint
    assert_same(published.to_state_dict(arrays, config, kept), state_dict)


def test_arrays_that_are_not_in_order_are_written_in_order(tmp_path):
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"turned": table.T, "part": table[:, 1:], "one": np.float32(3) * np.ones(())}
    state_dicts.write(tmp_path / "a.safetensors", arrays)
    assert_same(state_dicts.read(tmp_path / "a.safetensors"), arrays)


SLOW = [
    "dias-dias_r-voc",
    "spot-original teacher coco",
    "spot-original student movi_e",
    "spot-spot_r_distill-coco",
    "dinosaur-original coco ar",
    "dinosaur-original movi_c mlp",
    "metaslot-dinosaur_r-coco",
    "metaslot-spot_r-coco",
    "slotcontrast-original movi_c",
    "videosaur-genera1z ytvis",
    "videosaur-original dinosaur coco",
    "generative-slotdiffusion_r_vqvae-clevrtex",
    "generative-vqdino_mlp_r-clevrtex",
    "generative-steve_c_vqvae-movi_d",
    "generative-steve_original",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_convert_and_load(name, tmp_path, capsys):
    """At full size: a workdir, a frame, the file again, and the same model from `load`."""
    system, _, layout = name.partition("-")
    recipe, state_dict = recipe_of(system, layout), filled(name)
    source, workdir = tmp_path / "official.safetensors", tmp_path / "run"
    save_file(state_dict, source)
    assert run(source, workdir, f"--config={recipe}") == 0
    out = capsys.readouterr().out
    assert ("a student without its teacher" in out) == ("original student" in layout)
    checkpoint = restore_latest(workdir, warn=pytest.fail)
    config = checkpoint.config
    look_at_a_frame(config, checkpoint.arrays)
    target = tmp_path / "back.safetensors"
    assert run(workdir, target) == 0
    assert_same(load_file(target), state_dict)

    model = ssa.load(source, config=recipe)
    assert model.num_slots == config.model.num_slots
    stored = checkpoint.weights
    others = tuple(f"{companion}." for companion in config.companions)
    assert model.params.keys() == {x for x in stored if not x.startswith(others)}
    for key, array in model.params.items():
        np.testing.assert_array_equal(array, stored[key], err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["vqvae-clevrtex-c256", "vqdino-clevrtex-c256"])
def test_a_tokenizer_becomes_the_companion_of_a_second_stage(layout, tmp_path):
    """Its file becomes a workdir, which comes back, and which a second stage reads."""
    state_dict, recipe = filled(f"generative-{layout}"), recipe_of("generative", layout)
    source, workdir = tmp_path / "official.safetensors", tmp_path / "run"
    save_file(state_dict, source)
    assert run(source, workdir, f"--config={recipe}") == 0
    assert run(workdir, tmp_path / "back.safetensors") == 0
    assert_same(load_file(tmp_path / "back.safetensors"), state_dict)
    with pytest.raises(UserError, match="tokenizer"):
        ssa.load(source, config=recipe)
    data, _, words = recipe.removesuffix(",tokenizer").partition(":")
    config = published.load_config(f"{published.CONFIGS / data}.py:{words}")
    config.companions.tokenizer.source = str(workdir)
    found = sources.with_companions(config, None, warn=pytest.fail).companions.tokenizer.model
    first = published.load_config(f"{published.CONFIGS / data}.py:{words},tokenizer")
    assert found == first.model


def test_a_second_stage_of_ours_leaves_out_what_a_file_lacks(recipes):
    """The tokenizer's decoder, and the encoder that it shares with the model."""
    name = "generative-vqdino_mlp_r-clevrtex"
    config, state_dict = recipes["clevrtex:vvo,mlp,genera1z"], filled(name, zeros=True)
    assert not config.companions.tokenizer.model.tokenizer.decodes
    arrays, kept = published.from_state_dict(state_dict, config)
    encoder = {x for x in arrays if x.startswith("encoder.")}
    assert {f"tokenizer.{x}" for x in encoder} <= arrays.keys()
    arrays["tokenizer.tokenizer.decoder.layers.0.convs.0.bias"] = np.zeros(64, np.float32)
    arrays["tokenizer.tokenizer.expand.first.bias"] = np.zeros(64, np.float32)
    back = published.to_state_dict(arrays, config, kept)
    assert back.keys() == state_dict.keys()


def test_a_run_of_ours_becomes_a_file():
    """What a file has beside the arrays is made, where no file has told it."""
    with golden("model_dinosaur_ar_original", parts=()) as file:
        case = Recorded("dinosaur_ar_original", file)
    back = OCLF.to_theirs(case.arrays, case.model)
    mask = back.pop("models.object_decoder.mask")
    later = np.triu(np.ones(mask.shape, bool), 1)
    assert mask.dtype == np.float32
    assert np.isneginf(mask[later]).all() and not mask[~later].any()
    assert_same(back, case.params)


# ----------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("form", [("float32", -1e9, 0), ("bool", 0, 1), ("float64", -np.inf, 0)])
def test_every_form_of_a_causal_mask_comes_back(form):
    state_dict = {"m.decode.mask": np.where(np.triu(np.ones((5, 5)), 1), *form[1:]).astype(form[0])}
    kept = json.loads(json.dumps(GENERA1Z.kept(state_dict)))
    arrays = {
        "aggregator.queue": np.zeros((3, 2), np.float32),
        "decoder.bos": np.zeros((9, 1, 1, 2), np.float32),
        "encoder.position": np.zeros((1, 5, 2), np.float32),
    }
    back = GENERA1Z.to_theirs(arrays, kept=kept)
    assert_same({"m.decode.mask": back["m.decode.mask"]}, state_dict)


@pytest.mark.parametrize(
    "mask", [np.zeros((4, 4), bool), np.tri(4, k=1, dtype=bool), np.zeros((4, 5)), np.zeros(())]
)
def test_another_mask_is_refused(mask):
    with pytest.raises(UserError, match="is not the mask of causal attention"):
        SPOT.kept({"dec.blocks.0.self_attn_mask": mask})


def test_earlier_names_of_spots_decoder(recipes):
    """They are read, and written by today's names."""
    today = filled("spot-original teacher coco", zeros=True)
    earlier = {f"tf_{k}" if k.startswith("dec.") else k: x for k, x in today.items()}
    assert earlier.keys() != today.keys()
    config = recipes["coco:spot,original"]
    only = {name: x for name, x in recipes.items() if name.startswith("coco:spot,original")}
    assert published.configs_of(earlier, only) == ["coco:spot,original"]
    arrays, kept = published.from_state_dict(earlier, config)
    back = published.to_state_dict(arrays, config, kept)
    assert back.keys() == today.keys()


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.slow
def test_a_file_of_another_program(recipes):
    one = {"coco:spot,original": recipes["coco:spot,original"]}
    with pytest.raises(
        UserError,
        match="it is a checkpoint of DIAS, and coco:spot,original describes a model of another",
    ):
        published.configs_of(filled("dias-dias_r-coco", zeros=True), one)
    one = {"coco:dias,genera1z": recipes["coco:dias,genera1z"]}
    with pytest.raises(UserError, match="the keys do not fit; against the config coco:dias"):
        published.configs_of(filled("dinosaur-dinosaur_r-coco", zeros=True), one)


def test_a_file_of_no_known_program(recipes):
    unknown = {"layer.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(
        UserError, match=r"no checkpoint of .*DINOSAUR or SPOT or .*SmoothSA or .*DIAS"
    ):
        published.configs_of(unknown, {x: recipes[x] for x in ("coco", "coco:dias,genera1z")})


@pytest.mark.slow
def test_a_queue_of_another_batch(recipes, tmp_path):
    """Its keys fit, but the config has another capacity."""
    state_dict = filled("metaslot-dinosaur_r-voc")
    for key in ("latent_buffer", "idx_buffer"):
        state_dict[f"m.aggregat.vq.{key}"] = state_dict[f"m.aggregat.vq.{key}"][:600]
    config = recipes["voc:metaslot,genera1z"]
    with pytest.raises(UserError, match=r"aggregator\.queue has the shape \(600, 256\)"):
        convert.write_workdir(state_dict, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_words_of_a_student_have_any_order(recipes):
    config = recipes["coco:spot,genera1z,student"]
    spec = f"{published.CONFIGS / 'coco.py'}:student,genera1z,spot"
    open_one = published.load_config(spec)
    assert "model" not in open_one.companions.teacher
    assert published.with_teacher(open_one, spec) == config
    assert config.companions.teacher.model == recipes["coco:spot,genera1z"].model


@pytest.mark.slow
def test_several_recipes_fit(tmp_path, capsys):
    source = tmp_path / "file.safetensors"
    save_file(filled("dias-dias_r-coco"), source)
    line = told(capsys, source, tmp_path / "run")
    assert "choose the one it was trained with" in line and "coco:dias,genera1z" in line
    with pytest.raises(UserError, match="fits the recipes .*voc:dias,genera1z"):
        ssa.load(source)
