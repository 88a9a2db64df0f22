"""The interfaces of the parts serve systems that the package does not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.config.values import canonical
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.models.interfaces import Sizes
from smoothsa_jax.models.slot_model import KEYS, NUM_KEYS
from smoothsa_jax.tasks.discovery import Discovery
from smoothsa_jax.training.step import build_training


def config_with(num_frames: int = 1, **parts: dict) -> ConfigDict:
    config = tiny_config(num_frames, "gaussian", "mlp_mixture").unlock()
    for name, settings in parts.items():
        config.model[name] = ConfigDict({**config.model[name].to_dict(), **settings})
    return config


def one_step(config: ConfigDict) -> dict[str, float]:
    training = build_training(canonical(config))
    batch = training.place(tiny_batch(config))
    _, metrics = training.train_step(training.state, training.frozen, batch, jax.random.key(0))
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.more
def test_slots_that_an_aggregator_drops_stay_dropped_also_in_a_stream():
    config = canonical(config_with(3, aggregator={"name": "outside_parts:Narrowing"}))
    training = build_training(config)
    model = Segmenter(config, {**training.state.params, **training.frozen})
    video = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    whole, frames = model.segment(video, video=True), list(model.stream(video))
    assert whole.slot_mask.tolist() == [[True, True, False, False]] * 3
    assert set(np.unique(whole.masks)) <= {0, 1}
    for t, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.slot_mask, whole.slot_mask[t])
        np.testing.assert_array_equal(frame.masks, whole.masks[t])
        np.testing.assert_allclose(frame.attention, whole.attention[t], atol=1e-5)
        np.testing.assert_allclose(frame.attention[2:], 0.0)


def test_any_part_gets_the_current_value_of_its_schedule():
    schedule = {"schedule": "step", "begin": 0.75, "end": 0.0, "at": 1.0}
    settings = {"name": "outside_parts:Scheduled", "noise": schedule}
    config = config_with(aggregator=settings)
    config.losses.noise = ConfigDict({"name": "outside_parts:Noise", "weight": 2.0})
    assert one_step(config)["loss/noise"] == pytest.approx(1.5)


@pytest.mark.slow
def test_a_target_may_have_several_names():
    config = config_with(target={"name": "outside_parts:Twice"})
    training = build_training(canonical(config))
    model = training.definitions["model"].merge({**training.state.params, **training.frozen})
    features = jnp.ones((1, 2, 16, 12))
    found = model.target({}, {"features": features}, None)
    np.testing.assert_array_equal(found["doubled"], 2 * found["target"])
    assert np.isfinite(one_step(config)["loss"])


def test_what_a_part_reads_of_the_data_is_placed_and_missed_in_one_line():
    config = config_with(target={"name": "outside_parts:Depth"})
    batch = tiny_batch(config)
    with pytest.raises(UserError, match="the data has no 'depth'"):
        Discovery(canonical(config)).check_batch(batch)
    batch["depth"] = np.ones((*batch["video"].shape[:2], 16, 1), np.float32)
    training = build_training(canonical(config))
    placed = training.place(batch)
    assert "depth" in placed
    _, metrics = training.train_step(training.state, training.frozen, placed, jax.random.key(0))
    assert np.isfinite(float(metrics["loss/reconstruction"]))


def test_masks_of_the_aggregator_are_scored_where_a_decoder_has_none():
    config = config_with(decoder={"name": "outside_parts:WithoutMasks"})
    config.eval.masks = "aggregator"
    training = build_training(canonical(config))
    batch = training.place(tiny_batch(config))
    found = training.predict(training.state.params, training.frozen, batch, jax.random.key(0))
    assert found["attention"].shape == (2, 1, 4, 4, 4)
    model = Segmenter(canonical(config), {**training.state.params, **training.frozen})
    picture = np.zeros((16, 16, 3), np.uint8)
    assert model.segment(picture).masks.shape == (16, 16)


@pytest.mark.slow
def test_a_slot_model_need_not_decode():
    config = tiny_config(num_frames=1)
    training = build_training(canonical(config))
    model = training.definitions["model"].merge({**training.state.params, **training.frozen})
    batch = tiny_batch(config)
    draws = model.draw(jax.random.key(0), Sizes(2, 1, 4), False)
    features = model.encode(batch["video"])["features"]
    given = (features, None, draws, batch["boxes"], batch["slot_mask"])
    outputs = model(*given)
    assert "slots" in outputs and not {"prediction", "masks"} & outputs.keys()


def test_each_part_draws_from_keys_of_its_own():
    places = [place for part in KEYS.values() for place in part]
    assert sorted(places) == list(range(NUM_KEYS))
