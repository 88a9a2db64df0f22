"""Names and shapes of arrays of Keras 2: the slot attention of Locatello et al. 2020.

Keras packs the gates of a GRU in the order update, reset, new, ours are reset, update, new. Its one
array of biases has the input's in row 0 and the hidden ones in row 1.
"""

from collections.abc import Mapping

import numpy as np

from smoothsa_jax.interop.table import RAW, SAME, Leaves, Row, Transform

Arrays = dict[str, np.ndarray]

DENSE: Leaves = {"kernel": ("kernel", SAME), "bias": ("bias", SAME)}
NORM: Leaves = {"gamma": ("scale", SAME), "beta": ("bias", SAME)}


def _other_order(x: np.ndarray) -> np.ndarray:
    """Exchange the first two gates, along the last axis."""
    first, second, new = np.split(x, 3, axis=-1)
    return np.concatenate([second, first, new], axis=-1)


_ORDER = Transform(_other_order, _other_order)
_GRU: Leaves = {
    "kernel": ("input.kernel", _ORDER),
    "recurrent_kernel": ("hidden.kernel", _ORDER),
    "bias.input": ("input.bias", _ORDER),
    "bias.hidden": ("hidden.bias", _ORDER),
}


def joined(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Give each row of a GRU's biases a name of its own; dots stand for slashes."""
    found = {name.replace("/", "."): np.asarray(x) for name, x in arrays.items()}
    for name in [name for name in found if name.endswith("gru.bias")]:
        found[f"{name}.input"], found[f"{name}.hidden"] = found.pop(name)
    return found


def parted(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Undo `joined`, but for the slashes."""
    found = dict(arrays)
    for name in [name for name in found if name.endswith("gru.bias.input")]:
        whole = name.removesuffix(".input")
        found[whole] = np.stack([found.pop(name), found.pop(f"{whole}.hidden")])
    return found


# Of slot attention, with the Gaussian of its queries.
SLOT_ATTENTION_ROWS: list[Row] = [
    ("slots_mu", "initializer.mean", RAW),
    ("slots_log_sigma", "initializer.log_std", RAW),
    ("norm_inputs", "aggregator.norm_features", NORM),
    ("norm_slots", "aggregator.norm_slots", NORM),
    ("norm_mlp", "aggregator.norm_mlp", NORM),
    ("project_q", "aggregator.query", DENSE),
    ("project_k", "aggregator.key", DENSE),
    ("project_v", "aggregator.value", DENSE),
    ("gru", "aggregator.gru", _GRU),
    ("mlp.0", "aggregator.mlp.hidden", DENSE),
    ("mlp.1", "aggregator.mlp.out", DENSE),
]
