"""OSRT against the numbers of its program.

The model is that of the gallery, with the sizes of the files. GOLDEN_DIR names another folder of
the same layout, with other numbers and other sizes. The files give a position and a direction for
each ray, and no camera.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD,
    GRADIENT,
    LOSS,
    METRIC,
    NO_GRADIENT,
    TRAINED,
    Golden,
    compare_gradients,
    golden,
    inner,
    write_report,
)
from ml_collections import ConfigDict
from recipes import quick

from configs import base, sprites
from configs.systems import osrt
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.evaluation.metrics import ari, contingency
from smoothsa_jax.evaluation.views import ViewsEvaluator, psnr
from smoothsa_jax.interop.programs import OSRT
from smoothsa_jax.losses.reconstruction import reconstruction_loss
from smoothsa_jax.models.build import DECODERS, ENCODERS, build_slot_model
from smoothsa_jax.models.layers.rays import RayEncoding, pixel_rays
from smoothsa_jax.models.parameters import split
from smoothsa_jax.parts import make
from smoothsa_jax.schedules import schedule_of
from smoothsa_jax.tasks.views import Views
from smoothsa_jax.training.step import build_training

# What the files do not hold: heads of attention, the first octave of positions, and the schedule.
HEADS = {"encoder": 3, "decoder": 4}
POSITION_OCTAVE = -1
PEAK, WARMUP, DECAY, DECAY_STEPS = 5e-3, 2, 0.16, 10
FILES = [
    "osrt_ray_encoding",
    "osrt_scene_encoder",
    "osrt_decoders",
    "osrt_model",
    "osrt_ari",
    "osrt_trajectory",
]
CASES = {
    "slot_mixer": ("ray_mixer", False),
    "slot_mixer_norm": ("ray_mixer", True),
    "spatial_broadcast": ("ray_broadcast", False),
    "scene": ("ray_transformer", False),
}


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


# -------------------------------------------------------------------------------------------- sizes


def count(keys, pattern: str) -> int:
    return 1 + max(int(m[1]) for key in keys if (m := re.search(pattern, key)))


def encoder_sizes(names: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Settings of a scene encoder, of its arrays by the names in the program."""
    keys = {key.removeprefix("encoder.srt_encoder."): x for key, x in names.items()}
    first = keys["conv_blocks.0.layers.0.weight"].shape
    return {
        "width": len(keys["per_patch_linear.bias"]),
        "channels": first[0],
        "num_blocks": count(keys, r"conv_blocks\.(\d+)"),
        "num_layers": count(
            [k for k in keys if "decoder" not in k], r"^transformer\.layers\.(\d+)"
        ),
        "num_heads": HEADS["encoder"],
        "hidden_size": len(keys["transformer.layers.0.1.fn.net.0.bias"]),
        "octaves": (first[1] - 3) // 12,
        "position_octave": POSITION_OCTAVE,
        "every": 1,
    }


def decoder_sizes(name: str, names: Mapping[str, np.ndarray], slot_size: int) -> dict[str, Any]:
    """Settings of a decoder, likewise."""
    keys = {key.removeprefix("decoder."): x for key, x in names.items()}
    renderer = {
        int(m[1]): x
        for k, x in keys.items()
        if (m := re.search(r"mlp(?:\.net)?\.(\d+)\.weight", k)) and k.startswith("render")
    }
    found = {"hidden_size": len(renderer[0]), "renderer_layers": len(renderer)}
    if name == "ray_broadcast":
        found["octaves"] = (renderer[0].shape[1] - slot_size) // 12
    else:
        allocator = "allocation_transformer."
        query = keys[f"{allocator}input_mlp.0.weight"].shape
        layer = f"{allocator}transformer.layers.0."
        found |= {
            "octaves": query[1] // 12,
            "query_size": query[0],
            "num_layers": count(keys, r"transformer\.layers\.(\d+)"),
            "num_heads": HEADS["decoder"],
            "head_size": len(keys[f"{layer}0.fn.to_q.weight"]) // HEADS["decoder"],
            "feed_forward_size": len(keys[f"{layer}1.fn.net.0.bias"]),
        }
    if name == "ray_mixer":
        found["mix_size"] = len(keys["mixing_block.to_q.weight"])
    return {**found, "position_octave": POSITION_OCTAVE}


