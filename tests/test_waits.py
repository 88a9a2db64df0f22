"""The log reports steps that waited for data, and no others."""

import io
import time

import jax.numpy as jnp
import pytest

from smoothsa_jax.devices import hosts
from smoothsa_jax.training.logging import LOG_FILE, DataWaits, RunLog, SilentLog, read_log


class StepOutput:
    """Stands for an array that is being computed."""

    def __init__(self, ready):
        self._ready = ready

    def is_ready(self):
        return self._ready


def slow(seconds):
    while True:
        if seconds:
            time.sleep(seconds)
        yield {}


def test_of_several_processes_the_slowest_is_named(tmp_path, monkeypatch):
    """The others wait for it within the step, so their own share means nothing."""
    late = {"data_wait_share": 0.4, "data_wait_ms": 12.5}
    monkeypatch.setattr(hosts, "gather", lambda own: [own, late])
    told = io.StringIO()
    log = RunLog(tmp_path, first_step=0, num_steps=4, log_every=2, stream=told)
    for step in range(1, 5):
        log.waits.next_of(slow(0.0))
        log.waits.runs({"loss": StepOutput(False)})
        log.record(step, {"loss": 1.0})
    log.close()
    *_, row = read_log(tmp_path / LOG_FILE)
    assert {**row, **late, "data_wait_process": 1} == row
    assert "process 1 waited for data in 40% of steps (12.5 ms a step)" in told.getvalue()

    asked = []
    monkeypatch.setattr(hosts, "gather", lambda own: asked.append(own) or [own])
    silent = SilentLog(num_steps=5, log_every=2)
    silent.waits.runs({"loss": StepOutput(False)})
    for step in range(1, 6):
        silent.waits.next_of(slow(0.0))
        silent.record(step, {"validation/mbo": 0.5} if step == 3 else {"loss": 1.0})
        assert (
            len(asked) == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}[step]
        )  # at each row of the first process
    assert all(waits["data_wait_share"] == 0 for waits in asked)


def test_only_batches_that_leave_the_device_idle_count():
    waits, late = DataWaits(), slow(0.01)
    waits.next_of(late)
    assert waits.take() == {}  # before the first step
    waits.runs({"loss": StepOutput(False)})
    waits.next_of(late)  # late, but the device is at work
    waits.runs({"loss": StepOutput(True)})
    waits.next_of(late)
    waits.next_of(slow(0.0))  # at once
    waits.next_of(slow(0.0))
    found = waits.take()
    assert found["data_wait_share"] == 0.25
    assert found["data_wait_ms"] >= 2.5  # 10 ms of one step in four
    assert waits.take() == {}


@pytest.mark.parametrize("seconds", [0.005, 0.0])
def test_the_log_says_the_share_and_what_to_do(tmp_path, seconds):
    told, batches = io.StringIO(), slow(seconds)
    log = RunLog(tmp_path, first_step=0, num_steps=8, log_every=4, stream=told)
    for step in range(1, 9):
        log.waits.next_of(batches)
        log.waits.runs({"loss": jnp.zeros(()).block_until_ready()})
        log.record(step, {"loss": 1.0})
    log.close()
    shares = [row["data_wait_share"] for row in read_log(tmp_path / LOG_FILE)]
    assert shares == [1.0 if seconds else 0.0] * 2
    told = [line for line in told.getvalue().splitlines() if "waited for data" in line]
    if not seconds:
        assert told == []
        return
    (line,) = told  # once a minute
    assert line.startswith("waited for data in 100% of steps (")
    assert all(advice in line for advice in ("train.num_workers", "--uncompressed", "cached"))


def test_scoring_does_not_count_as_training(tmp_path, monkeypatch):
    """A row with scores is written after scoring; its speed is that of the steps."""
    log = RunLog(tmp_path, first_step=0, num_steps=8, log_every=4, stream=io.StringIO())
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for step in range(1, 9):
        now[0] += 0.5
        done_at, scores = now[0], {}
        if step == 6:
            now[0], scores = now[0] + 100, {"validation/mbo": 0.5}
        log.record(step, {"loss": 1.0, **scores}, done_at)
    log.close()
    speeds = {row["step"]: row["steps_per_second"] for row in read_log(tmp_path / LOG_FILE)}
    assert speeds == {4: 2.0, 6: 2.0, 8: 2.0}
