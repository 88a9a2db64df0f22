"""The recipes of real data: full sizes are consistent, and miniatures go from files to scores."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT, assert_same_run, copy_of, here
from raw_clips import hq_source, movi_source, ytvis_2022
from raw_stills import clevrtex_source, coco_source, voc_source

from data import prepare
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import to_json
from smoothsa_jax.evaluation.recognition import RECOGNITION_METRICS
from smoothsa_jax.training import task
from smoothsa_jax.training.checks import check
from smoothsa_jax.training.recognition import build_recognition
from smoothsa_jax.training.state import copied
from smoothsa_jax.training.step import build_training

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
RECOGNITION = [name for name in CONFIGS if name.startswith("recognition_")]
RECIPES = [name for name in CONFIGS if name not in ("sprites", "recipes", *RECOGNITION)]
# Method section 6: slots, steps, batch, frames, learning rate, clipping.
TABLE = {
    "coco": (7, 100_000, 32, 1, 2e-4, 1.0),
    "voc": (6, 50_000, 32, 1, 2e-4, 1.0),
    "clevrtex": (11, 50_000, 32, 1, 2e-4, 1.0),
    "movi_c": (10, 50_000, 8, 6, 5e-5, 0.05),
    "movi_d": (20, 50_000, 8, 6, 5e-5, 0.05),
    "movi_e": (23, 50_000, 8, 6, 5e-5, 0.05),
    "ytvis": (7, 50_000, 8, 5, 5e-5, 0.05),
    "ytvis_hq": (7, 50_000, 8, 5, 5e-5, 0.05),
}
# Steps, batch, frames, classes.
RECOGNITION_TABLE = {
    "recognition_coco": (10_000, 32, 1, 91),
    "recognition_ytvis": (5_000, 8, 5, 41),
    "recognition_ytvis_hq": (5_000, 8, 5, 41),
}


def quick(names: list[str], *chosen: str) -> list:
    """Parameters of which only those `chosen` are not slow."""
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def test_every_recipe_of_the_paper_is_there():
    assert set(TABLE) <= set(RECIPES) and set(RECOGNITION_TABLE) == set(RECOGNITION)


@pytest.mark.parametrize("name", TABLE)
def test_recipes_are_the_papers(name):
    config = load_config(f"configs/{name}.py")
    found = (
        config.model.slot_attention.num_slots,
        config.train.num_steps,
        config.train.batch_size,
        config.data.num_frames,
        config.optimizer.learning_rate,
        config.optimizer.clip_norm,
    )
    assert found == TABLE[name]
    assert config.loss.distillation == 100 and config.model.initializer.detach_until == 0.1
    starts_from_boxes = name.startswith("movi")
    assert config.data.boxes == starts_from_boxes
    assert config.loss.slot_contrast == (0.0 if config.data.num_frames == 1 else 0.5)


@pytest.mark.parametrize("name", RECOGNITION_TABLE)
def test_recognition_is_the_papers(name):
    config = load_config(f"configs/{name}.py")
    trained = load_config(f"configs/{name.removeprefix('recognition_')}.py")
    found = (
        config.train.num_steps,
        config.train.batch_size,
        config.data.num_frames,
        config.recognition.num_classes,
    )
    assert found == RECOGNITION_TABLE[name]
    assert config.model == trained.model and config.recognition.workdir == f"runs/{trained.name}"
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (1e-3, 0.0)
    for key in ("warmup_fraction", "final_ratio"):
        assert config.optimizer[key] == trained.optimizer[key]
    assert config.loss.to_dict() == {"category": 1.0, "box": 1.0}
    assert config.recognition.dropout_rate == 0.1
    assert not config.recognition.match_paper and not config.eval.match_paper
    assert load_config(f"configs/{name}.py:smoke").train.num_steps < 10


# --------------------------------------------------------------------------------------- full sizes


def shapes_of_a_batch(config) -> dict[str, jax.ShapeDtypeStruct]:
    batch, frames = config.train.batch_size, config.data.num_frames
    slots, size = config.model.slot_attention.num_slots, config.data.image_size
    return {
        "video": jax.ShapeDtypeStruct((batch, frames, size, size, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((batch, frames, slots, 4), jnp.float32),
        "slot_mask": jax.ShapeDtypeStruct((batch, slots), bool),
    }


def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)


# The others differ from these in numbers of slots and steps alone.
@pytest.mark.parametrize("name", quick(RECIPES, "movi_e", "coco", "ytvis"))
def test_full_sizes_fit_together(name):
    """The real train step, on shapes alone."""
    config = load_config(f"configs/{name}.py")
    check(config)
    config.model.backbone.weights = "random"

    def step(inputs):
        training = build_training(config)
        assert training.grid == (16, 16)
        new, metrics = training.train_step(
            training.state, training.frozen, inputs, jax.random.key(0)
        )
        return training.state, new, metrics

    before, after, metrics = jax.eval_shape(step, shapes_of_a_batch(config))
    assert shapes(before) == shapes(after)
    weighted = {f"loss/{term}" for term, weight in config.loss.items() if weight}
    assert {key for key in metrics if key.startswith("loss/")} == weighted


@pytest.mark.parametrize("name", quick(RECOGNITION, "recognition_ytvis"))
def test_full_sizes_of_recognition_fit_together(name):
    config = load_config(f"configs/{name}.py")
    check(config)
    config.model.backbone.weights = "random"
    training = build_recognition(config)  # SmoothSA's arrays are shapes there
    batch = shapes_of_a_batch(config)
    labels = batch["video"].shape[:-1]
    objects = (config.train.batch_size, config.data.max_objects)
    batch["segmentations"] = jax.ShapeDtypeStruct(labels, jnp.uint8)
    batch["categories"] = jax.ShapeDtypeStruct(objects, jnp.int32)
    arguments = (training.state, training.frozen, batch, jax.random.key(0))
    state, metrics = jax.eval_shape(training.train_step, *arguments)
    assert shapes(state) == shapes(training.state)
    assert state.params["mlp.out.kernel"].shape == (512, RECOGNITION_TABLE[name][-1] + 4)
    assert {"loss/category", "loss/box", "num_matches"} <= set(metrics)


# ------------------------------------------------------------------------------ raw files to scores


def ytvis_source(folder: Path) -> Path:
    ytvis_2022(folder, "zip", num_frames=6)
    return folder


SOURCES = {
    "coco": coco_source,
    "voc": voc_source,
    "clevrtex": clevrtex_source,
    "ytvis": ytvis_source,
    "ytvis_hq": hq_source,
} | {f"movi_{x}": lambda folder, name=f"movi_{x}": movi_source(folder, name) for x in "abcde"}


def run(name: str, workdir: Path, *settings: str) -> dict:
    """`main.py` with the smoke variant of a config, to its end; its scores."""
    config = ROOT / "configs" / f"{name}.py"
    assert here(f"--config={config}:smoke", f"--workdir={workdir}", *settings) == 0
    return json.loads((workdir / "scores.json").read_text())


def go_on_and_evaluate(name: str, whole: Path, cut: Path, *settings: str) -> None:
    """The same run, cut short, resumes bit-identically; then its workdir alone can be scored."""
    copy_of(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    (cut / "scores.json").unlink()
    run(name, cut, *settings)
    assert_same_run(cut, whole, step=6)
    scores = (cut / "scores.json").read_bytes()
    (cut / "scores.json").unlink()
    assert here("--mode=evaluate", f"--workdir={cut}") == 0
    assert (cut / "scores.json").read_bytes() == scores


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """Resumed and evaluated runs reuse the first run's compiled functions: most of the time."""

    def once(build):
        made = {}

        def built(config):
            key = to_json(config)
            if key not in made:
                made[key] = build(config)
            # A run gives its first state away.
            return dataclasses.replace(made[key], state=copied(made[key].state))

        return built

    with pytest.MonkeyPatch.context() as patch:
        for name in ("build_training", "build_recognition"):
            patch.setattr(task, name, once(getattr(task, name)))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Map name -> a folder with `prepared` (from a miniature) and `run`, a workdir; made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            dataset = "ytvis_2022" if name == "ytvis" else name
            prepare.prepare(dataset, str(SOURCES[name](folder / "raw")), folder / "prepared")
            run(name, folder / "run", f"--config.data.folder={folder / 'prepared'}")
            made[name] = folder
        return made[name]

    return make


