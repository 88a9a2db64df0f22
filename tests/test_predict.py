"""`main.py --mode=predict`: from files to files, and every way in which that can go wrong."""

import errno
import itertools
import json
import os
import signal
import subprocess
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from command import here
from fuzz_readers import clip, write_gif, write_video
from ml_collections import ConfigDict
from PIL import Image
from tiny import tiny_config

from smoothsa_jax.inference import overlays, predict, results, videos
from smoothsa_jax.inference.overlays import Excerpt
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.videos import read_video
from smoothsa_jax.models.anew import feature_distance
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.models.parameters import split


def saved(config: ConfigDict, folder: Path) -> Path:
    """A model with random weights, which are faster to draw than the model's own initial values."""
    model = slot_model_shapes(config.model, (config.data.image_size,) * 2)
    _, params, frozen = split(model, frozen=("encoder.*",))
    rng = np.random.default_rng(0)
    shapes = {name: array.shape for name, array in {**params, **frozen}.items()}
    arrays = {name: 0.5 * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    Segmenter(config, arrays).save(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of an untrained model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    configs = {
        "gaussian": tiny_config(initializer="gaussian", decoder="mlp_mixture"),
        "boxes": tiny_config(decoder="mlp_mixture"),
        "image": tiny_config(num_frames=1, initializer="gaussian", decoder="mlp_mixture"),
    }
    return {name: saved(config, folder / name) for name, config in configs.items()}


@pytest.fixture(autouse=True)
def kept_models(monkeypatch):
    """Compiled once for this file."""
    monkeypatch.setattr(predict, "load", lambda source: KEPT.setdefault(source, load(source)))


KEPT: dict[str, Segmenter] = {}
load = predict.load


def command(model: Path, source: Path, output: Path, *others: str) -> int:
    flags = (f"--workdir={model}", f"--input={source}", f"--output={output}")
    return here("--mode=predict", *flags, *others)


def files_below(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def labels_of(output: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted((output / "labels").iterdir())])


def test_every_kind_of_input_becomes_a_folder_of_its_name(models, tmp_path, capsys):
    source, output = tmp_path / "mine", tmp_path / "found"
    (source / "walk").mkdir(parents=True)
    (source / "trips").mkdir()
    frames = clip(4)
    write_video(source / "a.mp4", frames)
    write_video(source / "b.webm", frames, codec="libvpx-vp9")
    write_gif(source / "c.gif", frames)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(source / "walk" / f"{number + 8}.png")
    Image.fromarray(frames[0]).save(source / "trips" / "cat.png")
    (source / "notes.txt").write_text("no picture")
    assert command(models["gaussian"], source, output) == 0
    told = capsys.readouterr()
    assert f"5 done: {output}" in told.out
    assert "left out: files with other endings (1): .txt: notes.txt" in told.err

    video = {"overlay.mp4", "sheet.png", "slots.npz", "boxes.json", "about.json"}
    video |= {f"labels/{t:06d}.png" for t in range(4)}
    names = {f"{name}/{file}" for name in ("a.mp4", "b.webm", "c.gif", "walk") for file in video}
    picture = ("overlay.png", "sheet.png", "slots.npz", "boxes.json", "about.json", "labels.png")
    assert set(files_below(output)) == names | {f"trips/cat.png/{file}" for file in picture}

    found = list(KEPT[str(models["gaussian"])].stream(frames))
    masks = np.stack([f.masks for f in found])
    np.testing.assert_array_equal(labels_of(output / "walk"), masks)
    with np.load(output / "walk" / "slots.npz") as arrays:
        np.testing.assert_array_equal(arrays["slots"], np.stack([f.slots for f in found]))
        assert arrays["cold"].tolist() == [True, False, False, False]
        assert arrays["slot_mask"].shape == (4, 4)
    boxes = json.loads((output / "walk" / "boxes.json").read_text())
    assert (boxes["height"], boxes["width"], len(boxes["frames"])) == (24, 32, 4)
    for row, mask in zip(boxes["frames"], masks, strict=True):
        assert [slot["slot"] for slot in row["slots"]] == np.unique(mask).tolist()
        for slot in row["slots"]:
            left, top, right, bottom = slot["box"]
            inside = mask[top : bottom + 1, left : right + 1] == slot["slot"]
            assert inside.sum() == slot["pixels"] == (mask == slot["slot"]).sum()
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
    with av.open(str(output / "walk" / "overlay.mp4")) as container:
        shown = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(shown) == 4 and shown[0].shape == (24 * 8, 32 * 8, 3)
    expected = overlays.drawn(frames[3], masks[3]).astype(int)
    assert np.abs(shown[3] - expected).mean() < 12  # what H.264 makes of it
    with Image.open(output / "walk" / "labels" / "000000.png") as labels:
        assert labels.mode == "P"
        # The colours are those of the overlay.
        assert labels.getpalette()[:3] == list(results.palette(2)[1])


def test_names_that_are_not_utf_8_keep_their_bytes(models, tmp_path, capsys):
    source, output = tmp_path / "mine", tmp_path / "found"
    source.mkdir()
    Image.fromarray(clip(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(source / os.fsdecode(b"b\xe4r.png"))
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({os.fsdecode(b"b\xe4r.png"): [[1, 2, 9, 12]]}))
    assert command(models["boxes"], source, output, f"--boxes={boxes}") == 0
    assert command(models["boxes"], source, output, f"--boxes={boxes}") == 0
    assert "0 done, 1 skipped" in capsys.readouterr().out
    assert {os.fsencode(p.name) for p in output.iterdir()} == {b".lock", b"b\xe4r.png"}
    about = json.loads((output / os.fsdecode(b"b\xe4r.png") / "about.json").read_text())
    assert about["made_of"]["boxes"] == [[1, 2, 9, 12]]


def test_a_rerun_skips_what_is_finished_and_touches_nothing(models, tmp_path, capsys):
    source, output = tmp_path / "a.mp4", tmp_path / "found"
    write_video(source, clip(3))
    assert command(models["gaussian"], source, output) == 0
    before = files_below(output)
    stamps = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.name != ".lock"}
    assert command(models["gaussian"], source, output) == 0
    assert "0 done, 1 skipped that were finished before" in capsys.readouterr().out
    assert stamps == {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.name != ".lock"}

    assert command(models["gaussian"], source, output, "--seed=1") == 2
    assert "was made with other settings (seed: 0, now 1); nothing was" in capsys.readouterr().err
    assert files_below(output) == before
    assert command(models["gaussian"], source, output, "--seed=1", "--overwrite") == 0
    after = files_below(output)
    assert set(after) == set(before) and after["a.mp4/slots.npz"] != before["a.mp4/slots.npz"]
    assert [p.name for p in output.iterdir() if p.name != ".lock"] == ["a.mp4"]


def test_redundant_slots_have_no_pixels(models, tmp_path, capsys):
    source, output = tmp_path / "a.png", tmp_path / "found"
    Image.fromarray(clip(1)[0]).save(source)
    assert command(models["gaussian"], source, output, "--num_slots=6", "--prune=2") == 0
    with np.load(output / "a.png" / "slots.npz") as arrays:
        assert arrays["slot_mask"].sum() == 1
        only = np.flatnonzero(arrays["slot_mask"][0]).tolist()
    labels = np.asarray(Image.open(output / "a.png" / "labels.png"))
    assert np.unique(labels).tolist() == only
    for prune in ("off", "auto"):  # other settings, another output
        other = f"--prune={prune}"
        assert command(models["gaussian"], source, output, "--num_slots=6", other) == 2
        assert "was made with other settings (prune: {" in capsys.readouterr().err


def test_what_is_not_ours_is_never_touched(models, tmp_path, capsys):
    source, output = tmp_path / "a.mp4", tmp_path / "found"
    write_video(source, clip(2))
    (output / "a.mp4").mkdir(parents=True)
    (output / "a.mp4" / "mine.txt").write_text("mine")
    assert command(models["gaussian"], source, output, "--overwrite") == 2
    assert "was not made by --mode=predict; nothing was changed" in capsys.readouterr().err
    assert files_below(output) == {"a.mp4/mine.txt": b"mine"}


def test_one_bad_input_does_not_stop_the_others(models, tmp_path, capsys):
    source, output = tmp_path / "mine", tmp_path / "found"
    source.mkdir()
    write_video(source / "good.mp4", clip(2))
    (source / "empty.mp4").write_bytes(b"")
    (source / "no.png").write_bytes(b"no picture")
    frames = [*clip(2), np.zeros((10, 12, 3), np.uint8)]
    (source / "sizes").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(source / "sizes" / f"{number}.png")
    assert command(models["gaussian"], source, output) == 2
    told = capsys.readouterr().err
    assert "empty.mp4 cannot be read as a video: the file is empty" in told
    assert "no.png cannot be read as an image" in told
    assert "error: sizes: picture 2 has 10x12 pixels, those before it 24x32" in told
    assert "3 of 4 inputs failed (empty.mp4, no.png, sizes), see above; 1 done" in told
    assert [p.name for p in sorted(output.iterdir())] == [".lock", "good.mp4"]


def test_of_a_cut_off_video_the_rest_is_used_and_told(models, tmp_path, capsys):
    source, output = tmp_path / "a.webm", tmp_path / "found"
    write_video(source, clip(30), codec="libvpx-vp9")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    assert command(models["gaussian"], source, output) == 0
    about = json.loads((output / "a.webm" / "about.json").read_text())
    assert 0 < about["frames"] < 30
    note = f"a.webm: {about['frames']} of 30 frames could be read, the file is cut or damaged"
    assert note in capsys.readouterr().err
    assert len(labels_of(output / "a.webm")) == about["frames"]


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(models, tmp_path, capsys, monkeypatch):
    source, output = tmp_path / "mine", tmp_path / "found"
    source.mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(source / name, clip(2))
    write, calls = results._write_labels, []

    def full(path, masks):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, masks)

    monkeypatch.setattr(results, "_write_labels", full)
    assert command(models["gaussian"], source, output) == 2
    told = capsys.readouterr().err
    assert "b.mp4: No space left on device; nothing of" in told and "Traceback" not in told
    assert [p.name for p in sorted(output.iterdir())] == [".lock", "a.mp4"]
    assert command(models["gaussian"], source, output) == 0
    assert "1 done, 1 skipped" in capsys.readouterr().out


def test_boxes_are_asked_for_and_taken(models, tmp_path, capsys):
    source, output, boxes = tmp_path / "a.mp4", tmp_path / "found", tmp_path / "boxes.json"
    write_video(source, clip(3))
    assert command(models["boxes"], source, output) == 2
    assert "give --boxes=FILE.json with boxes for a.mp4" in capsys.readouterr().err
    boxes.write_text(json.dumps({"b.mp4": [[1, 2, 9, 12]]}))
    assert command(models["boxes"], source, output, f"--boxes={boxes}") == 2
    assert "has no boxes for a.mp4" in capsys.readouterr().err
    assert not output.exists()
    boxes.write_text(json.dumps({"a.mp4": [[1, 2, 9, 12], [10, 4, 32, 18]]}))
    assert command(models["boxes"], source, output, f"--boxes={boxes}") == 2
    assert "a.mp4: box [10.0, 4.0, 32.0, 18.0] does not lie in a picture" in capsys.readouterr().err
    boxes.write_text(json.dumps({"a.mp4": [[1, 2, 9, 12]] * 300}))
    assert command(models["boxes"], source, output, f"--boxes={boxes}") == 2
    assert "has 300 boxes for a.mp4; label maps have room for 253" in capsys.readouterr().err
    boxes.write_text(json.dumps({"a.mp4": [[1, 2, 9, 12], [10, 4, 31, 18]]}))
    assert command(models["boxes"], source, output, f"--boxes={boxes}") == 0
    with np.load(output / "a.mp4" / "slots.npz") as arrays:
        assert arrays["slot_mask"][0].tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "model, flags, message",
    [
        ("boxes", ["--shot-cuts"], "--shot-cuts starts new slots and needs Gaussian queries"),
        ("image", ["--shot-cuts"], "has no effect on a model of images"),
        ("gaussian", ["--boxes=b.json"], "--boxes was given, and this model starts its slots from"),
        ("gaussian", ["--num_slots=0"], "--num_slots=0"),
        ("gaussian", ["--num_slots=300"], "room for 254 slots"),
        ("boxes", ["--num_slots=3"], "a slot for each box"),
        ("gaussian", ["--shot-cuts=no"], "--shot-cuts=no: expected a number above 0"),
        ("image", ["--requery"], "--requery has no effect on a model of images"),
        ("gaussian", ["--requery=no"], "--requery=no: expected a number above 0, such as 0.2"),
        ("gaussian", ["--requery=2"], "requery is 2.0; expected a number above 0 and below 1"),
        ("gaussian", ["--cut_signal=error"], "was given without shot_cuts"),
        ("gaussian", ["--prune=3"], "prune is 3.0; expected a cosine distance from 0"),
        ("gaussian", ["--prune=much"], "prune is 'much'"),
        ("gaussian", ["--iterations=much"], "--iterations=much: expected a whole number such as 6"),
        ("gaussian", ["--iterations=6,0"], "iterations is (6, 0); expected a whole number of at"),
        ("gaussian", ["--prune=0.5", "--prune_restart=no"], "prune_restart is 'no'"),
        ("gaussian", ["--config.seed=1"], "takes a model as it was trained"),
        ("gaussian", ["--mode=train"], "belongs to --mode=predict"),
        ("gaussian", ["--input=there/is/nothing"], "does not exist; expected images"),
        ("gaussian", ["--input="], "--mode=predict needs --input"),
    ],
)
def test_options_that_do_not_fit_are_told(models, tmp_path, capsys, model, flags, message):
    source = tmp_path / "a.png"
    Image.fromarray(clip(1)[0]).save(source)
    assert command(models[model], source, tmp_path / "found", *flags) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1] and told[-1].startswith("error: ")
    assert not (tmp_path / "found").exists()


