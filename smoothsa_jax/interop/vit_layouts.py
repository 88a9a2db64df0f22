"""Map the arrays of DINO and DINOv2 from the names of Hugging Face and timm to those of our ViT.

Hugging Face stores query, key and value separately. Positions form one square grid of the
pre-training size. If the file has a position of the class token, it precedes the grid. It becomes
an array of its own in a ViT with `class_position`; in any other it is added to the class token. The
last LayerNorm is left out unless the ViT has `final_norm`.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, MutableMapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.interop.table import CONVOLUTION, LINEAR, NORM, RAW, KeyTable, Row

TIMM_ROWS: list[Row] = [
    ("patch_embed.proj", "embed", CONVOLUTION),
    ("pos_embed", "position", RAW),
    ("cls_token", "class_token", RAW),
    ("reg_token", "registers", RAW),
    ("blocks.{}.norm1", "blocks.{}.norm_attention", NORM),
    ("blocks.{}.attn.qkv", "blocks.{}.qkv", LINEAR),
    ("blocks.{}.attn.proj", "blocks.{}.out", LINEAR),
    ("blocks.{}.ls1.gamma", "blocks.{}.scale_attention", RAW),
    ("blocks.{}.norm2", "blocks.{}.norm_mlp", NORM),
    ("blocks.{}.mlp.fc1", "blocks.{}.mlp.hidden", LINEAR),
    ("blocks.{}.mlp.fc2", "blocks.{}.mlp.out", LINEAR),
    ("blocks.{}.ls2.gamma", "blocks.{}.scale_mlp", RAW),
    ("norm", "norm", NORM),
]
_HUGGING_FACE_ROWS: list[Row] = [
    ("embeddings.patch_embeddings.projection", "embed", CONVOLUTION),
    ("embeddings.position_embeddings", "position", RAW),
    ("embeddings.cls_token", "class_token", RAW),
    ("encoder.layer.{}.attention.attention.query", "blocks.{}.query", LINEAR),
    ("encoder.layer.{}.attention.attention.key", "blocks.{}.key", LINEAR),
    ("encoder.layer.{}.attention.attention.value", "blocks.{}.value", LINEAR),
    ("encoder.layer.{}.attention.output.dense", "blocks.{}.out", LINEAR),
    ("layernorm", "norm", NORM),
]
_DINO_ROWS: list[Row] = [
    ("encoder.layer.{}.layernorm_before", "blocks.{}.norm_attention", NORM),
    ("encoder.layer.{}.layernorm_after", "blocks.{}.norm_mlp", NORM),
    ("encoder.layer.{}.intermediate.dense", "blocks.{}.mlp.hidden", LINEAR),
    ("encoder.layer.{}.output.dense", "blocks.{}.mlp.out", LINEAR),
]
_DINOV2_ROWS: list[Row] = [
    ("embeddings.register_tokens", "registers", RAW),
    ("encoder.layer.{}.norm1", "blocks.{}.norm_attention", NORM),
    ("encoder.layer.{}.layer_scale1.lambda1", "blocks.{}.scale_attention", RAW),
    ("encoder.layer.{}.norm2", "blocks.{}.norm_mlp", NORM),
    ("encoder.layer.{}.mlp.fc1", "blocks.{}.mlp.hidden", LINEAR),
    ("encoder.layer.{}.mlp.fc2", "blocks.{}.mlp.out", LINEAR),
    ("encoder.layer.{}.mlp.weights_in", "blocks.{}.mlp.hidden", LINEAR),  # SwiGLU
    ("encoder.layer.{}.mlp.weights_out", "blocks.{}.mlp.out", LINEAR),
    ("encoder.layer.{}.layer_scale2.lambda1", "blocks.{}.scale_mlp", RAW),
]

LAST_NORM = ("norm.scale", "norm.bias")
# Our packed arrays <- the arrays that Hugging Face stores separately, concatenated.
_PACKED = {".qkv.": (".query.", ".key.", ".value."), ".mlp.hidden.": (".mlp.gate.", ".mlp.value.")}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kind of file names a ViT's arrays.

    Attributes:
        model: the model in such a file, for error messages.
        table: the mapping of names.
        ignored: keys that a file may have, but that the features do not need.
    """

    model: str
    table: KeyTable
    ignored: frozenset[str]