def of_gallery(image_size: tuple[int, int] = (16, 16), num_views: int = 10) -> ConfigDict:
    data = base.DataSet(
        name="rooms",
        data={"name": "scenes", "views": True, "image_size": image_size, "num_frames": num_views},
        num_slots=4,
        num_steps=6,
        batch_size=2,
        small=dict.fromkeys(sprites.SMALL, {}),
    )
    return base.compose(data, "osrt").unlock()


def is_null(name: str) -> bool:
    """Whether a gradient is zero in exact arithmetic."""
    return name.endswith("norm_slots.bias")


def compare_recorded(file: Golden, prefix: str, front: str, names, gradients: Mapping) -> None:
    """Compare all gradients of a prefix by our names."""
    recorded = {front + k: x for k, x in file.group(prefix).items() if not k.startswith("inp/")}
    compare_gradients(file, gradients, OSRT.to_ours(recorded, names), null=is_null)


def in_last(x: np.ndarray) -> np.ndarray:
    """Pictures with channels last."""
    return np.moveaxis(x, -3, -1)


# -------------------------------------------------------------------------------------------- parts


def test_ray_encoding():
    with golden(
        "osrt_ray_encoding", unused=("inp/camera", "out/extrinsic", "out/transformed")
    ) as f:
        octaves = f["out/points"].shape[-1] // 12
        encoding = RayEncoding(octaves, POSITION_OCTAVE)
        position, ray = f["inp/position"], f["inp/ray"]
        f.compare("out/points", encoding(position, ray), FORWARD)
        # One position for each picture.
        images = f["inp/image_rays"]
        at = position[:, 0] if position.ndim == 3 else position
        f.compare("out/image", encoding(at[:, None, None], images), FORWARD, change=in_last)
        camera = f["inp/camera"].astype(np.float64)
        height, width = f["out/camera_rays"].shape[:2]
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        cameras = np.broadcast_to(clevr_camera(camera, height / width), (height, width, 4, 3))
        f.compare(
            "out/camera_rays", pixel_rays(cameras, rows, columns, (height, width))[1], FORWARD
        )


def clevr_camera(position: np.ndarray, ratio: float) -> np.ndarray:
    """A camera (4,3) of CLEVR3D, which looks at the origin."""
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    return np.stack([position, 0.035 * forward, 0.016 * right, 0.016 * ratio * down])


def test_scene_encoder():
    with golden("osrt_scene_encoder") as file:
        images = in_last(file["inp/images"])
        recorded = {f"encoder.srt_encoder.{k}": x for k, x in file.group("param/").items()}
        settings = of_gallery().model.encoder.to_dict() | encoder_sizes(recorded)
        build = lambda: make("e", settings, ENCODERS, images.shape[2:4], rngs=nnx.Rngs(0))  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(build), prefix="encoder.")
        names = {*expected, "initializer.mean"}
        arrays = as_arrays(OSRT.to_ours(recorded, names), expected)
        inputs = images, file["inp/camera_pos"], file["inp/rays"]

        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def run(arrays, inputs):
            tokens = definition.merge(arrays).encode(*inputs)
            return inner([(tokens, file["inp/cotangent_out"])]), tokens

        (_, tokens), (of_arrays, of_inputs) = jax.jit(run)(arrays, inputs)
        file.compare("out/out", tokens, FORWARD)
        for key, found in zip(("images", "camera_pos", "rays"), of_inputs, strict=True):
            change = in_last if key == "images" else lambda x: x
            file.compare(f"grad/inp/{key}", found, GRADIENT, change=change)
        compare_recorded(file, "grad/", "encoder.srt_encoder.", names, of_arrays)