def test_a_cut_starts_anew_where_it_is_asked_for(models, tmp_path):
    """Behind the cut the slots are those that the second scene has when it is shown alone."""
    source = tmp_path / "two"
    source.mkdir()
    scenes = [np.full((20, 30, 3), 40, np.uint8), np.full((20, 30, 3), 40, np.uint8)]
    scenes[0][:, :15], scenes[1][:10] = (250, 30, 30), (30, 250, 90)
    frames = [scenes[0]] * 3 + [scenes[1]] * 3
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(source / f"{number}.png")
    slots = {}
    for name, flags in (("one", []), ("cut", ["--shot-cuts"]), ("high", ["--shot-cuts=1000"])):
        assert command(models["gaussian"], source, tmp_path / name, *flags) == 0
        with np.load(tmp_path / name / "two" / "slots.npz") as arrays:
            slots[name] = arrays["slots"]
            assert np.flatnonzero(arrays["cold"]).tolist() == ([0, 3] if name == "cut" else [0])
    alone = [f.slots for f in KEPT[str(models["gaussian"])].stream(frames[3:])]
    np.testing.assert_array_equal(slots["cut"][3:], alone)
    np.testing.assert_array_equal(slots["high"], slots["one"])
    assert np.abs(slots["one"][3] - slots["cut"][3]).max() > 1e-3


