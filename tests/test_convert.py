"""The authors' state dicts to workdirs and back: recorded numbers, official configs, faults."""

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from command import here
from ml_collections import ConfigDict
from run_config import get_config
from safetensors.numpy import load_file, save_file
from test_golden import FOLDER, MODELS, Recorded, compare_outputs, golden
from test_recognition import WithCategories

import smoothsa_jax as ssa
from smoothsa_jax import convert
from smoothsa_jax.checkpoints import sources
from smoothsa_jax.checkpoints.published import CONFIGS, with_slot_model
from smoothsa_jax.checkpoints.read import read_checkpoint, restore_latest
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import canonical
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs import build
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.interop.authors import from_authors, to_authors
from smoothsa_jax.models.build import slot_model_shapes, starts_from_boxes
from smoothsa_jax.models.parameters import split
from smoothsa_jax.training.step import build_training

OFFICIAL = json.loads((FOLDER / "official_state_dicts.json").read_text())


def config_of(case: Recorded, image: bool) -> ConfigDict:
    """A whole config around the model of a golden file, on sprites."""
    config = get_config("image" if image else "")
    config.data.image_size = case.image_size[0]
    config.data.boxes = starts_from_boxes(case.config)
    config.model = case.config
    return canonical(config)


def assert_same(found: dict, expected: dict) -> None:
    """The same keys, types and bits."""
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, err_msg=key, strict=True)


def run(*arguments: object) -> int:
    return convert.main([str(argument) for argument in arguments])


def told(capsys, *arguments: object) -> str:
    """The one-line error of a conversion."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return next(line for line in lines if line.startswith("error: "))


# --------------------------------------------------------------------------------- recorded numbers


@pytest.mark.parametrize("ending", [".safetensors", pytest.param(".pth", marks=pytest.mark.torch)])
@pytest.mark.parametrize(
    "name", [x if x == "image" else pytest.param(x, marks=pytest.mark.more) for x in MODELS]
)
def test_a_converted_checkpoint_gives_the_recorded_numbers(name, ending, tmp_path):
    with golden(f"model_{name}", parts=("out/",)) as file:
        case = Recorded(file)
        if ending == ".pth":
            pytest.importorskip(
                "torch", reason="PyTorch is not installed: pip install torch==2.13.0"
            )
            source = FOLDER / f"model_{name}.pth"
        else:
            source = tmp_path / f"model_{name}.safetensors"
            save_file(case.recorded, source)
        config = config_of(case, image=not case.is_video)
        convert.write_workdir(state_dicts.read(source), config, tmp_path / "run")
        checkpoint = restore_latest(tmp_path / "run", warn=pytest.fail)
        assert checkpoint.config == config and checkpoint.step == config.train.num_steps
        definition, params, frozen = case.build(case.recorded)
        for prefix, part in (("state/params/", params), ("frozen/", frozen)):
            for key in part:
                part[key] = checkpoint.arrays[prefix + key]
        compare_outputs(file, case, definition, params, frozen)

        target = tmp_path / f"back{ending}"
        assert run(tmp_path / "run", target) == 0
        assert_same(state_dicts.read(target), case.recorded)


@pytest.mark.slow
def test_a_converted_folder_is_a_workdir(tmp_path, monkeypatch, capsys):
    """main.py scores it; a recognition head uses it, also from a recognition checkpoint."""
    monkeypatch.setitem(build.DATASETS, "sprites", WithCategories)
    with np.load(FOLDER / "model_image.npz") as file:
        recorded = {k.removeprefix("param/"): x for k, x in file.items() if "param/" in k}
    with golden("model_image", parts=()) as file:
        config = config_of(Recorded(file), image=True)
    convert.write_workdir(recorded, config, tmp_path / "smoothsa")
    assert here("--mode=evaluate", f"--workdir={tmp_path / 'smoothsa'}") == 0
    assert "FG-ARI" in capsys.readouterr().out

    head = config.copy_and_resolve_references().unlock()
    head.task = "recognition"
    head.model = ConfigDict({"name": "recognition_head", "num_classes": 3, "dropout_rate": 0.1})
    head.losses = ConfigDict({"category": {"weight": 1.0}, "box": {"weight": 1.0}})
    head.companions = ConfigDict({"slot_model": {"source": str(tmp_path / "smoothsa")}})
    head.weights = ConfigDict()
    head.checkpoint.update(best_metric="top1", best_mode="max")
    head = sources.with_companions(canonical(head), None, warn=pytest.fail)
    width = config.model.slot_size
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (2 * width, width), "0.bias": (2 * width,)}
    shapes |= {"3.weight": (7, 2 * width), "3.bias": (7,)}
    theirs = {key.replace("m.", "m.discov."): array for key, array in recorded.items()}
    for key, shape in shapes.items():
        theirs[f"m.recogn.{key}"] = rng.standard_normal(shape, np.float32)
    convert.write_workdir(theirs, head, tmp_path / "head")
    assert_same(convert.read_workdir(tmp_path / "head", warn=pytest.fail), theirs)
    assert here("--mode=evaluate", f"--workdir={tmp_path / 'head'}") == 0
    assert "top-1" in capsys.readouterr().out

    _, frozen, _ = sources.begin(head, build_training(head), warn=pytest.fail)
    stored = read_checkpoint(tmp_path / "head", head.train.num_steps).arrays
    assert_same(
        jax.device_get(frozen),
        {k.removeprefix("frozen/"): x for k, x in stored.items() if k.startswith("frozen/")},
    )


# --------------------------------------------------------------------------------- official configs


def random_state_dict(keys: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of exactly these keys and shapes, with small values, so that nothing overflows."""
    rng = np.random.default_rng(seed)
    values = lambda shape: 0.02 * rng.standard_normal(shape, np.float32)  # noqa: E731
    return {
        key: np.array(False) if key.endswith("detach_flag") else values(shape)
        for key, shape in keys.items()
    }


