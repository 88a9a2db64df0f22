"""Runs and saved models from before version 0.2: the names change, and nothing else.

tests/fixtures/before/make.py made the folders, with the code of that time.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import here
from ml_collections import ConfigDict
from tiny import WithCategories

import smoothsa_jax as ssa
from smoothsa_jax import convert
from smoothsa_jax.checkpoints import upgrade
from smoothsa_jax.checkpoints.before import convert_config, convert_names, is_before
from smoothsa_jax.checkpoints.model_files import read_model
from smoothsa_jax.checkpoints.read import (
    FILES_LIST,
    FOLDER,
    best_step,
    read_checkpoint,
    restore_latest,
    steps_found,
)
from smoothsa_jax.checkpoints.workdir import config_of
from smoothsa_jax.config import renewed
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import differences, flatten, from_json, to_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import build
from smoothsa_jax.training import evaluating, loop

BEFORE = Path(__file__).parent / "fixtures" / "before"
ROOT = Path(__file__).parent.parent
CONFIGS = json.loads((BEFORE / "configs.json").read_text())
# Compiled without the tests' flags, the old program departs from its own numbers by 7e-7 and 5e-5.
LOSSES, WEIGHTS = 1e-5, 2e-4


def run(*arguments: object) -> int:
    return convert.main([str(argument) for argument in arguments])


def told(capsys, *arguments: object) -> str:
    """The one-line error of a conversion."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    return line


