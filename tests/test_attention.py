"""Attention with and without weights agrees; forms per backend; saving memory changes no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config

from smoothsa_jax.models.backend import CPU, Backend
from smoothsa_jax.models.layers import attention
from smoothsa_jax.models.layers.attention import attend, attend_with_weights, takes_cudnn
from smoothsa_jax.training.step import build_training

KINDS = ("at once", "masked", "sample by sample", "in a loop", "elsewhere", "masked elsewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_both_forms_agree_in_values_and_gradients(kind, monkeypatch):
    if kind in ("sample by sample", "in a loop"):
        monkeypatch.setattr(attention, "ONE_BY_ONE", 1)
    if kind == "in a loop":
        monkeypatch.setattr(attention, "WRITTEN_OUT", 0)
    backend = Backend("tpu") if "elsewhere" in kind else CPU
    rng = np.random.default_rng(0)
    query, cotangent = (rng.normal(size=(3, 7, 8)).astype(np.float32) for _ in range(2))
    # Logits of some hundreds: the exponential alone would overflow.
    key, value = 100 * rng.normal(size=(3, 5, 8)), rng.normal(size=(3, 5, 8))
    mask = np.arange(5) < np.array([5, 1, 3])[:, None] if "masked" in kind else None

    def plain(*arrays):
        return attend(*arrays, 2, mask, backend=backend, differentiated=True)

    def written_out(*arrays):
        return attend_with_weights(*arrays, 2, mask)[0]

    arrays = [x.astype(np.float32) for x in (query, key, value)]
    for one, other in zip(*(jax.vjp(form, *arrays) for form in (plain, written_out)), strict=True):
        results = [x(cotangent) if callable(x) else [x] for x in (one, other)]
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


H100 = Backend("cuda", 9.0, has_cudnn=True)


@pytest.mark.parametrize(
    ("backend", "dtype", "head_size", "masked", "takes"),
    [
        (H100, jnp.bfloat16, 64, False, True),
        (Backend("cuda", 8.0, True), jnp.float16, 96, False, True),
        (H100, jnp.float32, 64, False, False),  # flash attention has no float32
        (H100, jnp.bfloat16, 60, False, False),
        (H100, jnp.bfloat16, 136, False, False),
        (H100, jnp.bfloat16, 64, True, False),
        (Backend("cuda", 7.5, True), jnp.bfloat16, 64, False, False),
        (Backend("cuda", 9.0, has_cudnn=False), jnp.bfloat16, 64, False, False),
        (Backend("rocm"), jnp.bfloat16, 64, False, False),
        (Backend("tpu"), jnp.bfloat16, 64, False, False),
        (CPU, jnp.bfloat16, 64, False, False),
    ],
)
def test_flash_attention_is_asked_for_where_cudnn_has_it(backend, dtype, head_size, masked, takes):
    found = takes_cudnn(backend, jnp.dtype(dtype), head_size, (256, 256), masked, True)
    assert found is takes


@pytest.mark.parametrize(
    ("lengths", "forward", "gradient"),
    [
        ((256, 256), True, True),
        ((261, 261), True, False),  # the frozen ViT: 256 patches, a class token, 4 registers
        ((225, 225), True, False),  # a grid of 15 x 15
        ((256, 7), True, False),
        ((256, 10), True, True),
        ((7, 256), False, False),  # few queries: XLA's form is as fast
    ],
)
def test_cudnn_takes_odd_lengths_without_a_gradient_only(lengths, forward, gradient):
    for differentiated, takes in ((False, forward), (True, gradient)):
        found = takes_cudnn(H100, jnp.dtype(jnp.bfloat16), 64, lengths, False, differentiated)
        assert found is takes


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
