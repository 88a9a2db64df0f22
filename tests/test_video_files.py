"""Files of VideoSAUR, SlotContrast and RandSF.Q: tiny models in their published form, and faults.

GOLDEN_DIR names another folder of the recorded files, with other numbers and other sizes.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from command import here
from golden_files import FOLDER, FORWARD, FORWARD_BACKBONE, golden
from PIL import Image
from recipes import quick
from safetensors.numpy import save_file
from test_convert import assert_same, run
from test_golden_video import OUTPUTS, SYSTEMS, Recorded
from test_published import filled
from test_state_dicts import LAYOUTS, is_later, recipe_of
from tiny import as_recognition

import smoothsa_jax as ssa
from smoothsa_jax.checkpoints import published
from smoothsa_jax.checkpoints.read import restore_latest
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import canonical
from smoothsa_jax.convert import read_workdir, write_workdir
from smoothsa_jax.errors import UserError
from smoothsa_jax.interop import state_dicts
from smoothsa_jax.models.parameters import split
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import run_task

LIGHTNING = ["videosaur_original", "videosaur_original_features", "slotcontrast_original"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A function that converts a recorded file and returns the file, its model and the workdir."""

    @functools.cache
    def convert(name: str) -> tuple[Path, Recorded, Path]:
        folder = tmp_path_factory.mktemp(name)
        with golden(f"model_{name}", parts=()) as file:
            case, source = Recorded(name, file), FOLDER / f"model_{name}.ckpt"
            if name not in LIGHTNING:
                source = folder / "file.safetensors"
                save_file(file.group("param/"), source)
        config = case.config()
        with config.ignore_type():
            config.data.image_size = case.video.shape[2]
        config.data.max_objects = case.num_slots - 1  # and the background
        config.eval.update(num_samples=2, baselines=False)
        write_workdir(state_dicts.read(source), canonical(config), folder / "run")
        return source, case, folder / "run"

    return convert


@pytest.mark.more
@pytest.mark.parametrize("name", quick(list(SYSTEMS), "slotcontrast_original"))
def test_a_file_becomes_a_workdir_and_comes_back(name, converted, tmp_path):
    source, _, workdir = converted(name)
    assert run(workdir, tmp_path / "back.safetensors") == 0
    assert_same(state_dicts.read(tmp_path / "back.safetensors"), state_dicts.read(source))


@pytest.mark.more
@pytest.mark.parametrize("name", quick(LIGHTNING, "slotcontrast_original"))
def test_a_lightning_file_gives_the_recorded_outputs(name, converted):
    _, case, workdir = converted(name)
    checkpoint = restore_latest(workdir, warn=pytest.fail)
    task = build_task(checkpoint.config)
    definition, _, frozen = split(task.build(shapes_only=True), frozen=("encoder.*",))
    arrays = checkpoint.weights
    params = {k: x for k, x in arrays.items() if k not in frozen}
    with golden(f"model_{name}", parts=()) as file:
        draws = case.draws(file, training=False)

        def forward(params, still):
            model = definition.merge(params, still)
            return run_task(task, {"model": model}, case.batch(), draws)

        outputs = jax.jit(forward)(params, {k: arrays[k] for k in frozen})
        compared = set()
        for key in file.group("out/"):
            if OUTPUTS[key] in ("slots", "attention", "masks"):
                found = np.asarray(outputs[OUTPUTS[key]]).reshape(file[f"out/{key}"].shape)
                file.compare(f"out/{key}", found, FORWARD_BACKBONE)
                compared.add(OUTPUTS[key])
    assert compared == {"slots", "attention", "masks"}


def test_a_converted_run_is_loaded_with_its_slots(converted):
    _, case, workdir = converted("slotcontrast_original")
    model, frame = ssa.load(workdir), case.video[0, 0].astype(np.uint8)
    assert model.num_slots == case.num_slots
    with pytest.raises(UserError, match=f"has a query for each of its {case.num_slots} slots"):
        model.segment(frame, num_slots=case.num_slots + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [x for x in SYSTEMS if x != "randsfq_bbox"])
def test_a_converted_run_segments_and_streams(name, converted):
    _, case, workdir = converted(name)
    model, video = ssa.load(workdir), case.video[0].astype(np.uint8)
    whole = model.segment(video, video=True)
    streamed = list(model.stream(iter(video)))
    slots = np.stack([x.slots for x in streamed])
    np.testing.assert_allclose(slots[:3], whole.slots[:3], rtol=1e-4, atol=1e-5)
    # Rounding grows with every frame, to 1.2e-5 in the fourth on some processors. It is no smaller
    # in values near zero, so the bound of all frames is one of golden numbers.
    assert np.abs(slots - whole.slots).max() <= FORWARD * np.abs(whole.slots).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["videosaur_original_features", "slotcontrast_original", "randsfq_bbox"]
)
def test_a_converted_run_is_predicted_with_and_reported(name, converted, tmp_path, capsys):
    """By the commands."""
    _, case, workdir = converted(name)
    if case.boxes is None:
        (tmp_path / "clip").mkdir()
        for i, frame in enumerate(case.video[0].astype(np.uint8)):
            Image.fromarray(frame).save(tmp_path / "clip" / f"{i:04d}.png")
        flags = (f"--workdir={workdir}", f"--input={tmp_path / 'clip'}")
        assert here("--mode=predict", *flags, f"--output={tmp_path / 'found'}") == 0
        assert len(list((tmp_path / "found").rglob("labels/*.png"))) == len(case.video[0])
    assert here("--mode=evaluate", f"--workdir={workdir}") == 0
    assert here("--mode=report", f"--workdir={workdir}") == 0
    assert (workdir / "report" / "index.html").is_file()


