"""Configs: command line, checks, comparison, JSON."""

import runpy
from pathlib import Path

import pytest

from smoothsa_jax.config.load import config_from_command_line, load_config, split_command_line
from smoothsa_jax.config.schema import validate
from smoothsa_jax.config.values import differences, flatten, from_json, to_json
from smoothsa_jax.errors import UserError

CONFIG = str(Path(__file__).parent / "run_config.py")
DEFAULT = Path(__file__).parent.parent / "configs" / "sprites.py"


def read(*arguments: str):
    mine, others = split_command_line(arguments)
    return config_from_command_line(mine, CONFIG), others


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.train.num_steps=7"], "train.num_steps", 7),
        (["--config.train.num_steps", "7"], "train.num_steps", 7),
        (["--config.train.num_steps=7", "--config.train.num_steps=8"], "train.num_steps", 8),
        (["--config.optimizer.learning_rate=1"], "optimizer.learning_rate", 1.0),
        (["--config.eval.seeds=(0, 1, 2)"], "eval.seeds", (0, 1, 2)),
        (["--config.eval.seeds=3"], "eval.seeds", (3,)),
        (["--config.model.initializer.warmer=false"], "model.initializer.warmer", False),
        (["--noconfig.model.initializer.warmer"], "model.initializer.warmer", False),
        ([f"--config={CONFIG}:image"], "data.num_frames", 1),
        ([f"--config={CONFIG}:image", "--config.seed=5"], "seed", 5),
    ],
)
def test_overrides_reach_the_config(arguments, key, value):
    config, others = read("--mode=train", *arguments)
    assert flatten(config)[key] == value
    assert others == ["--mode=train"]
    untouched = read(*[a for a in arguments if a.startswith("--config=")])[0]
    assert [key] == [k for k, v in flatten(config).items() if v != flatten(untouched)[k]] or (
        flatten(untouched)[key] == value
    )


BAD = [
    ("--config=configs/sprite.py", "config file 'configs/sprite.py' does not exist"),
    (f"--config={CONFIG}:imag", "has no variant 'imag'; it has image; did you mean 'image'?"),
    ("--config", "without a value"),
    ("--config.train.num_step=3", "no key 'train.num_step'; the nearest is 'train.num_steps'"),
    ("--config.num_slots=3", "the nearest is 'model.slot_attention.num_slots'"),
    ("--config.train=3", "--config.train is a group of settings"),
    ("--config.train.num_steps=many", "expected int, as in 60"),
    ("--config.train.num_steps=1.5", "expected int, as in 60"),
    ("--config.optimizer.learning_rate=fast", "expected float, as in 0.01"),
    ("--config.model.initializer.warmer=maybe", "expected bool, as in True"),
    ("--config.train.num_steps=0", "train.num_steps is 0; expected a whole number of at least 1"),
    ("--config.train.num_steps=-4", "train.num_steps is -4"),
    ("--config.train.batch_size=0", "train.batch_size is 0"),
    ("--config.train.batch_size=-2", "train.batch_size is -2"),
    ("--config.model.slot_attention.num_slots=0", "model.slot_attention.num_slots is 0"),
    ("--config.model.slot_attention.num_slots=-1", "model.slot_attention.num_slots is -1"),
    ("--config.data.num_frames=0", "data.num_frames is 0"),
    ("--config.eval.seeds=(0, -1)", "eval.seeds is (0, -1)"),
    ("--config.data.image_size=30", "which patches of 4 do not divide"),
    ("--config.model.slot_attention.num_slots=3", "more than the 3 slots that start from boxes"),
    ("--config.data.max_objects=4", "and one box for the background, more than the 4 slots"),
    ("--config.mesh.data=4", "mesh.data asks for 4 devices, 2 found"),
    ("--config.mesh.fsdp=3", "mesh.fsdp is 3, which does not divide the 2 devices found"),
    ("--config.train.batch_size=3", "train.batch_size is 3, which 2 devices do not divide"),
    ("--config.train.accumulate=0", "train.accumulate is 0; expected a whole number"),
    ("--config.train.accumulate=3", "train.accumulate=3 does not divide into equal parts on each"),
    ("--config.dtype=float16", "dtype is 'float16'; expected one of bfloat16, float32"),
    ("--config.model.decoder.name=mlp_mixtur", "did you mean 'mlp_mixture'?"),
    ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate is nan"),
    ("--config.loss.distillation=-1", "loss.distillation is -1.0"),
    ("--config.name=a/b", "name is 'a/b'"),
]


@pytest.mark.parametrize(("argument", "expected"), BAD, ids=[argument for argument, _ in BAD])
def test_a_bad_config_is_one_clear_line(argument, expected):
    with pytest.raises(UserError) as error:
        config, _ = read("--config.mesh.data=-1", argument)
        validate(config, 2, {"model.decoder.name": ("mlp_mixture", "random_ar")})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_file_that_fails_is_named_with_its_reason(tmp_path):
    for text, expected in [
        ("def get_config(:", "SyntaxError"),
        ("def get_config(variant=''):\n    raise KeyError('lost')", "KeyError: 'lost'"),
        ("def get_config(variant=''):\n    return {}", "returned dict"),
        ("x = 1", "has no get_config"),
    ]:
        file = tmp_path / "odd.py"
        file.write_text(text)
        with pytest.raises(UserError, match="odd.py") as error:
            load_config(str(file))
        assert expected in str(error.value)


def test_every_variant_of_the_default_is_sound():
    module = runpy.run_path(str(DEFAULT))
    validate(load_config(str(DEFAULT)))
    for variant in filter(None, module.get("VARIANTS", ())):
        validate(load_config(f"{DEFAULT}:{variant}"))


def test_json_gives_back_the_config_with_its_tuples():
    config, _ = read("--config.eval.seeds=(0, 1)", "--config.optimizer.learning_rate=1.0")
    back = from_json(to_json(config))
    assert back == config and back.eval.seeds == (0, 1)
    assert type(back.optimizer.learning_rate) is float
    assert to_json(back) == to_json(config)


def test_differences_that_matter():
    config, _ = read()
    same, _ = read(
        "--config.checkpoint.every=9",
        "--config.eval.seeds=(4,)",
        "--config.train.log_every=3",
        "--config.name=other",
        "--config.mesh.data=1",
    )
    assert differences(config, same) == []
    moved = from_json(to_json(config).replace('"data": {', '"data": {"folder": "elsewhere",'))
    assert differences(config, moved) == []  # what it holds is compared instead
    for key in (
        "seed",
        "train.num_steps",
        "train.batch_size",
        "data.num_frames",
        "loss.distillation",
    ):
        other, _ = read(f"--config.{key}=7")
        lines = differences(config, other)
        assert len(lines) == 1 and lines[0].startswith(f"{key} (found ")
    image = load_config(f"{CONFIG}:image")
    lines = differences(config, image)
    assert any("model.transition.history (found 4, asked nothing)" == line for line in lines)
