"""The schedule of noise, sampling by DDIM, the denoising UNet and its target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.decoders.denoising_unet import DenoisingUNet
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.layers.diffusion import (
    NUM_STEPS,
    add_noise,
    ddim_steps,
    sample_ddim,
    signal_shares,
)
from smoothsa_jax.models.layers.unet import twice_as_large
from smoothsa_jax.models.targets import Noise

GRID = (3, 5)
SETTINGS = {
    "widths": (4, 8),
    "num_blocks": 1,
    "groups": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "zero_start": False,
}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def unet(grid: tuple[int, int] = (4, 4), **settings) -> DenoisingUNet:
    return DenoisingUNet(grid, 3, 6, **{**SETTINGS, **settings}, rngs=nnx.Rngs(0))


def test_noise_has_the_variance_of_the_schedule():
    data, noise = normal(2, 3, 50, 40), normal(2, 3, 50, 40, seed=1)
    step = jnp.array([[0, 10, 400], [700, 998, 999]])
    noisy = add_noise(data, noise, step)
    np.testing.assert_allclose(noisy.var(axis=(2, 3)), 1.0, atol=0.1)
    share = jnp.mean(noisy * data, axis=(2, 3)) / jnp.mean(data**2, axis=(2, 3))
    np.testing.assert_allclose(share, np.sqrt(signal_shares()[step]), atol=0.06)


@pytest.mark.parametrize("number", [1, 7, 200, NUM_STEPS])
def test_ddim_finds_the_data_that_the_noise_was_added_to(number):
    """With the exact noise of one picture, whatever it starts from."""
    data = normal(2, 5, 3)
    shares = jnp.asarray(signal_shares())

    def predict(x, step):
        share = shares[step][:, None, None]
        return (x - jnp.sqrt(share) * data) / jnp.sqrt(1.0 - share)

    steps = ddim_steps(number)
    assert len(steps) == number == len(set(steps.tolist()))
    assert steps[0] == NUM_STEPS - 1
    found = jax.jit(lambda x: sample_ddim(predict, x, number))(normal(2, 5, 3, seed=1))
    np.testing.assert_allclose(found, data, atol=2e-4)


def test_ddim_follows_the_flow_of_a_gaussian():
    """For data N(mean, std**2) the exact predictor and the flow's end are known in closed form."""
    mean, std, shares = 0.7, 0.3, jnp.asarray(signal_shares())

    def predict(x, step):
        share = shares[step][:, None, None]
        return jnp.sqrt(1 - share) * (x - jnp.sqrt(share) * mean) / (share * std**2 + 1 - share)

    start, last = normal(2, 5, 3), float(signal_shares()[-1])
    found = jax.jit(lambda x: sample_ddim(predict, x, NUM_STEPS))(start)
    scale = std / np.sqrt(last * std**2 + 1 - last)
    expected = mean + scale * (start - np.sqrt(last) * mean)
    np.testing.assert_allclose(found, expected, atol=0.02)
    coarse = jax.jit(lambda x: sample_ddim(predict, x, 10))(start)
    assert np.abs(coarse - expected).max() > np.abs(found - expected).max()


def predicted(decoder: DenoisingUNet):
    """(slots, noisy, time, keys of dropout) -> the prediction, compiled."""

    @jax.jit
    def run(slots, noisy, time, draws=None):
        return decoder(slots, None, {"noisy": noisy, "time": time}, draws)[0]["prediction"]

    return run


@pytest.fixture(scope="module")
def decoder() -> DenoisingUNet:
    """On a grid of odd sides, with dropout."""
    return unet(grid=GRID, dropout_rate=0.5)


@pytest.fixture(scope="module")
def predict(decoder):
    return predicted(decoder)


@pytest.mark.more
def test_samples_come_from_the_key_and_the_slots(decoder):
    slots = normal(2, 3, 6)
    run = jax.jit(lambda slots, mask, key: decoder.generate(slots, mask, key, 3))
    mask = jnp.array([[True, True, False], [True, True, True]])
    found = run(slots, mask, jax.random.key(0))
    assert found.shape == (2, 15, 3) and np.isfinite(found).all()
    np.testing.assert_array_equal(found, run(slots, mask, jax.random.key(0)))
    assert np.abs(found - run(slots, mask, jax.random.key(1))).max() > 0.1
    other = run(slots.at[0, 2].set(9.0).at[1, 0].set(9.0), mask, jax.random.key(0))
    np.testing.assert_array_equal(found[0], other[0])  # of a masked slot
    assert np.abs(found[1] - other[1]).max() > 1e-3
    with pytest.raises(UserError, match="at most 1000"):
        decoder.generate(slots, mask, jax.random.key(0), 1001)


