"""Published models by name: the facts, files in every place, one line where there is none."""

import dataclasses
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convert import run
from test_published import filled

import smoothsa_jax as ssa
from smoothsa_jax.checkpoints import catalogue, published
from smoothsa_jax.checkpoints.catalogue import ModelFacts
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import state_dicts

NAME = "slotcontrast_movi_c"
MODELS = catalogue.published()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """An empty folder of models, and a Hub that cannot be reached."""
    monkeypatch.setenv("SMOOTHSA_JAX_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


# --------------------------------------------------------------------------------------- the table


def test_the_table_states_facts_of_the_right_kind():
    keys = {field.name for field in dataclasses.fields(ModelFacts)}
    assert len(MODELS) > 80 and {"name", "page", "file", "size", "license", "scores"} <= keys
    for name, facts in MODELS.items():
        assert re.fullmatch(r"[a-z0-9_]+", name) and facts.about and not facts.bundled
        for address in (facts.page, facts.url):
            assert address is None or address.startswith("https://")
        assert facts.hub is None or facts.file  # otherwise nothing can be downloaded from there
        assert facts.file is None or state_dicts.is_state_dict(facts.file)
        assert all(0 < value <= 100 for value in facts.scores.values())
        assert not facts.scores or facts.protocol
    assert any(facts.page is None for facts in MODELS.values())
    found = MODELS[NAME]
    assert (found.hub, found.file) == ("annamanasyan/slotcontrast", "movi_c.ckpt")
    assert found.scores == {"Video ARI": 69.3, "Video mBO": 32.7} and found.license == "MIT"


def test_every_name_has_a_config_of_a_published_program():
    """Two names never mean the same model."""
    recipes = [(facts.recipe, str(facts.settings)) for facts in MODELS.values()]
    assert len(set(recipes)) == len(recipes)
    known = set(published.recipes()) | {"clevrer:savi_slotformer,stochastic"}
    known.add("movi_c:gaussian,savi_slotformer,dynamics")  # of OBJ3D, which is no data set here
    assert {recipe for recipe, _ in recipes} <= known
    data_sets = {path.stem for path in published.CONFIGS.glob("*.py")}
    assert not data_sets & MODELS.keys()  # `--config=NAME` takes both
    config = catalogue.config_of(MODELS["savi_obj3d_slotformer"])
    assert config.model.num_slots == 6


def test_the_list_has_bundled_and_published_models():
    found = {model.name: model for model in ssa.list_models()}
    bundled = {x.name for x in ssa.list_models(published=False)}
    assert {"sprites", "sprites_slate"} < bundled and found.keys() == bundled | MODELS.keys()
    sprites = found["sprites"]
    assert sprites.bundled and sprites.size > 100_000 and 70 < sprites.scores["fg_ari"] < 80
    assert ssa.list_models(published=True) == list(MODELS.values())
    # In percent, so that numbers of slots or segments are left out.
    scores = [x.scores for x in ssa.list_models(published=False)]
    assert all(0 <= value <= 100 for each in scores for value in each.values())
    assert "count_error" not in found["sprites_dias"].scores


def test_the_list_is_shown_as_a_table():
    head, *lines = repr(models := ssa.list_models()).splitlines()
    assert head.split() == ["name", "file", "license", "scores", "about"]
    for line, model in zip(lines, models, strict=True):
        assert line.startswith(f"{model.name} ") and line.endswith(model.about)
    places = {line.split()[0]: line[head.index("file") :].split()[0] for line in lines}
    assert places["sprites"] == "bundled" and places["smoothsa_coco"] == "page"
    assert places["dinosaur_coco"] == "Hub"
    assert "FG-ARI 69.0" in next(x for x in lines if x.startswith("smoothsa_movi_c "))


# --------------------------------------------------------------------------------------- the files


def test_a_file_in_every_place(nowhere, monkeypatch):
    """Given, in a folder, in the folder of models under old and new names, on the Hub."""
    facts = MODELS[NAME]
    place = nowhere / "place"
    place.mkdir()
    with pytest.raises(UserError, match="has no state dict; expected one file of slotcontrast"):
        catalogue.file_of(facts, place)
    (place / "other.pth").touch()
    assert catalogue.file_of(facts, place).name == "other.pth"  # the only one
    (place / "movi_c.ckpt").touch()
    assert catalogue.file_of(facts, place) == place / "movi_c.ckpt"
    assert catalogue.file_of(facts, place / "other.pth") == place / "other.pth"
    (place / "movi_c.ckpt").rename(place / "more.pth")
    with pytest.raises(UserError, match="has more.pth, other.pth; expected one file of"):
        catalogue.file_of(facts, place)
    models = catalogue.default_path(facts).parent
    models.mkdir()
    (models / f"{NAME}.pt.tar").touch()
    assert catalogue.file_of(facts) == models / f"{NAME}.pt.tar"
    (models / "coco.pth").touch()  # of version 0.2
    assert catalogue.file_of(catalogue.facts_of("authors/coco")) == models / "coco.pth"

    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repository, file, revision: asked.append((repository, file, revision)) or "here",
    )
    assert str(catalogue.file_of(facts, "hf://me/mine@v1")) == "here"
    (models / f"{NAME}.pt.tar").unlink()
    catalogue.file_of(facts)
    assert asked == [("me/mine", facts.file, "v1"), ("annamanasyan/slotcontrast", facts.file, None)]
    with pytest.raises(UserError, match="the name of spot_voc's file in hf://me/mine is unknown"):
        catalogue.file_of(MODELS["spot_voc"], "hf://me/mine")