@pytest.mark.parametrize("name", quick(list(SOURCES), "coco", "movi_c", "ytvis"))
def test_from_raw_files_to_scores(name, trained, tmp_path):
    """Prepare, train, go on where a run was cut off, evaluate: as for the real data."""
    folder = trained(name)
    scores = json.loads((folder / "run" / "scores.json").read_text())
    assert scores["split"] == "validation" and scores["step"] == 6 and not scores["baselines"]
    assert all(np.isfinite(scores["metrics"][m]["mean"]) for m in ("fg_ari", "ari", "mbo", "miou"))
    settings = f"--config.data.folder={folder / 'prepared'}"
    go_on_and_evaluate(name, folder / "run", tmp_path / "cut", settings)


@pytest.mark.parametrize("name", quick(RECOGNITION, "recognition_coco"))
def test_recognition_from_raw_files_to_scores(name, trained, tmp_path):
    """The same of a head on the slots of a run before it."""
    folder = trained(name.removeprefix("recognition_"))
    settings = (
        f"--config.data.folder={folder / 'prepared'}",
        f"--config.recognition.workdir={folder / 'run'}",
    )
    scores = run(name, tmp_path / "run", *settings)
    found = {metric: scores["metrics"][metric]["mean"] for metric in RECOGNITION_METRICS}
    assert found["num_matches"] > 0
    assert all(0 <= found[metric] <= 1 for metric in ("top1", "top3", "box_iou"))
    assert found["top1"] <= found["top3"]
    go_on_and_evaluate(name, tmp_path / "run", tmp_path / "cut", *settings)
