"""`--mode=predict --engine=ray` on a local Ray: equal to plain predict, resumed, and faults."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bulk_corpus import TRIALS, WEIGHT, rows_in, write_corpus
from command import ROOT, environment, here
from raw_videos import physion

from data import prepare
from smoothsa_jax.bulk import parts, predict
from smoothsa_jax.bulk.cluster import connected
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference import predict as plain

pytestmark = pytest.mark.ray
pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
MODEL = "sprites_gaussian"
OPTIONS = {"seed": 3, "num_slots": 4}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else other tests starve them
        with connected(num_cpus=2) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "clips")


@contextlib.contextmanager
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_WEIGHT", WEIGHT)
        yield


def predicted(clips, output, bulk=None, **options):
    settings = {"workdir": MODEL, "input": str(clips), "output": str(output), **OPTIONS}
    with small_parts():
        predict.predict(plain.Options(**settings | options), bulk or predict.BulkOptions(places=3))
    return output


@pytest.fixture(scope="module")
def found(clips, tmp_path_factory):
    bulk = predict.BulkOptions(places=3, masks="png")
    return predicted(clips, tmp_path_factory.mktemp("found") / "out", bulk)


def files_of(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def test_results_are_those_of_plain_predict(clips, found, tmp_path):
    """Slots within 1e-4; boxes within a pixel and areas within 0.5% of a picture, because a pixel
    between two slots may fall to the other one."""
    rows = rows_in(found)
    with pytest.raises(UserError, match="1 of 16 inputs failed"):
        plain.predict(plain.Options(MODEL, str(clips), tmp_path / "out", **OPTIONS))
    names = {name for name, _ in rows}
    assert names == {p.name for p in clips.iterdir()} - {"broken.png"}
    compared = 0
    for name in sorted(names):
        mine = [rows[name, t] for t in range(sum(x == name for x, _ in rows))]
        folder = tmp_path / "out" / name
        theirs = json.loads((folder / "boxes.json").read_text())
        slots = np.load(folder / "slots.npz")
        assert len(mine) == len(theirs["frames"])
        np.testing.assert_allclose([x["slots"] for x in mine], slots["slots"], atol=1e-4)
        np.testing.assert_array_equal([x["slot_mask"] for x in mine], slots["slot_mask"])
        np.testing.assert_array_equal([x["cold"] for x in mine], slots["cold"])
        pixels = theirs["height"] * theirs["width"]
        for row, frame in zip(mine, theirs["frames"], strict=True):
            areas = np.zeros(4)
            for x in frame["slots"]:
                areas[x["slot"]] = x["pixels"]
                if x["pixels"] > 0.01 * pixels:
                    np.testing.assert_allclose(row["boxes"][x["slot"]], x["box"], atol=1)
                    compared += 1
            np.testing.assert_allclose(row["areas"], areas, atol=0.005 * pixels)
    assert compared > 30


def test_the_manifest_counts_and_hashes(found):
    manifest = json.loads((found / "MANIFEST.json").read_text())
    assert (manifest["files"], manifest["errors"]) == (16, 1)
    assert manifest["frames"] == len(rows_in(found))
    for part in manifest["parts"]:
        name = parts.part_name(part["part"], len(manifest["parts"]))
        assert parts.digest((found / "parts" / name).read_bytes()) == part["sha256"]


def test_a_rerun_does_what_is_missing_alone(clips, found, capsys):
    before, bulk = files_of(found), predict.BulkOptions(places=3, masks="png")
    predicted(clips, found, bulk)
    assert files_of(found) == before and "is finished already" in capsys.readouterr().out
    lost = sorted((found / "parts").iterdir())[1]
    lost.unlink()
    (found / "MANIFEST.json").unlink()
    predicted(clips, found, bulk)
    after = files_of(found)
    changed = {name for name, x in after.items() if x != before[name]}
    assert changed == {f"parts/{lost.name}", "MANIFEST.json"}
    assert {k: x[0] for k, x in after.items()} == {k: x[0] for k, x in before.items()}


def test_another_model_or_corpus_is_refused(clips, found, tmp_path):
    before, bulk = files_of(found), predict.BulkOptions(places=3, masks="png")
    with pytest.raises(UserError, match=r"other settings \(weights: "):
        parts.begin(parts.Folder(found), {"weights": 1})
    with pytest.raises(UserError, match=r"other settings \(seed: 3, now 4\)"):
        predicted(clips, found, bulk, seed=4)
    with pytest.raises(UserError, match="starts its slots from boxes"):
        predicted(clips, tmp_path / "boxes", workdir="sprites", num_slots=None)
    assert files_of(found) == before


def test_too_many_unreadable_files_end_the_run(clips, tmp_path):
    with pytest.raises(UserError, match="1 files could not be read, more than --max-errors=0"):
        predicted(clips, tmp_path / "out", predict.BulkOptions(places=3, max_errors=0))
    bulk = predict.BulkOptions(places=3, max_errors=0)
    for _ in range(2):  # also where every part is finished
        with pytest.raises(UserError, match="1 files could not be read, more than"):
            predicted(clips / "broken.png", tmp_path / "one", bulk)
    assert not (tmp_path / "one" / "MANIFEST.json").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of its files could be read"):
        predicted(broken, tmp_path / "none")


# ------------------------------------------------------------------------------------------- faults


def test_workers_that_take_all_cores_leave_readers_alone(clips, found, tmp_path):
    """As where half of the machines are lost: then those of the rest have twice as many workers."""

    def end(*_):
        raise TimeoutError("readers wait for cores")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(240)
    try:
        bulk = predict.BulkOptions(places=3, workers=4)  # of half a core, on two
        output = predicted(clips, tmp_path / "out", bulk)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert len(list((output / "parts").iterdir())) >= 4
    assert rows_in(output).keys() == rows_in(found).keys()


@pytest.mark.slow
@pytest.mark.parametrize(("work", "what"), [("predict", "rows"), ("store", "files")])
def test_a_node_killed_at_random_moments_changes_nothing(work, what):
    """In a process of its own, which has a cluster of two nodes; `TRIALS` counts the rounds."""
    script = [sys.executable, "-m", "benchmarks.bulk", "faults", f"--work={work}"]
    script += [f"--rounds={TRIALS}", "--number=12"]
    done = subprocess.run(
        script, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=environment("")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{TRIALS} of {TRIALS} rounds gave the same {what}" in done.stdout


def begun(clips, output, cache):
    """Begin the command in another process, with a Ray of its own and small parts."""
    code = "import sys; from bulk_corpus import small; sys.exit(small(sys.argv[1:]))"
    arguments = ["--mode=predict", "--engine=ray", f"--workdir={MODEL}", f"--input={clips}"]
    arguments += [f"--output={output}", "--seed=3", "--num_slots=4"]
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    settings = environment(cache) | {"PYTHONPATH": path, "RAY_worker_niceness": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=settings,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory, compilation_cache):
    """The rows of the same command, whose programs are compiled with the same flags."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    process = begun(clips, output, compilation_cache)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return rows_in(output)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_goes_on_where_it_was(
    number, clips, tmp_path, undisturbed, compilation_cache
):
    output = tmp_path / "out"
    first, deadline = begun(clips, output, compilation_cache), time.monotonic() + 300
    while not list((output / "parts").glob("part-*")) and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(number)
    _, told = first.communicate(timeout=60)
    assert first.returncode == (130 if number == signal.SIGINT else -9), told
    assert number == signal.SIGKILL or "the same command resumes" in told
    assert not (output / "MANIFEST.json").exists()
    out, err = (again := begun(clips, output, compilation_cache)).communicate(timeout=300)
    assert again.returncode == 0, err
    assert "parts are finished; resuming" in out
    assert rows_in(output) == undisturbed


