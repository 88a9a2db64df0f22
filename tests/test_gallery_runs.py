"""Real data: full sizes fit together, and miniatures go from raw files to scores."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT, assert_same_run, copy_of, here
from raw_clips import Videos, hq_source, movi_source, prefixed, write_zip, ytvis_2022
from raw_scenes import clevr3d_source, clevr_source
from raw_stills import clevrtex_source, coco_source, voc_source
from raw_videos import clevrer, physion
from recipes import quick
from test_perceptual import vgg16_files

from data import prepare
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import to_json
from smoothsa_jax.devices.host_arrays import copied
from smoothsa_jax.evaluation.metrics import METRICS
from smoothsa_jax.evaluation.recognition import RECOGNITION_METRICS
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training import evaluating, loop
from smoothsa_jax.training.step import build_training

DATA_SETS = [path.stem for path in sorted((ROOT / "configs").glob("*.py"))]
# Those with 256 pixels and DINOv2's 16x16 tokens.
OTHERS = ("sprites", "scenes", "own", "clevr", "clevr3d", "clevrer", "msn_hard")
OTHERS += ("obsurf_msn", "physion")
REAL = [name for name in DATA_SETS if name not in OTHERS]
CLASSES = {"coco": 91, "ytvis": 41, "ytvis_hq": 41}  # of recognition


# ---------------------------------------------------------------------------------- full sizes


def shapes_of_a_batch(config, num_slots: int) -> dict[str, jax.ShapeDtypeStruct]:
    batch, frames = config.train.batch_size, config.data.num_frames
    slots, size = num_slots, config.data.image_size
    return {
        "video": jax.ShapeDtypeStruct((batch, frames, size, size, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((batch, frames, slots, 4), jnp.float32),
        "slot_mask": jax.ShapeDtypeStruct((batch, slots), bool),
    }


def shapes(tree):
    return jax.tree.map(lambda x: x.shape, tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_full_sizes_fit_together(name):
    """The real train step, on shapes alone."""
    config = load_config(f"configs/{name}.py")
    check(config)
    config.weights.encoder.source = "random"

    def step(inputs):
        training = build_training(config)
        assert training.definitions["model"].skeleton().encoder.grid == (16, 16)
        new, metrics = training.train_step(
            training.state, training.frozen, inputs, jax.random.key(0)
        )
        return training.state, new, metrics

    before, after, metrics = jax.eval_shape(step, shapes_of_a_batch(config, config.model.num_slots))
    assert shapes(before) == shapes(after)
    weighted = {f"loss/{term}" for term in config.losses}
    assert {key for key in metrics if key.startswith("loss/")} == weighted


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CLASSES))
def test_full_sizes_of_recognition_fit_together(name):
    config = load_config(f"configs/{name}.py:recognition")
    slot_model = load_config(f"configs/{name}.py").model
    with config.unlocked():  # as the program does when a run begins
        config.companions.slot_model.update(title="SmoothSA", model=slot_model)
    check(config)
    training = build_training(config)  # SmoothSA's arrays are shapes there
    batch = shapes_of_a_batch(config, slot_model.num_slots)
    labels = batch["video"].shape[:-1]
    objects = (config.train.batch_size, config.data.max_objects)
    batch["segmentations"] = jax.ShapeDtypeStruct(labels, jnp.uint8)
    batch["categories"] = jax.ShapeDtypeStruct(objects, jnp.int32)
    arguments = (training.state, training.frozen, batch, jax.random.key(0))
    state, metrics = jax.eval_shape(training.train_step, *arguments)
    assert shapes(state) == shapes(training.state)
    assert state.params["mlp.out.kernel"].shape == (512, CLASSES[name] + 4)
    assert {"loss/category", "loss/box", "num_matches"} <= set(metrics)


# -------------------------------------------------------------------------- raw files to scores


def ytvis_source(folder: Path) -> Path:
    ytvis_2022(folder, "zip", num_frames=6)
    return folder


def ytvis_2021_source(folder: Path) -> Path:
    """The official train.zip alone, which has validation's videos too."""
    videos = Videos(5, num_frames=7)
    contents = prefixed("train/JPEGImages/", videos.frames)
    write_zip(folder / "train.zip", {**contents, "train/instances.json": videos.json()})
    return folder


