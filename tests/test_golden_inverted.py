"""Aggregators, the transition and boxes against SAVi's, OSRT's and the original's programs.

The variants of the inverted-attention paper have no program; their numbers are put together from
SAVi's modules. GOLDEN_DIR names another folder of the same layout, with other numbers and sizes.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD,
    METRIC,
    Golden,
    compare_gradients,
    golden,
    inner,
    write_report,
)
from recipes import quick

from configs.systems import inverted
from smoothsa_jax.interop import keras, linen
from smoothsa_jax.interop.authors import below
from smoothsa_jax.interop.programs import WITH_AXIS, Program
from smoothsa_jax.interop.table import KERNEL, LINEAR, NORM, SAME, Row
from smoothsa_jax.models.aggregators.inverted_transformer import InvertedTransformer
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.build import AGGREGATORS
from smoothsa_jax.models.initializers import Boxes, Gaussian, Learned
from smoothsa_jax.models.layers.basic import layer_norm, linear
from smoothsa_jax.models.layers.competition import mix_tokens, mix_tokens_by_heads
from smoothsa_jax.models.layers.transformer import EncoderLayer
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.transitions import Transformer
from smoothsa_jax.parts import make
from smoothsa_jax.schedules import schedule_of

# Stated in the READMEs and the papers only.
ITERATIONS = 3  # of the original
ORIGINAL = {"epsilon": 1e-8, "epsilon_in": "weights", "norm_epsilon": 1e-3, "activation": "relu"}
ORIGINAL["start"] = "glorot"
# Gradients that are zero in exact arithmetic, and hold rounding noise: patterns of recorded names.
OF_SLOTS = r"norm_slots[./](bias|beta)$|query/bias$"  # under a softmax over slots
OF_TOKENS = r"key/bias$"  # under a softmax over tokens
NONE = "$^"

FILES = [
    "inverted_transformers",
    "inverted_slot_attention",
    "original_slot_attention",
    "savi_slot_attention",
    "savi_inverted_attention",
    "savi_transformer",
    "savi_box_queries",
    "osrt_slot_attention",
    "schedules_inverted",
]


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def program(rows: list[Row], layout: Any = None) -> Program:
    """A program whose arrays have the names of these rows; `layout` packs them."""
    cut = (lambda arrays, names: layout.joined(arrays)) if layout else lambda arrays, names: arrays
    return Program("a golden file", lambda *_: rows, cut, layout.parted if layout else dict)


class Case:
    """One case of a golden file, whose names have the case in front."""

    def __init__(self, file: Golden, name: str):
        self.file, self.prefix = file, f"{name}/" if name else ""
        others = [k for k in file.arrays if not k.startswith(self.prefix)]
        file.used |= set(others)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.file[self.prefix + key]

    def group(self, key: str) -> dict[str, np.ndarray]:
        return self.file.group(f"{self.prefix}{key}/")

    def compare(self, key: str, found) -> None:
        self.file.compare(f"{self.prefix}out/{key}", found, FORWARD)

    def check(
        self,
        of: Program,
        makes: Callable[[], nnx.Module],
        apply: Callable[[nnx.Module, dict], Mapping[str, jax.Array]],
        null: str = NONE,
    ) -> None:
        """Compare outputs, and the gradients of their sum with the cotangents.

        Args:
            of: the program whose names the arrays have.
            makes: makes our module.
            apply: from the module and the inputs to outputs by their names.
            null: pattern of the recorded names whose gradient is zero in exact arithmetic.
        """
        definition, expected, _ = split(nnx.eval_shape(makes))
        params = self.group("param")
        arrays = {k: jnp.asarray(x) for k, x in of.to_ours(params, expected).items()}
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        back = of.to_theirs(arrays)
        assert {k.replace("/", "."): x.shape for k, x in params.items()} == {
            k: x.shape for k, x in back.items()
        }
        given = self.group("inp")
        cotangents = {
            k.removeprefix("cotangent_"): given.pop(k) for k in list(given) if "cotangent" in k
        }

        @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
        def run(arrays, inputs):
            found = apply(definition.merge(arrays), inputs)
            pairs = [(found[name], x) for name, x in cotangents.items()]
            return inner(pairs), found

        (_, found), (of_arrays, of_inputs) = jax.jit(run)(arrays, jax.tree.map(jnp.asarray, given))
        for name in self.group("out"):
            self.compare(name, found[name])
        recorded = self.group("grad")
        found = of.to_theirs({k: np.asarray(x) for k, x in of_arrays.items()})
        found |= {f"inp.{k}": np.asarray(x) for k, x in of_inputs.items()}
        found = {name: found[name.replace("/", ".")] for name in recorded}
        is_null = functools.partial(re.search, null)
        compare_gradients(self.file, found, recorded, null=is_null, rounding=0.0)


def aggregate(with_queries: str = "queries", tokens: str = "inputs", axis: int | None = 1):
    """Run an aggregator on the inputs of these names; attention with iterations on an `axis`."""

    def apply(module, inputs):
        found = module(module.prepare(inputs[tokens]), inputs[with_queries])
        attention = found.extras.get("token_attention", found.attention.swapaxes(0, 1))
        attention = found.extras.get("head_attention", attention)
        attention = attention if axis is None else jnp.moveaxis(attention, 1, axis)
        return {"slots": found.slots, "attention": attention, "out": found.slots}

    return apply


# ------------------------------------------------------------- the variants of the inverted paper

ONE = linen.heads(1)


def rows_of_layer(theirs: str, ours: str) -> list[Row]:
    """The rows of a layer; `ours` is the number of ours."""
    return [
        (f"{theirs}norm_slots", f"attention.{ours}.norm_slots", linen.NORM),
        (f"{theirs}query", f"attention.{ours}.query", ONE),
        (f"{theirs}key", f"attention.{ours}.key", ONE),
        (f"{theirs}value", f"attention.{ours}.value", ONE),
        (f"{theirs}out", f"attention.{ours}.out", linen.DENSE),
        (f"{theirs}query_norm", f"attention.{ours}.query_norm", linen.NORM),
        (f"{theirs}key_norm", f"attention.{ours}.key_norm", linen.NORM),
        (f"{theirs}update_norm", f"attention.{ours}.update_norm", linen.NORM),
        (f"{theirs}gru.GRUCell_0", f"gru.{ours}", linen.GRU),
        (f"{theirs}mlp.LayerNorm_0", f"norm_mlp.{ours}", linen.NORM),
        *linen.mlp_rows(f"{theirs}mlp", f"mlp.{ours}"),
    ]


INPUTS: Row = ("norm_inputs", "norm_features", linen.NORM)
OWN = program([INPUTS, *rows_of_layer("layer_{}_", "{}")], linen)
SHARED = program([INPUTS, *rows_of_layer("", "0")], linen)
# As slot attention has them: one set of weights, without numbers.
PLAIN = program(
    [INPUTS, *((k, n.replace(".0", "").replace("attention.", ""), x) for k, n, x in SHARED.rows())],
    linen,
)
PLAIN_PROJECTIONS = {"bias": False, "output_projection": False}
TRANSFORMERS: dict[str, dict] = {
    "tf": inverted.TF,
    "tf_inv": inverted.TF_INV,
    "tf_inv_gru": inverted.TF_INV_GRU,
    "tf_inv_plain": {**inverted.TF_INV, **PLAIN_PROJECTIONS},
    "tf_inv_qk_norm": {**inverted.TF_INV, "normalize_qk": True},
    "tf_inv_layernorm_qk_norm": {**inverted.TF_INV, **inverted.NORMALIZED},
}
SLOT_ATTENTIONS: dict[str, dict] = {
    "sa": inverted.SA,
    "sa_no_gru": inverted.SA_NO_GRU,
    "sa_id": inverted.SA_ID,
    "sa_id_extra": {**inverted.SA_ID, "extra_iteration": True},
    "sa_bilevel": {**inverted.SA, "gradient": "last_and_queries"},
}


def aggregator(settings: dict, width: int, size: int) -> nnx.Module:
    return make("model.aggregator", settings, AGGREGATORS, width, size, rngs=nnx.Rngs(0))


def null_of(name: str) -> str:
    """What has no gradient in exact arithmetic."""
    if name == "tf":
        return OF_TOKENS
    return NONE if "qk_norm" in name else OF_SLOTS


@pytest.mark.parametrize("name", quick(list(TRANSFORMERS), "tf", "tf_inv_layernorm_qk_norm"))
def test_transformer(name):
    with golden("inverted_transformers") as file:
        case = Case(file, name)
        width, size = case["inp/inputs"].shape[-1], case["inp/queries"].shape[-1]
        settings = {**TRANSFORMERS[name], "first": case["out/attention"].shape[1], "later": None}
        hidden = case["param/layer_0_mlp/dense_mlp_0/kernel"].shape[1]
        settings["mlp_ratio"] = hidden / size
        build = functools.partial(aggregator, settings, width, size)
        case.check(OWN, build, aggregate(), null_of(name))


def iterations_of(name: str, case: Case) -> int:
    return case["out/attention"].shape[1] - (name == "sa_id_extra")


@pytest.mark.parametrize("name", quick(list(SLOT_ATTENTIONS), "sa_no_gru", "sa_id_extra"))
def test_slot_attention_of_the_paper(name):
    with golden("inverted_slot_attention") as file:
        case = Case(file, name)
        width, size = case["inp/inputs"].shape[-1], case["inp/queries"].shape[-1]
        settings = {**SLOT_ATTENTIONS[name], "first": iterations_of(name, case), "later": None}
        settings["mlp_ratio"] = case["param/mlp/dense_mlp_0/kernel"].shape[1] / size
        build = functools.partial(aggregator, settings, width, size)
        layout = SHARED if name == "sa_no_gru" else PLAIN
        case.check(layout, build, aggregate(), OF_SLOTS)


# The same function as `slot_attention`, of the other class.
@pytest.mark.parametrize("name", quick(["sa", "sa_id"]))
def test_slot_attention_as_an_inverted_transformer(name):
    with golden("inverted_slot_attention") as file:
        case = Case(file, name)
        width, size = case["inp/inputs"].shape[-1], case["inp/queries"].shape[-1]
        settings = {**inverted.SA_NO_GRU, "update": "gru", "later": None}
        settings |= {
            "first": iterations_of(name, case),
            "gradient": SLOT_ATTENTIONS[name]["gradient"],
        }
        settings["mlp_ratio"] = case["param/mlp/dense_mlp_0/kernel"].shape[1] / size
        settings.pop("name")
        build = lambda: InvertedTransformer(width, size, **settings, rngs=nnx.Rngs(0))  # noqa: E731
        case.check(SHARED, build, aggregate(), OF_SLOTS)


# ------------------------------------------------------------------------------- SAVi's modules

LINEN_SLOTS = {k: inverted.SA[k] for k in ("epsilon", "activation", "gru", "norm_epsilon", "start")}


@pytest.mark.parametrize("name", quick(["corrector", "mlp", "heads"], "corrector", "heads"))
def test_slot_attention_of_savi(name):
    with golden("savi_slot_attention") as file:
        case = Case(file, name)
        width, size = case["inp/inputs"].shape[-1], case["inp/slots"].shape[-1]
        params = case.group("param")
        number, inner = params["general_dense_q_0/kernel"].shape[1:]
        mlp = params.get("MLP_0/dense_mlp_0/kernel")
        settings = {"first": len(case["out/attention"]), "later": None, "qkv_size": number * inner}
        settings |= {"num_heads": number, "mlp_size": 0 if mlp is None else mlp.shape[1]}
        build = lambda: SlotAttention(width, size, **LINEN_SLOTS, **settings, rngs=nnx.Rngs(0))  # noqa: E731

        def apply(module, inputs):
            found = aggregate("slots")(module, inputs)
            attention = jnp.moveaxis(found["attention"], 1, 0)  # iterations first
            attention = attention if number > 1 else attention[:, :, None]
            return {"slots": found["slots"], "attention": attention}

        rows = linen.slot_attention_rows(number)
        case.check(program(rows, linen), build, apply, "^LayerNorm_0/bias$")


class AttentionAlone(nnx.Module):
    """The attention of given queries, keys and values, with what follows it."""

    def __init__(self, number: int, size: int, renormalize: str, rngs: nnx.Rngs):
        self.number, self.means = number, renormalize == "mean"
        self.out = linear(number * size, size, rngs=rngs) if number > 1 else None
        norm = layer_norm(size, epsilon=LINEN_SLOTS["norm_epsilon"], rngs=rngs)
        self.update_norm = norm if renormalize == "layernorm" else None

    def __call__(self, *inputs):
        inputs = [x.reshape(*x.shape[:2], -1) for x in inputs]
        settings = {"epsilon": LINEN_SLOTS["epsilon"] if self.means else None}
        if self.number == 1:
            mixed = mix_tokens(*inputs, **settings)[0]
        else:
            mixed = self.out(mix_tokens_by_heads(*inputs, num_heads=self.number, **settings)[0])
        return mixed if self.update_norm is None else self.update_norm(mixed)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("renormalize", ["mean", "layernorm", "none"])
def test_inverted_attention_of_savi(renormalize, number):
    with golden("savi_inverted_attention") as file:
        names = sorted({int(key.split("/")[0].split("_")[1]) for key in file.arrays})
        number = names[number > 1]
        case = Case(file, f"{renormalize}_{number}")
        size = case["inp/query"].shape[-1]
        rows: list[Row] = [
            ("DenseGeneral_0", "out", linen.from_heads(number)),
            ("LayerNorm_0", "update_norm", linen.NORM),
        ]
        case.check(
            program(rows, linen),
            lambda: AttentionAlone(number, size, renormalize, nnx.Rngs(0)),
            lambda module, x: {"out": module(x["query"], x["key"], x["value"])},
        )


LINEN_BLOCK = {
    "activation": "relu",
    "bias": True,
    "norm_epsilon": 1e-6,
    "attention_start": "lecun",
    "start": "lecun",
}
NORMS = {"predictor": "post", "post_cross": "post", "pre_cross": "pre", "encoder": "pre"}


def block_sizes(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    _, number, inner = params["MultiHeadDotProductAttention_0/query/kernel"].shape
    cross = params.get("MultiHeadDotProductAttention_1/key/kernel")
    return {
        "num_heads": number,
        "qkv_size": number * inner,
        "mlp_size": params["MLP_0/dense_mlp_0/kernel"].shape[1],
        **({} if cross is None else {"memory_size": len(cross)}),
    }


class Blocks(nnx.Module):
    """Blocks one after the other, as of SAVi++'s encoder."""

    def __init__(self, sizes: list[dict], width: int, norm: str, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [EncoderLayer(width, norm=norm, **LINEN_BLOCK, **x, rngs=rngs) for x in sizes]
        )

    def __call__(self, x, memory):
        for block in self.blocks:
            x = block(x, memory)
        return x


