"""The numbers of the programs of BO-QSA, DINOSAUR and SPOT for their parts.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes: every size
is read from the files.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import FORWARD, GRADIENT, LOSS, METRIC, Golden, golden, inner
from recipes import quick

from smoothsa_jax.interop.authors import from_authors
from smoothsa_jax.losses.attention import (
    attention_distillation_loss,
    attention_match_loss,
)
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.decoders.permuted_ar import NUM_ORDERS, PermutedARDecoder, patch_orders
from smoothsa_jax.models.initializers import Gaussian
from smoothsa_jax.models.parameters import split
from smoothsa_jax.schedules import schedule_of

FILES = [
    "boqsa_slot_attention",
    "boqsa_gaussian",
    "loss_attention_distill",
    "loss_attention_match",
    "schedules_inverted",
    "spot_orders",
    "decoder_spot_permutations",
]
# Stated in the READMEs only.
ITERATIONS = 3
HEADS = 4
SPOT_GENERA1Z = {
    "biases": "none",
    "activation": "gelu",
    "final_norm": False,
    "first_norm": "stream",
    "bos_std": 1.0,
}
BOQSA = {"epsilon": 1.0, "activation": "relu"}
NULL = "norm_slots.bias"  # its gradient is zero in exact arithmetic
BOQSA_GRADIENTS = {"bi-level": "last_and_queries", "fixed-point": "last", "none": "full"}

TRANSPOSED = ("project_q", "project_k", "project_v", "mlp.0.weight", "mlp.2.weight", "gru.weight")
BOQSA_NAMES = {
    "norm_feature": "norm_features",
    "norm_slots": "norm_slots",
    "norm_mlp": "norm_mlp",
    "project_q.weight": "query.kernel",
    "project_k.weight": "key.kernel",
    "project_v.weight": "value.kernel",
    "gru.weight_ih": "gru.input.kernel",
    "gru.weight_hh": "gru.hidden.kernel",
    "gru.bias_ih": "gru.input.bias",
    "gru.bias_hh": "gru.hidden.bias",
    "mlp.0.weight": "mlp.hidden.kernel",
    "mlp.0.bias": "mlp.hidden.bias",
    "mlp.2.weight": "mlp.out.kernel",
    "mlp.2.bias": "mlp.out.bias",
}


def boqsa_name(key: str) -> str:
    """Our name for a key of BO-QSA's slot attention."""
    if key in BOQSA_NAMES:
        return BOQSA_NAMES[key]
    module, leaf = key.split(".")
    return f"{BOQSA_NAMES[module]}.{ {'weight': 'scale', 'bias': 'bias'}[leaf] }"


def to_ours(key: str, x: np.ndarray) -> np.ndarray:
    return x.T if key.startswith(TRANSPOSED) and x.ndim == 2 else x


def compare_absolutely(file: Golden, name: str, found) -> None:
    """Compare a gradient that is zero in exact arithmetic, and rounding noise otherwise."""
    gradients = [x for key, x in file.arrays.items() if "grad/" in key]
    largest = max(np.abs(x).max() for x in gradients)
    assert np.abs(found - file[name]).max() < 1e-5 * largest


def boqsa_attention(params: dict[str, np.ndarray], gradient: str):
    """The definition of BO-QSA's slot attention, and its recorded arrays."""
    slot_size, width = params["project_k.weight"].shape
    make = lambda: SlotAttention(  # noqa: E731
        width,
        slot_size,
        first=ITERATIONS,
        later=1,
        gradient=gradient,
        mlp_ratio=params["mlp.0.weight"].shape[0] / slot_size,
        rngs=nnx.Rngs(0),
        **BOQSA,
    )
    definition, expected, _ = split(nnx.eval_shape(make))
    arrays = {boqsa_name(key): jnp.asarray(to_ours(key, x)) for key, x in params.items()}
    assert {n: x.shape for n, x in arrays.items()} == {n: x.shape for n, x in expected.items()}
    return definition, arrays