def test_the_step_and_the_slots_matter(decoder, predict):
    slots, noisy = normal(2, 3, 6), normal(2, 15, 3)
    found = predict(slots, noisy, jnp.array([5, 800]))
    later = predict(slots, noisy, jnp.array([5, 10]))
    np.testing.assert_allclose(found[0], later[0], atol=1e-6)
    assert np.abs(found[1] - later[1]).max() > 1e-3
    assert np.abs(found - predict(slots + 1.0, noisy, jnp.array([5, 800]))).max() > 1e-3
    moved = predict(slots[:, ::-1], noisy, jnp.array([5, 800]))
    np.testing.assert_allclose(found, moved, atol=1e-5)  # slots have no order
    assert set(decoder.needs) == {"noisy", "time"}


@pytest.mark.slow
def test_dropout_is_drawn_for_each_frame_in_training(decoder, predict):
    keys = [jax.random.key(0)]
    assert decoder.draw(keys, Sizes(2, 3, 5), False) is None
    drawn = decoder.draw(keys, Sizes(2, 3, 5), True)
    assert drawn.shape == (2, 3)
    inputs = (
        jnp.repeat(normal(1, 3, 6), 2, axis=0),
        jnp.repeat(normal(1, 15, 3), 2, axis=0),
        jnp.array([7, 7]),
    )
    found = predict(*inputs, drawn[:, 0])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    moved = predict(*inputs, drawn[::-1, 0])
    np.testing.assert_allclose(moved[::-1], found, atol=1e-5)


@pytest.mark.slow
def test_zero_start():
    """Nothing is predicted at first, and each block and transformer passes its input on."""
    started = unet(zero_start=True)
    run = predicted(started)
    assert not np.any(run(normal(2, 3, 6), normal(2, 16, 3), jnp.array([5, 800])))
    x, level = normal(2, 2, 2, 8), started.middle
    step = jax.jit(lambda x: level.step(0, x, normal(2, 16), normal(2, 3, 6), None, None))
    np.testing.assert_array_equal(step(x), x)


@pytest.mark.slow
def test_remat_changes_no_value(decoder):
    slots = normal(2, 3, 6)
    given = {"noisy": normal(2, 15, 3), "time": jnp.array([5, 800])}
    total = lambda slots: jnp.sum(decoder(slots, None, given)[0]["prediction"] ** 2)  # noqa: E731
    plain = jax.jit(jax.grad(total))(slots)
    decoder.remat = True
    again = jax.jit(jax.grad(lambda slots: total(slots)))(slots)
    decoder.remat = False
    np.testing.assert_allclose(again, plain, rtol=1e-5, atol=1e-6)


def test_twice_as_large():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    rows = [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    np.testing.assert_array_equal(twice_as_large(x, (3, 3))[0, :, :, 0], rows)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"groups": 3}, "does not divide"),
        ({"widths": (5, 5), "groups": 5}, "even number"),
        ({"widths": ()}, "channels of each level"),
        ({"widths": 8}, "channels of each level"),
        ({"num_heads": None}, "set one of them"),
        ({"head_size": 4}, "set one of them"),
        ({"num_heads": 3}, "does not divide the width 8"),
        ({"zero_start": 1}, "zero_start"),
    ],
)
def test_settings_that_do_not_fit(settings, told):
    with pytest.raises(UserError, match=told):
        unet(**settings)


def test_the_target_is_the_noise():
    encoder = type("Encoder", (), {"grid": (4, 4), "width": 8})
    target = Noise(encoder, (8, 8), width=3, rngs=nnx.Rngs(0))
    assert target.grid == (4, 4) and target.width == 3
    draws = target.draw([jax.random.key(0)], Sizes(64, 2, 5), False)
    assert draws["noise"].shape == (64, 2, 16, 3)
    assert draws["time"].shape == (64, 2) and draws["time"].dtype == jnp.int32
    assert 0 <= draws["time"].min() < 100 and 900 < draws["time"].max() < NUM_STEPS
    codes = normal(64, 2, 16, 3)
    found = target({}, {"codes": codes}, draws)
    np.testing.assert_array_equal(found["target"], draws["noise"])
    noisy = add_noise(codes, draws["noise"], draws["time"])
    np.testing.assert_array_equal(found["noisy"], noisy)
    assert target({}, {}, draws) == {} and target({}, {"codes": codes}, None) == {}
    wide = Noise(encoder, (8, 8), width=3, grid=(2, 6), rngs=nnx.Rngs(0))
    assert wide.draw([jax.random.key(0)], Sizes(1, 1, 5), True)["noise"].shape == (1, 1, 12, 3)
    for grid in ("4x4", (4,), (4, 0)):
        with pytest.raises(UserError, match="model.target.grid"):
            Noise(encoder, (8, 8), width=3, grid=grid, rngs=nnx.Rngs(0))
