"""Several processes that train together: each makes and places its own part of every batch."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import run_config
from command import ROOT
from fake_training import fake_training

from smoothsa_jax.checkpoints.read import FOLDER, Checkpoint, refuse_different, steps_found
from smoothsa_jax.checkpoints.write import CheckpointWriter
from smoothsa_jax.devices import hosts
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training import evaluating, loop

HOST = """
import json, sys
sys.path.insert(0, {tests!r})
import jax
jax.distributed.initialize("localhost:{port}", num_processes=2, process_id=int(sys.argv[1]))
import jax.numpy as jnp
from fake_training import fake_training
from ml_collections import ConfigDict
from smoothsa_jax.devices.mesh import replicated
from test_hosts import batches_of

training = fake_training(ConfigDict({{"seed": 0}}), num_devices=2)
mean = lambda video: video.astype(jnp.float32).mean(axis=(1, 2, 3, 4))
means = jax.jit(mean, out_shardings=replicated(training.mesh))
batches = batches_of(2, jax.process_index(), jax.process_count())
found = []
for _ in range(3):
    video = training.place(next(batches))["video"]
    assert video.shape[0] == 4 and len(video.addressable_shards) == 1
    found.append(means(video).tolist())
print(json.dumps(found))
"""


def batches_of(batch_size: int, process_index: int = 0, process_count: int = 1):
    source = Sprites(num_frames=1, num_samples=10)
    options = {"process_index": process_index, "process_count": process_count}
    return training_batches(source, batch_size, seed=3, **options)


@pytest.mark.slow
def test_parts_of_two_processes_make_one_batch():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = HOST.format(tests=str(ROOT / "tests"), port=port)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    results = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], results[0][1][-2000:]
    # The library that connects them prints a line as well.
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in results)
    assert first == second  # one array, seen by both
    alone = batches_of(4)
    for means in first:
        expected = next(alone)["video"].astype(np.float32).mean(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(means, expected, rtol=1e-6)


def second_of_two(monkeypatch, first=lambda value: value) -> None:
    """Act as process 1, with process 0's values made by `first`."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "gather", lambda value: [first(value), value])


def test_processes_that_can_read_other_checkpoints_are_refused(tmp_path, monkeypatch):
    """One host cannot read a file of the newest one; it moves nothing and scores nothing else."""
    config = run_config.get_config("image")
    with contextlib.closing(CheckpointWriter(tmp_path, config)) as writer:
        for step in (3, 6):
            writer.save(step, {"a": np.ones(2)}, {}, {"loss": 1.0})
            writer.wait()
    name = "newest checkpoint that can be read"
    second_of_two(monkeypatch, lambda value: {name: "step 6 (...)"} if name in value else value)
    (tmp_path / FOLDER / "6" / "arrays" / "metadata").unlink()
    with pytest.raises(UserError, match=rf"process 1 has {name}=step 3 \(.*process 0 has step 6"):
        evaluating.evaluate_run(tmp_path)
    assert steps_found(tmp_path) == [6, 3]


def test_processes_with_other_values_of_the_same_step_are_refused(tmp_path, monkeypatch):
    """Each process has another folder."""
    config, told = run_config.get_config("image"), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "gather", lambda value: told.append(value) or [told[0], value])
    for number in (0, 1, 0):
        found = Checkpoint(6, {"a": np.full(2, number, np.float32)}, {}, config, tmp_path)
        with (
            pytest.raises(UserError, match="process 1 has it=step 6")
            if number
            else contextlib.nullcontext()
        ):
            refuse_different("it", found)


def test_processes_with_other_numbers_of_devices_are_refused():
    hosts.refuse_uneven({0: 8, 1: 8})
    with pytest.raises(UserError, match="process 0 has 8, process 1 has 7; expected the same"):
        hosts.refuse_uneven({1: 7, 0: 8})


def test_a_folder_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    """Process 0 leaves its file elsewhere, or here."""
    elsewhere = tmp_path / "elsewhere"
    second_of_two(monkeypatch, lambda value: (True, elsewhere) if type(value) is tuple else value)
    with pytest.raises(UserError, match=f"process 1 has the workdir {tmp_path}, which is not"):
        hosts.refuse_other_folders(tmp_path)
    monkeypatch.setattr(hosts.secrets, "token_hex", lambda size: "mark")
    (tmp_path / ".mark").touch()
    hosts.refuse_other_folders(tmp_path)


def test_whole_batches_are_needed_to_train_only(monkeypatch):
    second_of_two(monkeypatch)
    config = run_config.get_config("image")
    config.train.match_paper = True
    check(config, ("eval.batch_size",))
    with pytest.raises(UserError, match="train in one process"):
        check(config)


def test_a_process_that_leaves_waits_for_others_a_while(monkeypatch):
    monkeypatch.setattr(hosts, "SECONDS_FOR_OTHERS", 0.2)
    done, forever = [], threading.Event()
    hosts.give_others_time(lambda: done.append(time.sleep(0.05)))
    assert done
    hosts.give_others_time(forever.wait)
    hosts.give_others_time(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("NCCL operation failed: remote process exited or there was a network error", True),
        ("Gloo AllReduce failed: connection closed by peer", True),
        ("NCCL failed to allocate 4096 bytes: out of memory", False),
        ("a file is damaged", False),
    ],
)
def test_what_is_told_as_a_lost_process(text, lost):
    error = ValueError("a consequence")
    error.__cause__ = RuntimeError(text)
    assert hosts.is_loss(error) is lost


class _Asked(Exception):
    pass


def test_the_loop_asks_for_its_own_part(tmp_path, monkeypatch):
    asked = {}

    def batches(source, batch_size, seed, **options):
        asked.update(options, batch_size=batch_size)
        raise _Asked

    monkeypatch.setattr(loop, "training_batches", batches)
    second_of_two(monkeypatch)
    config = run_config.get_config("image")
    with pytest.raises(_Asked):
        loop._train_steps(config, tmp_path, fake_training(config), None, None, None)
    assert asked["batch_size"] == config.train.batch_size // 2
    assert (asked["process_index"], asked["process_count"]) == (1, 2)
