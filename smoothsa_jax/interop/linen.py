"""Names and shapes of arrays in programs of flax linen, such as SAVi's.

Linen keeps apart what our layers pack: the gates of a GRU, and the queries, keys and values of an
attention, each with an axis of heads. `joined` packs them, and `parted` is its inverse. The rows
are for a `KeyTable` of joined arrays; dots stand for linen's slashes.
"""

from collections.abc import Mapping

import numpy as np

from smoothsa_jax.interop.table import SAME, Leaves, Row, Transform

Arrays = dict[str, np.ndarray]

DENSE: Leaves = {"kernel": ("kernel", SAME), "bias": ("bias", SAME)}
NORM: Leaves = {"scale": ("scale", SAME), "bias": ("bias", SAME)}
GRU: Leaves = {
    "input.kernel": ("input.kernel", SAME),
    "input.bias": ("input.bias", SAME),
    "hidden.kernel": ("hidden.kernel", SAME),
    "new_bias": ("new_bias", SAME),
}
CROSS = "MultiHeadDotProductAttention_1."  # of a block with cross-attention
_SELF = "MultiHeadDotProductAttention_0."
_GATES = "rzn"
_PARTS = ("query", "key", "value")


def joined(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Pack the gates of GRUs and the projections of multi-head attention."""
    found = {name.replace("/", "."): np.asarray(x) for name, x in arrays.items()}
    for name in [name for name in found if name.endswith(".ir.kernel")]:
        cell = name.removesuffix("ir.kernel")
        for ours, theirs in (("input", "i"), ("hidden", "h")):
            gates = [found.pop(f"{cell}{theirs}{gate}.kernel") for gate in _GATES]
            found[f"{cell}{ours}.kernel"] = np.concatenate(gates, axis=1)
        biases = [found.pop(f"{cell}i{gate}.bias") for gate in _GATES]
        found[f"{cell}input.bias"] = np.concatenate(biases)
        found[f"{cell}new_bias"] = found.pop(f"{cell}hn.bias")
    for name in [name for name in found if name.endswith(f"{_SELF}query.kernel")]:
        block = name.removesuffix(f"{_SELF}query.kernel")
        for attention in (block + _SELF, block + CROSS):
            if attention + "query.kernel" not in found:
                continue
            query, key, value = (found.pop(f"{attention}{part}.kernel") for part in _PARTS)
            if attention.endswith(CROSS):
                found[attention + "kv"] = np.stack([key, value], axis=1)
                found[attention + "q"] = query[:, None]
            else:
                found[attention + "q"] = np.stack([query, key, value], axis=1)
            biases = [found.pop(f"{attention}{part}.bias") for part in _PARTS]
            found[attention + "in_bias"] = np.stack(biases)
    return found


def parted(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Undo `joined`."""
    found = dict(arrays)
    for name in [name for name in found if name.endswith(".new_bias")]:
        cell = name.removesuffix("new_bias")
        for ours, theirs in (("input", "i"), ("hidden", "h")):
            parts = np.split(found.pop(f"{cell}{ours}.kernel"), 3, axis=1)
            found |= {f"{cell}{theirs}{g}.kernel": x for g, x in zip(_GATES, parts, strict=True)}
        parts = np.split(found.pop(f"{cell}input.bias"), 3)
        found |= {f"{cell}i{g}.bias": x for g, x in zip(_GATES, parts, strict=True)}
        found[f"{cell}hn.bias"] = found.pop(name)
    for name in [name for name in found if name.endswith((_SELF + "q", CROSS + "q"))]:
        attention = name.removesuffix("q")
        kernels = list(found.pop(name).swapaxes(0, 1))
        if attention + "kv" in found:
            kernels += list(found.pop(attention + "kv").swapaxes(0, 1))
        biases = list(found.pop(attention + "in_bias"))
        for part, kernel, bias in zip(_PARTS, kernels, biases, strict=True):
            found[f"{attention}{part}.kernel"], found[f"{attention}{part}.bias"] = kernel, bias
    return found


def heads(number: int) -> Leaves:
    """Return the leaves of a projection (in, heads, width), whose bias is (heads, width)."""
    kernel = Transform(lambda x: x.reshape(len(x), -1), lambda x: x.reshape(len(x), number, -1))
    bias = Transform(np.ravel, lambda x: x.reshape(number, -1))
    return {"kernel": ("kernel", kernel), "bias": ("bias", bias)}


def from_heads(number: int) -> Leaves:
    """Return the leaves of a projection (heads, width, out)."""
    kernel = Transform(
        lambda x: x.reshape(-1, x.shape[-1]), lambda x: x.reshape(number, -1, x.shape[-1])
    )
    return {"kernel": ("kernel", kernel), "bias": ("bias", SAME)}


def slot_attention_rows(number: int = 1) -> list[Row]:
    """Return the rows of SAVi's slot attention, our `SlotAttention` with `gru="linen"`.

    Args:
        number: of heads.
    """
    return [
        ("LayerNorm_0", "norm_slots", NORM),
        ("LayerNorm_1", "norm_features", NORM),
        ("general_dense_q_0", "query", heads(number)),
        ("general_dense_k_0", "key", heads(number)),
        ("general_dense_v_0", "value", heads(number)),
        ("InvertedDotProductAttention_0.DenseGeneral_0", "out", from_heads(number)),
        ("GRU_0.GRUCell_0", "gru", GRU),
        ("MLP_0.LayerNorm_0", "norm_mlp", NORM),
        *mlp_rows("MLP_0", "mlp"),
    ]


def mlp_rows(theirs: str, ours: str) -> list[Row]:
    """Return the rows of the two Linear layers of SAVi's MLP."""
    return [
        (f"{theirs}.dense_mlp_0", f"{ours}.hidden", DENSE),
        (f"{theirs}.dense_mlp_1", f"{ours}.out", DENSE),
    ]


def block_rows(number: int, crosses: bool = False) -> list[Row]:
    """Return the rows of SAVi's transformer block, our `EncoderLayer`.

    Args:
        number: of heads.
        crosses: whether it has cross-attention.
    """

    def packed(parts: int) -> Transform:
        """(in, parts, heads, width) <-> (in, parts * heads * width)."""
        apart = lambda x: x.reshape(len(x), parts, number, -1)  # noqa: E731
        return Transform(lambda x: x.reshape(len(x), -1), apart)

    of_bias = Transform(np.ravel, lambda x: x.reshape(3, number, -1))
    out = (".out", from_heads(number))
    rows: list[Row] = []
    for theirs, ours in ((_SELF, "self_attention"), (CROSS, "cross_attention")):
        is_cross = theirs == CROSS
        leaves: dict = {"q": ("in_projection", packed(1 if is_cross else 3))}
        leaves |= {"kv": ("memory_projection", packed(2))} if is_cross else {}
        leaves["in_bias"] = ("in_bias", of_bias)
        rows += [(theirs[:-1], ours, leaves), (theirs[:-1] + out[0], f"{ours}.out", out[1])]
    norms = ["norm_self", *(["norm_cross"] if crosses else []), "norm_feed_forward"]
    rows += [(f"LayerNorm_{i}", name, NORM) for i, name in enumerate(norms)]
    return [*rows, *mlp_rows("MLP_0", "feed_forward")]
