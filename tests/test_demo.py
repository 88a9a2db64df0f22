"""What happens behind the page of `main.py --mode=demo`, without Gradio."""

import json
import re
import socket
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from command import ROOT, here
from fuzz_readers import clip, write_video
from ml_collections import ConfigDict
from PIL import Image
from test_predict import saved
from tiny import as_dynamics, tiny_config

from smoothsa_jax.checkpoints.sources import Trained
from smoothsa_jax.demo import finding, page, server
from smoothsa_jax.demo.finding import Asked, Demo, Given, labels_of
from smoothsa_jax.demo.server import serve, served
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.forecaster import Forecaster
from smoothsa_jax.inference.load import load
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.models.parameters import split
from smoothsa_jax.tasks.build import build_task

KINDS = {
    "gaussian": {"initializer": "gaussian"},
    "boxes": {},
    "image": {"num_frames": 1, "initializer": "gaussian"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders of an untrained model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    configs = {kind: tiny_config(decoder="mlp_mixture", **x) for kind, x in KINDS.items()}
    return {kind: saved(config, folder / kind) for kind, config in configs.items()}


@pytest.fixture(scope="module")
def models(folders):
    return {kind: load(folder) for kind, folder in folders.items()}


@pytest.fixture(autouse=True)
def short_examples(monkeypatch):
    monkeypatch.setattr(finding, "EXAMPLE_FRAMES", 2)


@pytest.fixture
def demo(models, tmp_path) -> Demo:
    return Demo(models["gaussian"], tmp_path / "demo")


def picture(path: Path, height: int = 40, width: int = 60, seed: int = 0) -> Given:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return Given(str(path))


def files_of(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("about.json", ".lock")}


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def same_files(one: dict[str, bytes], two: dict[str, bytes]) -> None:
    """Check that files are the same, but for the times that archives of arrays hold."""
    assert one.keys() == two.keys()
    for name, data in one.items():
        if not name.endswith(".npz"):
            assert data == two[name], name


# ----------------------------------------------------------------------------------- what is found


@pytest.mark.more
@pytest.mark.parametrize("kind", [pytest.param("gaussian", marks=pytest.mark.slow), "image"])
def test_the_download_is_what_predict_writes(kind, folders, models, tmp_path):
    demo = Demo(models[kind], tmp_path / "demo")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    picture(inputs / "a.png")
    write_video(inputs / "b.mp4", clip(4))
    flags = (f"--workdir={folders[kind]}", f"--input={inputs}", f"--output={tmp_path / 'found'}")
    assert here("--mode=predict", *flags, "--num_slots=3", "--seed=5", "--prune=auto") == 0
    for name in ("a.png", "b.mp4"):
        asked = Asked(num_slots=3, seed=5, pruning="auto")
        shown = demo.find(Given(str(inputs / name)), asked)
        same_files(contents(demo.archive(shown)), files_of(tmp_path / "found" / name))
        slots = [tmp_path / "found" / name / "slots.npz", shown.folder / "found" / "slots.npz"]
        one, two = map(np.load, slots)
        for array in one.files:
            np.testing.assert_array_equal(one[array], two[array])
    assert shown.num_frames == 4 and shown.is_video
    assert bool(shown.notes) == (kind == "image")  # its frames stand alone


def test_each_setting_reaches_the_model(demo, tmp_path):
    given = picture(tmp_path / "a.png")

    def found(**asked) -> bytes:
        with np.load(demo.find(given, Asked(**asked)).folder / "found" / "slots.npz") as stored:
            return stored["slots"][0], stored["slot_mask"][0]

    plain, mask = found()
    assert mask.all() and np.array_equal(found()[0], plain)
    assert len(found(num_slots=7)[0]) == 7
    assert not np.array_equal(found(seed=1)[0], plain)
    assert not np.array_equal(found(iterations=6)[0], plain)
    assert found(pruning="distance", distance=2.0)[1].sum() == 1  # all slots are redundant
    assert found(pruning="off", distance=2.0)[1].all()


def test_the_example_is_a_clip_of_what_the_model_knows(models, tmp_path):
    for kind, frames in (("gaussian", finding.EXAMPLE_FRAMES), ("image", 1)):
        demo = Demo(models[kind], tmp_path / kind)
        video, boxes = demo.example(3)
        assert video.shape[0] == frames and len(boxes.splitlines()) >= 2
        assert not np.array_equal(video, demo.example(4)[0])
        shown = demo.find(Given(index=3), Asked())
        assert shown.num_frames == frames and shown.is_video == (kind == "gaussian")


def test_a_model_of_boxes_starts_from_those_of_the_visitor(models, tmp_path):
    demo = Demo(models["boxes"], tmp_path / "demo")
    assert demo.controls.boxes and demo.controls.num_slots is None
    _, boxes = demo.example()
    assert demo.find(Given(), Asked(boxes=boxes)).num_frames == finding.EXAMPLE_FRAMES
    for text, count in (("", 0), ("1 2 3", 3), ("1, 2, 3, 4, 5", 5)):
        with pytest.raises(UserError, match=f"have {count} numbers"):
            demo.find(Given(), Asked(boxes=text))
    with pytest.raises(UserError, match="does not lie in a picture"):
        demo.find(Given(), Asked(boxes="0 0 5 9999"))


def test_boxes_shrink_with_their_picture(models, tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "LONGEST", 30)
    demo = Demo(models["boxes"], tmp_path / "demo")
    shown = demo.find(picture(tmp_path / "a.png"), Asked(boxes="0 0 59 39\n20, 10, 40, 30"))
    assert shown.notes == ("Shrunk to 30x20 pixels.",)
    assert labels_of(shown, 0).shape == (20, 30)


def test_controls_are_those_that_the_model_can_use(models, tmp_path):
    def of(config: ConfigDict) -> finding.Controls:
        return Demo(load(saved(config, tmp_path / config.name)), tmp_path).controls

    can = Demo(models["gaussian"], tmp_path).controls
    assert can.num_slots and can.iterations and can.seed and can.pruning == "off"
    assert can.future is None and not can.boxes
    config = tiny_config(initializer="gaussian", decoder="mlp_mixture").unlock()
    config.name, config.eval.prune = "pruned", 0.3
    assert of(config.lock())[3:5] == ("distance", 0.3)
    config = config.copy_and_resolve_references().unlock()
    config.name, config.eval.prune = "learned", None
    config.model.initializer = ConfigDict({"name": "learned", "start": "xavier", "noise": 0.0})
    can = of(config.lock())
    assert can.num_slots is None and not can.seed


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    """A rollouter with random weights, on a slot model with Gaussian queries."""
    config = as_dynamics(tiny_config(5, initializer="gaussian", decoder="mlp_mixture"))
    rng = np.random.default_rng(0)

    def drawn(model) -> dict[str, np.ndarray]:
        _, params, frozen = split(model, frozen=("encoder.*",))
        shapes = {name: x.shape for name, x in {**params, **frozen}.items()}
        return {name: 0.5 * rng.standard_normal(x, np.float32) for name, x in shapes.items()}

    slots = slot_model_shapes(config.companions.slot_model.model, (16, 16))
    rollouter = drawn(build_task(config).build(shapes_only=True))
    return Forecaster(Trained(config, rollouter, 0, "a test", slot_model=drawn(slots)))


def test_a_rollouter_predicts_frames_behind_a_video(forecaster, tmp_path):
    demo = Demo(forecaster, tmp_path / "demo")
    assert demo.controls.future
    shown = demo.find(Given(), Asked(future=3))
    assert (shown.num_frames, shown.num_predicted) == (demo.example()[0].shape[0] + 3, 3)
    last = shown.num_frames - 1
    assert demo.overlay(shown, last).shape == demo.attention(shown, last, 0).shape
    rows = json.loads(contents(demo.archive(shown))["boxes.json"])["frames"]
    assert [row.get("predicted", False) for row in rows[-4:]] == [False, True, True, True]
    assert demo.find(Given(), Asked()).num_predicted == 0
    still = demo.find(picture(tmp_path / "a.png"), Asked(future=3))
    assert still.num_predicted == 0 and "A picture has no future" in still.notes[0]
    write_video(tmp_path / "a.mp4", clip(1))
    with pytest.raises(UserError, match="give a longer video"):
        demo.find(Given(str(tmp_path / "a.mp4")), Asked(future=3))


# ----------------------------------------------------------------------------------- what is shown


def test_a_click_finds_the_slot_under_it(demo, tmp_path):
    shown = demo.find(picture(tmp_path / "a.png"), Asked())
    labels, overlay = labels_of(shown, 0), demo.overlay(shown, 0)
    scale = overlay.shape[0] // labels.shape[0]
    assert scale > 1  # a small picture is enlarged
    for row, column in ((0, 0), (17, 41), (39, 59)):
        at = demo.slot_at(shown, 0, scale * column + scale - 1, scale * row)
        assert at == labels[row, column]
    shares = demo.shares(shown, 0)
    assert shares == {int(n): (labels == n).mean() for n in np.unique(labels)}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_attention_is_bright_where_the_slot_attends(models, demo, tmp_path):
    given = picture(tmp_path / "a.png", 64, 64)
    shown = demo.find(given, Asked(seed=2))
    stored = models["gaussian"].segment(given.path, seed=2).attention
    slot = next(iter(demo.shares(shown, 0)))
    drawn = demo.attention(shown, 0, slot)
    assert drawn.shape == demo.overlay(shown, 0).shape
    nothing = finding.lit(np.asarray(Image.open(given.path)), np.zeros((2, 2), np.float32), slot)
    change = np.abs(drawn.astype(float) - nothing).mean(-1)
    h, w = stored.shape[1:]
    cells = change.reshape(h, change.shape[0] // h, w, -1).mean((1, 3))
    share = stored[slot] / stored[slot].max()
    assert np.corrcoef(cells.ravel(), share.ravel())[0, 1] > 0.5


def test_what_a_visitor_holds_are_names_of_files(demo, tmp_path):
    shown = demo.find(picture(tmp_path / "a.png"), Asked())
    assert all(isinstance(x, Path | int | bool | tuple) for x in shown)
    page._remove(shown)
    assert not shown.folder.exists()
    page._remove(None)


# ------------------------------------------------------------------------------------ memory, time


def test_programs_are_forgotten_before_there_are_many(demo, tmp_path, monkeypatch):
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    monkeypatch.setattr(finding, "MAX_PROGRAMS", 3)
    for seed in range(6):  # of one size: the same program
        demo.find(picture(tmp_path / "a.png", seed=seed), Asked(seed=seed))
    assert not cleared
    for width in (30, 31, 32):
        demo.find(picture(tmp_path / f"{width}.png", width=width), Asked())
    assert len(cleared) == 1 and len(demo._programs) == 1


def test_a_long_video_is_cut_and_a_large_picture_shrunk(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "MAX_FRAMES", 3)
    monkeypatch.setattr(finding, "LONGEST", 20)
    path = tmp_path / "a.mp4"
    write_video(path, clip(6))
    counted = []
    shown = demo.find(Given(str(path)), Asked(), lambda *x: counted.append(x))
    assert shown.num_frames == 3 and counted == [(1, 3), (2, 3), (3, 3)]
    assert max(labels_of(shown, 2).shape) == 20
    assert shown.notes[-1] == "The first 3 frames of 6; --mode=predict has no limit."
    write_video(path, clip(3))
    assert len(demo.find(Given(str(path)), Asked()).notes) == 1  # shrunk, not cut


# ------------------------------------------------------------------------------------------ faults


def test_bad_files_are_one_line_and_leave_nothing(demo, tmp_path):
    cases = {
        "song.mp3": (b"ID3", "^song.mp3 has an unknown format: expected images"),
        "text.png": (b"this is no picture", "^text.png cannot be read as an image: "),
        "empty.mp4": (b"", "^empty.mp4 cannot be read as a video: the file is empty"),
        "text.mp4": (b"this is no video", "^text.mp4 cannot be read as a video: "),
    }
    for name, (data, says) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=says) as caught:
            demo.find(Given(str(tmp_path / name)), Asked())
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert not list((tmp_path / "demo").rglob("*"))
    with pytest.raises(UserError, match="num_slots"):
        demo.find(Given(), Asked(num_slots=0))
    assert demo.find(Given(), Asked()).num_frames  # it goes on


def test_closing_waits_and_then_nothing_is_found(demo):
    demo.close()
    with pytest.raises(UserError, match="the page was closed"):
        demo.find(Given(), Asked())


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port}.*in use.*another --port"):
            serve(port=port)
    with pytest.raises(UserError, match="cannot listen on 203.0.113.1:0"):
        serve(host="203.0.113.1", port=0)


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert here("--mode=demo", "--port=0") == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --mode=demo needs gradio, which is not installed: pip install 'smoothsa_jax[demo]'"
    ]


