"""Names of decoders that explain a tokenizer's codes, and of tokenizers, in other programs."""

from collections.abc import Collection

from smoothsa_jax.interop.authors import TORCH_LAYER, below
from smoothsa_jax.interop.table import LINEAR, NORM, RAW, Row
from smoothsa_jax.interop.tokenizers import FILTER, POINTWISE, VQ_FEATURES, VQ_PIXELS

_BLOCK: list[Row] = [  # of diffusers' UNet, which latent diffusion's program is the origin of
    ("norm1", "norm_in", NORM),
    ("conv1", "conv_in", FILTER),
    ("time_emb_proj", "step", LINEAR),
    ("norm2", "norm_out", NORM),
    ("conv2", "conv_out", FILTER),
    ("conv_shortcut", "shortcut", POINTWISE),
]
_ATTENTION: list[Row] = [
    ("to_q", "query", LINEAR),
    ("to_k", "key", LINEAR),
    ("to_v", "value", LINEAR),
    ("to_out.0", "out", LINEAR),
]
_TRANSFORMER: list[Row] = [
    ("norm", "norm", NORM),
    ("proj_in", "project_in", POINTWISE),
    ("transformer_blocks.0.norm1", "norm_self", NORM),
    *below("transformer_blocks.0.attn1", "self_attention", _ATTENTION),
    ("transformer_blocks.0.norm2", "norm_cross", NORM),
    *below("transformer_blocks.0.attn2", "cross_attention", _ATTENTION),
    ("transformer_blocks.0.norm3", "norm_feed_forward", NORM),
    ("transformer_blocks.0.ff.net.0.proj", "feed_forward.hidden", LINEAR),
    ("transformer_blocks.0.ff.net.2", "feed_forward.out", LINEAR),
    ("proj_out", "project_out", POINTWISE),
]
_LEVEL: list[Row] = [
    *below("resnets.{}", "blocks.{}", _BLOCK),
    *below("attentions.{}", "transformers.{}", _TRANSFORMER),
]
_UNET: list[Row] = [
    ("conv_in", "conv_in", FILTER),
    ("time_embedding.linear_1", "embedding.hidden", LINEAR),
    ("time_embedding.linear_2", "embedding.out", LINEAR),
    *below("down_blocks.{}", "down.{}", [*_LEVEL, ("downsamplers.0.conv", "resample", FILTER)]),
    *below("mid_block", "middle", _LEVEL),
    *below("up_blocks.{}", "up.{}", [*_LEVEL, ("upsamplers.0.conv", "resample", FILTER)]),
    ("conv_norm_out", "norm_out", NORM),
    ("conv_out", "conv_out", FILTER),
]
# Below the decoder, in the program of SmoothSA's author.
UNET: list[Row] = [(f"backbone.{theirs}", ours, leaves) for theirs, ours, leaves in _UNET]
CAUSAL: list[Row] = [
    ("bos", "first", RAW),
    ("posit_embed.pe", "position", RAW),
    ("norm0", "layers.0.norm_self", NORM),  # in front of the layers
    *below("backbone.layers.{}", "layers.{}", TORCH_LAYER),
    ("readout", "readout", LINEAR),
]


def tokenizer_rows(names: Collection[str]) -> list[Row]:
    """Return the rows of a frozen tokenizer, which has arrays of these names."""
    of_features = "tokenizer.basis" in names
    rows = VQ_FEATURES if of_features else VQ_PIXELS
    return [(theirs, f"tokenizer.{ours}", leaves) for theirs, ours, leaves in rows]
