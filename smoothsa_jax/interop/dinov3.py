"""Map DINOv3's arrays from the names of Hugging Face to those of our DINOv3."""

from smoothsa_jax.interop.table import CONVOLUTION, KERNEL, LINEAR, NORM, RAW, KeyTable, Row
from smoothsa_jax.interop.vit_layouts import Layout

_WEIGHT = {"weight": ("kernel", KERNEL)}
_ROWS: list[Row] = [
    ("embeddings.patch_embeddings", "embed", CONVOLUTION),
    ("embeddings.cls_token", "class_token", RAW),
    ("embeddings.register_tokens", "registers", RAW),
    ("layer.{}.norm1", "blocks.{}.norm_attention", NORM),
    ("layer.{}.attention.q_proj", "blocks.{}.query", _WEIGHT),
    ("layer.{}.attention.k_proj", "blocks.{}.key", _WEIGHT),
    ("layer.{}.attention.v_proj", "blocks.{}.value", _WEIGHT),
    ("layer.{}.attention.q_proj.bias", "blocks.{}.query_bias", RAW),
    ("layer.{}.attention.v_proj.bias", "blocks.{}.value_bias", RAW),
    ("layer.{}.attention.o_proj", "blocks.{}.out", LINEAR),
    ("layer.{}.layer_scale1.lambda1", "blocks.{}.scale_attention", RAW),
    ("layer.{}.norm2", "blocks.{}.norm_mlp", NORM),
    ("layer.{}.mlp.down_proj", "blocks.{}.mlp.out", LINEAR),
    ("layer.{}.layer_scale2.lambda1", "blocks.{}.scale_mlp", RAW),
]
_MLP: list[Row] = [("layer.{}.mlp.up_proj", "blocks.{}.mlp.hidden", LINEAR)]
_GATED: list[Row] = [
    ("layer.{}.mlp.gate_proj", "blocks.{}.mlp.gate", LINEAR),
    ("layer.{}.mlp.up_proj", "blocks.{}.mlp.value", LINEAR),
]
_IGNORED = frozenset({"embeddings.mask_token", "norm.weight", "norm.bias"})
DINOV3 = Layout("DINOv3", KeyTable([*_ROWS, *_MLP]), _IGNORED)
DINOV3_GATED = Layout("DINOv3 with a gated MLP", KeyTable([*_ROWS, *_GATED]), _IGNORED)
