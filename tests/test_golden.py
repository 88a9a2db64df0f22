"""The authors' numbers (tests/golden/README.md): forward, gradients, six training steps, metrics.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes: every size
is read from the files. The constants below are in no file. GOLDEN_REPORT=<file>
writes a table of the largest errors.

A `Golden` file is read in a `with` block; it fails if an array of results was not compared.
"""

import dataclasses
import functools
import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    BFLOAT16,
    FOLDER,
    FORWARD,
    FORWARD_BACKBONE,
    GRADIENT,
    LOSS,
    METRIC,
    OWN_FOLDER,
    TRAINED,
    Golden,
    adam_state,
    golden,
    inner,
    loaded,
    with_prefix,
    worst,
    write_report,
)
from ml_collections import ConfigDict
from tiny import tiny_batch, tiny_config

from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.evaluation import metrics, recognition
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inputs.resize import resize_labels, resize_pixels
from smoothsa_jax.interop.authors import name_of
from smoothsa_jax.interop.torch_files import read_state_dict
from smoothsa_jax.losses.slots import slot_contrast_loss
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.encoders.vit import ViT
from smoothsa_jax.models.heads import RecognitionHead
from smoothsa_jax.schedules import schedule_of
from smoothsa_jax.training.optimizer import learning_rate_schedule
from smoothsa_jax.training.step import build_training

# Stated in the golden README only.
HEADS = int(os.environ.get("GOLDEN_HEADS", 4))  # of all attention but the ViT's
VIT_HEADS = int(os.environ.get("GOLDEN_VIT_HEADS", 3))
RESIZE = 0.875  # of the image in front of the ViT
FIRST_ITERATIONS, LATER_ITERATIONS = 3, 1
GRADIENTS = {"bilevel": "last_and_queries", "full": "full"}
WEIGHTS = {"reconstruction": 1.0, "distillation": 100.0, "slot_contrast": 0.5}
TEMPERATURE = 0.1  # of the contrast
LOSSES = {"recon": "reconstruction", "preheat": "distillation", "ssc": "slot_contrast"}
CLIP = {"image": 1.0, "video": 0.05}
DETACHED_STEPS = 3  # of a trajectory

MODULES = [
    "slot_attention_bilevel",
    "slot_attention_full",
    "warmer_bbox_attached",
    "warmer_shared_gaussian_attached",
    "warmer_shared_gaussian_detached",
    "transition_eval",
    "transition_train_fixed_pairs",
    "decoder_random_ar_eval",
    "decoder_random_ar_train_fixed_order",
    "backbone_timm",
]
MODELS = ["image", "video_bbox", "video_shared"]
OTHERS = [
    "metrics",
    "metrics_blobs",
    "metrics_video_size",
    "attention_to_segment",
    "resize",
    "schedules",
    "loss_slot_contrast",
]
# Of recognition: a folder that GOLDEN_DIR names may do without.
RECOGNITION = ["recognition_matching", "box_iou"]


def part(name: str, tokens: int, feature_size: int, slot_size: int, **choices: dict):
    """Make a part of a model from a config, for features (B, tokens, C) and slots (B, N, D)."""
    vit = {"width": feature_size, "depth": 1, "num_heads": 1, "patch": 1, "resize": 1.0}
    vit |= {"registers": 0, "swiglu": False}
    config = {
        "num_slots": 1,
        "slot_size": slot_size,
        "encoder": {"name": "vit", **vit},
        "projection": {"name": "mlp"},
        "initializer": warmed("gaussian"),
        "aggregator": {
            "name": "slot_attention",
            "gradient": "last_and_queries",
            "first": 1,
            "later": 1,
        },
        "transition": {"name": "none"},
        "decoder": {"name": "random_ar", "num_layers": 1, "num_heads": HEADS},
        "target": {"name": "features"},
    }
    for key, value in choices.items():
        config[key] |= value
    return lambda: getattr(build_slot_model(ConfigDict(config), (1, tokens), seed=0), name)


def warmed(cold: str, detach: object = 0.0) -> dict:
    """The settings of SmoothSA's initializer."""
    settings = {"num_heads": HEADS, "log_std": 0.0, "straight_through": False, "detach": detach}
    return {"name": "warmed", "cold": {"name": cold, "log_std": 0.0}, **settings}


def noise_alone(noise: np.ndarray) -> dict:
    """The draws of a model in which nothing else is random: cold-start noise."""
    initializer = {"cold": noise, "noise": None}
    return {"initializer": initializer, "decoder": None, "transition": None, "aggregator": None}


