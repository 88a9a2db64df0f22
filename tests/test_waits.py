"""The log tells of steps that waited for data, and of no others."""

import io
import time

import jax.numpy as jnp
import pytest

from smoothsa_jax.training.logging import LOG_FILE, RunLog, read_log
from smoothsa_jax.training.waits import DataWaits


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