def recipe_of(name: str) -> str:
    """The config and words of one of the official names, such as "recognition coco"."""
    kind, _, data = name.rpartition(" ")
    return f"{data}:{kind}" if kind else name


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_config(name, tmp_path, capsys):
    """Convert at full size, process a frame, and convert back bit for bit."""
    state_dict = random_state_dict(OFFICIAL[name])
    source, workdir = tmp_path / "official.safetensors", tmp_path / "run"
    save_file(state_dict, source)
    recipe = recipe_of(name)
    if recipe == "coco:recognition":  # alone in its kind: it is found
        assert run(source, workdir) == 0
    else:
        line = told(capsys, source, workdir)
        assert recipe in line and "choose the one it was trained with" in line
        assert run(source, workdir, f"--config={recipe}") == 0
    checkpoint = restore_latest(workdir, warn=pytest.fail)
    config = checkpoint.config
    file, colon, words = recipe.partition(":")
    expected = load_config(f"{CONFIGS / file}.py{colon}{words}")
    if words:
        expected = with_slot_model(expected, load_config(f"{CONFIGS / file}.py"))
    assert config == expected

    look_at_a_frame(config, checkpoint.arrays)
    target = tmp_path / "back.safetensors"
    assert run(workdir, target) == 0
    assert_same(load_file(target), state_dict)


def look_at_a_frame(config: ConfigDict, arrays: dict[str, np.ndarray]) -> None:
    training = build_training(config)
    frozen = {name: arrays[f"frozen/{name}"] for name in training.frozen}
    params = {name: arrays[f"state/params/{name}"] for name in training.state.params}
    training = dataclasses.replace(training, frozen=frozen)
    slots, size = training.task.slot_model.num_slots, config.data.image_size
    rng = np.random.default_rng(0)
    box = np.array([0.1, 0.2, 0.5, 0.6], np.float32)
    batch = {
        "video": rng.integers(0, 256, (1, 1, size, size, 3), dtype=np.uint8),
        "boxes": np.broadcast_to(box, (1, 1, slots, 4)).copy(),
        "slot_mask": np.ones((1, slots), bool),
        "segmentations": np.zeros((1, 1, size, size), np.uint8),
        "categories": np.zeros((1, 4), np.int32),
    }
    batch["segmentations"][..., :100, :100] = 1
    found = training.predict(params, frozen, training.place(batch), jax.random.key(0))
    for name, array in found.items():
        assert np.isfinite(array).all(), name


# ------------------------------------------------------------------------------------------- faults


@pytest.fixture(scope="module")
def coco() -> dict[str, np.ndarray]:
    return random_state_dict(OFFICIAL["coco"])