@pytest.mark.slow
@pytest.mark.parametrize("truncation", quick(list(BOQSA_GRADIENTS), "bi-level"))
def test_slot_attention_of_boqsa(truncation):
    others = [name for name in BOQSA_GRADIENTS if name != truncation]
    with golden("boqsa_slot_attention") as file:
        file.used |= {key for key in file.arrays if key.split("/")[0] in others}
        case = lambda key: file[f"{truncation}/{key}"]  # noqa: E731
        definition, params = boqsa_attention(
            file.group(f"{truncation}/param/"), BOQSA_GRADIENTS[truncation]
        )
        cotangents = case("inp/cotangent_slots"), case("inp/cotangent_attention")

        @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
        def run(params, features, queries):
            module = definition.merge(params)
            found = module(module.prepare(features), queries)
            outputs = found.slots, found.attention[-1]
            return inner(list(zip(outputs, cotangents, strict=True))), outputs

        (_, outputs), grads = run(params, case("inp/features"), case("inp/queries"))
        for key, value in zip(("slots", "attention"), outputs, strict=True):
            file.compare(f"{truncation}/out/{key}", value, FORWARD)
        for key in file.group(f"{truncation}/grad/"):
            name = f"{truncation}/grad/{key}"
            if key.startswith("inp/"):
                found = grads[1 if key.endswith("features") else 2]
                file.compare(name, found, GRADIENT)
            elif key == NULL:
                compare_absolutely(file, name, grads[0][NULL])
            else:
                change = functools.partial(to_ours, key)
                file.compare(name, grads[0][boqsa_name(key)], GRADIENT, change=change)


@pytest.mark.slow
def test_gaussian_of_boqsa():
    """Its baseline: queries from one learned Gaussian, tokens of an MLP with positions."""
    with golden("boqsa_gaussian") as file:
        params = file.group("param/")
        noise = file["inp/noise"]
        shape = params["slot_mu"].shape
        make = lambda: Gaussian(1, shape[-1], shape[1], log_std=0.0, rngs=nnx.Rngs(0))  # noqa: E731
        definition, _, _ = split(nnx.eval_shape(make))
        of_gaussian = {"mean": params["slot_mu"], "log_std": params["slot_log_sigma"]}
        inside = "slot_attention."
        of_attention = {k.removeprefix(inside): x for k, x in params.items() if inside in k}
        attention, arrays = boqsa_attention(of_attention, "last_and_queries")
        outside = {k: jnp.asarray(x) for k, x in params.items() if inside not in k}
        cotangents = [file[f"inp/cotangent_{k}"] for k in ("slots", "queries", "attention")]

        def tokens_of(outside, features):
            """Its position embedding and MLP, which are no part of ours: a numerical reference."""
            x = jnp.moveaxis(features, 1, -1)
            x = x + outside["pos_emb.grid"] @ outside["pos_emb.dense.weight"].T
            x = (x + outside["pos_emb.dense.bias"]).reshape(len(x), -1, x.shape[-1])
            mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
            x = (x - mean) / jnp.sqrt(var + 1e-5) * outside["mlp.0.weight"] + outside["mlp.0.bias"]
            x = jax.nn.relu(x @ outside["mlp.1.weight"].T + outside["mlp.1.bias"])
            return x @ outside["mlp.3.weight"].T + outside["mlp.3.bias"]

        @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3), has_aux=True)
        def run(of_gaussian, arrays, outside, features):
            tokens = tokens_of(outside, features)
            queries, _ = definition.merge(of_gaussian)(tokens, None, None, noise, {})
            module = attention.merge(arrays)
            found = module(module.prepare(tokens), queries)
            outputs = found.slots, queries, found.attention[-1]
            return inner(list(zip(outputs, cotangents, strict=True))), outputs

        (_, outputs), grads = run(of_gaussian, arrays, outside, file["inp/feature_map"])
        for key, value in zip(("slots", "queries", "attention"), outputs, strict=True):
            file.compare(f"out/{key}", value, FORWARD)
        for key in file.group("grad/"):
            name = f"grad/{key}"
            if key.startswith(inside):
                key = key.removeprefix(inside)
                if key == NULL:
                    compare_absolutely(file, name, grads[1][NULL])
                    continue
                change = functools.partial(to_ours, key)
                file.compare(name, grads[1][boqsa_name(key)], GRADIENT, change=change)
            elif key in ("slot_mu", "slot_log_sigma"):
                found = grads[0]["mean" if key == "slot_mu" else "log_std"]
                file.compare(name, found, GRADIENT)
            elif key.startswith("inp/"):
                file.compare(name, grads[3], GRADIENT)
            else:
                file.compare(name, grads[2][key], GRADIENT)