def snapshot(folder: Path) -> dict[str, tuple]:
    """Everything that writing to a folder would change."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        content = path.read_bytes() if path.is_file() else None
        status = path.stat()
        found[str(path.relative_to(folder))] = (status.st_mtime_ns, status.st_mode, content)
    return found


def assert_same_bits(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == np.asarray(array).tobytes(), name


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """Both runs and both saved models, converted."""
    folder = tmp_path_factory.mktemp("converted")
    for name in ("run", "recognition", "saved", "saved_gaussian"):
        assert run(BEFORE / name, folder / name) == 0
    return folder


def copied(name: str, tmp_path: Path, source: Path = BEFORE) -> Path:
    shutil.copytree(source / name, tmp_path / name)
    return tmp_path / name


# ------------------------------------------------------------------------------------------ configs

# Old key -> new key, of all that keep their value.
KEYS = {
    "model.slot_attention.num_slots": "model.num_slots",
    "model.slot_attention.slot_size": "model.slot_size",
    "model.slot_attention.first_iterations": "model.aggregator.first",
    "model.slot_attention.later_iterations": "model.aggregator.later",
    "model.slot_attention.name": "model.aggregator.name",
    "model.slot_attention.truncate": "model.aggregator.gradient",
    "model.initializer.name": "model.initializer.cold.name",
    "model.initializer.cold_log_std": "model.initializer.cold.log_std",
    "model.initializer.query_log_std": "model.initializer.log_std",
    "model.initializer.detach_until": "model.initializer.detach.at",
    "model.backbone.weights": "weights.encoder.source",
    "loss.reconstruction": "losses.reconstruction.weight",
    "loss.distillation": "losses.distillation.weight",
    "loss.slot_contrast": "losses.slot_contrast.weight",
    "loss.category": "losses.category.weight",
    "loss.box": "losses.box.weight",
    "optimizer.learning_rate": "optimizer.learning_rate.peak",
    "optimizer.warmup_fraction": "optimizer.learning_rate.warmup",
    "optimizer.final_ratio": "optimizer.learning_rate.end_ratio",
    "train.log_every": "log.every",
    "recognition.workdir": "companions.slot_model.source",
    "recognition.num_classes": "model.num_classes",
    "recognition.dropout_rate": "model.dropout_rate",
    "recognition.match_paper": "train.match_paper",
}
# Settings that do not affect the result and are the same in all these configs.
ADDED = {
    "title": "SmoothSA",
    "eval.masks": "decoder",
    "optimizer.learning_rate.schedule": "warmup_cosine",
    **renewed.ADDED,
}


@pytest.mark.parametrize("name", ["slot_attention", "mine:Aggregator"])
def test_only_the_aggregator_of_this_package_has_renamed_settings(name):
    model = {"aggregator": {"name": name, "truncate": True}}
    found = renewed.renewed({"losses": {}, "model": model})["model"]["aggregator"]
    assert ("gradient" in found) == (name == "slot_attention") != ("truncate" in found)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_of_a_config_is_under_its_new_key(name):
    """Every config before version 0.2, in every variant."""
    old = CONFIGS[name]
    new = convert_config(old)
    assert is_before(old) and not is_before(new)
    found = flatten(new)
    is_recognition = "recognition" in old
    for key, value in flatten(old).items():
        value = tuple(value) if isinstance(value, list) else value
        today = KEYS.get(key, key).replace("model.backbone.", "model.encoder.")
        if key == "model.slot_attention.truncate":
            value = {True: "last_and_queries", False: "full"}[value]
        if is_recognition and key.startswith("model."):
            today = f"companions.slot_model.{today}"
        if key == "model.backbone.seed":
            if is_recognition or old["model"]["backbone"].get("weights", "random") != "random":
                continue  # it had no effect
            today = "weights.encoder.seed"
        if key == "model.backbone.weights" and is_recognition:
            continue  # nor had this: the weights come from the run whose slots these are
        if key == "train.match_paper" and is_recognition:
            continue  # recognition.match_paper took its place
        if key == "model.initializer.warmer":
            continue  # today the name says so
        if key.startswith("loss.") and value == 0:
            assert today not in found
            continue
        assert found.pop(today) == value, today
    model = "companions.slot_model.model" if is_recognition else "model"
    expected = {key: x for key, x in ADDED.items() if x != {}} | {  # flat: no empty groups
        "task": "recognition" if is_recognition else "discovery",
        f"{model}.initializer.name": "warmed",
        f"{model}.initializer.detach.schedule": "step",
        f"{model}.initializer.detach.begin": 1.0,
        f"{model}.initializer.detach.end": 0.0,
        f"{model}.target.name": "features",
    }
    if is_recognition:
        expected |= {"companions.slot_model.title": "SmoothSA", "model.name": "recognition_head"}
    else:
        expected |= {"weights.encoder.into": "encoder", "weights.encoder.frozen": ("*",)}
        if old["model"]["backbone"]["name"] == "colour_fourier":
            expected["weights.encoder.source"] = "random"
        if old["loss"]["slot_contrast"]:
            expected["losses.slot_contrast.temperature"] = 0.1
    for key, default in DEFAULTS.items():
        if key not in flatten(old):
            expected[key] = default
    assert found == expected
    assert from_json(to_json(new)) == new


# The value of a key that an old config lacks.
DEFAULTS = {
    "matmul_precision": "default",
    "data.features": "",
    "train.accumulate": 1,
    "train.num_threads": 1,
    "train.num_workers": 0,
    "train.remat": "none",
    "train.scan_unroll": 0,
    "train.match_paper": False,
    "train.xla_flags": "",
    "eval.num_samples": None,
    "eval.num_frames": None,
    "eval.match_paper": False,
    "eval.background_column_always": False,
    "eval.baselines": True,
    "eval.num_pictures": 8,
    "eval.validation_samples": 32,
    "eval.checkpoint": "latest",
    "checkpoint.best_metric": None,
    "checkpoint.best_mode": "min",
    "mesh.data": -1,
    "mesh.fsdp": 1,
}


def old_config(name: str = "sprites", **changes) -> dict:
    """A copy of an old config with `{"part.key": value}` changed; the value ... removes a key."""
    config = copy.deepcopy(CONFIGS[name])
    for key, value in changes.items():
        *groups, last = key.split(".")
        inner = config
        for group in groups:
            inner = inner[group]
        if value is ...:
            inner.pop(last, None)
        else:
            inner[last] = value
    return config


def test_keys_that_older_configs_lack_get_what_they_stood_for():
    old = old_config("sprites", **dict.fromkeys(DEFAULTS, ...))
    new = flatten(convert_config(old))
    assert {key: new[key] for key in DEFAULTS} == DEFAULTS

    parts = (
        "slot_attention.truncate decoder.uniform_values initializer.cold_log_std "
        "initializer.query_log_std initializer.straight_through "
        "backbone.position_width backbone.position_scale"
    ).split()
    model = convert_config(old_config(**{f"model.{part}": ... for part in parts})).model
    assert model.aggregator.gradient == "last_and_queries" and model.decoder.uniform_values is False
    warmed = model.initializer
    assert (warmed.cold.log_std, warmed.log_std, warmed.straight_through) == (0.0, 0.0, False)
    assert (model.encoder.position_width, model.encoder.position_scale) == (8, 0.3)


def test_the_new_config_of_the_default():
    """Written out once, against docs/ and the schema."""
    assert convert_config(CONFIGS["sprites"]).model.to_dict() == {
        "num_slots": 5,
        "slot_size": 48,
        "encoder": {
            "name": "colour_fourier",
            "width": 32,
            "patch": 4,
            "window": 5,
            "bandwidth": 2.0,
            "position_width": 8,
            "position_scale": 0.3,
        },
        "projection": {"name": "mlp"},
        "initializer": {
            "name": "warmed",
            "cold": {"name": "boxes", "log_std": -4.0},
            "num_heads": 4,
            "log_std": -4.0,
            "straight_through": True,
            "detach": {"schedule": "step", "begin": 1.0, "end": 0.0, "at": 1.0},
        },
        "aggregator": {
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 3,
            "later": 1,
        },
        "transition": {"name": "randsfq", "num_heads": 4, "history": 6, "dropout_rate": 0.5},
        "decoder": {
            "name": "mlp_mixture",
            "num_layers": 3,
            "hidden_size": 64,
            "uniform_values": True,
        },
        "target": {"name": "features"},
    }


def test_every_variant_of_the_parts():
    vit = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "seed": 3, "weights": "random"}
    new = convert_config(old_config(**{"model.backbone": vit}))
    assert new.model.encoder.to_dict() == {
        **{"name": "vit", "width": 32, "depth": 1, "num_heads": 2},
        **{"registers": 4, "swiglu": False, "patch": 14, "resize": 0.875},
    }
    random = {"into": "encoder", "source": "random", "seed": 3, "frozen": ("*",)}
    assert new.weights.to_dict() == {"encoder": random}
    new = convert_config(
        old_config(**{"model.backbone": {**vit, "name": "dinov3", "weights": "a/b"}})
    )
    assert (new.model.encoder.patch, new.model.encoder.resize) == (16, 1.0)
    assert new.weights.to_dict() == {
        "encoder": {"into": "encoder", "source": "a/b", "frozen": ("*",)}
    }

    new = convert_config(old_config(**{"model.initializer.warmer": False}))
    assert new.model.initializer.to_dict() == {"name": "boxes", "log_std": -4.0}
    assert set(new.losses) == {"reconstruction", "slot_contrast"}  # there is nothing to distill
    gaussian = {"name": "gaussian", "warmer": False, "detach_until": 0.1}
    new = convert_config(old_config(**{"model.initializer": gaussian}))
    assert new.model.initializer.to_dict() == {"name": "gaussian", "log_std": 0.0}

    # As left by an override of the name alone.
    new = convert_config(old_config(**{"model.transition.name": "none", "loss.slot_contrast": 0}))
    assert new.model.transition.to_dict() == {"name": "none"}
    assert set(new.losses) == {"reconstruction", "distillation"}
    autoregressive = {"name": "random_ar", "num_layers": 4, "num_heads": 8}
    new = convert_config(old_config(**{"model.decoder": autoregressive}))
    assert new.model.decoder.to_dict() == autoregressive
    whole_clips = {"name": "prepared", "folder": "there", "image_size": 64, "num_frames": None}
    assert convert_config(old_config(data=whole_clips)).data.to_dict() == {
        **whole_clips,
        "features": "",
    }


def test_match_paper_of_a_recognition():
    """Two keys are one today, which matters only where slots start from boxes."""
    changes = {"recognition.match_paper": True}
    assert convert_config(old_config("recognition_coco", **changes)).train.match_paper is True
    changes["model.initializer.name"] = "boxes"
    with pytest.raises(UserError, match="recognition.match_paper is True and train.match_paper is"):
        convert_config(old_config("recognition_coco", **changes))
    changes["train.match_paper"] = True
    assert convert_config(old_config("recognition_coco", **changes)).train.match_paper is True
    # Of any other run it is the train part's own.
    assert convert_config(old_config(**{"train.match_paper": True})).train.match_paper is True


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"model.decoder.mine": 1, "train.num_step": 3},
            "keys .* has: model.decoder.mine, train.num_step",
        ),
        ({"optimizer.weight_decay": 0.1}, "optimizer.weight_decay"),
        ({"data.folder": "x"}, "data.folder"),
        ({"loss.contrast": 1.0}, "loss.contrast"),
        ({"model.decoder.name": "mine"}, "model.decoder.name is 'mine', expected one of random_ar"),
        ({"train.batch_size": ...}, "has no train.batch_size"),
        ({"model.initializer.warmer": ...}, "has no model.initializer.warmer"),
    ],
)
def test_a_config_that_nobody_knows_is_refused(changes, named):
    with pytest.raises(UserError, match=named) as error:
        convert_config(old_config(**changes))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------- arrays


def renamed(name: str, config: dict) -> str:
    (found,) = convert_names({name: np.zeros(1)}, config)
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("backbone.frequencies", "encoder.frequencies"),
        ("slot_attention.gru.input.kernel", "aggregator.gru.input.kernel"),
        ("initializer.sampler.mlp.layers.0.kernel", "initializer.cold.mlp.layers.0.kernel"),
        ("initializer.log_std", "initializer.log_std"),
        ("initializer.warmer.memory.kernel", "initializer.warmer.memory.kernel"),
        ("decoder.position", "decoder.position"),
        ("transition.memory.kernel", "transition.memory.kernel"),
        ("projection.norm.scale", "projection.norm.scale"),
    ],
)
def test_names_of_arrays(old, new):
    for prefix in ("", "state/params/", "frozen/", *MOMENTS):
        assert renamed(prefix + old, CONFIGS["sprites"]) == prefix + new
    recognition = CONFIGS["recognition_coco"]
    assert renamed(f"frozen/{old}", recognition) == f"frozen/slot_model.{new}"


MOMENTS = ("state/opt_state/1/0/mu/", "state/opt_state/1/0/nu/")


def test_other_names_of_arrays():
    cold = old_config(**{"model.initializer.warmer": False})
    assert renamed("initializer.sampler.mean", cold) == "initializer.mean"
    for name in ("state/step", "state/opt_state/1/0/count"):
        assert renamed(name, CONFIGS["sprites"]) == name
        assert renamed(name, CONFIGS["recognition_coco"]) == name
    head = "state/params/mlp.hidden.kernel"
    assert renamed(head, CONFIGS["recognition_coco"]) == head
    two = {"initializer.sampler.log_std": np.zeros(1), "initializer.log_std": np.zeros(1)}
    assert set(convert_names(two, CONFIGS["sprites"])) == {
        "initializer.cold.log_std",
        "initializer.log_std",
    }
    with pytest.raises(UserError, match="would get the same name"):
        convert_names(two, cold)


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.more
@pytest.mark.parametrize("name", ["run", pytest.param("recognition", marks=pytest.mark.slow)])
def test_a_run_keeps_every_bit(name, tmp_path, capsys):
    source, target = copied(name, tmp_path), tmp_path / "new" / "run"
    before = snapshot(source)
    assert run(source, target) == 0
    assert snapshot(source) == before
    out = capsys.readouterr().out.strip()
    assert len(out.splitlines()) == 1 and "converted" in out
    assert f"; next: python main.py --config=THE_SAME_AS_BEFORE --workdir={target}" in out
    assert [path.name for path in target.parent.iterdir()] == ["run"]

    steps = {"run": [10, 5], "recognition": [3]}[name]
    assert steps_found(target) == steps_found(source) == steps
    for step in steps:
        old = read_checkpoint(source, step, allow_before=True)
        new = read_checkpoint(target, step)
        expected = convert_names(old.arrays, old.config)
        assert len(expected) == len(old.arrays)
        assert_same_bits(new.arrays, expected)
        assert new.progress == old.progress and new.config == convert_config(old.config)
        folders = (source / FOLDER / str(step), target / FOLDER / str(step))
        metrics = [json.loads((folder / "metrics" / "metrics").read_text()) for folder in folders]
        assert metrics[0] == metrics[1] and metrics[0]
        assert (folders[1] / FILES_LIST).is_file()
    assert any(mark in name for name in new.arrays for mark in MOMENTS)
    metric, mode = new.config.checkpoint.best_metric, new.config.checkpoint.best_mode
    assert best_step(target, metric, mode) == best_step(source, metric, mode) is not None
    assert restore_latest(target, warn=pytest.fail).step == steps[0]
    assert config_of(target) == new.config

    others = {path for path in before if not path.startswith((FOLDER, "config.json", "."))}
    assert others and "log.jsonl" in others
    found = snapshot(target)
    for path in others:
        assert found[path][2] == before[path][2]
    assert not (target / ".lock").exists()


@pytest.mark.slow
def test_a_recognition_run_carries_the_model_under_it(converted):
    config = config_of(converted / "recognition")
    assert config.task == "recognition" and config.weights.to_dict() == {}
    assert config.model.to_dict() == {
        "name": "recognition_head",
        "num_classes": 3,
        "dropout_rate": 0.1,
    }
    companion = config.companions.slot_model
    assert (companion.source, companion.title) == ("smoothsa", "SmoothSA")
    assert companion.model.encoder.name == "colour_fourier"
    arrays = read_checkpoint(converted / "recognition", 3).arrays
    frozen = [name for name in arrays if name.startswith("frozen/")]
    assert frozen and all(name.startswith("frozen/slot_model.") for name in frozen)


@pytest.mark.parametrize("name", ["saved", "saved_gaussian"])
def test_a_saved_model_keeps_every_bit(name, tmp_path, capsys):
    source, target = copied(name, tmp_path), tmp_path / "new"
    (source / "log.jsonl").write_text("kept beside it")
    before = snapshot(source)
    assert run(source, target) == 0
    assert snapshot(source) == before
    assert f"--mode=predict --workdir={target}" in capsys.readouterr().out
    old_config, old_arrays, old_step = read_model(source, allow_before=True)
    config, arrays, step = read_model(target)
    assert config == convert_config(old_config) and step == old_step
    assert_same_bits(arrays, convert_names(old_arrays, old_config))
    assert (target / "about.json").read_bytes() == (source / "about.json").read_bytes()
    assert (target / "log.jsonl").read_text() == "kept beside it"
    if name == "saved_gaussian":
        assert "initializer.mean" in arrays and not any(".cold." in name for name in arrays)


@pytest.mark.slow
def test_checkpoints_without_metrics(tmp_path):
    """Of a run that names no metric, with one saved by another config."""
    source = copied("run", tmp_path)
    step = source / FOLDER / "5"
    shutil.rmtree(step / "metrics")
    sizes = json.loads((step / FILES_LIST).read_text())
    config = json.loads((step / "config" / "metadata").read_text())
    config["checkpoint"].update(best_metric=None, max_to_keep=1)
    (step / "config" / "metadata").write_text(json.dumps(config))
    sizes = {path: size for path, size in sizes.items() if not path.startswith("metrics/")}
    sizes["config/metadata"] = (step / "config" / "metadata").stat().st_size
    (step / FILES_LIST).write_text(json.dumps(sizes))
    assert run(source, tmp_path / "new") == 0
    new = tmp_path / "new" / FOLDER
    assert steps_found(tmp_path / "new") == [10, 5]
    assert (new / "10" / "metrics").exists() and not (new / "5" / "metrics").exists()
    assert read_checkpoint(tmp_path / "new", 5).config.checkpoint.best_metric is None


def test_broken_checkpoints_are_left_out_with_a_warning(tmp_path, capsys):
    source = copied("run", tmp_path)
    shutil.rmtree(source / FOLDER / "10" / "state" / "d")
    (source / FOLDER / "12").mkdir()
    before = snapshot(source)
    assert run(source, tmp_path / "new") == 0
    err = capsys.readouterr().err
    for step in (10, 12):
        assert f"checkpoint {source / FOLDER / str(step)} is not usable" in err
    assert "left out" in err and snapshot(source) == before
    assert steps_found(tmp_path / "new") == [5]

    shutil.rmtree(source / FOLDER / "5" / "arrays")
    assert "holds no usable checkpoint" in told(capsys, source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_new_folder_appears_whole_or_not_at_all(tmp_path, capsys, monkeypatch):
    source = copied("run", tmp_path)
    for name in ("full", "file"):
        target = tmp_path / name
        if name == "full":
            target.mkdir()
            (target / "mine").write_text("kept")
        else:
            target.write_text("kept")
        assert "exists and is not an empty folder" in told(capsys, source, target)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "kept"
    for target in (source, source / "inside", tmp_path):
        assert "one lies in the other" in told(capsys, source, target)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "write_config", fail)
        assert "No space left on device" in told(capsys, source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "run"]
    (tmp_path / "empty").mkdir()
    assert run(source, tmp_path / "empty") == 0
    assert steps_found(tmp_path / "empty") == [10, 5]


@pytest.mark.slow
def test_what_is_no_folder_of_an_earlier_version(converted, tmp_path, capsys):
    for name in ("run", "saved"):
        line = told(capsys, converted / name, tmp_path / "new")
        assert f"{converted / name} already has the current layout" in line
    (tmp_path / "something").mkdir()
    assert "an earlier version" in told(capsys, tmp_path / "something", tmp_path / "new")
    source = copied("run", tmp_path)
    config = json.loads((source / "config.json").read_text())
    config["train"]["mine"] = 1
    (source / "config.json").write_text(json.dumps(config))
    line = told(capsys, source, tmp_path / "new")
    assert "train.mine" in line and str(source) in line
    (source / "config.json").write_text("{")
    assert "is damaged" in told(capsys, source, tmp_path / "new")
    (source / "config.json").unlink()
    assert run(source, tmp_path / "new") == 0  # the checkpoints have it too
    assert steps_found(tmp_path / "new") == [10, 5]


def test_old_folders_are_refused_with_the_command(tmp_path, capsys):
    """No checkpoint counts as broken, and nothing changes."""
    for name in ("run", "recognition", "saved", "saved_gaussian"):
        folder = copied(name, tmp_path)
        before = snapshot(folder)
        what = "a saved model" if name.startswith("saved") else "a run"
        command = f"python -m smoothsa_jax.convert {folder} {folder}_converted"
        expected = f"{folder} holds {what} in the layout before version 0.2; convert it: {command}"
        ways = [lambda folder=folder: ssa.load(folder)]
        if what == "a run":
            ways += [
                lambda folder=folder: read_checkpoint(folder, steps_found(folder)[0]),
                lambda folder=folder: restore_latest(folder, warn=pytest.fail, set_aside=True),
                lambda folder=folder: config_of(folder),
            ]
            assert expected in told(capsys, folder, tmp_path / "out.safetensors")
            for mode in ("evaluate", "report"):
                capsys.readouterr()
                assert here(f"--mode={mode}", f"--workdir={folder}") == 2
                assert expected in capsys.readouterr().err
        for way in ways:
            with pytest.raises(UserError) as error:
                way()
            assert str(error.value) == expected
        (folder / ".lock").unlink(missing_ok=True)
        after = snapshot(folder)
        assert {k: v for k, v in after.items() if k != "."} == {
            k: v for k, v in before.items() if k != "."
        }


# -------------------------------------------------------------------- going on with today's program


def expected_of(name: str, old: ConfigDict | dict) -> tuple[dict, list[dict], dict]:
    """The old program's uninterrupted run: arrays by their new names, rows of the log, scores."""
    with np.load(BEFORE / f"{name}_whole.npz") as file:
        arrays = convert_names(dict(file), old)
    record = json.loads((BEFORE / f"{name}_whole.json").read_text())
    return arrays, record["log"], record["scores"]


