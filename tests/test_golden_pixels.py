"""Models of pixels against the numbers of their programs: SAVi, SAVi++, BO-QSA, the original.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
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
    TRAINED,
    Golden,
    adam_state,
    compare_gradients,
    golden,
    inner,
    write_report,
)
from ml_collections import ConfigDict
from recipes import quick
from tiny import tiny_config

from configs.systems import savi
from smoothsa_jax.config.load import load_config
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.evaluation.masks import Scoring
from smoothsa_jax.evaluation.metrics import contingency
from smoothsa_jax.interop.pixel_programs import BOQSA, ORIGINAL, SAVI
from smoothsa_jax.interop.programs import Program
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.losses.reconstruction import reconstruction_loss
from smoothsa_jax.models.decoders.spatial_broadcast import SpatialBroadcastDecoder
from smoothsa_jax.models.encoders.resnet import ResNet
from smoothsa_jax.models.layers.basic import MLP, layer_norm
from smoothsa_jax.models.layers.conv import Convolution, Convolutions
from smoothsa_jax.models.layers.positions import PlaceEmbedding, functions_of_place
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.slot_model import KEYS
from smoothsa_jax.models.targets import flow_picture
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import run_task
from smoothsa_jax.training.step import build_training

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = [
    "savi_cnn",
    "savi_resnet",
    "savi_positions",
    "savi_spatial_broadcast",
    "savi_losses",
    "savi_targets",  # the rest of it is in test_optional_keys.py
    "savi_ari",
    "savi_model",
    "savi_plus_model",
    "savi_trajectory",
    "original_convolutions",
    "original_model",
    "boqsa_model",
    "boqsa_trajectory",
]

# What the files do not tell.
STRIDES = {
    "stride": (2, 1),
    "transpose": (2, 1),
    "transpose_3": (3,),
    "instance": (2, 1),
    "layer": (2, 1),
    "output": (1,),
}
TRANSPOSED = ("transpose", "transpose_3")
GROUPS = 32
PEAK, PEAK_AT, HALF_LIFE = 5e-3, 2, 5  # of the trajectories' learning rates; in steps


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def cases_of(name: str) -> list[str]:
    """The cases of a file, in its order."""
    return list(dict.fromkeys(key.split("/")[0] for key in Golden(name).arrays))


def case_of(file: Golden, case: str, kind: str) -> dict[str, np.ndarray]:
    return file.group(f"{case}/{kind}/")


def run(make: Callable, arrays: Mapping, apply: Callable, inputs: Mapping, cotangents: list):
    """Outputs of a module with these arrays, and the gradients of their sum with the cotangents."""
    definition, expected, _ = split(nnx.eval_shape(make))
    assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def total(arrays, inputs):
        outputs = apply(definition.merge(arrays), **inputs)
        return inner(list(zip(outputs, cotangents, strict=True))), outputs

    as_jax = lambda tree: {k: jnp.asarray(x, jnp.float32) for k, x in tree.items()}  # noqa: E731
    (_, outputs), gradients = jax.jit(total)(as_jax(arrays), as_jax(inputs))
    return outputs, *gradients


# --------------------------------------------------------------------------------------- layers


def linen_convolutions(recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of `Convolutions` by our names; the dead norm of SAVi's bug has none."""
    found = {}
    for key, x in recorded.items():
        part, leaf = key.split("/")
        kind, number = part.rsplit("_", 1)
        if kind in ("conv", "instance_norm"):
            group = "layers" if kind == "conv" else "norms"
            found[f"{group}.{number}.{leaf}"] = x
    return found