def as_arrays(found: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> dict[str, jax.Array]:
    assert {k: x.shape for k, x in found.items()} == {k: x.shape for k, x in expected.items()}
    return {name: jnp.asarray(x) for name, x in found.items()}


@pytest.mark.parametrize("case", quick(list(CASES), "slot_mixer_norm", "spatial_broadcast"))
def test_decoder(case):
    name, norm = CASES[case]
    others = tuple(f"{x}/" for x in CASES if x != case)
    with golden("osrt_decoders", parts=(f"{case}/inp/", f"{case}/out/", f"{case}/grad/")) as file:
        assert {key.partition("/")[0] for key in file.arrays} == {case, *(x[:-1] for x in others)}
        of_case = f"{case}/"
        slots = file[f"{of_case}inp/slots"]
        recorded = {f"decoder.{k}": x for k, x in file.group(f"{of_case}param/").items()}
        settings = {"name": name, **decoder_sizes(name, recorded, slots.shape[-1])}
        settings |= {"norm": norm} if name == "ray_mixer" else {}
        target = file[f"{of_case}out/pixels"].shape[-1]
        sizes = ((1, 1), target, slots.shape[-1])
        build = lambda: make("d", settings, DECODERS, *sizes, rngs=nnx.Rngs(0))  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(build), prefix="decoder.")
        arrays = as_arrays(OSRT.to_ours(recorded, expected), expected)
        inputs = {
            "slots": slots,
            "positions": file[f"{of_case}inp/camera_pos"],
            "rays": file[f"{of_case}inp/rays"],
        }
        cotangents = file.group(f"{of_case}inp/cotangent_")

        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def run(arrays, inputs):
            colours, masks = definition.merge(arrays)(inputs["slots"], None, inputs)
            found = {"pixels": colours}
            found |= {} if masks is None else {"segmentation": masks[:, :, 0].swapaxes(1, 2)}
            return inner([(found[k], x) for k, x in cotangents.items()]), found

        (_, outputs), (of_arrays, of_inputs) = jax.jit(run)(arrays, inputs)
        for key, value in outputs.items():
            file.compare(f"{of_case}out/{key}", value, FORWARD)
        for key, ours in (("slots", "slots"), ("camera_pos", "positions"), ("rays", "rays")):
            file.compare(f"{of_case}grad/inp/{key}", of_inputs[ours], GRADIENT)
        if name == "ray_broadcast":  # its first channel is the logit, of which the bias is null
            bias = f"decoder.renderer.layers.{settings['renderer_layers'] - 1}.bias"
            key = next(k for k in expected if k == bias)
            logit = np.asarray(of_arrays[key])[0]
            assert abs(logit) <= NO_GRADIENT * max(np.abs(x).max() for x in of_arrays.values())
        compare_recorded(file, f"{of_case}grad/", "decoder.", expected, of_arrays)


def test_ari():
    """Exact counts; where there is no foreground, FG-ARI is 1 there and undefined here."""
    with golden("osrt_ari") as file:
        true, predicted = file["inp/true"], file["inp/masks"].argmax(-1)
        found = contingency(predicted, true.argmax(-1))
        file.compare("out/nan/ari", ari(found), METRIC)
        file.compare("out/nan/fg_ari", ari(found.without_column(0)), METRIC)


# ------------------------------------------------------------------------------------------- models


class Recorded:
    """A file's model in our layout: its config, its arrays by our names, its scenes."""

    def __init__(self, file: Golden):
        images = in_last(file["inp/input_images"])
        params = file.group("param/")
        slots = params["encoder.slot_attention.initial_slots"]
        config = of_gallery(image_size=images.shape[2:4], num_views=2 * images.shape[1])
        model = config.model
        model.num_slots, model.slot_size = slots.shape
        model.encoder.update(encoder_sizes(params))
        model.decoder.update(decoder_sizes("ray_mixer", params, slots.shape[1]))
        hidden = len(params["encoder.slot_attention.mlp.0.bias"])
        model.aggregator.mlp_size = hidden
        model.target.update(input_views=images.shape[1], rays=file["inp/target_rays"].shape[1])
        self.config, self.params = config, params
        build = lambda: build_slot_model(model, images.shape[2:4], seed=0)  # noqa: E731
        self.definition, expected, frozen = split(nnx.eval_shape(build))
        assert not frozen
        self.arrays = as_arrays(OSRT.to_ours(params, expected), expected)
        self.batch = {
            "images": images,
            "of_images": file["inp/input_camera_pos"],
            "rays_of_images": file["inp/input_rays"],
            "target": file["inp/target_pixels"][:, None],
            "positions": file["inp/target_camera_pos"][:, None],
            "rays": file["inp/target_rays"][:, None],
        }
        self.true = file["inp/target_masks"].argmax(-1)


class WithRays(Views):
    """The task on scenes whose rays are given, and no cameras."""

    def __init__(self, config):
        super().__init__(config)
        self.inputs = ("images", "of_images", "rays_of_images", "target", "positions", "rays")
        self.inputs += ("video", "slot_mask")

    def check_batch(self, batch):
        pass

    def draw(self, models, key, sizes, training):
        return {**models["model"].draw(key, sizes, False)}

    def targets(self, models, batch, constants, draws):
        return {name: batch[name] for name in ("target", "positions", "rays")}

    def forward_inputs(self, constants):
        return "images", "of_images", "rays_of_images"

    def encoded(self, model, batch, draws):
        names = self.forward_inputs({})
        return model.encoder.encode(*(batch[name] for name in names))[:, None]