@pytest.mark.slow
def test_a_file_of_recognition_becomes_a_workdir_and_comes_back(converted, tmp_path):
    """Its slot model and its head."""
    source, case, workdir = converted("slotcontrast_genera1z")
    config = as_recognition(restore_latest(workdir, warn=pytest.fail).config, num_classes=3)
    config.checkpoint.update(best_metric="top1", best_mode="max")
    width, rng = case.model.slot_size, np.random.default_rng(0)
    shapes = {"0.weight": (2 * width, width), "0.bias": (2 * width,)}
    shapes |= {"3.weight": (7, 2 * width), "3.bias": (7,)}
    theirs = {k.replace("m.", "m.discov.", 1): x for k, x in state_dicts.read(source).items()}
    for key, shape in shapes.items():
        theirs[f"m.recogn.{key}"] = rng.standard_normal(shape, np.float32)
    write_workdir(theirs, canonical(config), tmp_path / "head")
    assert_same(read_workdir(tmp_path / "head", warn=pytest.fail), theirs)
    weights = restore_latest(tmp_path / "head", warn=pytest.fail).weights
    np.testing.assert_array_equal(weights["mlp.out.kernel"], theirs["m.recogn.3.weight"].T)


# ---------------------------------------------------------------------------------------- faults


@pytest.fixture(scope="module")
def recipes():
    return published.recipes()


FAULTS = {  # a layout and a config that it does not fit -> what is said
    ("slotcontrast-genera1z movi_c", "movi_c:gaussian,slotcontrast,original"): (
        "it is a checkpoint of SlotContrast's re-implementation, and movi_c:gaussian,.* describes "
        "a model of another program; give the config movi_c:slotcontrast,genera1z$"
    ),
    ("slotcontrast-original movi_c", "movi_c:slotcontrast,genera1z"): (
        "it is a checkpoint of SlotContrast, .*; give the config "
        "movi_c:gaussian,slotcontrast,original$"
    ),
    ("slotcontrast-original movi_c", "movi_c:gaussian,slotcontrast"): (
        "it is a checkpoint of SlotContrast: give the config movi_c:gaussian,slotcontrast,original$"
    ),
    ("randsfq-movi_c tsim", "movi_c:randsfq"): (
        "left over: m.decode.readout.*; it is a checkpoint of RandSF.Q: give the config "
        "movi_c:randsfq,tsim$"
    ),
    ("videosaur-genera1z movi_d", "movi_d:slotcontrast,genera1z"): (
        "it is a checkpoint of VideoSAUR's re-implementation: give the config "
        "movi_d:videosaur,genera1z$"
    ),
}


@pytest.mark.parametrize("case", quick(list(FAULTS), next(iter(FAULTS))), ids=" as ".join)
def test_a_file_of_another_version_or_system(case):
    file, config = case
    data, _, words = config.partition(":")
    chosen = load_config(f"{published.CONFIGS / data}.py:{words}")
    with pytest.raises(UserError, match=FAULTS[case]):
        published.configs_of(filled(file, zeros=True), {config: chosen})


def test_a_file_with_another_number_of_slots(recipes):
    state_dict = filled("slotcontrast-original movi_c", zeros=True)
    state_dict["initializer.slots"] = state_dict["initializer.slots"][:, :9]
    name = "movi_c:gaussian,slotcontrast,original"
    for configs in (recipes, {name: recipes[name]}):
        with pytest.raises(
            UserError,
            match="there are 9, where the config movi_c:gaussian,slotcontrast,original has 11; "
            "convert it with --config=movi_c:gaussian,slotcontrast,original "
            "--config.model.num_slots=9$",
        ):
            published.configs_of(state_dict, configs)
    config = recipes[name].copy_and_resolve_references().unlock()
    config.model.num_slots = 9
    assert published.configs_of(state_dict, {name: config}) == [name]


# ---------------------------------------------------------------------------------- the catalogue


def test_the_catalogue_has_every_recorded_layout(recipes):
    """Of models that this program has, and of files that were published."""
    found = ssa.list_models(published=True)
    names = [model.recipe for model in found]
    expected = {
        recipe_of(system, layout)
        for system, layouts in LAYOUTS.items()
        for layout in layouts
        if system != "osrt"  # two of its three were published, see below
        # DINOSAUR's own program has published none.
        if not is_later(system, layout) and not (system == "dinosaur" and "original" in layout)
        # A tokenizer is no model that segments pictures.
        if not recipe_of(system, layout).endswith("tokenizer")
    }
    official = json.loads((FOLDER / "official_state_dicts.json").read_text())
    expected |= {":".join(reversed(name.split())) for name in official}
    # Of pages that link files, without a recorded layout.
    expected |= {"msn_hard:osrt", "clevr3d:osrt", "clevrtex:boqsa,mixture"}
    expected |= {"coco:boqsa,transformer", "movi_c:gaussian,savi_slotformer"}
    assert expected <= recipes.keys()
    # Of SlotFormer's program, which `test_slotformer_files.py` has.
    of_slotformer = {name for name in names if name.startswith("clevrer:savi_slotformer,")}
    of_slotformer |= {name for name in names if name.startswith("physion:steve,slotformer")}
    of_slotformer |= {name for name in names if name.endswith(",dynamics")}
    assert len(of_slotformer) == 7 and set(names) == expected | of_slotformer
