"""Properties of every part in the tables of `models/build.py`.

A new part is tested by an entry in `SETTINGS`; a row of a table without one fails.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smoothsa_jax.models.build import HEADS, PARTS, READOUTS, ROLLOUTERS, ReadoutSizes
from smoothsa_jax.models.interfaces import Draws, Sizes
from smoothsa_jax.models.parameters import ModelDefinition, split
from smoothsa_jax.models.slot_model import KEYS
from smoothsa_jax.parts import make, scheduled_settings

# All different, so that a shape identifies its axes.
BATCH, FRAMES, SLOTS, GRID, WIDTH, SIZE = 2, 3, 5, (2, 3), 12, 8
TOKENS = GRID[0] * GRID[1]
IMAGE = (4 * GRID[0], 4 * GRID[1])
ALL = Sizes(BATCH, FRAMES, SLOTS)
CLOSE = 2e-5  # sums in another order, in float32
BFLOAT16 = 5e-2  # of the largest value
TABLES: dict[str, Mapping[str, Any]] = {
    **PARTS,
    "head": HEADS,
    "rollouter": ROLLOUTERS,
    "readout": READOUTS,
}
del TABLES["target_encoder"]  # the same as "encoder"

CONV = {
    "width": 6,
    "kernel_size": 5,
    "strides": (2, 1, 2),
    "padding": "same",
    "last_relu": True,
    "norm": "none",
    "position": "linear",
    "pixels": "unit",
    "start": "lecun",
}
RESNET = {
    "blocks": (1, 2),
    "root_width": 4,
    "groups": 2,
    "padding": "same",
    "position": "linear",
    "pixels": "unit",
    "start": "lecun",
}
BROADCAST = {
    "cells": GRID,
    "hidden_size": 6,
    "kernel_size": 3,
    "padding": "same",
    "position": "linear",
    "start": "lecun",
}
VIT = {"depth": 1, "num_heads": 2, "patch": 4, "registers": 1, "resize": 1.0}
MIXER = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "renderer_layers": 3}
PERMUTED = {"num_layers": 2, "num_heads": 2, "activation": "relu", "bos_std": 0.3}
GAUSSIAN, BOXES = ({"name": name, "log_std": -1.0} for name in ("gaussian", "boxes"))
RAYS = {"octaves": 2, "position_octave": -2, "hidden_size": 16, "renderer_layers": 3}
ALLOCATOR = {
    "query_size": 10,
    "num_layers": 2,
    "num_heads": 2,
    "head_size": 5,
    "feed_forward_size": 14,
}
LINEN = {
    "epsilon": 1e-8,
    "activation": "relu",
    "gru": "linen",
    "norm_epsilon": 1e-6,
    "start": "lecun",
}
INVERTED = {
    "first": 2,
    "later": None,
    "share": (),
    "inverted": True,
    "update": "residual",
    "renormalize": "mean",
    "bias": True,
    "output_projection": True,
    "mlp_ratio": 2.0,
    **LINEN,
}
SAVI_BOXES = {
    "log_std": None,
    "norm": False,
    "order": "rows_first",
    "hidden_size": 12,
    "activation": "relu",
    "start": "lecun",
}
WARMED = {"num_heads": 2, "log_std": -1.0, "straight_through": False, "detach": 0.0}
ROLLOUTER = {
    "width": 6,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_size": 10,
    "window": FRAMES,
    "dropout_rate": 0.0,
}
READER = {"width": 6, "num_layers": 2, "num_heads": 2, "mlp_size": 10, "dropout_rate": 0.0}
ALOE = {**READER, "word_size": 4, "hidden_size": 7, "question_length": 2}
UNET = {"num_blocks": 1, "groups": 2, "dropout_rate": 0.0}
BATCH_ARRAYS = ("video", "flow", "depth", "cameras")  # of samples, which are never cast
# For each row of each table the settings that it is tested with. Without dropout: its draws belong
# to places, not to slots.
SETTINGS: dict[str, dict[str, list[dict]]] = {
    "encoder": {
        "vit": [
            {**VIT, "width": 12, "swiglu": False},
            {**VIT, "width": 12, "swiglu": True},
            {
                **VIT,
                "width": 12,
                "registers": 0,
                "layer_scale": False,
                "class_position": True,
                "final_norm": True,
                "position_side": 3,
            },
        ],
        "dinov3": [{**VIT, "width": 16, "swiglu": False}],
        "scene": [
            {
                "width": 12,
                "channels": 5,
                "num_blocks": 2,
                "num_layers": 2,
                "num_heads": 2,
                "hidden_size": 16,
                "octaves": 2,
                "position_octave": -2,
            }
        ],
        "colour_fourier": [
            {
                "width": 12,
                "patch": 4,
                "window": 6,
                "bandwidth": 3.0,
                "position_width": 8,
                "position_scale": 0.3,
            }
        ],
        "conv": [
            CONV,
            {
                **CONV,
                "padding": "torch",
                "last_relu": False,
                "position": "borders",
                "pixels": "signed",
                "start": "torch",
            },
            {**CONV, "norm": "instance", "position": "fourier", "position_waves": 2},
            {**CONV, "norm": "unused", "position": "none", "pixels": "imagenet"},
        ],
        "resnet": [
            {**RESNET, "root": "large", "blocks": (1,)},
            {**RESNET, "root": "small", "blocks": (1, 1, 2), "padding": "torch", "start": "torch"},
        ],
    },
    "projection": {
        "mlp": [
            {},
            {"hidden_ratio": 2.0, "to_slots": True, "activation": "relu"},
            {"hidden_ratio": 2.0, "norm": False, "activation": "none"},
        ],
        "token_transformer": [
            {
                "hidden_size": 10,
                "size": 8,
                "num_layers": 2,
                "num_heads": 2,
                "mlp_size": 12,
                "norm_epsilon": 1e-6,
                "start": "lecun",
            }
        ],
        "none": [{}],
    },
    "initializer": {
        "gaussian": [
            {"log_std": -1.0},
            {"log_std": None, "mean": "xavier"},
            {"log_std": -1.0, "mean": "xavier", "separate": True, "noise": "training"},
            {"log_std": None, "mean": "glorot"},
        ],
        "learned": [
            {"start": "xavier", "noise": 0.5},
            {"start": "normal", "start_std": 0.5, "noise": 0.0},
        ],
        "boxes": [
            {"log_std": -1.0},
            {"log_std": None, "norm": False},
            {**SAVI_BOXES, "center": True},
            {**SAVI_BOXES, "zeros": True},
        ],
        "warmed": [
            {**WARMED, "cold": GAUSSIAN},
            {**WARMED, "cold": BOXES},
            {**WARMED, "cold": BOXES, "straight_through": True},
        ],
        "tokens": [{}],
    },
    "aggregator": {
        "slot_attention": [
            {"first": 2, "later": 1, "gradient": "last_and_queries"},
            {"first": 2, "later": 1, "gradient": "full", "mlp_ratio": 0.0},
            {
                **{"first": 2, "later": 1, "gradient": "last_and_queries"},
                "halting": {"signal": "max_slot", "threshold": 0.3, "minimum": 1, "maximum": 3},
            },
            {
                "first": 2,
                "later": 1,
                "gradient": "last",
                "epsilon": 1e-8,
                "epsilon_in": "weights",
                "state": "normalized",
                "mlp_ratio": 2.0,
                "activation": "relu",
                "start": "xavier",
            },
            {**LINEN, "first": 1, "later": None, "qkv_size": 6, "mlp_size": 0},
            {
                **LINEN,
                "first": 2,
                "later": 1,
                "gradient": "last",
                "extra_iteration": True,
                "num_heads": 2,
                "mlp_size": 20,
                "mlp_drop_rate": 0.5,
            },
        ],
        "inverted_transformer": [
            {**INVERTED, "later": 1, "gradient": "full"},
            {**INVERTED, "inverted": False, "renormalize": "none", "gradient": "full"},
            {
                **INVERTED,
                "share": ("gru",),
                "update": "gru",
                "renormalize": "layernorm",
                "normalize_qk": True,
                "gradient": "last",
            },
            {
                **INVERTED,
                "share": ("attention", "gru", "mlp"),
                "update": "gru",
                "bias": False,
                "output_projection": False,
                "qkv_size": 6,
                "gradient": "last_and_queries",
            },
        ],
        "metaslot": [
            {"first": 2, "later": 1, "codes": 16},
            {
                "first": 2,
                "later": 1,
                "codes": 16,
                "slots_share": 0.0,
                "mask": "always",
                "gradient": "last_and_queries",
                "noise_in": "second",
            },
        ],
        "drawn_queries": [
            {"kernel": "linear", "stochastic": True, "first": 2, "later": 1},
            {"kernel": "mlp", "stochastic": False, "first": 2, "later": 1, "mlp_ratio": 2.0},
        ],
        "none": [{}],
    },
    "transition": {
        "randsfq": [{"num_heads": 2, "history": 3, "dropout_rate": 0.0}],
        "transformer": [
            {
                "num_heads": 2,
                "norm": "pre",
                "activation": "relu",
                "bias": True,
                "query_scale": "divide",
                "attention_start": "xavier",
            },
            {"num_heads": 2, "norm": "post", "activation": "gelu", "bias": False},
            {
                "num_heads": 2,
                "norm": "post",
                "activation": "relu",
                "bias": True,
                "attention_start": "lecun",
                "start": "lecun",
                "qkv_size": 12,
                "mlp_size": 20,
                "norm_epsilon": 1e-6,
            },
        ],
        "recurrent_transformer": [
            {
                "num_layers": 2,
                "num_heads": 2,
                "mlp_size": 12,
                "state_size": 10,
                "dropout_rate": 0.0,
            }
        ],
        "mlp": [{"hidden_size": 12}],
        "none": [{}],
    },
    "decoder": {
        "random_ar": [{"num_layers": 2, "num_heads": 2, "logits": "next_frame"}],
        "permuted_ar": [
            {
                **PERMUTED,
                "orders": 9,
                "evaluate": "all",
                "biases": "all_but_attention",
                "final_norm": True,
                "first_norm": "stream",
                "start": "xavier",
            },
            {
                **PERMUTED,
                "orders": 1,
                "evaluate": "first",
                "biases": "all",
                "final_norm": False,
                "first_norm": "branch",
            },
        ],
        "causal_transformer": [
            {"num_layers": 2, "num_heads": 2, "embed": "codes"},
            {
                "num_layers": 2,
                "num_heads": 2,
                "embed": "table",
                "token_size": 6,
                "project_slots": True,
                "biases": "all_but_attention",
                "activation": "relu",
                "final_norm": True,
                "start": "xavier",
            },
            {"num_layers": 1, "num_heads": 2, "embed": "table", "start_in_table": True},
            {
                "num_layers": 1,
                "num_heads": 2,
                "embed": "table",
                "spare_position": False,
                "project_slots": True,
                "project_bias": True,
                "start": "xavier",
                "outer_start": "torch",
            },
        ],
        "denoising_unet": [
            {**UNET, "widths": (4, 8), "num_heads": 2, "zero_start": False},
            {**UNET, "widths": (4,), "head_size": 2, "zero_start": True},
        ],
        "mlp_mixture": [
            {"num_layers": 3, "hidden_size": 16, "uniform_values": True},
            {"num_layers": 3, "hidden_size": 16, "uniform_values": False},
            {
                "num_layers": 2,
                "hidden_size": 16,
                "position": "slots",
                "position_start": "normal",
                "activation": "gelu",
                "logits": "next_frame",
            },
        ],
        "slot_mixer": [
            {
                **MIXER,
                "mix_heads": 1,
                "renderer_norm": False,
                "activation": "relu",
                "bias": True,
                "norm": False,
                "query_scale": "divide",
                "position_start": "normal",
                "start": "xavier",
                "logits": "only",
            },
            {
                **MIXER,
                "mix_heads": 4,
                "renderer_norm": True,
                "activation": "gelu",
                "bias": False,
                "norm": True,
                "logits": "next_frame",
            },
        ],
        "ray_mixer": [
            {**RAYS, **ALLOCATOR, "mix_size": 9},
            {**RAYS, **ALLOCATOR, "mix_size": 9, "norm": True},
        ],
        "ray_broadcast": [RAYS],
        "ray_transformer": [{**RAYS, **ALLOCATOR}],
        "spatial_broadcast": [
            {
                **BROADCAST,
                "strides": (1, 1),
                "transposed": (True, False),
                "head": "separate",
                "fusion": "early",
            },
            {
                **BROADCAST,
                "strides": (1, 1),
                "transposed": (True, True),
                "head": "separate",
                "fusion": "late",
                "position": "fourier",
                "position_waves": 2,
            },
            {
                **BROADCAST,
                "strides": (1, 1),
                "transposed": (True, True),
                "padding": "torch",
                "position": "borders",
                "head": "joint",
                "fusion": "late",
                "start": "torch",
            },
        ],
    },
    "target": {
        "features": [{}],
        "pixels": [{}],
        "flow": [{}],
        "depth": [{}],
        "noise": [{"width": SIZE}],
        "rays": [
            {"input_views": 2, "targets": "others", "order": "drawn", "rays": 7},
            {"input_views": 1, "targets": "all", "order": "given", "rays": 7},
        ],
        "several": [
            {"flow": {"name": "flow"}, "depth": {"name": "depth"}},
            {"codes": {"name": "codes", "width": SIZE}, "features": {"name": "features"}},
        ],
        "codes": [{"width": SIZE}],
        "tokens": [{"vocabulary": WIDTH, "width": SIZE}],
    },
    "pruning": {"redundancy": [{"distance": 0.8}, {"distance": 2.0, "restart": "queries"}]},
    "head": {"recognition_head": [{"num_classes": 3, "dropout_rate": 0.0}]},
    "rollouter": {
        "slotformer": [
            ROLLOUTER,
            {**ROLLOUTER, "window": 4, "history": 2, "norm": "post", "residual": True},
            {**ROLLOUTER, "positions": "learned", "normalize": True},
            {**ROLLOUTER, "positions": "token"},
            {**ROLLOUTER, "slot_positions": True},
        ]
    },
    "readout": {
        "aloe": [
            ALOE,
            {**ALOE, "choice_length": 4},
            {**ALOE, "positions": "token", "choice_length": 5},
        ],
        "pairs": [{"hidden_size": 7, "reduction": x} for x in ("max", "mean", "sum")],
        "frames_transformer": [{**READER, "frames": (0, 2)}],
    },
    "tokenizer": {
        "dvae": [
            {"vocabulary": 7, "hidden_size": 6, "tau": 0.7},
            {"vocabulary": 7, "hidden_size": 6, "tau": 0.7, "group_norm": True, "kernel_size": 3},
            {"vocabulary": 7, "hidden_size": 6, "tau": 0.7, "pixels": "signed"},
        ],
        "vq_features": [
            {
                "width": 5,
                "vocabulary": 7,
                "basis_size": 6,
                "hidden_size": 8,
                "decoder_width": 4,
                "blocks": 1,
                "strides": (2, 1, 1),
                "alpha": 0.4,
                "std": 1.5,
            }
        ],
        "vq_pixels": [
            {
                "width": 5,
                "vocabulary": 7,
                "layer_width": 4,
                "blocks": 1,
                "strides": (2, 1, 1),
                "pixels": "unit",
            }
        ],
    },
}
OF_SLOTS = ("initializer", "aggregator", "transition", "decoder", "pruning", "head", "rollouter")
OF_SLOTS = (*OF_SLOTS, "readout")
RANDOM = (*KEYS, "head", "rollouter", "readout")  # kinds of parts that have `draw`

# What a part takes by position, see `build_slot_model`.
ENCODER_STUB = types.SimpleNamespace(width=WIDTH, grid=GRID)
SIZES: dict[str, tuple] = {
    "encoder": (IMAGE,),
    "projection": (WIDTH,),
    "initializer": (WIDTH, SIZE, SLOTS),
    "aggregator": (WIDTH, SIZE),
    "transition": (WIDTH, SIZE),
    "decoder": (GRID, WIDTH, SIZE),
    "target": (ENCODER_STUB, IMAGE),
    "pruning": (),
    "head": (SIZE,),
    "rollouter": (SLOTS, SIZE),
    "readout": ReadoutSizes(SLOTS, SIZE, FRAMES, num_words=7, num_answers=2),
    "tokenizer": (IMAGE, GRID, WIDTH),
}
GIVEN = {"projection": {"slot_size": SIZE}}  # by keyword
EXACT = (*BATCH_ARRAYS, "positions", "rays")  # float32 in any model
OF_PARTS = {("initializer", "tokens"): (WIDTH, WIDTH, SLOTS)}  # sizes that a part needs


@dataclasses.dataclass(frozen=True)
class Row:
    """A part as a config makes it, with random arrays."""

    kind: str
    name: str
    number: int  # of its settings

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}-{self.number}"

    @property
    def settings(self) -> dict:
        return {"name": self.name, **SETTINGS[self.kind][self.name][self.number]}


def rows(*kinds: str) -> list[Row]:
    """All rows of these tables that stand for a part, for each of their settings."""
    return [
        Row(kind, name, number)
        for kind in kinds
        for name, found in TABLES[kind].items()
        if found is not None
        for number in range(len(SETTINGS[kind].get(name, [])))
    ]


def each(found: list[Row]) -> Callable:
    """Parametrize a test with rows; those beside the first settings of a part are `more`."""
    marks = lambda row: pytest.mark.more if row.number else ()  # noqa: E731
    found = [pytest.param(row, id=str(row), marks=marks(row)) for row in found]
    return pytest.mark.parametrize("row", found)


def of_rows(*kinds: str) -> Callable:
    return each(rows(*kinds))


def of_rows_of_a_set(*kinds: str) -> Callable:
    """All rows but the initializers that give a slot, or each token, a query of its own, and the
    rollouters and readouts that tell slots apart by their place."""

    def own(row: Row) -> bool:
        settings = row.settings
        if settings.get("positions") == "token":
            return True
        return row.name in ("learned", "tokens", "pairs") or any(
            settings.get(x, False) for x in ("separate", "zeros", "slot_positions")
        )

    return each([row for row in rows(*kinds) if not own(row)])


@functools.cache
def built(row: Row, dtype: str = "float32", frozen: bool = False) -> tuple[ModelDefinition, dict]:
    """A row's definition and all its arrays, which differ from entry to entry."""
    make_it = lambda: make(  # noqa: E731
        f"model.{row.kind}",
        row.settings,
        TABLES[row.kind],
        *OF_PARTS.get((row.kind, row.name), SIZES[row.kind]),
        **GIVEN.get(row.kind, {}),
        rngs=nnx.Rngs(0),
    )
    definition, params, rest = split(make_it(), dtype, frozen=("*",) if frozen else ())
    rng = np.random.default_rng(0)

    def fill(name, array):
        if name in definition.constants:
            return array
        scale = 0.3 if array.ndim < 2 else array.shape[-2] ** -0.5
        if row.kind == "tokenizer" and array.ndim == 4:  # many convolutions in a row
            scale = np.prod(array.shape[:-1]) ** -0.5
        centre = 1.0 if name.endswith("scale") else 0.0
        return jnp.asarray(centre + scale * rng.standard_normal(array.shape), jnp.float32)

    return definition, {name: fill(name, x) for name, x in {**params, **rest}.items()}