@pytest.mark.parametrize("case", STRIDES)
def test_convolutions_of_savi(case):
    with golden("savi_cnn", parts=(f"{case}/out/", f"{case}/grad/")) as file:
        arrays = case_of(file, case, "param")
        image, out = (file[f"{case}/{x}"] for x in ("inp/image", "out/out"))
        kernels = [x.shape for k, x in arrays.items() if k.startswith("conv_") and x.ndim == 4]
        norm = {"instance": "instance", "layer": "unused"}.get(case, "none")

        def make():
            return Convolutions(
                image.shape[-1],
                [shape[-1] for shape in kernels],
                [shape[0] for shape in kernels],
                STRIDES[case],
                transposed=(case in TRANSPOSED,) * len(kernels),
                padding="same",
                norm=norm,
                start="lecun",
                rngs=nnx.Rngs(0),
            )

        cotangent = file[f"{case}/inp/cotangent_out"]
        own = linen_convolutions(arrays)
        last = {k: arrays[f"output_layer/{k}"] for k in ("kernel", "bias") if case == "output"}

        def apply(module, image, **last):
            x = module(image)
            return [x @ last["kernel"] + last["bias"] if last else x]

        outputs, of_arrays, of_inputs = run(make, own, apply, {"image": image, **last}, [cotangent])
        file.compare(f"{case}/out/out", outputs[0], FORWARD)
        recorded = case_of(file, case, "grad")
        file.compare(f"{case}/grad/inp/image", of_inputs["image"], GRADIENT)
        for name in last:
            file.compare(f"{case}/grad/output_layer/{name}", of_inputs[name], GRADIENT)
        recorded = {k: x for k, x in recorded.items() if not k.startswith("inp/")}
        compare_gradients(file, of_arrays, linen_convolutions(recorded))
        if case == "layer":  # the program throws the result of this norm away
            dead = [x for key, x in recorded.items() if key.startswith("layer_norm")]
            assert dead and not any(np.any(x) for x in dead)
        assert outputs[0].shape == out.shape


@pytest.mark.parametrize("case", ["conv", "conv_2", "transpose_2", "transpose_1"])
def test_convolutions_of_the_original(case):
    """Keras stores the kernel of a transposed convolution as (k, k, out, in), and flips it."""
    turn = lambda x: x[::-1, ::-1].swapaxes(2, 3)  # noqa: E731
    turn = turn if case.startswith("transpose") else lambda x: x
    with golden("original_convolutions", parts=(f"{case}/out/", f"{case}/grad/")) as file:
        arrays = case_of(file, case, "param")
        arrays["kernel"] = turn(arrays["kernel"])
        size, _, *features = arrays["kernel"].shape
        stride = 2 if case.endswith("_2") else 1
        more = {"padding": "same", "transposed": case.startswith("transpose"), "start": "lecun"}
        make = lambda: Convolution(*features, size, stride, **more, rngs=nnx.Rngs(0))  # noqa: E731
        inputs, cotangent = {"image": file[f"{case}/inp/image"]}, file[f"{case}/inp/cotangent_out"]
        relu = lambda module, image: [jax.nn.relu(module(image))]  # noqa: E731
        plain = lambda module, image: [module(image)]  # noqa: E731
        apply = plain if file[f"{case}/out/out"].min() < 0 else relu
        outputs, of_arrays, of_inputs = run(make, arrays, apply, inputs, [cotangent])
        file.compare(f"{case}/out/out", outputs[0], FORWARD)
        file.compare(f"{case}/grad/inp/image", of_inputs["image"], GRADIENT)
        file.compare(f"{case}/grad/kernel", of_arrays["kernel"], GRADIENT, change=turn)
        file.compare(f"{case}/grad/bias", of_arrays["bias"], GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["same", "torch"])
@pytest.mark.parametrize("size, stride", [(5, 1), (5, 2), (5, 3), (3, 2), (4, 2), (2, 3), (7, 4)])
def test_enlarging_is_one_function_on_every_backend(padding, size, stride):
    """On a CPU it is an ordinary convolution with more channels, elsewhere a dilated one."""
    from smoothsa_jax.models.backend import Backend

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 5, 3)), jnp.float32)
    layer = Convolution(
        3, 4, size, stride, transposed=True, padding=padding, start="lecun", rngs=nnx.Rngs(0)
    )
    found = {}
    for platform in ("cpu", "cuda"):
        layer.backend = Backend(platform)
        found[platform] = jax.grad(lambda x: jnp.sum(jnp.sin(layer(x))))(x), layer(x)
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("case", ["small", "large"])
def test_resnet(case):
    with golden("savi_resnet", parts=(f"{case}/out/", f"{case}/grad/")) as file:
        image, out = file[f"{case}/inp/image"], file[f"{case}/out/out"]
        front = "FrameEncoder_0/ResNet_0/"
        recorded = {front + k: x for k, x in case_of(file, case, "param").items()}
        stages = [k.split("/")[2:4] for k in recorded if "/block" in k]
        counts = [0] * max(int(stage.removeprefix("stage")) for stage, _ in stages)
        for stage, block in stages:
            i = int(stage.removeprefix("stage")) - 1
            counts[i] = max(counts[i], int(block.removeprefix("block")))

        def make():
            return ResNet(
                image.shape[1:3],
                blocks=counts,
                root=case,
                root_width=recorded[f"{front}init_bn/scale"].shape[0],
                groups=GROUPS,
                padding="same",
                position="none",
                pixels="unit",
                start="lecun",
                rngs=nnx.Rngs(0),
            )

        names = {f"encoder.{name}" for name in split(nnx.eval_shape(make))[1]}
        bare = lambda found: {  # noqa: E731
            name.removeprefix("encoder."): x for name, x in found.items()
        }
        arrays = bare(SAVI.to_ours(recorded, names))
        apply = lambda module, image: [module(image)["features"].reshape(out.shape)]  # noqa: E731
        cotangent = file[f"{case}/inp/cotangent_out"]
        outputs, of_arrays, of_inputs = run(make, arrays, apply, {"image": image}, [cotangent])
        file.compare(f"{case}/out/out", outputs[0], FORWARD)
        file.compare(f"{case}/grad/inp/image", of_inputs["image"], GRADIENT)
        theirs = {front + k: x for k, x in case_of(file, case, "grad").items() if "inp/" not in k}
        # To be small, the file lacks the gradients of the 3x3 kernels.
        large = ("st.kernel", "nd.kernel")
        of_arrays = {name: x for name, x in of_arrays.items() if not name.endswith(large)}
        compare_gradients(file, of_arrays, bare(SAVI.to_ours(theirs, names)))
        made = nnx.eval_shape(make)
        assert made.grid == out.shape[1:3] and made.width == out.shape[-1]


