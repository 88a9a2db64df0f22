"""Models on the Hub: pushed with a card, loaded back, and everything that can go wrong."""

import json
import re

import numpy as np
import pytest
from hub_stand_in import served
from huggingface_hub import ModelCard

import smoothsa_jax as ssa
from smoothsa_jax.checkpoints import sources
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.card import model_card
from smoothsa_jax.inference.load import SHIPPED

REPOSITORY = "me/sprites"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with served(monkeypatch, str(tmp_path / "cache")) as found:
        yield found


@pytest.fixture(scope="module")
def model():
    return ssa.load("sprites_gaussian")


def test_there_and_back(hub, model, tmp_path):
    """Weights, config, step and scores, bit for bit; also as the source of a run's weights."""
    address = model.push_to_hub(REPOSITORY, license="apache-2.0", token="hf_mine")
    assert address.startswith(f"{hub.address}/{REPOSITORY}/commit/")
    names = {name for repository, name in hub.files if repository == REPOSITORY}
    assert names == {"README.md", "about.json", "config.json", "model.safetensors", "scores.json"}

    again = ssa.load(f"hf://{REPOSITORY}")
    assert again.config == model.config and again.step == model.step == 7000
    assert again.scores == json.loads((SHIPPED / "sprites_gaussian" / "scores.json").read_text())
    assert again.params.keys() == model.params.keys()
    for name, array in model.params.items():
        np.testing.assert_array_equal(again.params[name], array, err_msg=name)
    trained = sources.open_trained(f"hf://{REPOSITORY}@main", pytest.fail)
    assert trained.step == 7000 and trained.arrays.keys() == model.params.keys()

    # Downloaded once: without the files there, it comes from the cache or not at all.
    hub.files.pop((REPOSITORY, "scores.json"))
    again.push_to_hub("hf://me/second", token="hf_mine")
    hub.files.pop(("me/second", "scores.json"))
    assert ssa.load("hf://me/second").scores is None
    again.scores = None  # of another training: those of the first push do not stay
    again.push_to_hub(REPOSITORY, token="hf_mine")
    assert hub.files[REPOSITORY, "scores.json"] == b"null\n"


def test_the_card_tells_data_scores_config_and_how_to_load(model):
    text = model_card(model.config, model.step, model.scores, REPOSITORY, "apache-2.0")
    card = ModelCard(text)
    metadata = card.data.to_dict()
    assert metadata["license"] == "apache-2.0" and metadata["library_name"] == "smoothsa_jax"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    means = {name: x["mean"] for name, x in model.scores["metrics"].items()}
    assert results == {name: round(100 * means[name], 2) for name in results} and len(results) == 4
    assert card.data.eval_results[0].dataset_split == "test"
    assert f'model = ssa.load("hf://{REPOSITORY}")' in text
    assert f"| {100 * means['fg_ari']:.1f} |" in text and "k-means on features" in text
    (config,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    assert json.loads(config)["model"]["num_slots"] == model.num_slots
    assert "* image size in pixels: 60" in text and 'segment("picture.png")' in text

    boxes = ssa.load("sprites")
    text = model_card(boxes.config, boxes.step, None, REPOSITORY)
    assert "It has not been scored." in text and "boxes=[[left, top, right, bottom], ...]" in text
    card = ModelCard(text)
    assert card.data.license is None and not card.data.eval_results

    config = model.config.copy_and_resolve_references().unlock()
    for given, data, kind in (
        ({"name": "prepared", "folder": "prepared/My set"}, "My set", "my-set"),
        ({"name": "mine.readers:Clips"}, "mine.readers:Clips", "mine.readers-clips"),
    ):
        config.data.update(given)
        text = model_card(config, model.step, model.scores, REPOSITORY)
        assert f"* data set: {data}\n" in text
        assert ModelCard(text).data.eval_results[0].dataset_type == kind
        config.data.folder = None


def test_what_cannot_be_loaded(hub, model):
    with pytest.raises(UserError, match="the Hugging Face Hub has no repository me/nothing"):
        ssa.load("hf://me/nothing")
    with pytest.raises(UserError, match="config='coco' was given with hf://me/x, which has its"):
        ssa.load("hf://me/x", config="coco")
    hub.gated.add("me/gated")
    with pytest.raises(
        UserError, match="accept its license at https://huggingface.co/me/gated, log"
    ):
        ssa.load("hf://me/gated")
    hub.repositories.add("annamanasyan/slotcontrast")
    with pytest.raises(
        UserError, match="has no file about.json: .*loaded by its name, with file='hf"
    ):
        ssa.load("hf://annamanasyan/slotcontrast")
    with pytest.raises(UserError, match="has no file movi_c.ckpt: download movi_c.ckpt from https"):
        ssa.load("slotcontrast_movi_c", file="hf://annamanasyan/slotcontrast")
    model.push_to_hub("me/cut", token="hf_mine")
    hub.files["me/cut", "model.safetensors"] = b"cut"
    with pytest.raises(UserError, match="is damaged .*download or save it again"):
        ssa.load("hf://me/cut")


def test_what_cannot_be_pushed(hub, model, monkeypatch):
    hub.refuses = True
    with pytest.raises(UserError, match="hf://me/sprites cannot be written .*`hf auth login`, as"):
        model.push_to_hub(REPOSITORY, token="hf_mine")
    with pytest.raises(UserError, match="found 'hf://sprites', expected hf://OWNER/NAME"):
        model.push_to_hub("sprites")
    with pytest.raises(UserError, match="check the repository's name and the license"):
        model.push_to_hub("me/two--dashes", token="hf_mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="check the connection, and that HF_HUB_OFFLINE is not set"):
        model.push_to_hub(REPOSITORY, token="hf_mine")