def test_the_command_line_runs_it(clips, tmp_path, capsys):
    arguments = ["--mode=predict", "--engine=ray", f"--workdir={MODEL}", f"--input={clips}/*.mp4"]
    assert here(*arguments, f"--output={tmp_path / 'out'}", "--masks=rle") == 0
    assert "11 frames of 3 files" in capsys.readouterr().out
    assert all(len(x["masks"]) == 5 for x in rows_in(tmp_path / "out").values())


@pytest.mark.slow
def test_rollouters_and_readouts_train_on_results(tmp_path, capsys):
    """From raw videos: a slot model, its slots of all of them found on Ray, two tasks on these."""
    raw = physion(tmp_path / "raw", num_frames=16)
    folders = {name: tmp_path / name for name in ("physion", "physion_readout")}
    for name, folder in folders.items():
        prepare.prepare(name, str(raw), folder)

    def run(words, workdir, name, *flags):
        flags = (f"--config.data.folder={folders[name]}", f"--workdir={workdir}", *flags)
        config = f"--config={ROOT / 'configs' / 'physion.py'}:savi_slotformer,{words}smoke"
        assert here(config, *flags) == 0, capsys.readouterr().err

    slots, found = tmp_path / "slots", tmp_path / "found"
    run("", slots, "physion", "--config.eval.num_frames=-1")
    given = (f"--workdir={slots}", f"--input={raw}/**/*.mp4", f"--output={found}")
    assert here("--mode=predict", "--engine=ray", *given) == 0, capsys.readouterr().err
    on_results = (
        f"--config.companions.slot_model.source={slots}",
        f"--config.data.slots={found}",
    )
    run("dynamics,", tmp_path / "ahead", "physion", *on_results)
    alone = ("--config.model.beside=()", "--config.losses.beside.weight=0")
    run("answers,", tmp_path / "answers", "physion_readout", *on_results, *alone)
    for name in ("ahead", "answers"):
        assert not (tmp_path / name / "slots").exists()
        assert json.loads((tmp_path / name / "scores.json").read_text())["metrics"]