@pytest.mark.parametrize("name", quick(list(NORMS), "predictor"))
def test_transformer_of_savi(name):
    with golden("savi_transformer") as file:
        case = Case(file, name)
        width, params = case["inp/queries"].shape[-1], case.group("param")
        if name == "predictor":
            sizes = block_sizes(params)
            settings = {**LINEN_BLOCK, "norm": NORMS[name], **sizes}
            rows = below("layer", "layer", linen.block_rows(sizes["num_heads"]))
            rows = [(key.removeprefix("layer."), ours, x) for key, ours, x in rows]
            case.check(
                program(rows, linen),
                lambda: Transformer(1, width, **settings, rngs=nnx.Rngs(0)),
                lambda module, x: {"out": module(x["queries"], None, None)[0]},
                OF_TOKENS,
            )
            return
        prefixes = sorted({k.split("/")[0] + "/" for k in params if k.startswith("TransformerB")})
        parts = [{k.removeprefix(p): x for k, x in params.items() if p in k} for p in prefixes]
        sizes = [block_sizes(x) for x in parts or [params]]
        rows = linen.block_rows(sizes[0]["num_heads"], "memory_size" in sizes[0])
        if prefixes:
            rows = below("TransformerBlock{}", "blocks.{}", rows)
        else:
            rows = [(key, f"blocks.0.{ours}", x) for key, ours, x in rows]
        case.check(
            program(rows, linen),
            lambda: Blocks(sizes, width, NORMS[name], nnx.Rngs(0)),
            lambda module, x: {"out": module(x["queries"], x.get("inputs"))},
            OF_TOKENS,
        )


