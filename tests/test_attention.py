"""Attention without weights and with them is the same; which form runs where; what trades time for memory changes no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config

from smoothsa_jax.models import attention
from smoothsa_jax.models.attention import attend, attend_with_weights, implementation
from smoothsa_jax.training.step import build_training

KINDS = ("at once", "masked", "sample by sample", "in a loop", "elsewhere", "masked elsewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_agree_in_values_and_gradients(kind, monkeypatch):
    if kind in ("sample by sample", "in a loop"):
        monkeypatch.setattr(attention, "ONE_BY_ONE", 1)
    if kind == "in a loop":
        monkeypatch.setattr(attention, "WRITTEN_OUT", 0)
    if "elsewhere" in kind:  # the call of a GPU or TPU, in the form that a CPU has too
        monkeypatch.setattr(jax, "default_backend", lambda: "an accelerator")
    rng = np.random.default_rng(0)
    query, cotangent = (rng.normal(size=(3, 7, 8)).astype(np.float32) for _ in range(2))
    # Logits of some hundreds: the exponential alone would overflow.
    key, value = 100 * rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 5, 8))
    mask = np.arange(5) < np.array([5, 1, 3])[:, None] if "masked" in kind else None

    def plain(*arrays):
        return attend(*arrays, 2, mask)

    def written_out(*arrays):
        return attend_with_weights(*arrays, 2, mask)[0]

    arrays = [x.astype(np.float32) for x in (query, key, value)]
    for one, other in zip(*(jax.vjp(form, *arrays) for form in (plain, written_out)), strict=True):
        results = [x(cotangent) if callable(x) else [x] for x in (one, other)]
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("dtype", "head_size", "masked", "capability", "form"),
    [
        (jnp.bfloat16, 64, False, 9.0, "cudnn"),
        (jnp.float16, 96, False, 8.0, "cudnn"),
        (jnp.float32, 64, False, 9.0, "xla"),  # flash attention has no float32
        (jnp.bfloat16, 60, False, 9.0, "xla"),
        (jnp.bfloat16, 136, False, 9.0, "xla"),
        (jnp.bfloat16, 64, True, 9.0, "xla"),
        (jnp.bfloat16, 64, False, 7.5, "xla"),
        (jnp.bfloat16, 64, False, None, "xla"),  # AMD, TPU
    ],
)
def test_flash_attention_is_asked_for_where_cudnn_has_it(
    dtype, head_size, masked, capability, form
):
    assert implementation(jnp.dtype(dtype), head_size, masked, capability) == form


@pytest.fixture(scope="module")
def plain_step():
    return step_with()


def step_with(**settings):
    config = tiny_config(num_frames=3)
    config.model.decoder.num_layers = 2
    config.train.update(settings)
    training = build_training(config)
    batch, key = training.place(tiny_batch(config)), jax.random.key(0)
    arguments = (training.state, training.frozen, batch, key)
    traced = str(training.train_step.trace(*arguments).jaxpr)
    return traced, jax.device_get(training.train_step(*arguments)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "checkpoints"),
    [({"remat": "recurrence"}, 1), ({"remat": "all", "scan_unroll": 2}, 3)],
)
def test_what_trades_time_for_memory_changes_no_value(settings, checkpoints, plain_step):
    """A checkpoint for the step of the recurrence, and one for each of the decoder's two layers."""
    plain, expected = plain_step
    traced, found = step_with(**settings)
    count = lambda text: text.count("remat") + text.count("checkpoint[")  # noqa: E731
    assert count(plain) == 0 and count(traced) >= checkpoints
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
