"""Models that are trained from pixels: what they are refused for, and that they run everywhere."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from configs.systems import savi
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import MaskEvaluator, Scoring
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inputs.boxes import pad_boxes
from smoothsa_jax.inputs.build import build_dataset
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.layers.conv import Convolution
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.targets import flow_picture
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import build_training

BOXES = {"name": "boxes", "log_std": None, "norm": False, "order": "rows_first", "zeros": True}
SUM = {"name": "reconstruction", "weight": 1.0, "reduction": "sum"}
SEVERAL = {"name": "several", "flow": {"name": "flow"}, "depth": {"name": "depth"}}


def pixel_config(target: dict, **losses) -> ConfigDict:
    """SAVi at the smallest size: pictures of 16 pixels, 16 tokens, three frames."""
    config = tiny_config().to_dict()
    decoder = savi.decoder(2, "early")
    config["model"] |= {
        "encoder": {**savi.convolutions(6, 2), "strides": (2, 2)},
        "initializer": BOXES,
        "transition": {
            "name": "transformer",
            "num_heads": 2,
            "norm": "post",
            "bias": True,
            **savi.LINEN,
        },
        "decoder": {
            **decoder,
            "cells": 4,
            "hidden_size": 6,
            "strides": (2, 2),
            "transposed": (True, True),
        },
        "target": target,
    }
    config["losses"] = losses or {"reconstruction": SUM}
    config["weights"] = {}
    return ConfigDict(config)


def of_both() -> ConfigDict:
    return pixel_config(SEVERAL, flow={**SUM, "of": "flow"}, depth={**SUM, "of": "depth"})


def batch_of(config: ConfigDict) -> dict[str, np.ndarray]:
    batch, rng = tiny_batch(config), np.random.default_rng(1)
    shape = batch["video"].shape[:4]
    flow = rng.standard_normal((*shape, 2)).astype("f")
    return {**batch, "flow": flow, "depth": rng.random(shape, np.float32)}


def error_of(config: ConfigDict) -> str:
    with pytest.raises(UserError) as caught:
        check(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------- it trains


def trained(**changes) -> tuple[dict, dict, dict]:
    """Arrays before and after two steps, and the numbers of the second; the rate begins at 0."""
    config = of_both()
    config.train.update(changes)
    check(config)
    training = build_training(config)
    before = jax.device_get(training.state.params)
    batch, state = training.place(batch_of(config)), training.state
    assert not training.frozen
    for _ in range(2):
        state, metrics = training.train_step(state, training.frozen, batch, jax.random.key(0))
    return before, jax.device_get(state.params), jax.device_get(metrics)


@pytest.mark.slow
def test_training_moves_the_encoder():
    before, after, metrics = trained()
    assert set(metrics) >= {"loss/flow", "loss/depth"}
    for name in before:
        assert name.endswith("bias") or np.any(before[name] != after[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"remat": "all"}, {"accumulate": 2}], ids=str)
def test_memory_options_change_nothing(changes):
    _, plain, metrics = trained()
    _, after, same = trained(**changes)
    assert same["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    for name, x in plain.items():
        if name.endswith(("norm_slots.bias", "alpha.bias", "in_bias")):
            continue  # their gradients are zero in exact arithmetic
        assert np.median(np.abs(x - after[name])) <= 1e-5 * np.abs(x).max(), name


def test_the_bias_of_many_pixels_in_bfloat16():
    """Its gradient is a sum over all pixels, which bfloat16 cannot count."""
    layer = Convolution(
        2, 3, 5, 2, transposed=True, padding="same", start="lecun", rngs=nnx.Rngs(0)
    )
    definition, arrays, _ = split(layer, "bfloat16")
    x = jnp.ones((40, 8, 8, 2), jnp.bfloat16)
    weights = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (40, 16, 16, 1)), "f")

    def total(arrays, weights):
        return jnp.sum(definition.merge(arrays)(x).astype(jnp.float32) * weights)

    gradients = jax.jit(jax.grad(total))(arrays, weights)
    np.testing.assert_allclose(gradients["bias"], weights.sum(), rtol=1e-2)


@pytest.mark.slow
def test_a_video_without_flow_is_segmented():
    """There is no target then, and neither the first frame nor later ones need it."""
    config = of_both()
    model = build_task(config).build(shapes_only=False)
    segmenter = Segmenter(config, split(model)[1])
    video = batch_of(config)["video"][0]
    boxes = [[1, 1, 8, 8], [4, 4, 12, 12]]
    whole = segmenter.segment(list(video), boxes=boxes, video=True)
    frames = list(segmenter.stream(list(video), boxes=boxes))
    assert whole.masks.shape[-2:] == (16, 16) and len(frames) == len(video)
    np.testing.assert_array_equal(whole.masks[-1], frames[-1].masks)
    assert np.isnan(whole.reconstruction_error).all()


def test_a_target_of_pixels_is_what_the_encoder_sees():
    config = pixel_config({"name": "pixels"})
    config.model.encoder.pixels = "signed"
    task, batch = build_task(config), batch_of(config)
    model = task.build(shapes_only=False)
    target = model.target(batch, {})["target"]
    expected = batch["video"].reshape(*target.shape) / 127.5 - 1
    np.testing.assert_allclose(target, expected, atol=1e-6)
    pixels = np.array([0, 255], np.uint8)
    for seen, ends in {"unit": (0, 1), "signed": (-1, 1)}.items():
        model.encoder.pixels = seen
        np.testing.assert_allclose(normalize(pixels[:, None], model.encoder)[:, 0], ends)


def test_colors_of_flow():
    """Downwards is cyan, to the right is a half turn of a quarter further, long flow saturates."""
    flow = np.zeros((1, 3, 2), np.float32)
    flow[0, :, :] = [[9, 0], [0, 9], [-9, 0]]
    down, right, up = np.asarray(flow_picture(jnp.asarray(flow)))[0]
    np.testing.assert_array_equal(down, [0, 1, 1])
    np.testing.assert_allclose(right, [0.5, 0, 1], atol=0.003)
    np.testing.assert_array_equal(up, [1, 0, 0])


# --------------------------------------------------------------------------------- it is refused


def test_flow_and_depth_that_the_data_lack():
    config = of_both()
    assert "reads 'flow'" in build_error(config) or "reads 'depth'" in build_error(config)
    training = build_training(config)
    batch = batch_of(config)
    del batch["depth"]
    with pytest.raises(UserError, match="the data has no 'depth', which a part of the model"):
        training.place(batch)


def build_error(config: ConfigDict) -> str:
    with pytest.raises(UserError) as caught:
        build_dataset(config.data, "train", reads=build_task(config).inputs)
    return str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cells": 5}, "cells 5x5 with strides .2, 2. reach 20x20 pixels, .*cells=4"),
        ({"strides": (2, 3)}, "reach 24x24 pixels, and the target has 16x16; choose cells times"),
        ({"strides": 2}, "strides is 2; expected the stride of each layer"),
        ({"transposed": (True,)}, "transposed is .*expected True or False for each of 2 strides"),
        ({"transposed": (True, False)}, "a layer of stride 2 would shrink the grid"),
        ({"head": "joint"}, "fusion is 'early', but the head 'joint'"),
        ({"padding": "valid"}, "padding is 'valid'; expected one of same, torch"),
        ({"position": "fourier"}, "position_waves is None; expected a whole number"),
        ({"position_waves": 3}, "position_waves is 3, but model.decoder.position is 'linear'"),
    ],
)
def test_a_decoder_that_does_not_fit(change, message):
    config = pixel_config({"name": "flow"})
    with config.ignore_type():
        config.model.decoder.update(change)
    assert re.search(message, error_of(config))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strides": ()}, "strides is (); expected the stride of each layer"),
        ({"norm": "batch"}, "norm is 'batch'; expected one of instance, none, one_group"),
        ({"pixels": "bytes"}, "pixels is 'bytes'; expected one of imagenet, signed, unit"),
        (
            {"start": "truncated"},
            "start is 'truncated'; expected one of glorot, he, lecun, torch, xavier",
        ),
    ],
)
def test_an_encoder_that_does_not_exist(change, message):
    config = pixel_config({"name": "flow"})
    config.model.encoder.update(change)
    assert message in error_of(config)


def test_groups_of_a_resnet():
    config = pixel_config({"name": "flow"})
    config.model.encoder = ConfigDict({**savi.RESNET_34, "groups": 48})
    assert "groups is 48, which does not divide model.encoder.root_width 64" in error_of(config)


def test_targets_and_losses_that_do_not_fit():
    one = pixel_config({"name": "several", "flow": {"name": "flow"}})
    assert (
        "with flow; expected at least two of pixels, flow, depth, codes and features"
        in error_of(one)
    )
    config = pixel_config({"name": "flow"}, depth={**SUM, "of": "depth"})
    assert "losses.depth needs depth.prediction, which this model does not give" in error_of(config)
    with pytest.raises(UserError, match="reduction is 'max'; expected one of frame, mean, sum"):
        build_losses({"reconstruction": {"weight": 1.0, "reduction": "max"}})


def test_stored_features_without_the_pixels_of_a_target():
    """A frozen encoder's features can be stored, but a target of pixels needs the pixels too."""
    task = build_task(pixel_config({"name": "pixels"}))
    with pytest.raises(UserError, match="the data has no 'video', which a part of the model"):
        task.check_batch({"features": np.zeros((2, 3, 16, 6), np.float32)})