def assert_goes_on(workdir: Path, name: str) -> None:
    """Train a converted run to its end and compare it with the old program's uninterrupted run."""
    config = config_of(workdir)
    arrays, rows, scores = expected_of(
        name, json.loads((BEFORE / name / "config.json").read_text())
    )
    found_scores = loop.train(config, workdir)
    log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [row["step"] for row in rows]
    for found, expected in zip(log, rows, strict=True):
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=LOSSES, abs=LOSSES), (found["step"], key)
    checkpoint = read_checkpoint(workdir, config.train.num_steps)
    assert checkpoint.arrays.keys() == arrays.keys()
    for key, array in arrays.items():
        bound = WEIGHTS if "/params/" in key else WEIGHTS * max(1.0, np.abs(array).max())
        np.testing.assert_allclose(checkpoint.arrays[key], array, atol=bound, err_msg=key)
    for metric, value in scores["metrics"].items():
        assert found_scores["metrics"][metric]["mean"] == pytest.approx(value["mean"], abs=0.02)


@pytest.mark.slow
def test_a_converted_run_goes_on(converted, tmp_path):
    assert_goes_on(copied("run", tmp_path, converted), "run")


@pytest.mark.slow
def test_a_converted_recognition_goes_on(converted, tmp_path, monkeypatch):
    monkeypatch.setitem(build.DATASETS, "sprites", WithCategories)
    assert_goes_on(copied("recognition", tmp_path, converted), "recognition")


