"""SlotFormer against the numbers of its program: rollouters, their training, its SAVi, scores.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FOLDER,
    FORWARD,
    GRADIENT,
    LOSS,
    Golden,
    compare_gradients,
    count,
    golden,
    inner,
    write_report,
)
from ml_collections import ConfigDict
from tiny import tiny_config

from smoothsa_jax.checkpoints import published
from smoothsa_jax.config.load import load_config
from smoothsa_jax.evaluation import frames
from smoothsa_jax.interop.slotformer import ROLLOUTER, SAVI
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.build import (
    build_rollout_model,
    build_slot_model,
    model_shapes,
)
from smoothsa_jax.models.encoders.pixels import denormalize
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.rollouters import interleaved
from smoothsa_jax.training.step import build_training

CONFIGS = Path(__file__).parent.parent / "configs"
# What the files do not tell.
HEADS = 4
KL_WEIGHT, WARMUP, PEAK, START_RATIO = 1e-4, 2, 2e-3, 0.01
FINAL = 2e-5  # of trained arrays, relative to each one's largest value
ROLLOUTS = {
    "slotformer_rollout": {},
    "slotformer_rollout_learned_positions": {"positions": "learned", "slot_positions": True},
    "slotformer_rollout_single_frame": {"history": 1},
}
ROLLOUTS["slotformer_rollout_learned_positions"]["norm"] = "post"
FILES = (
    *ROLLOUTS,
    "slotformer_interleaved",
    "model_slotformer",
    "trajectory_slotformer",
    "model_savi_slotformer_stochastic",
    "model_savi_slotformer_recurrent",
    "video_prediction_metrics",
)


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def rollouter_settings(recorded: Mapping[str, np.ndarray], **more) -> dict:
    """Settings of a rollouter, from its arrays by the names in the program."""
    width, _ = recorded["in_proj.weight"].shape
    return {
        "name": "slotformer",
        "width": width,
        "num_layers": count(recorded, r"layers\.(\d+)\."),
        "num_heads": HEADS,
        "mlp_size": recorded["transformer_encoder.layers.0.linear1.weight"].shape[0],
        "window": recorded["enc_t_pe"].shape[1],
        "dropout_rate": 0.0,
        **more,
    }


def in_front(found: Mapping) -> dict:
    return {f"rollouter.{key}": x for key, x in found.items()}


def loaded(recorded: Mapping[str, np.ndarray], num_slots: int, **more):
    """A rollouter's definition and arrays, and its settings."""
    settings = rollouter_settings(recorded, **more)
    size = recorded["in_proj.weight"].shape[1]
    config = ConfigDict({"rollouter": settings, "future": 1})
    make = lambda: build_rollout_model(config, num_slots, size, 0)  # noqa: E731
    definition, expected, _ = split(nnx.eval_shape(make))
    arrays = ROLLOUTER.to_ours(in_front(recorded), expected)
    assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
    return definition, {k: jnp.asarray(x) for k, x in arrays.items()}, settings


def is_null(name: str) -> bool:
    """Whether a part of a gradient is zero in exact arithmetic: the keys of attention's bias."""
    return name.endswith("in_bias")


def compare(file: Golden, recorded: Mapping, found: Mapping):
    """Compare gradients by our names; without a recorded one, ours is zero."""
    compare_gradients(file, found, recorded, null=is_null, not_recorded=0.0)


# ------------------------------------------------------------------------------------ rollouters


@pytest.mark.slow
@pytest.mark.parametrize("name", ROLLOUTS)
def test_rollout(name):
    with golden(name) as file:
        past, cotangent = file["inp/past"], file["inp/cotangent"]
        definition, arrays, _ = loaded(file.group("param/"), past.shape[2], **ROLLOUTS[name])

        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def total(arrays, past):
            predicted = definition.merge(arrays).rollouter(past, cotangent.shape[1])
            return inner([(predicted, cotangent)]), predicted

        (_, predicted), (of_arrays, of_past) = jax.jit(total)(arrays, jnp.asarray(past))
        file.compare("out/predicted", predicted, FORWARD)
        file.compare("grad/past", of_past, GRADIENT)
        theirs = in_front({k: x for k, x in file.group("grad/").items() if k != "past"})
        compare(file, ROLLOUTER.to_ours(theirs, arrays), of_arrays)


