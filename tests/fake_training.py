"""A fast-compiling training step for tests of the loop: real data and checkpoints, no model."""

import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from run_config import get_config

from smoothsa_jax.devices.mesh import make_mesh, replicated
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.training.state import TrainState, create_state
from smoothsa_jax.training.step import Training

SCORES = {
    "metrics": {
        name: {"mean": 0.5, "std": 0.0, "seeds": [0.5]} for name in ("ari", "fg_ari", "mbo", "miou")
    },
    "baselines": {},
    "split": "test",
    "step": 0,
}


def fake_training(
    config,
    *,
    width: int = 5,
    on_step: Callable[[int], None] = lambda step: None,
    num_devices: int = 1,
):
    """A `Training` whose weights depend on every batch, every key and their order.

    Args:
        width: of its one array.
        on_step: called in Python before each step with the number of steps done.
        num_devices: of the mesh.
    """
    optimizer = optax.adam(1e-2)
    mesh = make_mesh(ConfigDict({"data": num_devices, "fsdp": 1}))

    @jax.jit
    def compute(state: TrainState, batch: dict, key: jax.Array):
        noise = jax.random.normal(key, (width,))

        def loss_function(params):
            target = batch["video"].astype(jnp.float32).mean() / 255
            return jnp.mean((params["w"] - target + 0.1 * noise) ** 2)

        loss, grads = jax.value_and_grad(loss_function)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        metrics = {
            "loss": loss,
            "loss/reconstruction": loss,
            "grad_norm": jnp.linalg.norm(grads["w"]),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    def train_step(state, frozen, batch, key):
        on_step(int(state.step))
        return compute(state, batch, key)

    params = {"w": jnp.linspace(0.0, 1.0, width) + config.seed}
    return Training(
        task=build_task(config if "task" in config else get_config("image")),
        definitions={"model": types.SimpleNamespace(dtype="float32")},
        state=jax.device_put(create_state(params, optimizer), replicated(mesh)),
        frozen=jax.device_put({"encoder.f": jnp.ones(2)}, replicated(mesh)),
        train_step=train_step,
        predict_on=None,
        losses_on=None,
        mesh=mesh,
    )


def use(monkeypatch, **options) -> None:
    """Let `main.py` train the fake instead of a model, with fixed scores."""
    from smoothsa_jax.checkpoints import sources
    from smoothsa_jax.training import evaluating, loop

    def report(config, training, params, step, workdir):
        scores = {**SCORES, "step": step}
        evaluating.write_scores(workdir / "scores.json", scores)
        return scores

    def begin(config, training, warn):
        return training.state.params, training.frozen, ""

    monkeypatch.setattr(sources, "begin", begin)
    for module in (loop, evaluating):
        build = lambda config: fake_training(config, **options)  # noqa: E731
        monkeypatch.setattr(module, "build_training", build)
        monkeypatch.setattr(module, "report", report)