def num_layers(keys, pattern: str) -> int:
    return 1 + max(int(m[1]) for key in keys if (m := re.search(pattern, key)))


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def test_every_file_is_here_and_tested():
    """The other modules of golden numbers list their files as FILES."""
    tested = {
        *MODULES,
        *OTHERS,
        *RECOGNITION,
        *(f"{kind}_{m}" for kind in ("model", "trajectory") for m in MODELS),
    }
    for path in Path(__file__).parent.glob("test_golden_*.py"):
        tested |= set(importlib.import_module(path.stem).FILES)
    assert {path.stem for path in OWN_FOLDER.glob("*.npz")} == tested


def test_a_result_left_out_is_an_error():
    with pytest.raises(AssertionError, match="out/loss"), golden("loss_slot_contrast") as file:
        file["inp/slots"]
        file["grad/slots"]


# -------------------------------------------------------------------------------------------- parts


@pytest.mark.slow
@pytest.mark.parametrize("truncation", ["bilevel", "full"])
def test_slot_attention(truncation):
    with golden(f"slot_attention_{truncation}") as file:
        features, queries = file["inp/features"], file["inp/queries"]
        sizes = *features.shape[1:], queries.shape[-1]
        recorded = file.group("param/")

        def load(count):
            settings = {"gradient": GRADIENTS[truncation], "first": count}
            make = part("aggregator", *sizes, aggregator=settings)
            return loaded(make, recorded, "aggregat.", "aggregator.")

        def apply(definition, params, features, queries, mask=None):
            module = definition.merge(params, {})
            found = module(module.prepare(features), queries, mask)
            return found.slots, found.attention[-1]

        def run(definition, *inputs):
            return jax.jit(functools.partial(apply, definition))(*inputs)

        counts = [int(m[1]) for key in file.arrays if (m := re.fullmatch(r"out/slots_(\d+)", key))]
        assert counts and (FOLDER != OWN_FOLDER or sorted(counts) == [1, 3])
        for count in counts:
            slots, attention = run(*load(count), features, queries)
            file.compare(f"out/slots_{count}", slots, FORWARD)
            file.compare(f"out/attention_{count}", attention, FORWARD)
        definition, params = load(max(counts))
        slots, attention = run(definition, params, features, queries, file["inp/slot_mask"])
        file.compare("out/slots_masked", slots, FORWARD)
        file.compare("out/attention_masked", attention, FORWARD)

        cotangents = file["inp/cotangent_slots"], file["inp/cotangent_attention"]

        @jax.jit
        def scalar(params, features, queries):
            outputs = apply(definition, params, features, queries)
            return inner(list(zip(outputs, cotangents, strict=True)))

        grads = jax.grad(scalar, argnums=(0, 1, 2))(params, features, queries)
        file.compare_gradients("grad/param.", with_prefix(grads[0], "aggregator."), "aggregat.")
        file.compare("grad/features", grads[1], GRADIENT)
        file.compare("grad/queries", grads[2], GRADIENT)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("warmer")])
def test_warmer(name):
    with golden(name) as file:
        features, noise, query_noise = (
            file[f"inp/{k}"] for k in ("features", "noise", "query_noise")
        )
        boxes = file["inp/bbox"] if "inp/bbox" in file else None
        settings = warmed("gaussian" if boxes is None else "boxes")
        make = part("initializer", *features.shape[1:], noise.shape[-1], initializer=settings)
        recorded = file.group("param/")
        detach = bool(recorded["detach_flag"])
        assert detach == name.endswith("detached")
        definition, params = loaded(make, recorded, "initializ.", "initializer.")
        cotangents = file["inp/cotangent_warm_queries"], file["inp/cotangent_queries"]

        def scalar(params, features, query_noise):
            module = definition.merge(params, {})
            draws, scheduled = {"cold": noise, "noise": query_noise}, {"detach": float(detach)}
            queries, extras = module(features, boxes, None, draws, scheduled)
            outputs = extras["warm_queries"], queries
            return inner(list(zip(outputs, cotangents, strict=True))), outputs

        run = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))
        for mode in ("eval", "train"):
            (_, outputs), grads = run(params, features, query_noise if mode == "train" else None)
            file.compare(f"out/warm_queries_{mode}", outputs[0], FORWARD)
            file.compare(f"out/queries_{mode}", outputs[1], FORWARD)
            grads_by_name = with_prefix(grads[0], "initializer.")
            file.compare_gradients(f"grad/param_{mode}.", grads_by_name, "initializ.")
            file.compare(f"grad/features_{mode}", grads[1], GRADIENT)