def test_zeros_in_place_of_an_objects_box():
    config = pixel_config({"name": "flow"})
    config.data.background_box = False
    assert "data.background_box is False, so that it is an object's" in error_of(config)


def test_cached_features_of_a_trained_encoder():
    config = pixel_config({"name": "flow"})
    config.data.features = "somewhere"
    assert "data.features is set, but the encoder is trained" in error_of(config)


def test_cached_features_of_a_target_of_pixels():
    several = {"name": "several", "pixels": {"name": "pixels"}, "depth": {"name": "depth"}}
    for target in ({"name": "pixels"}, several):
        config = pixel_config(target)
        with config.ignore_type():
            config.model.encoder = tiny_config().model.encoder
            config.weights = tiny_config().weights
        config.data.features = "somewhere"
        error = error_of(config)
        assert "data.features is set, but model.target.name='pixels' needs pixels" in error


def test_more_boxes_than_slots():
    config = pixel_config({"name": "flow"})
    config.data.update(max_objects=4, background_box=True)
    assert "data.max_objects is 4 and one box for the background, more than" in error_of(config)
    boxes = np.zeros((1, 4, 4), np.float32)
    with pytest.raises(UserError, match="a sample has boxes of 4 objects and of the background"):
        pad_boxes(boxes, 4, whole_frame=boxes[0, 0])


