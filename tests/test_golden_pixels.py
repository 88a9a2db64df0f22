"""Models of pixels against the numbers of their programs: SAVi, SAVi++, BO-QSA, the original.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

import functools
from collections.abc import Callable, Mapping
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
    Golden,
    golden,
    inner,
    write_report,
)

from smoothsa_jax.evaluation.masks import Scoring
from smoothsa_jax.evaluation.metrics import contingency
from smoothsa_jax.interop.pixel_programs import SAVI
from smoothsa_jax.losses.reconstruction import reconstruction_loss
from smoothsa_jax.models.decoders.spatial_broadcast import SpatialBroadcastDecoder
from smoothsa_jax.models.encoders.resnet import ResNet
from smoothsa_jax.models.layers.basic import MLP, layer_norm
from smoothsa_jax.models.layers.conv import Convolution, Convolutions
from smoothsa_jax.models.layers.positions import PlaceEmbedding, functions_of_place
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.targets import flow_picture

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
# Of a file's largest gradient: for what is zero in exact arithmetic; and what float32 leaves of a
# small gradient, in sums of large terms.
NO_GRADIENT, ROUNDING = 1e-5, 1e-7


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


def compare_gradients(
    recorded: Mapping,
    found: Mapping,
    null: Callable = lambda name: False,
    left_out: tuple[str, ...] = (),
):
    """Compare gradients by our names; those that are zero in exact arithmetic absolutely."""
    assert recorded.keys() == found.keys() - set(left_out)
    of_file = max(np.abs(x).max() for x in recorded.values())
    for name, expected in recorded.items():
        error, largest = np.abs(found[name] - expected).max(), np.abs(expected).max()
        floor = NO_GRADIENT if null(name) else ROUNDING
        bound = max(GRADIENT * largest, floor * of_file)
        assert error <= bound, f"{name}: error {error:.1e}, largest {largest:.1e}"


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
        compare_gradients(linen_convolutions(recorded), of_arrays)
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
        kernels = tuple(name for name in of_arrays if name.endswith(("st.kernel", "nd.kernel")))
        compare_gradients(bare(SAVI.to_ours(theirs, names)), of_arrays, left_out=kernels)
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
        compare_gradients(renamed(theirs), of_arrays)


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
        compare_gradients(to_ours(theirs), of_arrays, lambda name: name == "alpha.bias")


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
        for name, summed, factor in (("sum", True, 1), ("mean", False, channels)):
            loss, gradient = of(prediction, target, summed)
            file.compare(f"loss/{name}", factor * loss, LOSS)
            file.compare(f"grad/{name}/prediction", factor * gradient, GRADIENT)


def test_targets():
    """The pictures of flow and depth, of decoded arrays that the file has too."""
    with golden("savi_targets", parts=()) as file:
        plain = {name: file[f"out/plain/{name}"] for name in ("flow", "depth")}
        found = jax.jit(flow_picture)(plain["flow"])
        file.compare("out/targets/flow", found, FORWARD)
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