SOURCES = {
    "coco": coco_source,
    "voc": voc_source,
    "clevr": lambda folder: clevr_source(folder, 4),
    "clevr3d": lambda folder: clevr3d_source(folder, dict.fromkeys((0, 1, 70_000), 3), 70_001),
    "clevrer": lambda folder: clevrer(folder, num_frames=26),
    "clevrtex": clevrtex_source,
    "ytvis": ytvis_source,
    "ytvis_2021": ytvis_2021_source,
    "ytvis_hq": hq_source,
} | {f"movi_{x}": lambda folder, name=f"movi_{x}": movi_source(folder, name) for x in "abcde"}


def run(spec: str, workdir: Path, *settings: str) -> dict:
    """`main.py` with the word `smoke` added to a config's, to its end; its scores."""
    config = ROOT / "configs" / f"{spec}{',' if ':' in spec else ':'}smoke"
    assert here(f"--config={config}", f"--workdir={workdir}", *settings) == 0
    return json.loads((workdir / "scores.json").read_text())


def go_on_and_evaluate(spec: str, whole: Path, cut: Path, *settings: str) -> None:
    """The same run, cut short, resumes bit-identically; then its workdir alone can be scored."""
    copy_of(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    (cut / "scores.json").unlink()
    run(spec, cut, *settings)
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
        build = once(build_training)
        for module in (loop, evaluating):
            patch.setattr(module, "build_training", build)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Map name -> a folder with `prepared` (from a miniature) and `run`, a workdir; made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            dataset = "ytvis_2022" if name == "ytvis" else name
            raw, options = SOURCES[name](folder / "raw"), prepare.Options()
            if name == "ytvis_2021":
                options = prepare.Options(extra=(("holdout_last", 2),))
            elif name == "clevr":
                options = prepare.Options(extra=(("parts", "2,2"),))
            prepare.prepare(dataset, str(raw), folder / "prepared", options=options)
            run(f"{name}.py", folder / "run", f"--config.data.folder={folder / 'prepared'}")
            made[name] = folder
        return made[name]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SOURCES))
def test_from_raw_files_to_scores(name, trained, tmp_path):
    """Prepare, train, resume an interrupted run, evaluate: as for the real data."""
    folder = trained(name)
    scores = json.loads((folder / "run" / "scores.json").read_text())
    assert scores["split"] == "validation" and scores["step"] == 6 and not scores["baselines"]
    assert all(np.isfinite(scores["metrics"][m]["mean"]) for m in ("fg_ari", "ari", "mbo", "miou"))
    settings = f"--config.data.folder={folder / 'prepared'}"
    go_on_and_evaluate(f"{name}.py", folder / "run", tmp_path / "cut", settings)


