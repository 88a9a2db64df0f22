"""`main.py` from end to end."""

import fcntl
import json
import struct
from pathlib import Path

import pytest
from command import IMAGE, copy_of, here, losses, run, trained
from tensorboardX.proto.event_pb2 import Event

from smoothsa_jax.checkpoints.read import FOLDER, steps_found


@pytest.fixture
def finished(tmp_path_factory, tmp_path, compilation_cache) -> Path:
    return copy_of(trained(tmp_path_factory.getbasetemp(), compilation_cache), tmp_path / "run")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def events(workdir: Path) -> list[Event]:
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length, its checksum, the record, its checksum
            (length,) = struct.unpack_from("Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_a_run_leaves_everything_and_tells_where(finished, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    printed, original = (base / "trained_once.out").read_text(), base / "trained_once"
    for name in ("scores.json", "pictures", "log.jsonl", "checkpoints", "tensorboard"):
        assert str(original / name) in printed
        assert (finished / name).exists()
    assert f"--mode=evaluate --workdir={original}" in printed
    scores = json.loads((finished / "scores.json").read_text())
    assert f"FG-ARI {100 * scores['metrics']['fg_ari']['mean']:.1f} on the test split" in printed
    assert set(scores) == {"metrics", "baselines", "split", "protocol", "step"}
    assert set(scores["metrics"]["fg_ari"]) == {"mean", "std", "seeds"}
    assert scores["step"] == 60 and scores["protocol"]["num_samples"] == 3
    assert "untrained model" in scores["baselines"]
    assert [p.name for p in (finished / "pictures").iterdir()] == ["test_00.png"]

    rows = losses(finished)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert {"loss", "loss/reconstruction", "loss/distillation", "grad_norm"} <= set(rows[0])
    assert len(steps_found(finished)) == 3 and steps_found(finished)[:2] == [60, 50]

    curve = {
        e.step: v.simple_value
        for e in events(finished)
        for v in e.summary.value
        if v.tag == "train/loss"
    }
    assert list(curve) == list(range(1, 61))
    assert all(curve[row["step"]] == pytest.approx(row["loss"]) for row in rows)


@pytest.mark.slow
def test_a_finished_run_asked_again_evaluates_and_does_not_train(finished, compilation_cache):
    before = files_below(finished)
    (finished / "scores.json").unlink()
    result = run(f"--config={IMAGE}", f"--workdir={finished}", cache=compilation_cache)
    assert result.returncode == 0, result.stderr
    assert "training is finished at step 60: evaluating only" in result.stderr
    after = files_below(finished)
    assert {k for k in before if before[k] != after[k]} <= {".lock"}
    assert set(after) == set(before)


def test_evaluate_needs_only_the_workdir_and_gives_the_same_bytes(
    finished, tmp_path, compilation_cache
):
    scores = (finished / "scores.json").read_bytes()
    (finished / "scores.json").write_text("old")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = run("--mode=evaluate", "--workdir=../run", cache=compilation_cache, cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    assert (finished / "scores.json").read_bytes() == scores
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_the_protocol_and_the_checkpoint_can_be_chosen_the_model_not(
    finished, compilation_cache, capsys
):
    before = json.loads((finished / "scores.json").read_text())["metrics"]["fg_ari"]
    steps = steps_found(finished)
    file = finished / FOLDER / str(steps[1]) / "metrics" / "metrics"
    # Whatever training made of it, pretend that another one is the best.
    file.write_text(json.dumps({"loss": -1.0}).ljust(file.stat().st_size))
    chosen = ["--config.eval.checkpoint=best", "--config.eval.seeds=(0, 1)"]
    result = run("--mode=evaluate", f"--workdir={finished}", *chosen, cache=compilation_cache)
    assert result.returncode == 0, result.stderr
    scores = json.loads((finished / "scores.json").read_text())
    assert scores["step"] == steps[1]
    assert len(scores["metrics"]["fg_ari"]["seeds"]) == 2
    assert before["seeds"] == [before["mean"]]

    assert here("--mode=evaluate", f"--workdir={finished}", "--config.seed=1") == 2
    assert "seed (found 0, asked 1)" in capsys.readouterr().err


def test_help_names_the_modes(capsys):
    assert here("--help") == 0
    assert "--mode=evaluate" in capsys.readouterr().out


def test_two_runs_do_not_share_a_workdir(finished, capsys):
    with open(finished / ".lock", "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.truncate(0)
        handle.write("4711")
        handle.flush()
        assert here(f"--config={IMAGE}", f"--workdir={finished}") == 2
    assert "in use by another run (process 4711)" in capsys.readouterr().err