@functools.cache
def inputs_of(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal((BATCH, *shape)).astype("f")  # noqa: E731
    corners = rng.random((BATCH, SLOTS, 2, 2)).astype("f")
    corners.sort(axis=-2)
    return {
        "frames": normal(*IMAGE, 3),
        "tokens": normal(FRAMES, TOKENS, WIDTH),
        "slots": normal(FRAMES, SLOTS, SIZE),
        "boxes": corners.reshape(BATCH, SLOTS, 4),
        "mask": np.ones((BATCH, SLOTS), bool),
        "video": normal(FRAMES, *IMAGE, 3),
        "flow": normal(FRAMES, *IMAGE, 2),
        "depth": np.abs(normal(FRAMES, *IMAGE)),
        "cameras": normal(FRAMES, 4, 3),
        "positions": normal(TOKENS, 3),
        "rays": normal(TOKENS, 3),
        "noisy": normal(TOKENS, WIDTH),
        "time": np.array([3, 900], np.int32),
        "codes": normal(TOKENS, SIZE),
        "token_ids": rng.integers(0, WIDTH, (BATCH, TOKENS), np.int32),
    }


@functools.cache
def drawn(row: Row, training: bool, seed: int = 0) -> Draws:
    """A row's draws, made without arrays as the training step does."""
    if row.kind not in RANDOM:
        return None
    keys = list(jax.random.split(jax.random.key(seed), len(KEYS.get(row.kind, (0,)))))
    module = built(row)[0].skeleton()
    if row.kind == "projection" and not hasattr(module, "draw"):
        return None
    return module.draw(keys, ALL, training)


Outputs = dict[str, Any]


def outputs_of(row: Row, module: nnx.Module, x: dict, draws: Draws) -> tuple[Outputs, Outputs]:
    """Run a part. Returns what has an axis of slots, as (B, N, ...), and what has none."""
    tokens, slots, mask = x["tokens"], x["slots"], x["mask"]
    if row.kind == "encoder":
        if getattr(module, "of_scenes", False):  # of one view
            return {}, module(x["frames"][:, None], x["cameras"][:, :1])
        return {}, module(x["frames"])
    if row.kind == "projection":
        return {}, {"tokens": module(tokens, *(() if draws is None else (draws,)))}
    if row.kind == "target":
        codes = jnp.repeat(x["codes"][:, None], FRAMES, axis=1)
        constants = {"features": tokens, "codes": codes, "tokens": x["token_ids"][:, None]}
        return {}, module({name: x[name] for name in BATCH_ARRAYS}, constants, draws)
    if row.kind == "initializer":
        values = scheduled_settings("model", row.settings, TABLES[row.kind])
        queries, extras = module(tokens[:, 0], x["boxes"], mask, draws, values)
        return {"queries": queries, **extras}, {}
    if row.kind == "aggregator":
        per_slot = {}
        prepared = module.prepare(tokens)
        for number in range(2):
            of_frame = jax.tree.map(lambda leaf, t=number: leaf[:, t], prepared)
            drawn = jax.tree.map(lambda leaf, t=number: leaf[:, t], draws)
            found = module(of_frame, slots[:, number], mask, drawn, first=number == 0)
            per_slot[f"slots_{number}"] = found.slots
            per_slot[f"attention_{number}"] = jnp.moveaxis(found.attention, 0, 2)
            per_slot[f"states_{number}"] = jnp.moveaxis(found.states, 0, 2)
        return per_slot, {}
    if row.kind == "transition":
        per_slot, memory = {}, module.start(slots[:, 0], draws)
        prepared = module.prepare(tokens, draws)
        for t in range(FRAMES - 1):
            of_frame = jax.tree.map(lambda leaf, t=t: leaf[:, t], prepared)
            per_slot[f"queries_{t}"], memory = module(slots[:, t], memory, of_frame, mask)
        return per_slot, {}
    if row.kind == "decoder":
        of_frame = jax.tree.map(lambda leaf: leaf[:, 0], draws)
        given = {"target": tokens[:, 0].astype(slots.dtype)}
        given |= {name: x[name].astype(slots.dtype) for name in ("codes", "noisy")}
        ids = {"tokens": "token_ids"}  # the features have that name here
        given |= {name: x[ids.get(name, name)] for name in getattr(module, "exact", ())}
        found, masks = module(slots[:, 0], mask, given, of_frame)
        found = found if isinstance(found, Mapping) else {"prediction": found}
        return {} if masks is None else {"masks": masks}, found
    if row.kind == "pruning":
        logits = jnp.einsum("bnd,bmd->bnm", slots[:, 1], tokens[:, 1, :, : slots.shape[-1]])
        attention = jax.nn.softmax(jnp.where(mask[..., None], logits, -jnp.inf), axis=1)
        values = {"distance": row.settings["distance"]}
        owner = module(slots[:, 0], attention, mask, values)
        return {"masks": ((owner == jnp.arange(owner.shape[1])) & mask).astype(jnp.float32)}, {}
    if row.kind == "tokenizer":
        whole = x["frames"] if module.reads == "pixels" else tokens[:, 0]
        smooth = {"latents": module.encode(whole)}
        smooth["pixels"] = module.decode(module.codes(x["token_ids"] % module.vocabulary))
        values = scheduled_settings("model", row.settings, TABLES[row.kind])
        # A choice is not smooth: of latents that are the same in every dtype.
        latents = x["positions"][..., :1] * jnp.cos(jnp.arange(module.width))
        latents = latents.reshape(len(latents), *GRID, -1)
        of_frame = jax.tree.map(lambda leaf: leaf[:, 0], draws)
        tokens = module.quantize(latents, of_frame, values).tokens
        return {}, {**{k: v.astype(slots.dtype) for k, v in smooth.items()}, "tokens": tokens}
    if row.kind == "readout":
        words = x["token_ids"] % 7
        choices = words[:, None, 2:] if row.settings.get("choice_length") else None
        found = module(slots, mask, words[:, :2], choices, draws)
        return {}, {f"logits_{name}": logits for name, logits in found.items()}
    if row.kind == "rollouter":
        return {"slots": module(slots, 2, mask, draws).swapaxes(1, 2)}, {}
    logits, boxes = module(slots, draws)  # a head
    return {"logits": logits.swapaxes(1, 2), "boxes": boxes.swapaxes(1, 2)}, {}


@functools.cache
def compiled(row: Row, dtype: str = "float32") -> Callable:
    """(inputs, draws) -> outputs of a row with its random arrays."""
    definition, arrays = built(row, dtype)

    def run(arrays, x, draws):
        in_dtype = lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
        x = {k: leaf if k in EXACT else in_dtype(leaf) for k, leaf in x.items()}
        return outputs_of(row, definition.merge(arrays), x, draws)

    return functools.partial(jax.jit(run), arrays)


def run(row: Row, x: dict, draws: Draws, dtype: str = "float32") -> tuple[Outputs, Outputs]:
    return jax.device_get(compiled(row, dtype)(x, draws))


def pick(x, index):
    """Slots `index` (B, k), of each sample its own, of (B, N, ...)."""
    return np.take_along_axis(np.asarray(x), index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)


def pick_inputs(x: dict, draws: Draws, index) -> tuple[dict, Draws]:
    """Inputs and draws of these slots alone."""
    frames = pick(x["slots"].swapaxes(1, 2), index).swapaxes(1, 2)
    chosen = {"slots": frames, "boxes": pick(x["boxes"], index), "mask": pick(x["mask"], index)}

    def pick_draw(leaf):
        places = [axis for axis, length in enumerate(leaf.shape) if length == SLOTS]
        if not places:
            return leaf
        return np.moveaxis(pick(np.moveaxis(leaf, places[0], 1), index), 1, places[0])

    return {**x, **chosen}, jax.tree.map(pick_draw, draws)


def assert_close(actual, expected, message=""):
    np.testing.assert_allclose(actual, expected, rtol=CLOSE, atol=CLOSE, err_msg=message)


both_modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
EVALUATION = pytest.param(False, id="evaluation", marks=pytest.mark.more)
# A part does the same to a set of slots in both, but for what it draws.
both_modes_of_sets = pytest.mark.parametrize(
    "training", [pytest.param(True, id="training"), EVALUATION]
)


def test_every_row_of_every_table_is_tested():
    for kind, table in TABLES.items():
        missing = table.keys() - SETTINGS[kind].keys()
        assert not missing, f"add settings for {kind} {', '.join(missing)} to SETTINGS"
        assert all(SETTINGS[kind][name] for name in table)
        assert SETTINGS[kind].keys() == table.keys()
    assert set(KEYS) <= set(PARTS)


# ---------------------------------------------------------------------------------- slots are a set


@both_modes_of_sets
@of_rows_of_a_set(*OF_SLOTS)
def test_slots_permute(row, training):
    """Queries, boxes and noise in another order, a different one for each sample."""
    if row.name == "metaslot":
        pytest.skip("of equal slots the first one stays; tests/test_metaslot.py compares sets")
    order = np.array([[2, 0, 4, 1, 3], [1, 2, 3, 4, 0]])
    x, draws = inputs_of(), drawn(row, training)
    per_slot, whole = run(row, x, draws)
    moved, same = run(row, *pick_inputs(x, draws, order))
    for name, value in per_slot.items():
        assert value.shape[:2] == (BATCH, SLOTS), name
        assert_close(moved[name], pick(value, order), name)
        if row.name != "none":  # whose attention is the same for all slots
            assert np.abs(moved[name] - value).max() > 1e-3, f"{name} shows no order"
    for name, value in whole.items():
        assert_close(same[name], value, name)
    assert per_slot or whole


@both_modes_of_sets
@of_rows_of_a_set(*OF_SLOTS)
def test_a_masked_slot_is_as_if_absent(row, training):
    """Other slots equal those of the smaller problem, for any values of a masked slot."""
    kept = np.array([[0, 2, 3], [1, 2, 4]])
    x, draws = inputs_of(), drawn(row, training)
    mask = np.zeros((BATCH, SLOTS), bool)
    np.put_along_axis(mask, kept, True, axis=1)
    small_slots, small = run(row, *pick_inputs(x, draws, kept))
    for other in (x, inputs_of(seed=1)):
        slots = np.where(mask[:, None, :, None], x["slots"], other["slots"])
        boxes = np.where(mask[:, :, None], x["boxes"], other["boxes"])
        per_slot, whole = run(row, {**x, "slots": slots, "boxes": boxes, "mask": mask}, draws)
        for name, value in per_slot.items():
            assert_close(pick(value, kept), small_slots[name], name)
        for name, value in whole.items():
            assert_close(value, small[name], name)


@of_rows("aggregator", "decoder")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.more)])
def test_attention_and_masks_sum_to_one(row, dtype):
    mask = np.array([[True] * SLOTS, [True, False, True, False, True]])
    per_slot, _ = run(row, {**inputs_of(), "mask": mask}, drawn(row, True), dtype)
    found = {n: x for n, x in per_slot.items() if n.startswith(("attention", "masks"))}
    assert found or row.kind == "decoder"
    for name, value in found.items():
        assert value.dtype == np.float32 and value.min() >= 0, name
        np.testing.assert_allclose(value.sum(axis=1), 1.0, atol=1e-5, err_msg=name)
        assert not value[~mask].any(), name
        assert value.shape[2:] == GRID or value.shape[-1] == TOKENS, name