BOXES = {
    "boxes": {"zeros": True},
    "no_background": {},
    "center_of_mass": {"center": True, "zeros": True},
}


@pytest.mark.parametrize("name", quick(list(BOXES), "center_of_mass"))
def test_boxes_of_savi(name):
    """Our first box, the whole frame's, stands where the program puts zeros in front."""
    with golden("savi_box_queries") as file:
        case = Case(file, name)
        hidden, size = case["param/MLP_0/dense_mlp_1/kernel"].shape
        settings = {"log_std": None, "norm": False, "activation": "relu", "hidden_size": hidden}
        settings |= {"order": "rows_first", "start": "lecun", **BOXES[name]}

        def apply(module, inputs):
            top, left, bottom, right = jnp.moveaxis(inputs["boxes"][:, 0], -1, 0)
            boxes = jnp.stack([left, top, right, bottom], axis=-1)
            if "zeros" in BOXES[name]:
                whole = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0]), (len(boxes), 1, 4))
                boxes = jnp.concatenate([whole, boxes], axis=1)
            return {"out": module(None, boxes, None, None, {})[0]}

        case.check(
            program(linen.mlp_rows("MLP_0", "mlp"), linen),
            lambda: Boxes(1, size, 1, **settings, rngs=nnx.Rngs(0)),
            apply,
        )