def test_attention_matching_of_spot():
    with golden("loss_attention_match") as file:
        tokens = lambda key: file[key].reshape(*file[key].shape[:2], -1)  # noqa: E731
        run = jax.value_and_grad(attention_match_loss)
        loss, gradient = run(jnp.asarray(tokens("inp/student")), tokens("inp/teacher"))
        file.compare("out/loss", loss[None], LOSS)
        file.compare("grad/student", gradient.reshape(file["grad/student"].shape), GRADIENT)


def test_attention_distillation_of_dias():
    with golden("loss_attention_distill") as file:
        run = jax.value_and_grad(attention_distillation_loss)
        loss, gradient = run(jnp.asarray(file["inp/first"]), file["inp/last"])
        file.compare("out/loss", loss, LOSS)
        file.compare("grad/first", gradient, GRADIENT)


def test_decay_of_boqsa():
    """Warm-up of 5,000 steps times halving every 50,000, from step 0; the others are of SAVi."""
    others = ("out/savi_100k", "out/savi_500k", "out/slot_attention", "out/osrt")
    with golden("schedules_inverted", unused=others) as file:
        steps = file["inp/steps"]
        num_steps = 250_000
        settings = {"schedule": "warmup_halving", "peak": 4e-4, "warmup": 0.02, "half_life": 0.2}
        settings["from_zero"] = True
        schedule = schedule_of("optimizer.learning_rate", settings, num_steps)
        found = np.array([schedule(step) for step in steps])
        file.compare("out/boqsa", found, METRIC)


def test_orders_of_spot():
    with golden("spot_orders") as file:
        recorded = file["out/orders"]
        side = round(recorded.shape[1] ** 0.5)
        np.testing.assert_array_equal(patch_orders((side, side)), recorded)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 2), (3, 6)])
def test_orders_of_any_grid_are_permutations(grid):
    orders = patch_orders(grid)
    assert orders.shape == (NUM_ORDERS, grid[0] * grid[1])
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(orders[:1], (NUM_ORDERS, 1)))


def test_permuted_decoder_of_the_reimplementation():
    """SPOT's decoder in the program of SmoothSA's author: first order, and the mean over nine."""
    with golden("decoder_spot_permutations") as file:
        features, slots = file["inp/features"], file["inp/slots"]
        recorded = file.group("param/")
        side = round(features.shape[1] ** 0.5)
        np.testing.assert_array_equal(patch_orders((side, side)), file["out/permutations"])
        # Its first LayerNorm stands before the layers; the others have the names of SmoothSA's.
        renamed = {"bos": "decoder.bos", "norm0.weight": "decoder.layers.0.norm_self.scale"}
        arrays = {renamed[key]: jnp.asarray(recorded.pop(key)) for key in renamed}
        known = from_authors({f"decode.{key}": x for key, x in recorded.items()})
        arrays |= {name: jnp.asarray(x) for name, x in known.items()}
        arrays = {name.removeprefix("decoder."): x for name, x in arrays.items()}
        layers = {name.split(".")[1] for name in arrays if name.startswith("layers.")}
        for evaluate, ending in (("first", "default"), ("all", "all")):
            make = lambda evaluate=evaluate: PermutedARDecoder(  # noqa: E731
                (side, side),
                features.shape[-1],
                slots.shape[-1],
                num_layers=len(layers),
                num_heads=HEADS,
                orders=len(arrays["bos"]),
                evaluate=evaluate,
                rngs=nnx.Rngs(0),
                **SPOT_GENERA1Z,
            )
            definition, expected, _ = split(nnx.eval_shape(make))
            assert {n: x.shape for n, x in arrays.items()} == {
                n: x.shape for n, x in expected.items()
            }
            run = jax.jit(lambda arrays, x, d=definition: d.merge(arrays)(slots, None, x, None))
            prediction, masks = run(arrays, {"target": features})
            file.compare(f"out/recon_{ending}", prediction, FORWARD)
            tokens = masks.reshape(*masks.shape[:2], -1)
            file.compare(f"out/attention_{ending}", tokens, FORWARD)