# -------------------------------------------------------------------------------------------- dtype


@pytest.mark.more
@of_rows(*TABLES)
def test_bfloat16_is_near_float32(row):
    x, draws = inputs_of(), drawn(row, True)
    exact, near = ({**a, **b} for a, b in (run(row, x, draws), run(row, x, draws, "bfloat16")))
    assert exact.keys() == near.keys()
    promised = ("attention", "masks", "logits", "boxes")  # a softmax, and what is a result
    for name, value in near.items():
        exact_row = row.kind == "target" and "features" not in (row.name, name.split(".")[0])
        exact_row |= row.name == "causal_transformer"  # logits, and losses of them
        expected = np.float32 if name.startswith(promised) or exact_row else jnp.bfloat16
        expected = np.int32 if value.dtype == np.int32 else expected  # tokens, or a step
        if row.kind != "encoder":  # `SlotModel.encode` casts what an encoder gives
            assert value.dtype == expected, f"{name} is {value.dtype}"
        if np.issubdtype(exact[name].dtype, np.integer):
            np.testing.assert_array_equal(value, exact[name])
            continue
        assert exact[name].dtype == np.float32
        error = np.abs(value.astype(np.float32) - exact[name]).max()
        assert error <= BFLOAT16 * np.abs(exact[name]).max(), name
    _, params = built(row, "bfloat16")
    assert {x.dtype for x in params.values()} <= {np.dtype(np.float32)}


