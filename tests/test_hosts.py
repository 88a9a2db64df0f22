"""Several processes that train together: each makes and places its own part of every batch."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import run_config
from command import ROOT

from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.training import loop

HOST = """
import json, sys
sys.path.insert(0, {tests!r})
import jax
jax.distributed.initialize("localhost:{port}", num_processes=2, process_id=int(sys.argv[1]))
import jax.numpy as jnp
from fake_training import fake_training
from ml_collections import ConfigDict
from test_hosts import batches_of

training = fake_training(ConfigDict({{"seed": 0}}), num_devices=2)
mean = lambda video: video.astype(jnp.float32).mean(axis=(1, 2, 3, 4))
means = jax.jit(mean, out_shardings=replicated(training.mesh))
batches = batches_of(2, jax.process_index(), jax.process_count())
found = []
from smoothsa_jax.training.mesh import replicated
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
    # The library that connects them prints a line of its own.
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in results)
    assert first == second  # one array, seen by both
    alone = batches_of(4)
    for means in first:
        expected = next(alone)["video"].astype(np.float32).mean(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(means, expected, rtol=1e-6)


class _Asked(Exception):
    pass


def test_the_loop_asks_for_its_own_part(tmp_path, monkeypatch):
    asked = {}

    def batches(source, batch_size, seed, **options):
        asked.update(options, batch_size=batch_size)
        raise _Asked

    monkeypatch.setattr(loop, "training_batches", batches)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.hosts, "gather", lambda value: [value, value])
    config = run_config.get_config("image")
    with pytest.raises(_Asked):
        loop._train_steps(config, tmp_path, None, None, None, None)
    assert asked["batch_size"] == config.train.batch_size // 2
    assert (asked["process_index"], asked["process_count"]) == (1, 2)
