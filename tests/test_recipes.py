"""The recipes of real data: their full sizes fit together, and a miniature of one goes from raw files to scores."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT, assert_same_run, copy_of, run

from data import prepare
from smoothsa_jax.config import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.training.loop import check
from smoothsa_jax.training.step import build_training

RECIPES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("sprites", "recipes")
)
MOVI = Path(__file__).parent / "fixtures" / "movi_c"
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


def test_every_recipe_of_the_paper_is_there():
    assert set(TABLE) <= set(RECIPES)


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


# The others differ from these in numbers of slots and steps alone.
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("movi_e", "coco", "ytvis") else pytest.param(name, marks=pytest.mark.slow)
        for name in RECIPES
    ],
)
def test_full_sizes_fit_together(name):
    """The real train step, on shapes alone."""
    config = load_config(f"configs/{name}.py")
    check(config)
    config.model.backbone.weights = "random"
    batch, frames = config.train.batch_size, config.data.num_frames
    slots, size = config.model.slot_attention.num_slots, config.data.image_size
    inputs = {
        "video": jax.ShapeDtypeStruct((batch, frames, size, size, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((batch, frames, slots, 4), jnp.float32),
        "slot_mask": jax.ShapeDtypeStruct((batch, slots), bool),
    }

    def step(inputs):
        training = build_training(config)
        assert training.grid == (16, 16)
        new, metrics = training.train_step(
            training.state, training.frozen, inputs, jax.random.key(0)
        )
        return training.state, new, metrics

    before, after, metrics = jax.eval_shape(step, inputs)
    assert jax.tree.map(lambda x: x.shape, before) == jax.tree.map(lambda x: x.shape, after)
    weighted = {f"loss/{term}" for term, weight in config.loss.items() if weight}
    assert {key for key in metrics if key.startswith("loss/")} == weighted


def test_a_backbone_is_never_silently_untrained():
    with pytest.raises(UserError, match="set --config.model.backbone.weights=random"):
        build_training(load_config("configs/movi_c.py"))


@pytest.mark.slow
def test_from_raw_files_to_scores(tmp_path, compilation_cache):
    """Prepare, train, evaluate, go on where a run was cut off: main.py and the recipe as for the real data."""
    prepared, workdir = tmp_path / "prepared", tmp_path / "run"
    prepare.prepare("movi_c", str(MOVI), prepared)
    arguments = [
        f"--config={ROOT / 'configs' / 'movi_c.py'}:smoke",
        f"--config.data.folder={prepared}",
        "--config.eval.num_frames=4",
    ]
    whole = run(*arguments, f"--workdir={workdir}", cache=compilation_cache)
    assert whole.returncode == 0, whole.stderr
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["split"] == "validation" and scores["step"] == 6 and not scores["baselines"]
    assert all(np.isfinite(scores["metrics"][m]["mean"]) for m in ("fg_ari", "ari", "mbo", "miou"))

    cut = copy_of(workdir, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "6")
    (cut / "scores.json").unlink()
    resumed = run(*arguments, f"--workdir={cut}", cache=compilation_cache)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(cut, workdir, step=6)