def test_keys_are_used_exactly_once(coco, tmp_path, capsys):
    source = tmp_path / "file.safetensors"
    bad = dict(coco) | {"m.decode.norm9.weight": np.ones(3, np.float32)}
    del bad["m.initializ.mean"]
    bad["m.aggregat.proj_q.weight"] = np.ones((256, 5), np.float32)
    bad["m.aggregat.proj_k.weight"] = bad["m.aggregat.proj_k.weight"].astype(np.float64)
    save_file(bad, source)
    line = told(capsys, source, tmp_path / "run", "--config=coco")
    for part in (
        "against the config coco",
        "missing: m.initializ.mean",
        "left over: m.decode.norm9.weight",
        "m.aggregat.proj_q.weight (found float32[256, 5], expected float32[256, 256])",
        "m.aggregat.proj_k.weight (found float64",
    ):
        assert part in line
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]

    save_file({key.removeprefix("m."): array for key, array in coco.items()}, source)
    line = told(capsys, source, tmp_path / "run", "--config=coco")
    assert "no checkpoint of SmoothSA: it has 254 keys such as" in line
    key = "m.aggregat.proj_q.weight"
    save_file(coco | {key: np.full_like(coco[key], np.inf)}, source)
    line = told(capsys, source, tmp_path / "run", "--config=coco")
    assert f"{key} holds values that are not finite" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_load_takes_an_authors_file(coco, tmp_path, monkeypatch):
    source = tmp_path / "file.safetensors"
    save_file(coco, source)
    with pytest.raises(UserError, match="fits the recipes.*choose the one it was trained with"):
        ssa.load(source)
    with pytest.raises(UserError, match="did you mean 'coco'"):
        ssa.load(source, config="cocoo")
    model = ssa.load(source, config="coco")
    assert model.num_slots == 7 and model.config.name == "coco"
    assert_same({k: np.asarray(x) for k, x in model.params.items()}, from_authors(coco))

    monkeypatch.setenv("SMOOTHSA_JAX_MODELS", str(tmp_path))
    with pytest.raises(UserError, match="download best.pth of smoothsa_r-coco from .*save it as"):
        ssa.load("authors/coco")  # the name of version 0.2 for smoothsa_coco
    with pytest.raises(UserError, match="which has its own; leave it out"):
        ssa.load("sprites", config="coco")


def test_what_cannot_be_converted(coco, tmp_path, capsys):
    source, workdir = tmp_path / "file.safetensors", tmp_path / "run"
    assert "is not a file" in told(capsys, source, workdir)
    save_file(coco, source)
    assert "expected a state dict" in told(capsys, source, tmp_path / "other.safetensors")
    assert "expected a state dict" in told(capsys, tmp_path, workdir)
    assert "is not a state dict" in told(capsys, tmp_path / "file.txt", workdir)
    assert "did you mean 'coco'" in told(capsys, source, workdir, "--config=coko")
    assert "no key 'model.x'" in told(
        capsys, source, workdir, "--config=coco", "--config.model.x=1"
    )
    assert "name it with --config" in told(capsys, source, workdir, "--config.seed=1")
    assert "no usable checkpoint" in told(capsys, tmp_path, tmp_path / "out.safetensors")
    workdir.mkdir()
    (workdir / "mine").write_text("kept")
    line = told(capsys, source, workdir, "--config=coco")
    assert "exists and is not an empty folder" in line and (workdir / "mine").read_text() == "kept"
    source.write_bytes(source.read_bytes()[:1000])
    assert "it may be cut short" in told(capsys, source, tmp_path / "other")


def test_a_file_is_replaced_only_when_asked(tmp_path, capsys):
    with golden("model_image", parts=()) as file:
        case = Recorded(file)
    workdir, target = tmp_path / "run", tmp_path / "file.safetensors"
    convert.write_workdir(case.recorded, config_of(case, image=True), workdir)
    target.write_text("mine")
    assert "--overwrite" in told(capsys, workdir, target) and target.read_text() == "mine"
    assert run(workdir, target, "--overwrite") == 0
    assert_same(load_file(target), case.recorded)


def test_a_model_that_is_not_theirs():
    _, params, frozen = split(slot_model_shapes(get_config("image").model, (16, 16)))
    with pytest.raises(UserError, match="has no place in the authors' program"):
        to_authors({name: np.zeros(x.shape) for name, x in {**params, **frozen}.items()}, False)


class _Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.torch
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, capsys):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install torch==2.13.0"
    )
    mark, plain, zipped = tmp_path / "ran", tmp_path / "plain.pth", tmp_path / "zipped.pth"
    evil = {"m.initializ.mean": _Malicious(mark)}
    plain.write_bytes(pickle.dumps(evil))
    torch.save(evil, zipped)
    for path in (plain, zipped):
        assert "cannot be read as a PyTorch state dict" in told(capsys, path, tmp_path / "run")
    assert not mark.exists() and not (tmp_path / "run").exists()
    with zipfile.ZipFile(zipped) as archive:  # it would have run
        name = next(x for x in archive.namelist() if x.endswith("data.pkl"))
        pickle.loads(archive.read(name))
    assert mark.exists()


@pytest.mark.torch
def test_a_pickle_that_is_no_state_dict(tmp_path, capsys):
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install torch==2.13.0"
    )
    path = tmp_path / "file.pth"
    for content in ([1, 2], {"epoch": 3}, {1: torch.zeros(2)}, torch.zeros(3)):
        torch.save(content, path)
        assert "expected a state dict of tensors" in told(capsys, path, tmp_path / "run")
