"""Methods from outside the package: a complete part, and the examples of docs/extend.md.

The complete part is the inverted-attention transformer (TF-Inv) of "Inverted-Attention Transformers
can Learn Object Representations" (UniReps 2023): layers with weights of their own, a softmax over
slots, a renormalized mean, and residual updates.
"""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import main
from configs import base, coco, movi_c, sprites
from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.config.schema import check_keys
from smoothsa_jax.config.values import canonical, image_size_of
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training

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
    config.eval.update(prune=None, num_slots=None)  # it cannot aggregate a frame once more
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


@pytest.mark.slow  # the examples of the page train in the ordinary tests
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
        ("my_part:__doc__", "is not a class"),
        ("tf_inv", 'metaslot, none, slot_attention, or "package.module:Class"'),
    ],
)
def test_a_part_that_cannot_be_had_is_refused_in_one_line(outside, capsys, name, expected):
    arguments = [f"--config={outside / 'my_config.py'}", f"--config.model.aggregator.name={name}"]
    assert main.main([*arguments, f"--workdir={outside / 'run'}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "model.aggregator.name" in line and expected in line
    assert not (outside / "run").exists()


# ------------------------------------------------------------------- the examples of docs/extend.md

PAGE = (Path(__file__).parent.parent / "docs" / "extend.md").read_text()
BLOCK = r"<!-- (file|config): (\S+) -->\n```python\n(.*?)^```$"
BLOCKS = re.findall(BLOCK, PAGE, flags=re.DOTALL | re.MULTILINE)
FILES = {name: text for kind, name, text in BLOCKS if kind == "file"}
CONFIGS = [(spec, text) for kind, spec, text in BLOCKS if kind == "config"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with the files of the page, on Python's path; their system is a word."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    spec = importlib.util.spec_from_file_location(
        "from_tokens", tmp_path / "configs/systems/from_tokens.py"
    )
    system = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(system)
    found = {**base.systems(), "from_tokens": system}
    monkeypatch.setattr(base.words, "systems", lambda: found)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        sys.modules.pop(name)


def test_every_python_block_of_the_page_is_run_by_a_test_below():
    assert PAGE.count("```python\n") == len(BLOCKS) == len(FILES) + len(CONFIGS)
    rest = re.sub(BLOCK, "", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"(?<!-)\bconfig\.\S+ = ", rest)


@pytest.mark.parametrize("section", ["part", "loss", "system", "data set", "task"])
def test_an_example_has_at_most_fifteen_lines(section):
    text = re.search(rf"^## A {section}$(.*?)(?=^## |^### )", PAGE + "\n## ", re.M | re.S)[1]
    blocks = [code for _, _, code in re.findall(BLOCK, text, flags=re.DOTALL | re.MULTILINE)]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert 0 < len(lines) <= 15 and max(map(len, lines)) <= 100


def config_of(spec: str):
    name, _, words = spec.partition(":")
    return {"coco": coco, "sprites": sprites}[name].get_config(words)


@pytest.mark.parametrize(("spec", "text"), CONFIGS)
def test_the_config_lines_of_the_page_pass_every_check(mine, spec, text):
    config = config_of(spec)
    exec(text, {"config": config})
    config = canonical(config)
    check_keys(config)
    if config.task == "discovery":  # another task's companion is a run that is not here
        check(config)


def test_the_system_of_the_page_fits_every_data_set(mine):
    for data in (coco.DATA, movi_c.DATA, sprites.DATA):
        config = canonical(base.compose(data, "from_tokens,smoke"))
        assert config.name == f"{data.name}_from_tokens_smoke" and config.title == "From tokens"
        model = slot_model_shapes(config.model, image_size_of(config))
        assert type(model.initializer.cold).__name__ == "FromTokens"
        check_keys(config)


def test_the_commands_of_the_page_give_configs(mine, monkeypatch):
    monkeypatch.chdir(mine)
    (mine / "configs" / "sprites.py").symlink_to(sprites.__file__)  # as in a checkout
    commands = re.findall(r"^python main\.py (--config=.*)$", PAGE, flags=re.MULTILINE)
    commands += re.findall(r"`(--config=configs/[^`]+)`", PAGE)
    found = []
    for command in commands:
        arguments, _ = split_command_line(shlex.split(command, comments=True))
        found.append(config_from_command_line(arguments, "configs/sprites.py").name)
    assert found == [
        "sprites_from_tokens_smoke",
        "sprites_from_tokens",
        "next_frame_sprites_smoke",
        "mine",
    ]


@pytest.mark.slow
def test_the_part_the_loss_the_system_and_the_task_of_the_page_train(mine):
    config = base.compose(sprites.DATA, "from_tokens,smoke")
    names: dict = {}
    exec(FILES["mine/next_frame.py"], names)
    config.task = names["get_config"]("smoke").task
    config.data.update(image_size=20, num_samples=4)
    config.train.batch_size = config.eval.batch_size = 2
    config = canonical(config)
    check(config)
    training = build_training(config)
    assert type(training.task).__name__ == "NextFrame"
    weight = "initializer.cold.project.kernel"
    before = {name: np.asarray(x) for name, x in training.state.params.items()}
    video = np.random.default_rng(0).integers(0, 256, (2, 2, 20, 20, 3), np.uint8)
    batch = training.place({"video": video, "slot_mask": np.ones((2, 5), bool)})
    state = training.state
    for step in range(2):  # the learning rate of the first step is 0
        state, metrics = training.train_step(state, training.frozen, batch, jax.random.key(step))
    assert np.isfinite(float(metrics["loss"])) and metrics["loss/mask_entropy"] > 0
    assert np.abs(before[weight] - state.params[weight]).max() > 0

    # The target of a frame is the features of the next one.
    models = {"model": training.definitions["model"].merge({**state.params, **training.frozen})}
    constants = training.task.constants(models, {"video": video}, {}, False)
    target = training.task.targets(models, {"video": video}, constants, {})["target"]
    plain = build_task(canonical(base.compose(sprites.DATA, "from_tokens,smoke")))
    now = plain.targets(models, {"video": video}, constants, {})["target"]
    np.testing.assert_array_equal(target[:, 0], now[:, 1])
    np.testing.assert_array_equal(target[:, 1], now[:, 1])