@pytest.mark.parametrize("case", ["linear_add", "linear_add_mlp", "fourier_add"])
def test_positions(case):
    with golden("savi_positions", parts=(f"{case}/out/", f"{case}/grad/")) as file:
        x, recorded = file[f"{case}/inp/x"], case_of(file, case, "param")
        grid, width = x.shape[1:3], x.shape[-1]
        position = case.split("_")[0]
        waves = recorded["dense_pe_0/kernel"].shape[0] // 4 if position == "fourier" else None
        functions = functions_of_place(grid, position, waves)
        np.testing.assert_allclose(functions, recorded["pos_embedding"][0], atol=2e-6)
        hidden = recorded["MLP_0/dense_mlp_0/kernel"].shape[1] if case.endswith("mlp") else 0

        class Both(nnx.Module):
            def __init__(self):
                more = {"start": "lecun", "rngs": nnx.Rngs(0)}
                self.place = PlaceEmbedding(grid, width, position, waves, **more)
                self.norm = layer_norm(width, epsilon=1e-6, rngs=more["rngs"]) if hidden else None
                mlp = lambda: MLP((width, hidden, width), activation="relu", **more)  # noqa: E731
                self.mlp = mlp() if hidden else None

            def __call__(self, x):
                x = self.place(x)
                return [self.mlp(self.norm(x)) if hidden else x]

        ours = {"dense_pe_0": "place.dense", "MLP_0/LayerNorm_0": "norm"}
        ours |= {"MLP_0/dense_mlp_0": "mlp.hidden", "MLP_0/dense_mlp_1": "mlp.out"}

        def renamed(found):
            pairs = ((key.rsplit("/", 1), x) for key, x in found.items() if "/" in key)
            return {f"{ours[part]}.{leaf}": x for (part, leaf), x in pairs if part in ours}

        apply = lambda module, x: module(x)  # noqa: E731
        cotangent = file[f"{case}/inp/cotangent_out"]
        outputs, of_arrays, of_inputs = run(Both, renamed(recorded), apply, {"x": x}, [cotangent])
        file.compare(f"{case}/out/out", outputs[0], FORWARD)
        file.compare(f"{case}/grad/inp/x", of_inputs["x"], GRADIENT)
        theirs = case_of(file, case, "grad")
        assert not np.any(theirs["pos_embedding"])
        compare_gradients(file, of_arrays, renamed(theirs))


def test_positions_side_by_side():
    """The program can also append the functions as channels, which no config does."""
    with golden("savi_positions", parts=()) as file:
        x = file["linear_concat/inp/x"]
        place = np.broadcast_to(functions_of_place(x.shape[1:3], "linear"), (*x.shape[:3], 2))
        file.compare("linear_concat/out/out", np.concatenate([x, place], axis=-1), FORWARD)


# ------------------------------------------------------------------------------------- the decoder