# --------------------------------------------------------------------------------------- randomness


@both_modes
@of_rows(*RANDOM)
def test_draws_have_a_leading_batch_axis_and_come_from_the_key(row, training):
    draws, again, other = (drawn.__wrapped__(row, training, seed) for seed in (0, 0, 1))
    leaves = jax.tree.leaves(draws)
    assert all(leaf.shape[0] == BATCH for leaf in leaves)
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    for one, two in zip(leaves, jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(data(one), data(two))
    if leaves:
        changed = zip(leaves, jax.tree.leaves(other), strict=True)
        assert any(np.any(data(a) != data(b)) for a, b in changed)
    if not training:  # the cold start is random at evaluation, and what a noisy target is
        noisy = row.name in ("noise", "drawn_queries")
        assert not leaves or row.kind == "initializer" or noisy


@both_modes
@of_rows(*TABLES)
def test_nothing_is_random_but_the_draws(row, training):
    definition, arrays = built(row)
    assert not jax.tree.leaves(nnx.state(definition.merge(arrays), nnx.RngState))
    first, second = (run(row, inputs_of(), drawn(row, training)) for _ in range(2))
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, two)
        assert np.isfinite(np.asarray(one, np.float32)).all()


@of_rows(*TABLES)
def test_samples_do_not_meet(row):
    """A sample among copies of itself has the same result as in its batch."""
    x, draws = inputs_of(), drawn(row, True)
    together = run(row, x, draws)
    for b in range(BATCH):
        copies = jax.tree.map(lambda leaf, b=b: leaf[np.full(BATCH, b)], (x, draws))
        alone = run(row, *copies)
        for found, expected in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            assert_close(found, np.repeat(expected[b : b + 1], BATCH, axis=0))