def load_transition(file: Golden):
    features, slots = file["inp/features"], file["inp/slots"]
    recorded = file.group("param/")
    history = recorded["te.weight"].shape[0]
    settings = {"name": "randsfq", "num_heads": HEADS, "history": history, "dropout_rate": 0.5}
    make = part("transition", *features.shape[2:], slots.shape[-1], transition=settings)
    definition, params = loaded(make, recorded, "transit.", "transition.")

    @jax.jit
    def run(slots, features, slot_offset, feature_offset):
        module = definition.merge(params, {})
        return module.look(slots, module.remember(features, feature_offset), slot_offset)

    return features, slots, history, run


def test_transition_at_evaluation():
    with golden("transition_eval") as file:
        features, slots, _, run = load_transition(file)
        ones = np.ones(len(slots), np.int32)
        for key in file.group("out/"):
            past = int(re.fullmatch(r"queries_after_(\d+)", key)[1])
            queries = run(slots[:, past - 1], features[:, past], ones, 0 * ones)
            file.compare(f"out/{key}", queries, FORWARD)


def test_transition_with_drawn_pairs():
    with golden("transition_train_fixed_pairs") as file:
        features, slots, history, run = load_transition(file)
        slots, features = slots[:, -(history - 1) :], features[:, -history:]
        sample, past = np.arange(len(slots)), slots.shape[1]
        slot_time, feature_time = file["inp/slot_time"], file["inp/feature_time"]
        queries = run(
            slots[sample, slot_time],
            features[sample, feature_time],
            past - slot_time,
            past - feature_time,
        )
        file.compare("out/queries", queries, FORWARD)


def load_decoder(file: Golden):
    features, slots = file["inp/features"], file["inp/slots"]
    recorded = file.group("param/")
    layers = {"num_layers": num_layers(recorded, r"layers\.(\d+)\.")}
    make = part("decoder", *features.shape[1:], slots.shape[-1], decoder=layers)
    return features, slots, *loaded(make, recorded, "decode.", "decoder.")


def decode(definition, params, features, slots, visible, mask=None):
    """The decoder's prediction (B,M,C) and its masks as attention (B,N,M)."""
    given = {"target": features}
    prediction, masks = definition.merge(params, {})(slots, mask, given, visible)
    return prediction, masks.reshape(*masks.shape[:2], -1)


def test_decoder_at_evaluation():
    with golden("decoder_random_ar_eval") as file:
        features, slots, definition, params = load_decoder(file)
        run = jax.jit(functools.partial(decode, definition))
        for ending, mask in (("", None), ("_masked", file["inp/slot_mask"])):
            reconstruction, attention = run(params, features, slots, None, mask)
            file.compare(f"out/recon{ending}", reconstruction, FORWARD)
            file.compare(f"out/attention{ending}", attention, FORWARD)


def test_decoder_in_training():
    """The first `num_visible` permuted tokens are seen. Ours masks the rest in grid order."""
    with golden("decoder_random_ar_train_fixed_order") as file:
        features, slots, definition, params = load_decoder(file)
        visible = np.zeros(features.shape[:2], bool)
        pairs = zip(file["inp/permutation"], file["inp/num_visible"], strict=True)
        for sample, (order, count) in enumerate(pairs):
            visible[sample, order[:count]] = True
        # The README promises gradients; the folder it came with has none in this file.
        given = "inp/cotangent_recon" in file
        names = ("inp/cotangent_recon", "inp/cotangent_attention")
        cotangents = [file[name] for name in names] if given else [0.0, 0.0]

        def scalar(params, features, slots):
            outputs = decode(definition, params, features, slots, visible)
            return inner(list(zip(outputs, cotangents, strict=True))), outputs

        run = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2), has_aux=True))
        (_, outputs), grads = run(params, features, slots)
        file.compare("out/recon", outputs[0], FORWARD)
        file.compare("out/attention", outputs[1], FORWARD)
        for key, gradient in (("grad/features", grads[1]), ("grad/slots", grads[2])):
            if key in file:
                file.compare(key, gradient, GRADIENT)
        if given:
            file.compare_gradients("grad/param.", with_prefix(grads[0], "decoder."), "decode.")