def broadcast_settings(kernels: list[tuple], cells: tuple, reached: tuple) -> dict[str, Any]:
    """Settings of a decoder of SAVi: the first layers enlarge by two."""
    doubled = (reached[0] // cells[0]).bit_length() - 1
    enlarges = [i < doubled for i in range(len(kernels))]
    return {
        "cells": cells,
        "hidden_size": kernels[0][-1],
        "kernel_size": kernels[0][0],
        "strides": [2 if x else 1 for x in enlarges],
        "transposed": enlarges,
        "padding": "same",
        "position": "linear",
        "head": "separate",
        "start": "lecun",
    }


@pytest.mark.parametrize("case", ["late", "early"])
def test_spatial_broadcast(case):
    with golden("savi_spatial_broadcast", parts=(f"{case}/out/", f"{case}/grad/")) as file:
        slots, masks = file[f"{case}/inp/slots"], file[f"{case}/out/masks"]
        parts = {name: file[f"{case}/out/{name}"] for name in ("flow", "depth")}
        batch, frames, num_slots, slot_size = slots.shape
        grid = masks.shape[3:5]
        recorded = case_of(file, case, "param")
        front = "SpatialBroadcastDecoder_0/"
        kernels = [x.shape for k, x in recorded.items() if k.startswith("CNN_0") and x.ndim == 4]
        cells = recorded["PositionEmbedding_0/pos_embedding"].shape[1:3]
        settings = broadcast_settings(kernels, cells, grid)
        width = sum(x.shape[-1] for x in parts.values())

        def make():
            sizes = (grid, width, slot_size)
            return SpatialBroadcastDecoder(*sizes, **settings, fusion=case, rngs=nnx.Rngs(0))

        names = {f"decoder.{name}" for name in split(nnx.eval_shape(make))[1]}

        def to_ours(found):
            found = SAVI.to_ours({front + k: x for k, x in found.items()}, names)
            return {name.removeprefix("decoder."): x for name, x in found.items()}

        def apply(module, slots):
            prediction, masks = module(slots.reshape(-1, num_slots, slot_size))
            whole = prediction.reshape(batch, frames, *grid, width)
            of_slots = masks.reshape(batch, frames, num_slots, *grid, 1)
            return [whole[..., :-1], whole[..., -1:], of_slots]

        order = [*parts, "masks"]
        cotangents = [file[f"{case}/inp/cotangent_{name}"] for name in order]
        inputs = {"slots": slots}
        outputs, of_arrays, of_inputs = run(make, to_ours(recorded), apply, inputs, cotangents)
        for name, value in zip(order, outputs, strict=True):
            file.compare(f"{case}/out/{name}", value, FORWARD)
        compare_segments(file, f"{case}/out/segmentations", outputs[-1], masks)
        file.compare(f"{case}/grad/inp/slots", of_inputs["slots"], GRADIENT)
        theirs = case_of(file, case, "grad")
        assert not np.any(theirs["PositionEmbedding_0/pos_embedding"])
        theirs = {k: x for k, x in theirs.items() if not k.startswith("inp/")}
        is_null = lambda name: name == "alpha.bias"  # noqa: E731
        compare_gradients(file, of_arrays, to_ours(theirs), null=is_null)


def compare_segments(file: Golden, key: str, masks: Any, recorded: np.ndarray) -> None:
    """Compare where the best two masks differ enough; equal slots are left to rounding."""
    best = np.sort(recorded, axis=2)[:, :, -2:]
    clear = (best[:, :, 1] - best[:, :, 0]) > 1e-5
    found = np.argmax(masks, axis=2)
    assert clear.any()
    np.testing.assert_array_equal(found[clear], file[key][clear])


# -------------------------------------------------------------------------------- losses, targets


def test_losses():
    with golden("savi_losses") as file:
        prediction, target = (jnp.asarray(file[f"inp/{x}"]) for x in ("prediction", "target"))
        channels = target.shape[-1]
        of = jax.value_and_grad(reconstruction_loss)
        for name, summed_after, factor in (("sum", 1, 1), ("mean", None, channels)):
            loss, gradient = of(prediction, target, summed_after)
            file.compare(f"loss/{name}", factor * loss, LOSS)
            file.compare(f"grad/{name}/prediction", factor * gradient, GRADIENT)


def test_targets():
    """The pictures of flow and depth, of decoded arrays that the file has too."""
    with golden("savi_targets", parts=()) as file:
        plain = {name: file[f"out/plain/{name}"] for name in ("flow", "depth")}
        found = jax.jit(flow_picture)(plain["flow"])
        # Colors are rounded down, so float32 may rarely be one step of 1/255 off.
        error = np.abs(np.asarray(found, np.float64) - file["out/targets/flow"])
        assert error.max() <= 1.001 / 255 and (error > FORWARD).mean() <= 1e-3
        depth = np.log1p(plain["depth"])
        file.compare("out/targets/depth", depth, FORWARD)
    still = np.asarray(flow_picture(jnp.zeros((4, 4, 2))))
    np.testing.assert_array_equal(still, 1.0)


def test_ari_of_videos():
    with golden("savi_ari") as file:
        true, found, valid = (file[f"inp/{x}"] for x in ("true", "predicted", "padding_mask"))
        assert {k for k in file.arrays if k.startswith("out/")} == {
            f"out/{x}{y}" for x in ("ari", "fg_ari") for y in ("", "_without_first")
        }
        labels = np.where(valid > 0, true, 255).astype(np.uint8)
        for skip, ending in ((0, ""), (1, "_without_first")):
            scoring = Scoring(skip_frames=skip)
            rows = [
                scoring.scores(contingency(*(scoring.kept(x)[None] for x in (p, t))))
                for p, t in zip(found.astype(np.uint8), labels, strict=True)
            ]
            for name in ("ari", "fg_ari"):
                expected = file[f"out/{name}{ending}"]
                ours = np.array([row[name] for row in rows])
                # Their convention: a sample without any true pixel counts as 1; ours is left out.
                empty = np.isnan(ours)
                np.testing.assert_array_equal(expected[empty], 1.0)
                np.testing.assert_allclose(ours[~empty], expected[~empty], atol=10 * METRIC)


# ------------------------------------------------------------------------------------ whole models


class _Recorded(nnx.Module):
    """A target that the batch holds as it is; subclasses name it."""

    name: str
    width: int

    def __init__(self, encoder, image_size, *, rngs):
        del encoder, rngs
        self.grid = tuple(image_size)

    def __call__(self, batch, constants, draws=None):
        del constants, draws
        found = batch[self.name]
        return {"target": found.reshape(*found.shape[:2], -1, self.width)}

    def draw(self, keys, sizes, training) -> None:
        """Draw nothing."""


class RecordedFlow(_Recorded):
    name, width, batch_reads = "flow", 3, ("flow",)


class RecordedDepth(_Recorded):
    name, width, batch_reads = "depth", 1, ("depth",)


@dataclasses.dataclass(frozen=True)
class System:
    """A model of the gallery in a program.

    Attributes:
        words: data set and words of its config.
        program: whose names the arrays have.
        losses: their name -> ours.
        targets: that the file has.
    """

    words: str
    program: Program
    losses: Mapping[str, str]
    targets: tuple[str, ...] = ()


HEADS = 4  # of transition and projection
SYSTEMS = {
    "savi": System("movi_a:savi", SAVI, {"recon_flow": "reconstruction"}, ("flow",)),
    "savi_plus": System(
        "movi_e:savi_plus",
        SAVI,
        {"recon_flow": "flow", "recon_depth": "depth"},
        ("flow", "depth"),
    ),
    "original": System("coco:slot_attention", ORIGINAL, {"mse": "reconstruction"}),
    "boqsa": System("coco:boqsa,mixture", BOQSA, {"mse": "reconstruction"}),
}
NULL = ("norm_slots.bias", "alpha.bias", "in_bias", "joint.bias")


def strides_to(size: int, reached: int, layers: int) -> list[int]:
    """Strides of layers of which the first ones halve or double."""
    doubled = (max(size, reached) // min(size, reached)).bit_length() - 1
    return [2 if i < doubled else 1 for i in range(layers)]


class Case:
    """A whole model with its arrays, its batch and its config."""

    def __init__(self, name: str, file: Golden):
        self.system, self.file = SYSTEMS[name], file
        self.theirs = file.group("param/")
        bare = {k.replace("/", "."): x for k, x in self.theirs.items()}
        find = lambda pattern: [x for k, x in bare.items() if re.fullmatch(pattern, k)]  # noqa: E731
        inputs = file.group("inp/")
        image = inputs["video"] if "video" in inputs else inputs["image"]
        if self.system.program is BOQSA:  # channels first
            image = image.transpose(0, 2, 3, 1)
        self.video = image if image.ndim == 5 else image[:, None]
        self.side = self.video.shape[2]
        self.inputs = inputs
        data_set, _, words = self.system.words.partition(":")
        shipped = load_config(f"{CONFIGS / data_set}.py:{words}")
        self.shipped = shipped
        model = shipped.model.to_dict()
        if self.system.program is SAVI:
            self._savi(model, find)
        else:
            self._pictures(model, find)
        self.model = ConfigDict(model)

    def _savi(self, model, find):
        decoder, encoder = "SpatialBroadcastDecoder_0", "FrameEncoder_0"
        kernels = find(rf"{encoder}\.CNN_0\.conv_\d+\.kernel")
        (grid,) = find(rf"{encoder}\.PositionEmbedding_0\.pos_embedding")
        strides = strides_to(self.side, grid.shape[1], len(kernels))
        width, size = kernels[0].shape[-1], kernels[0].shape[0]
        # The model of SAVi++ has the encoder of SAVi here.
        model["encoder"] = {
            **savi.convolutions(width, 2),
            "kernel_size": size,
            "strides": tuple(strides),
        }
        (hidden,) = find(rf"{encoder}\.PositionEmbedding_0\.MLP_0\.dense_mlp_0\.bias")
        model["projection"] |= {"hidden_size": len(hidden)}
        blocks = find(rf"{encoder}\.Transformer_0\.TransformerBlock\d+\.MLP_0\.dense_mlp_0\.bias")
        if blocks:
            (embedded,) = find(rf"{encoder}\.Dense_0\.bias")
            more = {"size": len(embedded), "num_layers": len(blocks), "mlp_size": len(blocks[0])}
            model["projection"] |= {**more, "num_heads": HEADS}
        (hidden,) = find(r"CoordinateEncoderStateInit_0\.MLP_0\.dense_mlp_0\.bias")
        model["initializer"] |= {"hidden_size": len(hidden)}
        (query,) = find(r"SlotAttention_0\.general_dense_q_0\.kernel")
        model["aggregator"] |= {"qkv_size": query.shape[1] * query.shape[2]}
        inner = r"TransformerBlock_0\.MultiHeadDotProductAttention_0\.query\.bias"
        (query,), (hidden,) = find(inner), find(r"TransformerBlock_0\.MLP_0\.dense_mlp_0\.bias")
        sizes = {"qkv_size": query.size, "mlp_size": len(hidden), "num_heads": len(query)}
        model["transition"] |= sizes
        kernels = [x.shape for x in find(rf"{decoder}\.CNN_0\.conv_\d+\.kernel")]
        (cells,) = find(rf"{decoder}\.PositionEmbedding_0\.pos_embedding")
        grid = (self.side, self.side)
        model["decoder"] |= broadcast_settings(kernels, cells.shape[1:3], grid)
        model["num_slots"] = 1 + self.inputs["boxes"].shape[2]
        self.slot_size = kernels[0][2]
        classes = {"flow": "RecordedFlow", "depth": "RecordedDepth"}
        named = {x: {"name": f"{__name__}:{classes[x]}"} for x in self.system.targets}
        several = {"name": "several", **named}
        model["target"] = several if len(named) > 1 else named[self.system.targets[0]]
        model["slot_size"] = self.slot_size

    def _pictures(self, model, find):
        is_torch = self.system.program is BOQSA
        encoder = r"encoder\.conv\.\d+\.0\.weight" if is_torch else r"encoder_cnn\.\d+\.kernel"
        decoder = (
            r"decoder\.conv\.\d+\.0\.conv\.0\.weight" if is_torch else (r"decoder_cnn\.\d+\.kernel")
        )
        kernels, enlarge = find(encoder), find(decoder)
        layers = len(enlarge) if is_torch else len(enlarge) - 1  # the last is the head
        channels = 0 if is_torch else -1
        if is_torch:
            (grid,), (cells,) = find(r"slot_attn\.pos_emb\.grid"), find(r"decoder\.pos_emb\.grid")
            tokens, cells = grid.shape[1], cells.shape[1]
            doubling = strides_to(cells, self.side, layers)
        else:
            tokens, doubling = self.side, [2] * (layers - 1) + [1]
            cells = self.side // 2 ** (layers - 1)
        model["encoder"] |= {
            "width": kernels[0].shape[channels],
            "kernel_size": kernels[0].shape[2 if is_torch else 0],
            "strides": tuple(strides_to(self.side, tokens, len(kernels))),
        }
        model["decoder"] |= {
            "cells": cells,
            "hidden_size": enlarge[0].shape[1 if is_torch else 2],
            "kernel_size": enlarge[0].shape[2 if is_torch else 0],
            "strides": tuple(doubling),
            "transposed": (True,) * layers,
        }
        of_tokens = r"slot_attn\.mlp\.1\.bias" if is_torch else r"mlp\.0\.bias"
        of_slots = (
            r"slot_attn\.slot_attention\.mlp\.0\.bias"
            if is_torch
            else (r"slot_attention\.mlp\.0\.bias")
        )
        model["projection"] |= {"hidden_size": len(find(of_tokens)[0])}
        model["aggregator"] |= {"mlp_size": len(find(of_slots)[0])}
        if is_torch:  # the file has no stochastic depth
            model["aggregator"] |= {"mlp_drop_rate": 0.0}
            model["initializer"] |= {"noise": float(self.inputs["sigma"])}
        noise = self.inputs["noise"]
        model["num_slots"], model["slot_size"] = noise.shape[1:]

    def config(self) -> ConfigDict:
        """A whole config, with the losses and the optimizer of the gallery."""
        frames = self.video.shape[1]
        config = tiny_config(num_frames=frames).to_dict()
        config["data"] |= {"image_size": self.side, "boxes": "boxes" in self.inputs}
        config["model"] = self.model.to_dict()
        config["losses"] = self.shipped.losses.to_dict()
        config["optimizer"] = self.shipped.optimizer.to_dict()
        config["weights"] = {}
        config["train"] |= {"batch_size": len(self.video)}
        return ConfigDict(config)

    def batch(self) -> dict[str, np.ndarray]:
        batch, frames = self.video.shape[:2]
        found = {"video": self.video, **{x: self.inputs[x] for x in self.system.targets}}
        boxes = np.zeros((batch, frames, self.model.num_slots, 4), np.float32)
        if "boxes" in self.inputs:
            given = self.inputs["boxes"]  # rows first
            boxes[:, :, 1:] = given[..., [1, 0, 3, 2]]
            boxes[:, :, 0] = 0.5  # whatever is there, zeros enter
        mask = np.ones((batch, self.model.num_slots), bool)
        return {**found, "boxes": boxes, "slot_mask": mask}

    def draws(self) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(KEYS)
        return {**found, "initializer": self.inputs.get("noise")}

    @property
    def has_pictures_of_slots(self) -> bool:
        return any(key.startswith("out/recon_per_slot") for key in self.file.arrays)

    def to_ours(self, arrays: Mapping[str, np.ndarray], names) -> dict[str, np.ndarray]:
        return self.system.program.to_ours(arrays, names, self.model.to_dict())


def of_each_slot(case: Case, model: nnx.Module, slots: jax.Array) -> jax.Array:
    """The picture (B,N,H,W,C) of each slot (B,N,D): what is decoded if all others are masked."""
    batch, number = slots.shape[:2]
    alone = jnp.tile(jnp.eye(number, dtype=bool), (batch, 1))
    pictures, _ = model.decoder(jnp.repeat(slots, number, axis=0), alone)
    return pictures.reshape(batch, number, case.side, case.side, -1)


def outputs_by_their_names(case: Case, outputs: Mapping, more: Mapping) -> dict[str, Any]:
    """Our outputs as the files have them, with `more` that the model itself does not return."""
    batch, frames, num_slots = outputs["slots"].shape[:3]
    grid = (case.side, case.side)
    picture = lambda x: x.reshape(*x.shape[:2], *grid, -1)  # noqa: E731
    masks = outputs["masks"][..., None]
    if case.system.program is SAVI:
        parts = {name: picture(outputs["prediction"]) for name in case.system.targets}
        if len(parts) > 1:
            parts = {name: picture(outputs[f"{name}.prediction"]) for name in parts}
        attention = outputs["attention"].reshape(batch, frames, 1, num_slots, -1)
        return {
            **parts,
            "slots": outputs["slots"],
            **more,
            "masks": masks,
            "attention": attention,
        }
    recon = picture(outputs["prediction"])[:, 0]
    found = {"slots": outputs["slots"][:, 0], "recon": recon, "masks": masks[:, 0], **more}
    # The original's file has the first slot of the first sample alone.
    found["recon_per_slot_first"] = more["recon_per_slot"][:1, 0]
    if case.system.program is BOQSA:
        first = lambda x: jnp.moveaxis(x, -1, -3)  # noqa: E731
        found |= {name: first(found[name]) for name in ("recon", "masks", "recon_per_slot")}
        found["queries"] = outputs["queries"]
        found["attention"] = outputs["attention"][:, 0].reshape(batch, num_slots, -1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", quick(list(SYSTEMS), "boqsa"))
def test_model(name):
    """Outputs, losses and gradients of a whole model."""
    with golden(f"{name}_model") as file:
        case = Case(name, file)
        config = case.config()
        task, losses = build_task(config), build_losses(config.losses)
        definition, expected, _ = split(task.build(shapes_only=True))
        names, batch = set(expected), case.batch()
        arrays = {k: jnp.asarray(x) for k, x in case.to_ours(case.theirs, names).items()}
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        sigma = case.inputs.get("sigma")
        scheduled = {} if sigma is None else {"initializer": {"noise": float(sigma)}}

        @functools.partial(jax.value_and_grad, has_aux=True)
        def run(params):
            model = definition.merge(params)
            outputs = run_task(task, {"model": model}, batch, case.draws(), scheduled=scheduled)
            terms = losses(outputs, batch, losses.schedules)
            more, slots = {}, outputs["slots"]
            flat = slots.reshape(-1, *slots.shape[2:])
            if model.transition is not None:
                more["slots_predicted"] = model.transition(flat, None, None)[0].reshape(slots.shape)
            if case.has_pictures_of_slots:
                more["recon_per_slot"] = of_each_slot(case, model, flat)
            return sum(terms.values()), (outputs, terms, more)

        (total, (outputs, terms, more)), gradients = jax.jit(run)(arrays)
        found = outputs_by_their_names(case, outputs, more)
        for key in [key for key in file.arrays if key.startswith("out/")]:
            named = key.removeprefix("out/")
            if named == "segmentations":
                compare_segments(file, key, found["masks"], file["out/masks"])
            else:
                file.compare(key, found[named], FORWARD)
        for theirs, ours in case.system.losses.items():
            file.compare(f"loss/{theirs}", terms[ours], LOSS)
        if "loss/total" in file:
            file.compare("loss/total", total, LOSS)
        recorded = case.to_ours(file.group("grad/"), names)
        compare_gradients(file, gradients, recorded, null=lambda name: name.endswith(NULL))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["savi", "boqsa"])
def test_training(name):
    """Six steps of the train step that `main.py` calls, with the optimizer of the gallery."""
    results = ("loss/", "out/")
    with (
        golden(f"{name}_model", parts=()) as model,
        golden(f"{name}_trajectory", parts=results) as file,
    ):
        case = Case(name, model)
        config = case.config()
        rates, norms = file["out/learning_rates"], file["out/gradient_norms"]
        steps, peak = len(rates), int(rates.argmax())
        rate = config.optimizer.learning_rate
        # The halving begins with the first step, and multiplies the warm-up.
        halves = "half_life" in rate
        rate.peak, rate.warmup = PEAK, PEAK_AT / steps
        if halves:
            rate.half_life = HALF_LIFE / steps
        assert halves or peak == PEAK_AT
        config.train.num_steps = steps
        setup = build_training(config)
        names = set(setup.state.params)
        put = lambda tree: jax.device_put(  # noqa: E731
            {k: jnp.asarray(x) for k, x in tree.items()}, replicated(setup.mesh)
        )
        state = setup.state.replace(params=put(case.to_ours(case.theirs, names)))
        frozen, batch, found, final, first = setup.frozen, setup.place(case.batch()), [], None, None
        assert not frozen
        for step in range(steps + 1):
            key = jax.random.key(step)
            state, metrics = setup.train_step(state, frozen, batch, key, case.draws())
            found.append(jax.device_get(metrics))
            if step == 0:
                first = jax.device_get(adam_state(state).mu)
            if step == steps - 1:  # one more step tells the losses after the last
                final = jax.device_get(state.params)
        clipped = sum(float(np.square(x).sum()) for x in first.values()) ** 0.5
        bound = min(config.optimizer.clip_norm, norms[0])
        np.testing.assert_allclose(10 * clipped, bound, rtol=GRADIENT)
        file.compare("out/learning_rates", [m["learning_rate"] for m in found[:steps]], LOSS)
        file.compare("out/gradient_norms", [m["grad_norm"] for m in found[:steps]], GRADIENT)
        file.compare("out/losses", [m["loss"] for m in found], LOSS)
        recorded = case.to_ours(file.group("out/param/"), names)
        assert recorded.keys() == final.keys()
        for key, expected in recorded.items():
            actual, expected = not_null(key, final[key]), not_null(key, expected)
            error = np.abs(actual - expected).max(initial=0.0)
            assert error <= TRAINED * np.abs(expected).max(initial=1e-12), f"{key}: {error:.1e}"


def not_null(name: str, x: np.ndarray) -> np.ndarray:
    """The part of a trained array that is not left to rounding noise."""
    if name.endswith(("norm_slots.bias", "alpha.bias")):
        return x[:0]
    if name.endswith("joint.bias"):
        return x[:-1]  # the mask logit is the last
    if name.endswith("in_bias"):
        queries, _, values = np.split(x, 3)
        return np.concatenate([queries, values])
    return x