def test_interleaved():
    with golden("slotformer_interleaved") as file:
        slots, expected = file["inp/slots"], file.arrays["out/slots"]
        every, length = int(file["inp/offset"]), slots.shape[1]
        definition, arrays, _ = loaded(file.group("param/"), slots.shape[2], every=every)
        steps = expected.shape[1] - length
        run = jax.jit(lambda arrays: interleaved(definition.merge(arrays).rollouter, slots, steps))
        found = np.concatenate([slots, run(arrays)], axis=1)
        file.compare("out/slots", found, FORWARD)


def broadcast_decoder(recorded: Mapping[str, np.ndarray], size: tuple[int, int]) -> dict:
    """Settings of the decoder of a file."""
    layers = count(recorded, r"^decoder\.(\d+)\.0\.weight")
    cells = recorded["decoder_pos_embedding.grid"].shape[1:3]
    enlarged = int(np.log2(size[0] // cells[0]))
    return {
        "name": "spatial_broadcast",
        "cells": tuple(cells),
        "hidden_size": recorded["decoder.0.0.weight"].shape[1],
        "kernel_size": recorded["decoder.0.0.weight"].shape[-1],
        "strides": (2,) * enlarged + (1,) * (layers - enlarged),
        "transposed": (True,) * layers,
        "padding": "torch",
        "position": "borders",
        "head": "separate",
        "fusion": "late",
        "start": "torch",
    }


def dynamics_config(file: Golden) -> ConfigDict:
    """A run of the task `dynamics` with the sizes of `model_slotformer`."""
    param, video = file.group("param/"), file["inp/video"]
    prefix = "rollouter."
    of_rollouter = {k.removeprefix(prefix): x for k, x in param.items() if k.startswith(prefix)}
    window = of_rollouter["enc_t_pe"].shape[1]
    config = load_config(f"{CONFIGS}/sprites.py:gaussian,dynamics")
    config = config.copy_and_resolve_references().unlock()
    slots = file["inp/slots"]
    model = tiny_config(slots.shape[1], decoder="mlp_mixture").model
    model.update(num_slots=slots.shape[2], slot_size=slots.shape[3])
    model.decoder = ConfigDict(broadcast_decoder(param, video.shape[-2:]))
    model.target = ConfigDict({"name": "pixels"})
    model.initializer = ConfigDict({"name": "gaussian", "log_std": 0.0})
    model.transition.num_heads = 2
    future = file.arrays["out/predicted"].shape[1]
    config.model = ConfigDict({"rollouter": rollouter_settings(of_rollouter), "future": future})
    config.companions.slot_model = ConfigDict({"source": "", "title": "", "model": model})
    config.losses.decoded = ConfigDict({"weight": 1.0})  # which sprites leave out
    config.data.update(image_size=video.shape[-1], num_frames=window + future, boxes=False)
    config.data.update(slots="", max_objects=2)
    config.eval.update(num_frames=window + future, observed=window)
    config.train.num_steps, config.train.batch_size = 6, len(video)
    config.optimizer.learning_rate = ConfigDict(
        {
            "schedule": "warmup_cosine",
            "peak": PEAK,
            "warmup": WARMUP / 6,
            "begin_ratio": START_RATIO,
            "end_ratio": START_RATIO,
        }
    )
    return config


def begun(file: Golden):
    """The training of a file, its state and frozen arrays, and its batch."""
    config = dynamics_config(file)
    training = build_training(config)
    names = {**training.state.params, **training.frozen}
    ours = ROLLOUTER.to_ours(file.group("param/"), names)
    size = (config.data.image_size,) * 2
    model = build_slot_model(config.companions.slot_model.model, size, 0)
    _, trained, rest = split(model)
    frozen = {f"slot_model.{k}": x for k, x in {**trained, **rest}.items()}
    frozen |= {k: jnp.asarray(x) for k, x in ours.items() if k in frozen}
    params = {k: jnp.asarray(ours[k]) for k in training.state.params}
    assert set(ours) == {*params, *(k for k in frozen if k.startswith("slot_model.decoder."))}
    slots = file["inp/slots"]
    batch = {
        "slots": slots,
        "video": np.moveaxis(file["inp/video"], 2, -1),
        "slot_mask": np.ones(slots.shape[0:3:2], bool),
    }
    return training, training.state.replace(params=params), frozen, batch


def draws_of(batch) -> dict:
    empty = {"slot_model": {}, "rollouter": None}
    return {**empty, "start": jnp.zeros(len(batch["slots"]), jnp.int32)}


@pytest.mark.slow
def test_model():
    """Losses of slots and of pixels, of a frozen decoder, and the gradient of their sum."""
    with golden("model_slotformer") as file:
        training, state, frozen, batch = begun(file)
        task, losses = training.task, None
        config = dynamics_config(file)
        losses = build_losses(config.losses)

        @jax.jit
        def run(params, lengths, decay):
            models = {
                name: found.merge({**params, **frozen})
                for name, found in training.definitions.items()
            }
            given = {k: jnp.asarray(x) for k, x in batch.items()}
            if lengths is not None:
                given["num_frames"] = lengths
            draws = draws_of(batch)
            constants = task.constants(models, given, draws, False)
            outputs = task.forward(models, given, constants, draws, {})
            scheduled = {"slots": {"weight": 1.0, "decay": decay}, "decoded": {"weight": 1.0}}
            outputs = {**constants, **outputs}
            terms = losses(outputs, given, scheduled)
            slots = outputs["predicted_slots"]
            decoded = models["slot_model"].decoded(slots, None)
            return sum(terms.values()), (terms, slots, decoded)

        grad = jax.value_and_grad(lambda params: run(params, None, 1.0), has_aux=True)
        (_, (terms, predicted, decoded)), gradients = grad(state.params)
        file.compare("loss/slots", terms["slots"], LOSS)
        file.compare("loss/images", terms["decoded"], LOSS)
        file.compare("out/predicted", predicted, FORWARD)
        size = file["inp/video"].shape[-2:]
        pictures = lambda x: np.moveaxis(np.reshape(x, (*x.shape[:2], *size, 3)), -1, 2)  # noqa: E731
        file.compare("out/reconstruction", pictures(decoded["prediction"]), FORWARD)
        file.compare("out/masks", decoded["masks"][:, :, :, None], FORWARD)
        compare(file, ROLLOUTER.to_ours(file.group("grad/"), state.params), gradients)
        decay = run(state.params, None, 0.7)[1][0]
        file.compare("loss/slots_decay_0.7", decay["slots"], LOSS)
        short = run(state.params, jnp.asarray(file["inp/video_length"]), 1.0)[1][0]
        file.compare("loss/slots_short", short["slots"], LOSS)
        file.compare("loss/images_short", short["decoded"], LOSS)
        true = file["inp/slots"][:, -predicted.shape[1] :]
        for k in range(predicted.shape[1]):
            error = np.mean((predicted[:, k] - true[:, k]) ** 2)
            file.compare(f"loss/slots_step_{k + 1}", error, LOSS)
        # The picture of each slot by itself, which our decoder does not give.
        file.used.add("out/slot_images")


@pytest.mark.slow
def test_trajectory():
    """Six steps of the program's training step, with its learning rates and without clipping."""
    with golden("model_slotformer", parts=()) as model, golden("trajectory_slotformer") as file:
        training, state, frozen, batch = begun(model)
        slots, images, rates, norms = [], [], [], []
        placed = {k: jnp.asarray(x) for k, x in batch.items()}
        for step in range(len(file.arrays["loss/slots"])):
            arguments = state, frozen, placed, jax.random.key(step), draws_of(batch)
            state, metrics = training.train_step(*arguments)
            slots.append(float(metrics["loss/slots"]))
            images.append(float(metrics["loss/decoded"]))
            rates.append(float(metrics["learning_rate"]))
            norms.append(float(metrics["grad_norm"]))
            if step == len(file.arrays["out/learning_rates"]) - 1:
                trained = {k: np.asarray(x) for k, x in state.params.items()}
        steps = len(file.arrays["out/learning_rates"])
        file.compare("loss/slots", slots, LOSS)
        file.compare("loss/images", images, LOSS)
        file.compare("out/learning_rates", rates[:steps], 1e-6)
        file.compare("out/gradient_norms", norms[:steps], 2e-5)
        final = ROLLOUTER.to_ours(in_front(file.group("final/")), trained)
        for name, expected in final.items():
            found = trained[name]
            if is_null(name):
                keep = np.r_[: len(found) // 3, 2 * len(found) // 3 : len(found)]
                found, expected = found[keep], expected[keep]
            np.testing.assert_allclose(
                found, expected, atol=FINAL * np.abs(expected).max(), rtol=0, err_msg=name
            )


# ----------------------------------------------------------------------------------------- SAVi


def savi_config(recorded: Mapping[str, np.ndarray], size: tuple[int, int]) -> ConfigDict:
    """The gallery's model with the sizes of a file."""
    deep = "kernel_dist_layer.3.weight" in recorded
    words = "gaussian,savi_slotformer" if deep else "gaussian,savi_slotformer,stochastic"
    model = load_config(f"{CONFIGS}/movi_c.py:{words}").model.copy_and_resolve_references().unlock()
    _, slots, slot_size = recorded["init_latents"].shape
    layers = count(recorded, r"^encoder\.(\d+)\.0\.weight")
    model.update(num_slots=slots, slot_size=slot_size)
    with model.encoder.ignore_type():
        model.encoder.update(width=recorded["encoder.0.0.weight"].shape[0], strides=(1,) * layers)
    model.projection.hidden_size = recorded["encoder_out_layer.1.weight"].shape[0]
    model.aggregator.mlp_size = recorded["slot_attention.mlp.1.weight"].shape[0]
    model.decoder = ConfigDict(broadcast_decoder(recorded, size))
    if deep:
        start = "predictor.base_predictor.transformer_encoder.layers."
        model.transition.update(
            num_layers=count(recorded, re.escape(start) + r"(\d+)\."),
            num_heads=HEADS,
            mlp_size=recorded[f"{start}0.linear1.weight"].shape[0],
            state_size=recorded["predictor.rnn.weight_hh_l0"].shape[1],
            dropout_rate=0.0,
        )
    else:
        model.transition.hidden_size = recorded["predictor.mlp.0.weight"].shape[0]
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stochastic", "recurrent"])
def test_savi(kind):
    with golden(f"model_savi_slotformer_{kind}") as file:
        recorded, video = file.group("param/"), np.moveaxis(file["inp/video"], 2, -1)
        size = video.shape[2:4]
        config = savi_config(recorded, size)
        make = lambda: build_slot_model(config, size, 0)  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(make))
        arrays = SAVI.to_ours(recorded, expected, config.to_dict())
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        noise = file["inp/noise"].swapaxes(0, 1) if "inp/noise" in file else None
        draws = dict.fromkeys(("initializer", "transition", "decoder", "target"))
        draws["aggregator"] = None if noise is None else jnp.asarray(noise)
        settings = {"query_kl": {"weight": 1.0, "variance": 0.01}}
        losses = build_losses({"reconstruction": {"weight": 1.0}, **settings})
        values = {name: {"weight": 1.0} for name in losses.terms}

        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(arrays):
            model = definition.merge(arrays)
            batch = {"video": jnp.asarray(video)}
            features = model.encode(batch["video"])
            given = model.target(batch, features, None)
            outputs = {**given, **model(features["features"], given, draws)}
            terms = losses(outputs, batch, values)
            if noise is None:  # deterministic: theirs has no such term
                terms["query_kl"] = jnp.zeros(())
            return terms["reconstruction"] + KL_WEIGHT * terms["query_kl"], (terms, outputs)

        (_, (terms, outputs)), gradients = jax.jit(total)(
            {k: jnp.asarray(x) for k, x in arrays.items()}
        )
        file.compare("out/slots", outputs["slots"], FORWARD)
        file.compare("out/kernel_dist", outputs["kernel"], FORWARD)
        picture = np.reshape(outputs["prediction"], video.shape)
        file.compare("out/reconstruction", np.moveaxis(picture, -1, 2), FORWARD)
        file.compare("out/masks", outputs["masks"][:, :, :, None], FORWARD)
        file.compare("loss/reconstruction", terms["reconstruction"], LOSS)
        file.compare("loss/kld", terms["query_kl"], LOSS)
        compare(file, SAVI.to_ours(file.group("grad/"), gradients), gradients)
        file.used.add("out/slot_images")  # of each slot by itself, which our decoder does not give


# ---------------------------------------------------------------------------------------- scores


def test_scores_of_frames():
    with golden("video_prediction_metrics") as file:
        true, predicted = (np.moveaxis(file[f"inp/{x}"], 2, -1) for x in ("true", "predicted"))
        true, predicted = (jnp.clip(denormalize(x, "signed"), 0, 1) for x in (true, predicted))
        # Theirs sums over pixels, and has the mean over channels.
        error = frames.mse_of_frames(predicted, true).mean(axis=0)
        file.compare("out/mse", error, FORWARD)
        file.compare("out/psnr", frames.psnr_of_frames(predicted, true).mean(axis=0), FORWARD)
        file.compare("out/ssim", frames.ssim_of_frames(predicted, true).mean(axis=0), FORWARD)
        masks, labels = file["inp/masks"], file["inp/true_labels"]
        segments = frames.segments_with_background(masks)
        np.testing.assert_array_equal(segments, file["out/labels"])
        boxes = frames.boxes_of_segments(segments, masks.shape[2])
        np.testing.assert_array_equal(boxes, file["out/boxes"])
        steps = range(labels.shape[1])
        rows = {
            "ari": lambda k: frames.ari_of_frames(segments[:, k], labels[:, k], False),
            "fari": lambda k: frames.ari_of_frames(segments[:, k], labels[:, k], True),
            "miou": lambda k: frames.miou_of_frames(segments[:, k], labels[:, k]),
        }
        for name, score in rows.items():
            file.compare(f"out/{name}", [score(k).mean() for k in steps], FORWARD)
        found = frames.scores_of_masks(masks, labels)
        keys = {"ari": "ari", "fg_ari": "fari", "miou": "miou", "ar": "ar", "ap": "ap"}
        for name, key in keys.items():
            file.compare(f"out/{key}", found[name].mean(axis=0), FORWARD)
        true_boxes, present = file["inp/true_boxes"], file["inp/present"]
        hits = np.array(
            [
                [frames.found_boxes(boxes[b, k], true_boxes[b, k][present[b, k]]) for k in steps]
                for b in range(len(labels))
            ]
        )
        file.compare("out/ar", (hits[..., 0] / hits[..., 1]).mean(axis=0), FORWARD)
        file.compare("out/ap", (hits[..., 0] / hits[..., 2]).mean(axis=0), FORWARD)


# ---------------------------------------------------------------------------------------- files

LAYOUTS = json.loads((FOLDER / "slotformer_state_dicts.json").read_text())
OF_SAVI = [name for name in LAYOUTS if "savi_" in name]
OF_ROLLOUTERS = [
    n
    for n, keys in LAYOUTS.items()
    if n.startswith("slotformer_") and any(key.startswith("decoder.0.0") for key in keys)
]


def filled(name: str) -> dict[str, np.ndarray]:
    """Small random values, and the functions of place and time as the program computes them."""
    rng, found = np.random.default_rng(0), {}
    for key, shape in LAYOUTS[name].items():
        found[key] = np.float32(0.02) * rng.standard_normal(shape, np.float32)
        if key.endswith("pos_embedding.grid"):
            sides = [np.linspace(0.0, 1.0, n, dtype="f") for n in shape[1:3]]
            place = np.stack(np.meshgrid(*sides, indexing="ij"), -1)[None]
            found[key] = np.concatenate([place, 1 - place], axis=-1)
        elif key.endswith("enc_t_pe"):
            ages = np.arange(shape[1])[::-1, None]
            angles = ages / 10_000 ** (2 * np.arange(shape[2] // 2) / shape[2])
            found[key] = np.concatenate([np.sin(angles), np.cos(angles)], -1)[None].astype("f")
        elif key.startswith("prior_slot_layer"):
            found[key] = np.zeros(shape, np.float32)  # nothing reads them
        elif key.endswith("self_attn_mask"):
            found[key] = np.triu(np.ones(shape, bool), 1)
    return found


@pytest.mark.parametrize("name", OF_SAVI)
def test_a_file_of_savi_comes_back(name):
    state_dict = filled(name)
    size = (64, 64)
    if "phyre" in name:
        size = (128, 128)
    config = savi_config(state_dict, size)
    with config.encoder.ignore_type():
        first = size[0] // 64
        config.encoder.strides = (first, 1, 1, 1)
    _, trained, rest = split(model_shapes(config, size))
    expected = {**trained, **rest}
    arrays = SAVI.to_ours(state_dict, expected, config.to_dict())
    assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
    back = SAVI.to_theirs(arrays, config.to_dict(), SAVI.kept(state_dict))
    assert back.keys() == state_dict.keys()
    for key, x in state_dict.items():
        np.testing.assert_allclose(back[key], x, atol=1e-6, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["savi_obj3d_params", "stosavi_clevrer_params"])
def test_a_file_of_savi_fits_its_recipe(name):
    """With as many slots as the file has queries."""
    state_dict = filled(name)
    words = "gaussian,savi_slotformer" + ",stochastic" * name.startswith("sto")
    config = load_config(f"{CONFIGS}/movi_c.py:{words}")
    with config.unlocked():
        config.model.num_slots = state_dict["init_latents"].shape[1]
    recipe = f"movi_c:{words}"
    assert published.configs_of(state_dict, {recipe: config}) == [recipe]
    arrays, kept = published.from_state_dict(state_dict, config)
    kept = json.loads(json.dumps(kept))  # as in a checkpoint
    back = published.to_state_dict(arrays, config, kept)
    assert back.keys() == state_dict.keys()
    for key, x in state_dict.items():
        np.testing.assert_allclose(back[key], x, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", OF_ROLLOUTERS)
def test_a_file_of_a_rollouter_comes_back(name):
    state_dict = filled(name)
    prefix = "rollouter."
    theirs = {k.removeprefix(prefix): x for k, x in state_dict.items() if k.startswith(prefix)}
    slots = 7  # which the file does not tell
    _, expected, settings = loaded(theirs, slots)
    layers = count(state_dict, r"^decoder\.(\d+)\.0\.weight")
    decoder = {f"slot_model.decoder.layers.layers.{i}.kernel" for i in range(layers)}
    arrays = ROLLOUTER.to_ours(state_dict, {*expected, *decoder})
    assert expected.keys() <= arrays.keys() and decoder <= arrays.keys()
    back = ROLLOUTER.to_theirs(arrays, {"rollouter": settings}, ROLLOUTER.kept(state_dict))
    assert back.keys() == state_dict.keys()
    for key, x in state_dict.items():
        np.testing.assert_allclose(back[key], x, atol=1e-6, err_msg=key)