@pytest.mark.slow
def test_a_converted_run_is_evaluated(converted, tmp_path):
    workdir = copied("run", tmp_path, converted)
    scores = evaluating.evaluate_run(workdir)
    assert scores["step"] == 10 and set(scores["metrics"]) >= {"fg_ari"}
    assert ssa.load(workdir).step == 10


@pytest.mark.parametrize("name", [pytest.param("saved", marks=pytest.mark.more), "saved_gaussian"])
def test_a_converted_model_finds_the_same(name, converted):
    with np.load(BEFORE / "masks.npz") as file:
        expected = dict(file)
    model = ssa.load(converted / name)
    boxes = expected["boxes"] if name == "saved" else None
    found = model.segment(expected["picture"], boxes=boxes)
    np.testing.assert_array_equal(found.masks, expected[f"{name}/masks"])
    np.testing.assert_allclose(found.slots, expected[f"{name}/slots"], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_files_of_today_go_on_with_a_converted_run(name):
    """So that the same command continues it."""
    file, _, variant = name.partition(":")
    words = [variant] if variant else []
    if file.startswith("recognition_") and not (ROOT / "configs" / f"{file}.py").exists():
        file, words = file.removeprefix("recognition_"), ["recognition", *words]
    today = load_config(f"{ROOT / 'configs' / file}.py:{','.join(words)}".rstrip(":"))
    new = convert_config(CONFIGS[name]).to_dict()
    for companion in new["companions"].values():  # which the program adds when a run begins
        if "model" not in today.companions.get("slot_model", {}):
            del companion["model"], companion["title"]
    assert differences(ConfigDict(new), today) == []