# ------------------------------------------------------------------------------ gradients that stop


def gradients(row: Row, names: tuple[str, ...]) -> tuple[dict, dict]:
    """Of the outputs of these names' beginnings, for the arrays and the inputs."""
    definition, arrays = built(row)
    draws = drawn(row, True)
    x = inputs_of()

    def total(arrays, floats):
        inputs = {**x, **floats}
        per_slot, whole = outputs_of(row, definition.merge(arrays), inputs, draws)
        found = [v for n, v in {**per_slot, **whole}.items() if n.startswith(names)]
        assert found
        return sum(jnp.sum(jnp.cos(jnp.arange(v.size)).reshape(v.shape) * v) for v in found)

    weights = {n: a for n, a in arrays.items() if n not in definition.constants}
    rest = {n: a for n, a in arrays.items() if n in definition.constants}
    floats = {name: v for name, v in x.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    run = jax.jit(jax.grad(lambda weights, floats: total({**weights, **rest}, floats), (0, 1)))
    return jax.device_get(run(weights, floats))


# (kind, row) -> beginnings of outputs, inputs that get no gradient of them, arrays that do.
STOPPED = {
    ("transition", "randsfq"): (("queries",), ("slots", "tokens"), ("",)),
    ("initializer", "warmed"): (("queries",), ("tokens",), ("log_std",)),
}


@pytest.mark.parametrize(
    "row", [row for row in rows(*TABLES) if (row.kind, row.name) in STOPPED], ids=str
)
def test_gradient_stops(row):
    names, inputs, reached = STOPPED[row.kind, row.name]
    of_arrays, of_inputs = gradients(row, names)
    for name in inputs:
        assert not np.any(of_inputs[name]), name
    if row.settings.get("straight_through"):  # as if the warmer were the identity
        reached = (*reached, "cold.")
        assert np.any(of_inputs["boxes"])
    for name, gradient in of_arrays.items():
        assert np.any(gradient) == name.startswith(reached), name


@of_rows("target")
def test_targets_are_constants_without_parameters(row):
    definition, arrays = built(row)
    assert not arrays

    def total(tokens, batch):
        constants = {"features": tokens, "codes": tokens[..., :SIZE], "tokens": x["token_ids"]}
        found = definition.merge({})(batch, constants, drawn(row, True))
        return sum(jnp.sum(x.astype(jnp.float32)) for x in found.values())

    x = inputs_of()
    batch = {name: x[name] for name in BATCH_ARRAYS}
    gradients = jax.grad(total, argnums=(0, 1))(x["tokens"], batch)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


@of_rows("encoder")
def test_no_gradient_reaches_a_frozen_encoder(row):
    """Frozen as a part of a model; as a trained one it gets some in every array."""
    results = {}
    for frozen in (True, False):
        definition, arrays = built(row, frozen=frozen)
        weights = {n: x for n, x in arrays.items() if n not in definition.constants}
        rest = {n: x for n, x in arrays.items() if n not in weights}

        def total(weights, definition=definition, rest=rest):
            module = definition.merge({**weights, **rest})
            features = outputs_of(row, module, inputs_of(), None)[1]["features"]
            return jnp.sum(jnp.cos(jnp.arange(features.size)).reshape(features.shape) * features)

        results[frozen] = jax.jit(jax.grad(total))(weights)
    assert not any(np.any(gradient) for gradient in results[True].values())
    assert all(np.any(gradient) for gradient in results[False].values())


# ------------------------------------------------------------------------------------ the contracts


@of_rows("encoder")
def test_encoders_say_their_grid_and_width(row):
    definition, _ = built(row)
    encoder, (_, outputs) = definition.skeleton(), run(row, inputs_of(), None)
    assert encoder.grid == GRID
    assert outputs["features"].shape == (BATCH, TOKENS, encoder.width)


@of_rows("tokenizer")
def test_tokenizers_say_their_sizes(row):
    definition, arrays = built(row)
    tokenizer, x = definition.merge(arrays), inputs_of()
    assert tokenizer.grid == GRID and tokenizer.reads in ("features", "pixels")
    whole = x["frames"] if tokenizer.reads == "pixels" else x["tokens"][:, 0]
    draws = jax.tree.map(lambda leaf: leaf[:, 0], drawn(row, True))
    values = scheduled_settings("model", row.settings, TABLES[row.kind])
    call = jax.jit(lambda arrays, x: definition.merge(arrays)(x, draws, values))
    outputs = call(arrays, jnp.asarray(whole))
    assert outputs["tokens"].dtype == jnp.int32
    assert outputs["tokens"].shape == (BATCH, TOKENS)
    assert 0 <= outputs["tokens"].min() and outputs["tokens"].max() < tokenizer.vocabulary
    assert outputs["codes"].shape == (BATCH, TOKENS, tokenizer.width)
    np.testing.assert_allclose(outputs["codes"], tokenizer.codes(outputs["tokens"]), CLOSE, CLOSE)
    assert outputs["prediction"].shape == tokenizer.target(jnp.asarray(x["frames"])).shape
    latents = jax.eval_shape(lambda x: definition.merge(arrays).encode(x), whole)
    assert latents.shape == (BATCH, *GRID, tokenizer.width)


@of_rows("decoder")
def test_decoders_predict_the_width_of_the_target(row):
    per_slot, whole = run(row, inputs_of(), drawn(row, True))
    channels = {False: WIDTH, "next_frame": WIDTH + TOKENS, "only": TOKENS}
    assert whole["prediction"].shape == (
        BATCH,
        TOKENS,
        channels[row.settings.get("logits", False)],
    )
    assert all(masks.ndim == 4 for masks in per_slot.values())
    definition, _ = built(row)
    assert definition.skeleton().remat is False


@of_rows("initializer")
def test_initializers_say_whether_they_start_from_boxes(row):
    """Other boxes give other queries only where the part says so."""
    x, draws = inputs_of(), drawn(row, True)
    moved = {**x, "boxes": x["boxes"][:, ::-1]}
    queries, others = (run(row, inputs, draws)[0]["queries"] for inputs in (x, moved))
    definition, _ = built(row)
    assert np.any(queries != others) == definition.skeleton().starts_from_boxes


@both_modes
@of_rows("transition")
def test_the_memory_of_a_transition_can_be_scanned(row, training):
    """One entry of `prepare` for each later frame; the memory keeps its shapes."""
    definition, arrays = built(row)
    module, x, draws = definition.merge(arrays), inputs_of(), drawn(row, training)
    prepared = module.prepare(x["tokens"], draws)
    assert all(leaf.shape[:2] == (BATCH, FRAMES - 1) for leaf in jax.tree.leaves(prepared))
    memory = module.start(x["slots"][:, 0], draws)
    of_frame = jax.tree.map(lambda leaf: leaf[:, 0], prepared)
    queries, after = module(x["slots"][:, 0], memory, of_frame, x["mask"])
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert shapes(after) == shapes(memory) and queries.shape == (BATCH, SLOTS, SIZE)


@of_rows(*TABLES)
def test_a_scheduled_setting_is_none_of_the_constructor(row):
    table = TABLES[row.kind]
    scheduled = scheduled_settings("model", row.settings, table)
    assert set(scheduled) <= set(row.settings)
    assert set(scheduled) == set(getattr(table[row.name], "scheduled", ()))