def vit_settings(keys: Mapping[str, tuple[int, ...]], start: str) -> dict:
    """Settings of the ViT, from the shapes of its arrays."""
    width, _, patch, _ = keys[f"{start}patch_embed.proj.weight"]
    return {
        "width": width,
        "depth": num_layers(keys, r"blocks\.(\d+)\."),
        "num_heads": VIT_HEADS,
        "patch": patch,
        "registers": keys[f"{start}reg_token"][1],
        "swiglu": False,
        "resize": RESIZE,
    }


def shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {key: array.shape for key, array in arrays.items()}


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -3, -1)


def test_encoder():
    with golden("backbone_timm") as file:
        images = channels_last(file["inp/image"])
        recorded = file.group("param/")
        settings = vit_settings(shapes(recorded), "1.")
        run, vit = load_vit(images, settings, recorded)
        features = run(images).reshape(len(images), *vit.grid, -1)
        file.compare("out/feature", features, FORWARD_BACKBONE, change=channels_last)

        # A ViT without blocks that embeds each patch as it is shows the resized image.
        (h, w), p = vit.grid, vit.patch
        width = 3 * p * p
        each = np.eye(width, dtype=np.float32).reshape(width, p, p, 3).transpose(0, 3, 1, 2)
        bare = {
            "1.cls_token": np.zeros((1, 1, width), np.float32),
            "1.reg_token": np.zeros((1, settings["registers"], width), np.float32),
            "1.pos_embed": np.zeros((1, h * w, width), np.float32),
            "1.patch_embed.proj.weight": each,
            "1.patch_embed.proj.bias": np.zeros(width, np.float32),
        }
        run, _ = load_vit(images, {**settings, "width": width, "depth": 0}, bare)
        patches = run(images).reshape(len(images), h, w, p, p, 3)
        resized = patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), h * p, w * p, 3)
        file.compare("out/resized", resized, FORWARD, change=channels_last)


def load_vit(images: np.ndarray, settings: dict, recorded: Mapping[str, np.ndarray]):
    def make():
        depth = max(settings["depth"], 1)
        vit = ViT(images.shape[1:3], **{**settings, "depth": depth}, rngs=nnx.Rngs(0))
        vit.blocks = nnx.List(list(vit.blocks)[: settings["depth"]])
        return vit

    definition, params = loaded(make, recorded, "encode_backbone.", "encoder.")
    return jax.jit(lambda x: definition.merge(params, {})(x)["features"]), nnx.eval_shape(make)


# ------------------------------------------------------------------------------------------- models


def model_config(keys: Mapping[str, tuple[int, ...]], num_slots: int) -> ConfigDict:
    """The `model` part of a config, from the keys and shapes of the authors' state dict."""
    sizes = {key.removeprefix("m."): shape for key, shape in keys.items()}
    transition: dict = {"name": "none"}
    if "transit.te.weight" in sizes:
        history = sizes["transit.te.weight"][0]
        transition = {
            "name": "randsfq",
            "num_heads": HEADS,
            "history": history,
            "dropout_rate": 0.5,
        }
    layers = num_layers(sizes, r"decode\.backbone\.layers\.(\d+)\.")
    return ConfigDict(
        {
            "num_slots": num_slots,
            "slot_size": sizes["aggregat.proj_q.weight"][0],
            "encoder": {"name": "vit", **vit_settings(sizes, "encode_backbone.1.")},
            "initializer": warmed("gaussian" if "initializ.mean" in sizes else "boxes"),
            "projection": {"name": "mlp"},
            "aggregator": {
                "name": "slot_attention",
                "gradient": "last_and_queries",
                "first": FIRST_ITERATIONS,
                "later": LATER_ITERATIONS,
            },
            "transition": transition,
            "decoder": {"name": "random_ar", "num_layers": layers, "num_heads": HEADS},
            "target": {"name": "features"},
        }
    )