def test_the_distance_has_no_unit():
    """0 for the same frame, 1 for independent ones; invariant to shift and scale of features."""
    one, two = np.random.default_rng(0).normal(size=(2, 4000, 8)).astype(np.float32)
    assert feature_distance(one, one) == 0
    assert float(feature_distance(one, two)) == pytest.approx(1, abs=0.05)
    again = feature_distance(30 * one + 5, 30 * two + 5)
    assert float(again) == pytest.approx(float(feature_distance(one, two)), rel=1e-3)
    plain = np.zeros((1, 16, 8), np.float32)
    assert float(feature_distance(plain, plain)[0]) == 0


def test_a_model_of_images_starts_each_frame_anew(models, tmp_path, capsys):
    source = tmp_path / "a.mp4"
    write_video(source, clip(3))
    assert command(models["image"], source, tmp_path / "found") == 0
    assert "each frame was segmented on its own" in capsys.readouterr().err
    with np.load(tmp_path / "found" / "a.mp4" / "slots.npz") as arrays:
        assert arrays["cold"].all()


@pytest.mark.slow
def test_memory_does_not_grow_over_300_frames(models, tmp_path, monkeypatch):
    """The last 130 of them leave behind less than 60 would take; an excerpt of them is kept."""
    source, output = tmp_path / "long.mp4", tmp_path / "found"
    write_video(source, [*clip(50)] * 6)
    add, traced = Excerpt.add, []

    def noted(self, frame, masks):
        add(self, frame, masks)
        if len(traced) == 150:
            tracemalloc.start()
        traced.append(tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr(Excerpt, "add", noted)
    monkeypatch.setattr(overlays, "TILE", 32)  # nothing is enlarged: quicker
    try:
        assert command(models["gaussian"], source, output) == 0
    finally:
        tracemalloc.stop()
    assert len(traced) == 300
    assert 0 < max(traced[-10:]) - max(traced[160:170]) < 60 * 24 * 32 * 3
    assert len(labels_of(output / "long.mp4")) == 300
    assert len(json.loads((output / "long.mp4" / "boxes.json").read_text())["frames"]) == 300


def test_an_excerpt_has_the_first_and_the_last_frame_and_even_steps():
    for count in (1, 2, 63, 64, 65, 1000):
        excerpt = Excerpt(most=32)
        for number in range(count):
            excerpt.add(np.full((4, 4, 3), number % 256, np.uint8), np.zeros((4, 4), np.uint8))
        numbers, video, _ = excerpt._stacked()
        assert numbers[0] == 0 and numbers[-1] == count - 1 and len(numbers) <= 65
        assert len(set(np.diff(numbers[:-1]))) <= 1
        assert [frame[0, 0, 0] for frame in video] == [number % 256 for number in numbers]


def test_without_an_encoder_for_mp4_a_gif_is_written(models, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "can_write_mp4", lambda: False)
    source = tmp_path / "a.mp4"
    write_video(source, clip(5))
    assert command(models["gaussian"], source, tmp_path / "found") == 0
    with Image.open(tmp_path / "found" / "a.mp4" / "overlay.gif") as gif:
        assert gif.n_frames == 5
    assert not (tmp_path / "found" / "a.mp4" / "overlay.mp4").exists()


def test_a_stopped_run_leaves_only_what_is_finished(models, tmp_path, capsys, monkeypatch):
    source, output = tmp_path / "a.mp4", tmp_path / "found"
    write_video(source, clip(3))
    monkeypatch.setattr(
        results, "_write_labels", lambda *ignored: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert command(models["gaussian"], source, output) == 143
    assert "stopped by SIGTERM; the same command resumes" in capsys.readouterr().err
    assert [p.name for p in output.iterdir()] == [".lock"]


# ------------------------------------------------------------------------------------------- videos


def unreadable(path: Path, time_limit: float = 20.0) -> str:
    with pytest.raises(videos.UserError) as told:
        list(read_video(path, time_limit))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_frames_are_those_that_were_written(tmp_path):
    frames = clip(5)
    write_gif(tmp_path / "a.gif", frames // 64 * 64)  # few enough colours for a GIF
    with read_video(tmp_path / "a.gif") as video:
        assert video.fps == pytest.approx(10)
        np.testing.assert_array_equal(np.stack([*video]), frames // 64 * 64)
    assert video.missing == ""
    with pytest.raises(videos.UserError, match="was already read to its end"):
        next(iter(video))


def process_of(path: Path, frames: int = 0) -> subprocess.Popen:
    """The process that decodes a file, of which the given number of frames is read; 0: all."""
    video = read_video(path)
    process = video._decoder.process
    list(itertools.islice(video, frames or None))
    return process


def test_one_process_decodes_many_files_and_ends_with_a_fault(tmp_path):
    names = [tmp_path / f"{name}.gif" for name in "ab"]
    for name in names:
        write_gif(name, clip(3))
    cut = tmp_path / "cut.gif"
    cut.write_bytes(names[0].read_bytes()[:-40])
    first = process_of(names[0])
    assert process_of(names[1]) is first and process_of(cut) is first
    assert first.poll() is not None  # who knows what damaged data did to it
    second = process_of(names[0], frames=2)
    assert second is not first and second.poll() is not None  # it was in the middle of a file
    third = process_of(names[0])
    third.send_signal(signal.SIGINT)  # Ctrl-C is the reader's
    assert process_of(names[1]) is third
    third.kill()
    third.wait()
    fourth = process_of(names[1])
    assert fourth is not third
    fourth.send_signal(signal.SIGSTOP)  # it takes the next file, and dies before its first frame
    killer = threading.Timer(0.2, fourth.kill)
    killer.start()
    assert len(list(read_video(names[0]))) == 3
    killer.join()


def test_files_read_at_once_have_processes_of_their_own(tmp_path):
    write_gif(tmp_path / "a.gif", clip(3))
    one, two = (iter(read_video(tmp_path / "a.gif")) for _ in range(2))
    for x, y in zip(one, two, strict=True):
        np.testing.assert_array_equal(x, y)


def test_videos_of_telephones_are_turned_upright(tmp_path):
    """A quarter turn, from the matrix in the track's header; the left edge becomes the top."""
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, :16] = 255
    write_video(tmp_path / "a.mp4", [frame] * 3)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    quarter = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    (tmp_path / "a.mp4").write_bytes(data)
    (upright, *_) = read_video(tmp_path / "a.mp4")
    assert upright.shape == (64, 32, 3)
    assert upright[:12].mean() > 240 and upright[20:].mean() < 15


def test_what_cannot_be_read_says_why(tmp_path):
    write_video(tmp_path / "a.mp4", clip(3))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "codec.mp4").write_bytes(data.replace(b"avc1", b"xyz1").replace(b"avcC", b"xyzC"))
    assert "its codec is not supported" in unreadable(tmp_path / "codec.mp4")
    (tmp_path / "text.mp4").write_bytes(b"not a video at all")
    assert "Invalid data found" in unreadable(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert "it holds no video" in unreadable(tmp_path / "sound.mp4")
    assert "does not exist" in unreadable(tmp_path / "nothing.mp4")
    assert "ffmpeg -i text.mp4 new.mp4" in unreadable(tmp_path / "text.mp4")


def test_a_decoder_that_crashes_or_hangs_is_one_line(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp4")  # nobody writes to it
    assert "returned nothing within 1 seconds" in unreadable(tmp_path / "pipe.mp4", 1.0)
    write_video(tmp_path / "a.mp4", clip(2))
    crash = (videos.sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(videos, "DECODER", crash)
    assert "the decoder ended with SIGSEGV" in unreadable(tmp_path / "a.mp4")


def test_a_video_that_is_left_ends_its_process(tmp_path):
    write_video(tmp_path / "a.mp4", clip(8))
    with read_video(tmp_path / "a.mp4") as video:
        process = video._decoder.process
        assert process.poll() is None
    assert process.poll() is not None