# --------------------------------------------------------------------- scores without first frames


def test_first_frames_are_left_out():
    """Scores equal those of the clips without their first frames; one that is all is refused."""
    rng = np.random.default_rng(0)
    masks = rng.random((2, 4, 3, 6, 5)).astype("f")
    labels = rng.integers(0, 3, (2, 4, 12, 10), dtype=np.uint8)
    lengths = np.array([4, 3], np.int32)
    for per_frame in (False, True):
        options = {"per_frame": per_frame, "foreground": True}
        found = []
        for skip, cut in ((2, 0), (0, 2)):
            evaluator = MaskEvaluator(scoring=Scoring(**options, skip_frames=skip))
            outputs = {"masks": jnp.asarray(masks[:, cut:])}
            batch = {"segmentations": labels[:, cut:], "num_frames": lengths - cut}
            tables = jax.device_get(evaluator.measure(outputs, batch).tables)
            found.append(evaluator.per_sample(tables, False))
        assert found[0].keys() == found[1].keys()
        for name, values in found[0].items():
            np.testing.assert_array_equal(values, found[1][name], err_msg=name)
    config = pixel_config({"name": "flow"})
    config.eval.skip_frames = config.eval.num_frames
    assert "eval.skip_frames is 3, but scored clips have 3 frames" in error_of(config)
    with config.ignore_type():
        config.eval.update(num_frames=None, skip_frames=config.data.num_frames - 1)
    check(config)