class Recorded:
    """A model's golden file in our layout: an image is a video of one frame."""

    def __init__(self, file: Golden):
        self.is_video = "inp/video" in file
        video = channels_last(file["inp/video"] if self.is_video else file["inp/image"])
        self.video = video if self.is_video else video[:, None]
        self.noise = file["inp/noise"]
        self.boxes = file["inp/bbox"] if "inp/bbox" in file else None
        self.image_size = self.video.shape[2:4]
        self.recorded = {key[6:]: x for key, x in file.arrays.items() if key.startswith("param/")}
        self.config = model_config(shapes(self.recorded), self.noise.shape[1])
        self.loss = {LOSSES[k]: WEIGHTS[LOSSES[k]] for k in LOSSES if f"loss/{k}" in file}

        patch = self.config.encoder.patch
        self.grid = tuple(round(side * RESIZE) // patch for side in self.image_size)

    def build(self, recorded: Mapping[str, np.ndarray]):
        """The model with these arrays: definition, params, frozen."""
        make = lambda: build_slot_model(self.config, self.image_size, seed=0)  # noqa: E731
        definition, arrays = loaded(make, recorded, "", "", ("encoder.*",))
        frozen = {name: x for name, x in arrays.items() if name in definition.frozen}
        params = {name: x for name, x in arrays.items() if name not in frozen}
        return definition, params, frozen


def compare_outputs(
    file: Golden,
    case: Recorded,
    definition,
    params,
    frozen,
    tolerance: float = FORWARD_BACKBONE,
    ties: float = 1e-5,
) -> None:
    """Compares all outputs of the model that has these arrays."""

    @jax.jit
    def run(params, frozen):
        model = definition.merge(params, frozen)
        features = model.encode(case.video)["features"]
        given = {"target": features}
        outputs = model(features, given, noise_alone(case.noise), case.boxes)
        return {**outputs, "features": features}

    outputs = run(params, frozen)
    frames = (lambda x: np.asarray(x)) if case.is_video else (lambda x: np.asarray(x)[:, 0])

    def tokens(x):  # (..., M) -> (..., h, w)
        return frames(x).reshape(*frames(x).shape[:-1], *case.grid)

    def compare(key, actual):
        file.compare(f"out/{key}", actual, tolerance)

    compare("feature", tokens(outputs["features"].swapaxes(-1, -2)))
    compare("recon", tokens(outputs["prediction"].swapaxes(-1, -2)))
    compare("qinit", outputs["warm_queries"])
    compare("slotz", frames(outputs["slots"]))
    compare("attenta", frames(outputs["attention"]))
    compare("attentd", frames(outputs["masks"]))
    segments = file["out/segment"]
    found = segments_from_masks(outputs["masks"], segments.shape[-2:])
    same_but_for_ties(frames(found), segments, frames(outputs["masks"]), ties)


def same_but_for_ties(masks, recorded, attention, tolerance: float) -> None:
    """Equal segments; where two slots' attention (..., N, h, w) is close, either may win."""
    masks = np.asarray(masks)
    assert masks.shape == recorded.shape
    if (masks == recorded).all():
        return
    large = jax.image.resize(
        attention, (*attention.shape[:-2], *recorded.shape[-2:]), "bilinear", antialias=False
    )
    large = np.moveaxis(np.asarray(large), -3, -1)
    theirs = np.take_along_axis(large, recorded[..., None].astype(int), -1)[..., 0]
    assert (large.max(-1) - theirs <= tolerance).all()


@pytest.mark.parametrize(
    "name", ["image", "video_bbox", pytest.param("video_shared", marks=pytest.mark.slow)]
)
def test_model(name):
    with golden(f"model_{name}", parts=("out/",)) as file:
        case = Recorded(file)
        compare_outputs(file, case, *case.build(case.recorded))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_in_bfloat16(name):
    """The same arrays and inputs; `config.dtype` is all that differs."""
    with golden(f"model_{name}", parts=("out/",)) as file:
        file.name += " in bfloat16"  # of the report
        case = Recorded(file)
        definition, params, frozen = case.build(case.recorded)
        definition = dataclasses.replace(definition, dtype="bfloat16")
        compare_outputs(file, case, definition, params, frozen, BFLOAT16, BFLOAT16)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_from_a_torch_file(name):
    """A .pth file holds the same arrays, and a model loaded from it gives the recorded outputs."""
    with golden(f"model_{name}", parts=("out/",)) as file:
        case = Recorded(file)
        state_dict = read_state_dict(FOLDER / f"model_{name}.pth")
        assert state_dict.keys() == case.recorded.keys()
        for key, array in state_dict.items():
            assert array.dtype == case.recorded[key].dtype
            np.testing.assert_array_equal(array, case.recorded[key], err_msg=key)
        compare_outputs(file, case, *case.build(state_dict))


def trajectory_config(name: str, case: Recorded, rates: np.ndarray) -> ConfigDict:
    num_steps, peak = len(rates) - 1, int(rates.argmax())
    config = tiny_config().to_dict()
    config["data"]["image_size"] = case.image_size
    config["model"] = case.config.to_dict()
    detached = {"begin": 1.0, "end": 0.0, "at": DETACHED_STEPS / num_steps}
    config["model"]["initializer"]["detach"] = {"schedule": "step", **detached}
    config["losses"] = {key: {"weight": weight} for key, weight in case.loss.items()}
    if "slot_contrast" in case.loss:
        config["losses"]["slot_contrast"]["temperature"] = TEMPERATURE
    config["optimizer"] = {
        "learning_rate": {
            "schedule": "warmup_cosine",
            "peak": float(rates[peak]),
            "warmup": peak / num_steps,
            "end_ratio": float(rates[-1] / rates[peak]),
        },
        "clip_norm": CLIP[name.split("_")[0]],
        "rates": {},
        "clip_by": "norm",
    }
    config["train"] |= {"num_steps": num_steps, "batch_size": len(case.video)}
    config["mesh"]["data"] = 1
    return ConfigDict(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training(name):
    """The train step that `main.py` calls, with the recorded noise and all other draws off.

    The first step's losses and gradients are those of the model's file: the weights are the same.
    """
    flag = "param_end/m.initializ.detach_flag"
    with (
        golden(f"model_{name}", parts=("inp/", "loss/", "grad/")) as model_file,
        golden(f"trajectory_{name}", unused=(flag,)) as file,
    ):
        case = Recorded(model_file)
        rates, losses, norms = (
            file[f"out/{k}"] for k in ("learning_rates", "losses", "grad_norms")
        )
        config = trajectory_config(name, case, rates)
        setup = build_training(config)
        _, params, frozen = case.build(case.recorded)
        state = setup.state.replace(params=jax.device_put(params, replicated(setup.mesh)))
        frozen = jax.device_put(frozen, replicated(setup.mesh))
        (batch_size, num_frames), num_slots = case.video.shape[:2], case.noise.shape[1]
        boxes = case.boxes
        if boxes is None:
            boxes = np.full((batch_size, num_frames, num_slots, 4), -1, np.float32)
        mask = np.ones((batch_size, num_slots), bool)
        batch = setup.place({"video": case.video, "boxes": boxes, "slot_mask": mask})
        draws = noise_alone(case.noise)
        found = []
        for step in range(len(rates)):
            key = jax.random.key(step)  # of no effect, as the draws are given
            state, metrics = setup.train_step(state, frozen, batch, key, draws)
            found.append(jax.device_get(metrics))
            if step == 0:
                first_moment = jax.device_get(adam_state(state).mu)
            if step == len(norms) - 1:  # the last step only tells the losses that it started from
                final = jax.device_get(state.params)

        for key in model_file.group("loss/"):
            model_file.compare(f"loss/{key}", found[0][f"loss/{LOSSES[key]}"], LOSS)
        # After one step Adam's first moment is a tenth of the clipped gradient.
        scale = 0.1 * min(1.0, config.optimizer.clip_norm / (found[0]["grad_norm"] + 1e-6))
        model_file.compare_gradients("grad/", {k: x / scale for k, x in first_moment.items()})

        file.compare("out/learning_rates", [m["learning_rate"] for m in found], LOSS)
        file.compare("out/grad_norms", [m["grad_norm"] for m in found[: len(norms)]], GRADIENT)
        terms = [[m[f"loss/{term}"] for term in case.loss] for m in found]
        file.compare("out/losses", terms, LOSS)
        np.testing.assert_allclose(terms, losses, rtol=LOSS)
        for key in file.group("param_end/"):
            if (known := name_of(key)) is not None:
                ours, transform = known
                actual = final[ours] if ours in final else frozen[ours]
                file.compare(f"param_end/{key}", actual, TRAINED, change=transform)


def without_head(keys: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The SmoothSA's keys of a recognition checkpoint, as if alone; checks the head's keys."""
    head = {key: np.broadcast_to(np.int8(0), x) for key, x in keys.items() if "m.recogn." in key}
    hidden, outputs = keys["m.recogn.0.weight"], keys["m.recogn.3.weight"][0]
    settings = {"num_classes": outputs - 4, "dropout_rate": 0.1}
    make = lambda: RecognitionHead(hidden[1], **settings, rngs=nnx.Rngs(0))  # noqa: E731
    loaded(make, head, "", "recognition.")
    return {key.replace("m.discov.", "m."): x for key, x in keys.items() if key not in head}


@pytest.mark.slow
def test_keys_of_the_official_checkpoints():
    """Every array of the authors' real checkpoints is used, and all of ours are filled."""
    listed = json.loads((FOLDER / "official_state_dicts.json").read_text())
    assert len([name for name in listed if not name.startswith("recognition ")]) >= 8
    for name, keys in listed.items():
        if name.startswith("recognition "):
            listed[name] = without_head(keys)
    kinds = {json.dumps(keys): keys for keys in listed.values()}  # several data sets share one
    for keys in kinds.values():
        config = model_config(keys, num_slots=7)
        config.encoder.num_heads = 1  # of no influence on shapes
        tokens = keys["m.encode_backbone.1.pos_embed"][1]
        side = round(config.encoder.patch * tokens**0.5 / RESIZE)
        arrays = {key: np.broadcast_to(np.int8(0), shape) for key, shape in keys.items()}
        loaded(lambda c=config, s=side: build_slot_model(c, (s, s), 0), arrays, "", "")


# ---------------------------------------------------------------- losses, schedules, masks, metrics


def test_slot_contrast():
    with golden("loss_slot_contrast") as file:
        loss, gradient = jax.value_and_grad(slot_contrast_loss)(jnp.asarray(file["inp/slots"]))
        file.compare("out/loss", loss, LOSS)
        file.compare("grad/slots", gradient, GRADIENT)


def test_learning_rate():
    with golden("schedules", unused=("out/detach_flag",)) as file:  # of the next test
        steps, rates = file["out/step"], file["out/lr"]
        num_steps = int(steps.max())
        rate = {"schedule": "warmup_cosine", "peak": float(rates.max())}
        rate |= {"warmup": 0.05, "end_ratio": 1e-3}
        schedule = learning_rate_schedule(ConfigDict({"learning_rate": rate}), num_steps)
        actual = np.array([schedule(jnp.asarray(step)) for step in steps])
        file.compare("out/lr", actual, METRIC)
        np.testing.assert_allclose(actual, rates, rtol=1e-4)  # also where it is small
        # The weight of DIAS's attention distillation.
        cosine = {"schedule": "cosine", "begin": 0.0, "end": 1.0}
        weight = schedule_of("losses.attention_distillation.weight", cosine, num_steps)
        found = np.array([weight(jnp.asarray(step)) for step in steps])
        file.compare("out/distill_weight", found, METRIC)


@pytest.mark.slow
def test_steps_in_which_the_warmer_sees_detached_features():
    """Tested on the train step: with distillation alone, does the projection get a gradient?"""
    with golden("schedules", unused=("out/lr", "out/distill_weight")) as file:
        steps, flags = file["out/step"], file["out/detach_flag"]
        config = tiny_config(num_frames=1)
        config.train.num_steps = int(steps.max())
        detached = {"begin": 1.0, "end": 0.0, "at": 0.1}
        config.model.initializer.detach = ConfigDict({"schedule": "step", **detached})
        config.losses = ConfigDict({"distillation": {"weight": 1.0}})
        setup = build_training(config)
        batch = setup.place(tiny_batch(config))
        for step, flag in zip(steps, flags, strict=True):
            fresh = jax.tree.map(jnp.copy, setup.state)
            state = fresh.replace(step=jnp.asarray(step, jnp.int32))
            state, _ = setup.train_step(state, setup.frozen, batch, jax.random.key(0))
            moments = adam_state(state).mu
            of_projection = [x for name, x in moments.items() if name.startswith("projection.")]
            assert of_projection
            detached = not any(np.any(moment) for moment in of_projection)
            assert detached == bool(flag), f"step {step}"


def test_attention_to_segment():
    with golden("attention_to_segment") as file:
        attention = file["inp/attention"]
        for key, recorded in file.group("out/").items():
            size = recorded.shape[-2:]
            named = re.search(r"_(\d+)x(\d+)$", key)
            assert named is None or size == (int(named[1]), int(named[2]))
            masks = segments_from_masks(attention, size)
            same_but_for_ties(masks, recorded, attention, 1e-6)


def test_resize():
    """Labels are equal. So are pixels, except values half-way between levels in float32."""
    with golden("resize") as file:
        pixels, labels = file["inp/image"], file["inp/segment"]
        for key, recorded in file.group("out/").items():
            size = recorded.shape[-2:]
            if key.startswith("segment"):
                np.testing.assert_array_equal(resize_labels(labels, size), recorded)
                continue
            resized = np.moveaxis(resize_pixels(channels_last(pixels), size), -1, -3)
            if FOLDER == OWN_FOLDER:
                np.testing.assert_array_equal(resized, recorded)
            rows, columns = (triangle(*pair) for pair in zip(size, pixels.shape[-2:], strict=True))
            exact = rows @ pixels.astype(np.float64) @ columns.T
            # A position is off by an epsilon of the side, and neighbours differ by up to 255
            # levels.
            error = 255 * sum(pixels.shape[-2:]) * np.finfo(np.float32).eps
            error = 1e-4 if FOLDER == OWN_FOLDER else error
            for level in (resized, recorded):
                assert np.abs(level - exact).max() < 0.5 + error
            worst["resize", "out"] = float(np.abs(resized.astype(int) - recorded).max())


def triangle(num_out: int, num_in: int) -> np.ndarray:
    """Shares (num_out, num_in) of bilinear resizing with antialias, in float64."""
    centre = (np.arange(num_out)[:, None] + 0.5) * num_in / num_out
    distance = np.abs(np.arange(num_in) + 0.5 - centre)
    weights = np.maximum(0, 1 - distance / max(num_in / num_out, 1))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["metrics", "metrics_blobs"])
def test_metrics(name):
    with golden(name) as file:
        counts = metrics.contingency_from_one_hot(file["inp/pred"], file["inp/true"])
        for ending, table in (("", counts), ("_fg", counts.without_column(0))):
            for metric in ("ari", "mbo", "miou"):
                value = getattr(metrics, metric)(table)
                file.compare(f"out/{metric}{ending}", value, METRIC)
                np.testing.assert_array_equal(table.valid, file[f"out/{metric}{ending}_valid"])


def test_metrics_of_large_videos():
    with golden("metrics_video_size") as file:
        num = int(file["inp/num_pred"]), int(file["inp/num_true"])
        counts = metrics.contingency(file["inp/pred_index"], file["inp/true_index"], *num)
        foreground = counts.without_column(0)
        for key, table in (("ari", counts), ("ari_fg", foreground)):
            file.compare(f"out/{key}_exact", metrics.ari(table), METRIC)
            file.compare(f"out/{key}_paper", metrics.ari(table, match_paper=True), METRIC)
        file.compare("out/mbo", metrics.mbo(counts), METRIC)
        file.compare("out/miou", metrics.miou(counts), METRIC)


def of_recognition(name: str):
    there = FOLDER == OWN_FOLDER or (FOLDER / f"{name}.npz").is_file()
    return pytest.mark.skipif(not there, reason=f"{FOLDER} has no {name}.npz")


@pytest.mark.slow
@of_recognition("recognition_matching")
def test_recognition_matching():
    """Matches without a common pixel are left out: any slot may get them; no filter keeps them."""
    with golden("recognition_matching") as file:
        true = file["inp/true"][..., 1:]  # without the background
        iou = recognition.segment_iou(file["inp/pred"], true)
        file.compare("out/iou", iou, METRIC)
        recorded, value = file["out/match"], file["out/match_iou"]
        assert recorded.shape[1] == min(iou.shape[1:])
        assigned = np.asarray(recognition.assign(iou))
        for b, objects in enumerate(assigned):
            found = {(n, k) for n, k in enumerate(objects) if k >= 0 and iou[b, n, k] > 0}
            expected = {tuple(pair) for pair, x in zip(recorded[b], value[b], strict=True) if x > 0}
            assert found == expected, f"image {b}"
        at_pairs = np.take_along_axis(np.asarray(iou), np.maximum(assigned, 0)[..., None], -1)[
            ..., 0
        ]
        total = np.where(assigned >= 0, at_pairs, 0.0).sum(1)
        np.testing.assert_allclose(total, value.sum(1), rtol=METRIC)

        kept, _ = recognition.match(iou)
        np.testing.assert_array_equal((kept >= 0).sum(1), (value > recognition.MATCH_IOU).sum(1))
        allowed = recognition.kept_by_the_authors(true.any(1))
        paper, _ = recognition.match(iou, allowed=allowed)
        image, slot = np.nonzero(paper >= 0)
        number = np.asarray(paper)[image, slot]
        np.testing.assert_array_equal((paper >= 0).sum(1), file["out/count_paper"])
        for key, ours in (
            ("slots", file["inp/slots"][image, slot]),
            ("category", file["inp/category"][image, number]),
            ("bbox", file["inp/bbox"][image, number]),
        ):
            file.compare(f"out/{key}_paper", ours, 0.0)


@of_recognition("box_iou")
def test_box_iou():
    with golden("box_iou") as file:
        iou = recognition.box_iou(file["inp/pred"], file["inp/true"])
        file.compare("out/iou", iou, METRIC)
        np.testing.assert_array_equal(~np.isnan(iou), file["out/valid"])