TIMM = Layout("DINO or DINOv2", KeyTable(TIMM_ROWS), frozenset())
DINO = Layout(
    "DINO",
    KeyTable([*_HUGGING_FACE_ROWS, *_DINO_ROWS]),
    frozenset({"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}),
)
DINOV2 = Layout(
    "DINOv2",
    KeyTable([*_HUGGING_FACE_ROWS, *_DINOV2_ROWS]),
    frozenset({"embeddings.mask_token"}),
)


def vit_arrays(
    state_dict: MutableMapping[str, np.ndarray],
    layout: Layout,
    grid: tuple[int, int],
    antialias: bool,
    wanted: Collection[str],
) -> dict[str, np.ndarray]:
    """Convert a file's arrays to our names, in float32, for images of `grid` patches.

    Args:
        state_dict: the file's arrays; emptied, so that only one copy of a large model is in memory.
        layout: the file's layout.
        grid: (h, w) patches of an image.
        antialias: whether to resample positions with antialiasing; see `resample_positions`.
        wanted: names of the ViT's arrays: they tell whether it has the last LayerNorm and a
            separate position of the class token.

    Raises:
        UserError: a key is not in the layout, or the positions are not a square grid.
    """
    unknown = [key for key in state_dict if layout.table.ours(key) is None]
    unknown = [key for key in unknown if key not in layout.ignored]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"unknown keys {', '.join(unknown[:3])}{more}, expected those of {layout.model}"
        )
    arrays: dict[str, np.ndarray] = {}
    for key in list(state_dict):
        array = state_dict.pop(key)
        if key in layout.ignored:
            continue
        name, transform = layout.table.ours(key)
        if name not in LAST_NORM or name in wanted:
            arrays[name] = np.ascontiguousarray(transform.to_ours(array), np.float32)
    for name, parts in _PACKED.items():
        _pack(arrays, name, parts)
    if "position" in arrays and "class_token" in arrays:
        _split_position(arrays, apart="class_position" in wanted)
        arrays["position"] = resample_positions(arrays["position"], grid, antialias)
    return arrays


def _pack(arrays: dict[str, np.ndarray], packed: str, parts: tuple[str, ...]) -> None:
    for name in [name for name in arrays if parts[0] in name]:
        names = [name.replace(parts[0], part) for part in parts]
        if all(part in arrays for part in names):  # else they stay, and are reported as left over
            array = np.concatenate([arrays.pop(part) for part in names], axis=-1)
            arrays[name.replace(parts[0], packed)] = array


def _split_position(arrays: dict[str, np.ndarray], apart: bool) -> None:
    position = arrays["position"]
    if position.ndim == 3 and _is_square(position.shape[1] - 1) and position.shape[1] > 1:
        if apart:
            arrays["class_position"] = position[:, :1]
        else:
            arrays["class_token"] = arrays["class_token"] + position[:, :1]
        arrays["position"] = position[:, 1:]


def resample_positions(
    position: Float[np.ndarray, "1 P C"], grid: tuple[int, int], antialias: bool
) -> Float[np.ndarray, "1 M C"]:
    """Resample a square grid of positions bicubically; positions of the right size are unchanged.

    The kernel matches the program that wrote the file. With antialiasing (timm, and DINOv2 with
    registers in transformers), its coefficient is -0.5; without (DINO and plain DINOv2 in
    transformers), it is -0.75.

    Raises:
        UserError: the positions are not a square grid.
    """
    if position.ndim != 3 or not _is_square(position.shape[1]):
        raise UserError(
            f"positions of shape {list(position.shape)}, expected those of a square grid of patches"
        )
    side, width = math.isqrt(position.shape[1]), position.shape[2]
    if (side, side) == tuple(grid):
        return position
    method = "cubic" if antialias else "cubic-pytorch"
    square = jnp.asarray(position).reshape(1, side, side, width)
    resized = jax.image.resize(square, (1, *grid, width), method, antialias=antialias)
    return np.asarray(resized).reshape(1, -1, width)


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count


def is_hugging_face(state_dict: Mapping[str, np.ndarray]) -> bool:
    return "embeddings.cls_token" in state_dict