@pytest.mark.slow
def test_the_protocols_of_video_programs(trained, tmp_path):
    """Windows, another size, single frames and objects alone, from the workdir alone."""
    cut = copy_of(trained("ytvis_2021") / "run", tmp_path / "cut")
    before = json.loads((cut / "scores.json").read_text())
    assert before["protocol"]["windows"] is None and set(before["metrics"]) == set(METRICS)
    one = [f"--config.eval.{x}" for x in ("num_samples=None", "baselines=True", "per_frame=True")]
    chosen = [*one, "--config.eval.foreground=True", "--config.eval.score_at=48"]
    windows = ["--config.eval.windows=3", "--config.eval.window_rest=keep"]
    assert here("--mode=evaluate", f"--workdir={cut}", *chosen, *windows) == 0
    scores = json.loads((cut / "scores.json").read_text())
    asked = {"windows": 3, "window_rest": "keep", "score_at": 48, "per_frame": True}
    assert (asked | {"foreground": True, "num_samples": 6}).items() <= scores["protocol"].items()
    names = {*METRICS, "fg_mbo", "fg_miou"}
    expected = names | {f"image_{name}" for name in names}
    assert set(scores["metrics"]) == expected
    assert all(set(found) == expected for found in scores["baselines"].values())
    with open(cut / "scores.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "SmoothSA"]
    assert [row["name"].split(" ", 1)[1] for row in rows] == [
        f"frames {x}" for x in ("0-2", "3-5", "6-6")
    ] * 2
    one_frame = [row for row in rows if row["name"].endswith("6-6")]
    assert all(row[name] == row[f"image_{name}"] for row in one_frame for name in names)
    # The report scores what was scored.
    assert here("--mode=report", f"--workdir={cut}") == 0
    page = (cut / "report" / "index.html").read_text()
    assert "Each sample is a window of 3 frames" in page and "image FG-mBO" in page


@pytest.mark.parametrize("name", quick(list(CLASSES)))
def test_recognition_from_raw_files_to_scores(name, trained, tmp_path):
    """The same for a head on the slots of an earlier run."""
    folder = trained(name)
    settings = (
        f"--config.data.folder={folder / 'prepared'}",
        f"--config.companions.slot_model.source={folder / 'run'}",
    )
    scores = run(f"{name}.py:recognition", tmp_path / "run", *settings)
    found = {metric: scores["metrics"][metric]["mean"] for metric in RECOGNITION_METRICS}
    assert found["num_matches"] > 0
    assert all(0 <= found[metric] <= 1 for metric in ("top1", "top3", "box_iou"))
    assert found["top1"] <= found["top3"]
    go_on_and_evaluate(f"{name}.py:recognition", tmp_path / "run", tmp_path / "cut", *settings)


@pytest.mark.slow
def test_answers_about_videos_from_raw_files_to_scores(tmp_path, capsys):
    """The recipes' smallest form on miniatures: slots stored, a readout, scores and baselines."""
    folders = {}
    for name, write in (("clevrer", clevrer), ("physion_readout", physion)):
        folders[name] = tmp_path / name
        prepare.prepare(name, str(write(tmp_path / "raw" / name)), folders[name])

    def run(name, words, workdir, *flags):
        config = f"--config={ROOT / 'configs' / name.split('_')[0]}.py:{words},answers,smoke"
        flags = (f"--config.data.folder={folders[name]}", *flags)
        assert here(config, f"--workdir={workdir}", *flags) == 0, capsys.readouterr().err
        return json.loads((workdir / "scores.json").read_text())

    rows = ("--config.eval.baselines=True",)
    words = "savi_slotformer,stochastic"
    scores = run("clevrer", words, tmp_path / "c", *rows)
    assert (tmp_path / "c" / "slots" / "MANIFEST.json").is_file()
    assert {"accuracy/descriptive", "option_accuracy/predictive"} <= scores["metrics"].keys()
    beside = {"words only", "pooled features", "other clip's slots", "majority answer", "chance"}
    assert beside <= scores["baselines"].keys() and scores["split"] == "validation"

    paper = ("--config.eval.split=test", "--config.eval.match_paper=True")
    scores = run("physion_readout", "savi_slotformer", tmp_path / "p", *rows, *paper)
    assert scores["protocol"]["threshold"] in (0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
    assert scores["protocol"]["match_paper_step"] in (3, 6)
    found = [scores["match_paper"]["metrics"], scores["metrics"]]
    assert found[0]["question_accuracy"]["mean"] >= found[1]["question_accuracy"]["mean"]
    assert "scoring checkpoint 3 too" in capsys.readouterr().err


@pytest.mark.slow
def test_dynamics_of_clevrer_leave_out_what_enters_late(tmp_path, capsys):
    """From raw files to scores of windows; LPIPS stands beside PSNR, from files in a folder."""
    folder, workdir, weights = tmp_path / "prepared", tmp_path / "run", tmp_path / "weights"
    prepare.prepare("clevrer", str(clevrer(tmp_path / "raw", num_frames=40)), folder)
    config = f"--config={ROOT / 'configs/clevrer.py'}:savi_slotformer,stochastic,dynamics,smoke"
    early = "--config.data.last_entry=0"  # the sphere enters at frame 2 of 40
    given = (f"--config.data.folder={folder}", f"--workdir={workdir}", early)
    assert here(config, *given) == 0
    # The only window of the damaged video, which has 31 frames left, begins before it.
    found = capsys.readouterr().err
    assert "1 of 2 training samples are left out: they have fewer than" in found
    assert "or objects enter all their clips after frame data.last_entry=0" in found
    scores = json.loads((workdir / "scores.json").read_text())
    protocol = {"windows": 31, "last_entry": 0, "observed": 12}
    assert protocol.items() <= scores["protocol"].items()
    assert {"psnr", "ssim", "fg_ari_19"} <= scores["metrics"].keys() - {"lpips"}
    with open(workdir / "scores.csv", newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} == {"video_10001 frames 2-32"}

    weights.mkdir()
    vgg16_files(weights)
    evaluate = ("--mode=evaluate", f"--workdir={workdir}", f"--config.eval.lpips={weights}")
    assert here(*evaluate) == 0, capsys.readouterr().err
    scores = json.loads((workdir / "scores.json").read_text())
    assert scores["metrics"]["lpips"]["mean"] > 0 and scores["protocol"]["lpips"] == "vgg16"
    assert scores["baselines"]["copy"]["lpips"] > 0 and "LPIPS" in capsys.readouterr().out
    assert here(*evaluate[:2], f"--config.eval.lpips={tmp_path}") == 2
    assert "has no vgg16-*; expected a folder with torchvision's" in capsys.readouterr().err