@pytest.mark.slow
def test_model():
    with golden("osrt_model") as file:
        case = Recorded(file)
        task = WithRays(case.config)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def run(arrays, batch):
            models = {"model": case.definition.merge(arrays)}
            given = task.targets(models, batch, {}, None)
            found = task.forward(models, batch, given, dict.fromkeys(DRAWN), {})
            return reconstruction_loss(found["prediction"], given["target"]), found

        (loss, found), gradients = jax.jit(run)(case.arrays, case.batch)
        file.compare("loss/total", loss, LOSS)
        file.compare("out/slots", found["slots"][:, 0], FORWARD)
        file.compare("out/pixels", found["prediction"][:, 0], FORWARD)
        masks = np.asarray(found["masks"][:, 0, :, 0])
        file.compare("out/masks", masks.swapaxes(1, 2), FORWARD)
        errors = np.square(np.asarray(found["prediction"]) - case.batch["target"]).mean((1, 2, 3))
        file.compare("loss/mse_per_scene", errors, LOSS)
        file.compare("out/psnr_per_scene", psnr(errors), METRIC)
        counts = contingency(masks.argmax(1), case.true)
        file.compare("out/ari", ari(counts), METRIC)
        file.compare("out/fg_ari", ari(counts.without_column(0)), METRIC)
        assert isinstance(task.evaluator, ViewsEvaluator)
        compare_recorded(file, "grad/", "", case.arrays, gradients)


DRAWN = ("initializer", "decoder", "transition", "aggregator", "target")


@pytest.mark.slow
def test_trajectory(monkeypatch):
    """Six steps of the compiled training step, from the model's weights."""
    with golden("osrt_model", parts=()) as file:
        case = Recorded(file)
    with golden("osrt_trajectory") as file:
        losses, rates = file["out/losses"], file["out/learning_rates"]
        norms, num_steps = file["out/gradient_norms"], len(file["out/learning_rates"])
        config = case.config
        config.task = f"{__name__}:WithRays"
        config.train.num_steps, config.train.batch_size = num_steps, len(case.batch["images"])
        config.mesh.data = 1
        config.optimizer.learning_rate.update(
            peak=PEAK,
            warmup=WARMUP / num_steps,
            half_life=DECAY_STEPS * np.log(0.5).item() / np.log(DECAY).item() / num_steps,
        )
        training = build_training(config)
        place = lambda x: jax.device_put(x, replicated(training.mesh))  # noqa: E731
        state = training.state.replace(params=place(case.arrays))
        views = np.zeros((len(case.true), config.data.num_frames, 1, 1, 3), np.uint8)
        slot_mask = np.ones((len(views), config.model.num_slots), bool)
        batch = training.place({**case.batch, "video": views, "slot_mask": slot_mask})
        found = []
        for _ in range(num_steps):
            state, metrics = training.train_step(state, training.frozen, batch, jax.random.key(0))
            found.append(jax.device_get(metrics))
        state_after = jax.device_get(state.params)
        _, metrics = training.train_step(state, training.frozen, batch, jax.random.key(0))
        found.append(jax.device_get(metrics))
        of = lambda name: np.array([x[name] for x in found], np.float64)  # noqa: E731
        np.testing.assert_allclose(of("loss"), losses, rtol=LOSS)
        np.testing.assert_allclose(of("learning_rate")[:-1], rates, rtol=METRIC, atol=1e-12)
        np.testing.assert_allclose(of("grad_norm")[:-1], norms, rtol=TRAINED)
        expected = OSRT.to_ours(file.group("out/param/"), case.arrays)
        assert expected.keys() == state_after.keys()
        for name, x in expected.items():
            if not is_null(name):
                error = np.abs(state_after[name] - x).max()
                assert error <= TRAINED * np.abs(x).max(), f"{name}: error {error:.1e}"


def test_schedule():
    """The published rate, at any number of steps."""
    with golden("schedules_inverted", parts=("inp/", "out/osrt")) as file:
        steps = file["inp/steps"]
        config = of_gallery()
        recipe = osrt.RECIPES["msn_hard"]
        rate = config.optimizer.learning_rate.to_dict()
        rate |= {"warmup": recipe["warmup"] / osrt.STEPS, "half_life": osrt.HALF_LIFE / osrt.STEPS}
        schedule = schedule_of("optimizer.learning_rate", rate, osrt.STEPS)
        found = np.array([schedule(step) for step in steps])
        file.compare("out/osrt", found, METRIC)