# ---------------------------------------------------------------------------- Keras's and torch's


class Started(nnx.Module):
    """An aggregator with the initializer of its queries."""

    def __init__(self, initializer: nnx.Module, aggregator: nnx.Module):
        self.initializer, self.aggregator = initializer, aggregator

    def __call__(self, tokens, draws=None):
        queries, _ = self.initializer(tokens, None, None, draws, {})
        return self.aggregator(self.aggregator.prepare(tokens), queries).slots


def test_slot_attention_of_the_original():
    with golden("original_slot_attention") as file:
        case = Case(file, "")
        width, size = case["inp/inputs"].shape[-1], case["param/slots_mu"].shape[-1]
        settings = {**ORIGINAL, "first": ITERATIONS, "later": None}
        settings["mlp_size"] = case["param/mlp/0/kernel"].shape[1]
        case.check(
            program(keras.SLOT_ATTENTION_ROWS, keras),
            lambda: Started(
                Gaussian(width, size, 1, log_std=None, mean="glorot", rngs=nnx.Rngs(0)),
                SlotAttention(width, size, **settings, rngs=nnx.Rngs(0)),
            ),
            lambda module, x: {"slots": module(x["inputs"], x["noise"])},
            OF_SLOTS,
        )


OSRT_ROWS: list[Row] = [
    ("initial_slots", "initializer.mean", {"": ("", WITH_AXIS)}),
    ("norm_input", "aggregator.norm_features", NORM),
    ("norm_slots", "aggregator.norm_slots", NORM),
    ("norm_pre_mlp", "aggregator.norm_mlp", NORM),
    ("to_q", "aggregator.query", LINEAR),
    ("to_k", "aggregator.key", LINEAR),
    ("to_v", "aggregator.value", LINEAR),
    (
        "gru",
        "aggregator.gru",
        {
            "weight_ih": ("input.kernel", KERNEL),
            "weight_hh": ("hidden.kernel", KERNEL),
            "bias_ih": ("input.bias", SAME),
            "bias_hh": ("hidden.bias", SAME),
        },
    ),
    ("mlp.0", "aggregator.mlp.hidden", LINEAR),
    ("mlp.2", "aggregator.mlp.out", LINEAR),
]


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_slot_attention_of_osrt(number):
    """One iteration, and several, from learned slots."""
    with golden("osrt_slot_attention") as file:
        name = sorted({key.split("/")[0] for key in file.arrays}, key=int)[number]
        case = Case(file, name)
        width, (slots, size) = case["inp/inputs"].shape[-1], case["param/initial_slots"].shape
        settings = {"epsilon": 1e-8, "epsilon_in": "weights", "activation": "relu"}
        settings["mlp_size"] = case["param/mlp.0.weight"].shape[0]
        case.check(
            program(OSRT_ROWS),
            lambda: Started(
                Learned(width, size, slots, start="normal", rngs=nnx.Rngs(0)),
                SlotAttention(
                    width, size, first=int(name), later=None, **settings, rngs=nnx.Rngs(0)
                ),
            ),
            lambda module, x: {"out": module(x["inputs"])},
            OF_SLOTS,
        )


# -------------------------------------------------------------------------------------- schedules

COSINE = {"schedule": "warmup_cosine", "peak": 2e-4, "end_ratio": 0.0}
HALVING = {"schedule": "warmup_halving", "peak": 4e-4}
RATES: dict[str, tuple[int, dict]] = {
    "savi_100k": (100_000, {**COSINE, "warmup": 0.025}),
    "savi_500k": (500_000, {**COSINE, "warmup": 0.005}),
    "slot_attention": (500_000, {**HALVING, "warmup": 0.02, "half_life": 0.2, "from_zero": True}),
}


@pytest.mark.parametrize("name", list(RATES))
def test_learning_rates(name):
    """From 0 at step 0; cosines reach 0 at the last step, warm-up included."""
    others = [f"out/{x}" for x in ("boqsa", "osrt", *RATES) if x != name]
    with golden("schedules_inverted", unused=tuple(others)) as file:
        num_steps, settings = RATES[name]
        schedule = jax.vmap(schedule_of("optimizer.learning_rate", settings, num_steps))
        found = schedule(jnp.asarray(file["inp/steps"]))
        assert found[0] == 0.0
        file.compare(f"out/{name}", found, METRIC)