def test_without_network_one_line_tells_what_to_do(nowhere):
    with pytest.raises(UserError) as error:
        ssa.load(NAME)
    line = str(error.value)
    assert "movi_c.ckpt of hf://annamanasyan/slotcontrast cannot be fetched" in line
    assert (
        "download movi_c.ckpt from https://github.com/martius-lab/slotcontrast (https://hugg"
        in line
    )
    assert f"save it as {nowhere / 'models' / NAME}.ckpt" in line
    assert f"convert FILE runs/{NAME} --config={NAME} makes a workdir" in line
    with pytest.raises(UserError, match="download smoothsa_r-voc from .*archive-smoothsa, "):
        ssa.load("smoothsa_voc")
    with pytest.raises(UserError, match="task 'recognition', .*; python -m smoothsa_jax.convert F"):
        ssa.load("smoothsa_recognition_coco")
    with pytest.raises(UserError, match="no page is known to have it; if you have the file, give"):
        ssa.load("spot_teacher_coco")
    with pytest.raises(UserError, match="gone.pth is not a file: download its file from .*spot"):
        ssa.load("spot_voc", file=nowhere / "gone.pth")


def test_names_that_are_none(nowhere):
    with pytest.raises(UserError, match="the nearest are slotcontrast_movi_c, slotcontrast_movi_"):
        ssa.load("slotcontrast_movic")
    with pytest.raises(UserError, match="file='x.pth' was given with sprites, expected the"):
        ssa.load("sprites", file="x.pth")
    for name in ("hf://one", "hf://a/b/c", "hf://a/b@"):
        with pytest.raises(UserError, match="expected hf://OWNER/NAME"):
            ssa.load(name)


@pytest.mark.slow
def test_a_name_loads_its_file_and_converts_it(nowhere, capsys):
    """At full size. Neither needs the recipe, which other files share."""
    name = "spot_voc"
    state_dict = filled("spot-original student voc")
    source = nowhere / "file.safetensors"
    save_file(state_dict, source)
    model = ssa.load(name, file=source)
    assert model.num_slots == 6 and model.config.name == "voc_spot_original_student"
    assert run(source, nowhere / "run", f"--config={name}") == 0
    assert "expected     mBO of instances 48.6, mBO of classes 55.7" in capsys.readouterr().out
    again = ssa.load(name, file=nowhere / "run")
    for key, array in model.params.items():
        np.testing.assert_array_equal(again.params[key], array, err_msg=key)
