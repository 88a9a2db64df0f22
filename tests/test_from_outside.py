"""The thirty-minute test: a method from outside the package, in one file and one config.

The part is the inverted-attention transformer (TF-Inv) of "Inverted-Attention Transformers can
Learn Object Representations" (UniReps 2023): layers with weights of their own, a softmax over
slots, a renormalized mean, and residual updates.
"""

import json
import sys

import numpy as np
import pytest
from PIL import Image

import main

PART = """
import jax
import jax.numpy as jnp
from flax import nnx

from smoothsa_jax.models.interfaces import Aggregated
from smoothsa_jax.models.layers.basic import MLP, layer_norm, linear


class Layer(nnx.Module):
    def __init__(self, slot_size, *, rngs):
        self.norm_slots = layer_norm(slot_size, rngs=rngs)
        self.norm_mlp = layer_norm(slot_size, rngs=rngs)
        self.query = linear(slot_size, slot_size, rngs=rngs)
        self.key = linear(slot_size, slot_size, rngs=rngs)
        self.value = linear(slot_size, slot_size, rngs=rngs)
        self.out = linear(slot_size, slot_size, rngs=rngs)
        self.mlp = MLP((slot_size, 2 * slot_size, slot_size), rngs=rngs)

    def __call__(self, slots, tokens, slot_mask):
        query = self.query(self.norm_slots(slots)) * slots.shape[-1] ** -0.5
        logits = jnp.einsum("bnd,bmd->bnm", query, self.key(tokens)).astype(jnp.float32)
        if slot_mask is not None:
            logits = jnp.where(slot_mask[:, :, None], logits, -jnp.inf)
        attention = jax.nn.softmax(logits, axis=1)
        weights = attention / (attention.sum(-1, keepdims=True) + 1e-8)
        value = self.value(tokens)
        update = jnp.einsum("bnm,bmd->bnd", weights.astype(value.dtype), value)
        slots = slots + self.out(update)
        return slots + self.mlp(self.norm_mlp(slots)), attention


class TFInv(nnx.Module):
    def __init__(self, width, slot_size, *, num_layers, rngs):
        self.project = linear(width, slot_size, rngs=rngs)
        self.norm = layer_norm(slot_size, rngs=rngs)
        self.layers = nnx.List([Layer(slot_size, rngs=rngs) for _ in range(num_layers)])

    def prepare(self, tokens):
        return self.norm(self.project(tokens))

    def __call__(self, prepared, queries, slot_mask=None, draws=None, first=True):
        slots, states, attentions = queries, [], []
        for layer in self.layers:
            slots, attention = layer(slots, prepared, slot_mask)
            states.append(slots)
            attentions.append(attention)
        return Aggregated(slots, jnp.stack(attentions), jnp.stack(states), slot_mask)

    def draw(self, keys, sizes, training):
        return None
"""

CONFIG = """
from ml_collections import ConfigDict

from configs import sprites


def get_config(words=""):
    config = sprites.get_config("gaussian,smoke")
    config.name, config.title = "tf_inv", "TF-Inv"
    config.data.num_samples = 32
    config.train.num_steps, config.checkpoint.every = 4, 2
    config.model.aggregator = ConfigDict({"name": "my_part:TFInv", "num_layers": 2})
    return config
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder with the two files, on Python's path."""
    (tmp_path / "my_part.py").write_text(PART)
    (tmp_path / "my_config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_part", None)


def run(*arguments: str) -> None:
    assert main.main(list(arguments)) == 0, arguments


def test_a_part_from_outside_goes_through_the_whole_program(outside, capsys):
    pytest.importorskip("matplotlib")
    workdir = outside / "run"
    run(f"--config={outside / 'my_config.py'}", f"--workdir={workdir}")
    scores = json.loads((workdir / "scores.json").read_text())
    assert 0.0 <= scores["metrics"]["fg_ari"]["mean"] <= 1.0
    losses = [json.loads(row)["loss"] for row in (workdir / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    assert "TF-Inv" in capsys.readouterr().out

    (workdir / "scores.json").unlink()
    run("--mode=evaluate", f"--workdir={workdir}")
    assert json.loads((workdir / "scores.json").read_text()) == scores

    run("--mode=report", f"--workdir={workdir}")
    page = (workdir / "report" / "index.html").read_text()
    assert "TF-Inv" in page and "SmoothSA" not in page
    # Two layers, two maps of attention: the report asks the part, not a number of iterations.
    assert list((workdir / "report").glob("attention_*.png"))

    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(outside / "picture.png")
    found = outside / "found"
    run(
        "--mode=predict",
        f"--workdir={workdir}",
        f"--input={outside / 'picture.png'}",
        f"--output={found}",
    )
    assert any(found.rglob("*.png"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_part:TFInvv", "cannot be imported"),
        ("no_module:TFInv", "cannot be imported"),
        ("my_part:__doc__", "is no class"),
        ("tf_inv", 'expected one of slot_attention, or "package.module:Class"'),
    ],
)
def test_a_part_that_cannot_be_had_is_refused_in_one_line(outside, capsys, name, expected):
    arguments = [f"--config={outside / 'my_config.py'}", f"--config.model.aggregator.name={name}"]
    assert main.main([*arguments, f"--workdir={outside / 'run'}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "model.aggregator.name" in line and expected in line
    assert not (outside / "run").exists()
