"""After a stop, a kill or damage, the same command resumes with bit-identical results."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_training
import jax
import pytest
from command import CONFIG, IMAGE, ROOT, assert_same_run, here, losses, run, start, trained

from smoothsa_jax.checkpoints.read import (
    BROKEN_FOLDER,
    FOLDER,
    read_checkpoint,
    restore_latest,
    steps_found,
)
from smoothsa_jax.training import logging, loop

SHORT = (f"--config={IMAGE}", "--config.train.num_steps=12", "--config.checkpoint.every=4")


@pytest.fixture
def whole(tmp_path, monkeypatch) -> Path:
    """An uninterrupted run of the fake training."""
    fake_training.use(monkeypatch)
    assert here(*SHORT, f"--workdir={tmp_path / 'whole'}") == 0
    return tmp_path / "whole"


def metrics_of(workdir: Path) -> dict[int, str]:
    folders = {step: workdir / FOLDER / str(step) for step in steps_found(workdir)}
    return {step: (folder / "metrics" / "metrics").read_text() for step, folder in folders.items()}


def at_step(number: int, act) -> dict:
    return {"on_step": lambda step: act() if step == number else None}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(whole, tmp_path):
    assert here(*SHORT, f"--workdir={tmp_path / 'again'}") == 0
    assert_same_run(tmp_path / "again", whole, 12)
    assert here(*SHORT, f"--workdir={tmp_path / 'other'}", "--config.seed=1") == 0
    assert losses(tmp_path / "other") != losses(whole)


SIGNALS = {"ctrl-c": (signal.SIGINT, 130), "sigterm": (signal.SIGTERM, 143)}


@pytest.mark.parametrize(
    ("step", "number", "status"),
    [
        pytest.param(
            step,
            *SIGNALS[name],
            id=f"{step}-{name}",
            marks=() if (step, name) in ((0, "ctrl-c"), (5, "sigterm")) else pytest.mark.more,
        )
        for step in (0, 5, 7, 11)
        for name in SIGNALS
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    whole, tmp_path, monkeypatch, capfd, number, status, step
):
    workdir = tmp_path / "stopped"
    before = signal.getsignal(number)
    fake_training.use(monkeypatch, **at_step(step, lambda: os.kill(os.getpid(), number)))
    assert here(*SHORT, f"--workdir={workdir}") == status
    assert signal.getsignal(number) is before
    err = capfd.readouterr().err
    name = signal.Signals(number).name
    saved = workdir / FOLDER / str(step + 1)
    assert f"stopped by {name} after step {step + 1} of 12, saved in {saved}" in err
    assert "Traceback" not in err
    assert restore_latest(workdir, warn=pytest.fail).step == step + 1
    assert [row["step"] for row in losses(workdir)] == list(range(1, step + 2))

    fake_training.use(monkeypatch)
    assert here(*SHORT, f"--workdir={workdir}") == 0
    assert_same_run(workdir, whole, 12)
    # The metric of the best checkpoint is the same too, although its mean spans the stop.
    found, expected = metrics_of(workdir), metrics_of(whole)
    assert all(found[s] == expected[s] for s in found.keys() & expected.keys() if s % 4 == 0)


def test_a_signal_while_evaluating_leaves_at_once(tmp_path, monkeypatch, capfd):
    fake_training.use(monkeypatch)
    monkeypatch.setattr(loop, "report", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert here(*SHORT, f"--workdir={tmp_path}") == 143
    err = capfd.readouterr().err
    assert err.strip().splitlines()[-1] == "stopped by SIGTERM; the same command resumes"
    fake_training.use(monkeypatch)
    assert here(*SHORT, f"--workdir={tmp_path}") == 0
    assert "evaluating only" in capfd.readouterr().err


def test_the_second_signal_leaves_at_once():
    script = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from smoothsa_jax.training.signals import SignalGuard
with SignalGuard() as guard, guard.finishing_steps():
    os.kill(os.getpid(), signal.SIGTERM)
    print("first", guard.received == signal.SIGTERM, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("not reached", flush=True)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 143
    assert result.stdout == "first True\n"
    assert "repeat to exit immediately" in result.stderr and "leaving at once" in result.stderr


def crash(*_) -> None:
    raise RuntimeError("as if the machine had stopped")


def test_no_step_is_logged_twice_after_a_crash(whole, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "crashed"
    fake_training.use(monkeypatch, **at_step(10, crash))
    with pytest.raises(RuntimeError):
        here(*SHORT, f"--workdir={workdir}")
    assert [row["step"] for row in losses(workdir)] == list(range(1, 10))
    assert restore_latest(workdir, warn=pytest.fail).step == 8
    with open(workdir / "log.jsonl", "a") as log:
        log.write('{"step": 10, "lo')  # a row that was being written
    fake_training.use(monkeypatch)
    assert here(*SHORT, f"--workdir={workdir}") == 0
    assert "resuming from step 8 of 12" in capfd.readouterr().err
    assert_same_run(workdir, whole, 12)


def test_a_run_without_a_checkpoint_starts_anew(whole, tmp_path, monkeypatch):
    workdir = tmp_path / "early"
    fake_training.use(monkeypatch, **at_step(2, crash))
    with pytest.raises(RuntimeError):
        here(*SHORT, f"--workdir={workdir}")
    fake_training.use(monkeypatch)
    assert here(*SHORT, f"--workdir={workdir}") == 0
    assert_same_run(workdir, whole, 12)


def test_broken_newest_checkpoints_are_passed_over_and_kept(whole, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "broken"
    fake_training.use(monkeypatch, **at_step(10, crash))
    with pytest.raises(RuntimeError):
        here(*SHORT, f"--workdir={workdir}")
    shutil.rmtree(workdir / FOLDER / "8" / "state")
    (workdir / FOLDER / "9").mkdir()
    fake_training.use(monkeypatch)
    capfd.readouterr()
    assert here(*SHORT, f"--workdir={workdir}") == 0
    err = capfd.readouterr().err
    for step, reason in ((9, "the folder is empty"), (8, "state")):
        assert f"warning: checkpoint {workdir / FOLDER / str(step)} is not usable" in err
        assert reason in err
        assert (workdir / BROKEN_FOLDER / str(step)).is_dir()
    assert (workdir / BROKEN_FOLDER / "8" / "config").is_dir()
    assert "resuming from step 4 of 12" in err
    assert_same_run(workdir, whole, 12)


def test_a_finished_run_does_no_step(whole, monkeypatch, capfd):
    fake_training.use(monkeypatch, on_step=crash)
    log = (whole / "log.jsonl").read_bytes()
    assert here(*SHORT, f"--workdir={whole}") == 0
    assert "training is finished at step 12: evaluating only" in capfd.readouterr().err
    assert (whole / "log.jsonl").read_bytes() == log


def test_the_device_gets_its_next_step_before_the_metrics_of_the_last_are_read(
    tmp_path, monkeypatch
):
    order: list[str] = []
    fake_training.use(monkeypatch, on_step=lambda step: order.append(f"step {step + 1}"))
    fetch = jax.device_get

    def noting_get(tree):
        if isinstance(tree, dict) and "loss" in tree:
            order.append("metrics")
        return fetch(tree)

    monkeypatch.setattr(loop.jax, "device_get", noting_get)
    assert here(*SHORT, f"--workdir={tmp_path}") == 0
    # Steps 4, 8 and 12 end in a checkpoint, where the metrics are read before the state is saved.
    expected = ["step 1", "step 2", "metrics", "step 3", "metrics", "step 4", "metrics", "metrics"]
    assert order[:8] == expected
    assert order.count("metrics") == 12


def test_the_log_begins_with_what_was_done(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": s}) + "\n" for s in (1, 2, 3, 4)))
    logging.truncate_log(path, 2)
    assert [row["step"] for row in logging.read_log(path)] == [1, 2]
    logging.truncate_log(path, 0)
    assert path.read_text() == ""


# ------------------------------------------------------------------ the real program, really killed


def rows_in(workdir: Path) -> int:
    log = workdir / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(condition, process: subprocess.Popen, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


@pytest.mark.slow
def test_stopped_and_killed_the_real_run_ends_with_the_same_bits(
    tmp_path_factory, tmp_path, compilation_cache
):
    whole = trained(tmp_path_factory.getbasetemp(), compilation_cache)
    workdir = tmp_path / "killed"
    command = (f"--config={IMAGE}", f"--workdir={workdir}")

    process = start(*command, cache=compilation_cache)
    wait_for(lambda: rows_in(workdir) >= 5, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM after step" in err
    stopped = steps_found(workdir)[0]
    assert 5 <= stopped < 60

    process = start(*command, cache=compilation_cache)
    # In the middle of a save: Orbax has begun a folder and not yet given it its name.
    wait_for(lambda: list((workdir / FOLDER).glob("*tmp*")) and rows_in(workdir) > stopped, process)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert f"resuming from step {stopped} of 60" in err

    result = run(*command, cache=compilation_cache)
    assert result.returncode == 0, result.stderr
    assert_same_run(workdir, whole, 60)
    shutil.rmtree(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["metaslot", "along"])
def test_a_stopped_run_with_more_state_ends_with_the_same_bits(
    tmp_path, compilation_cache, variant
):
    """Buffers, or a tokenizer that is trained along and draws in every step."""
    command = (f"--config={CONFIG}:{variant}", "--config.train.num_steps=30")
    result = run(*command, f"--workdir={tmp_path / 'whole'}", cache=compilation_cache)
    assert result.returncode == 0, result.stderr
    process = start(*command, f"--workdir={tmp_path / 'stopped'}", cache=compilation_cache)
    wait_for(lambda: rows_in(tmp_path / "stopped") >= 5, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    stopped = steps_found(tmp_path / "stopped")[0]
    assert 5 <= stopped < 30
    saved = read_checkpoint(tmp_path / "stopped", stopped).arrays
    if variant == "metaslot":
        assert saved["state/buffers/aggregator.calls"] == 2
    else:
        assert any("/tokenizer." in name for name in saved)
    result = run(*command, f"--workdir={tmp_path / 'stopped'}", cache=compilation_cache)
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", 30)


@pytest.mark.slow
def test_killed_at_random_moments_a_video_run_ends_with_the_same_bits(tmp_path, compilation_cache):
    """Video, boxes, dropout, random history: at least six kills, anywhere between start and end."""
    command = [f"--config={CONFIG}", "--config.train.num_steps=150", "--config.checkpoint.every=5"]
    result = run(*command, f"--workdir={tmp_path / 'whole'}", cache=compilation_cache)
    assert result.returncode == 0, result.stderr

    workdir, rng = tmp_path / "killed", random.Random(0)
    killed_at, kills = [], 0
    while True:
        process = start(*command, f"--workdir={workdir}", cache=compilation_cache)
        done = rows_in(workdir)
        # Half of the kills while steps are done and saved, half wherever the start of the program
        # is.
        if kills % 2 == 0:
            wait_for(lambda done=done: rows_in(workdir) >= done + 8, process)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0.5, 12))
        if process.poll() is None and kills < 10:
            process.kill()
            kills += 1
            killed_at.append(rows_in(workdir))
        _, err = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
    print("killed after the steps", killed_at)
    assert kills >= 5
    assert_same_run(workdir, tmp_path / "whole", 150)
    assert read_checkpoint(workdir, 150).progress["data"]