def test_flags_of_other_modes_are_refused(capsys):
    for arguments, says in (
        (("--mode=demo", "--input=a.png"), "--input belongs to --mode=predict"),
        (("--mode=predict", "--port=1"), "--port belongs to --mode=demo"),
        (("--mode=demo", "--config.seed=1"), "--mode=demo takes a model as it was trained"),
        (("--mode=demo", "--coordinator=a:1"), "--mode=demo takes one process"),
        (("--mode=demo", "--port=70000"), "port"),
    ):
        assert here(*arguments) == 2
        assert says in capsys.readouterr().err


def test_what_is_no_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    with pytest.raises(UserError, match="neither a folder nor the name of a model"):
        with served("sprites_gausian", port=0):
            pass
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        with served(str(tmp_path), port=0):
            pass


# --------------------------------------------------------------------------------------- the Space


def test_the_space_needs_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "docs" / "space" / "requirements.txt").read_text().splitlines()
    assert lines == project["dependencies"]
    text = (ROOT / "docs" / "space" / "README.md").read_text()
    front = dict(re.findall(r"^(\w+): (.+)$", text.split("---")[1], flags=re.MULTILINE))
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py"
    assert project["optional-dependencies"]["demo"] == ["gradio>=6,<7"]
    assert front["sdk_version"].startswith("6.")
    assert len(front["short_description"]) <= 60  # more is refused
