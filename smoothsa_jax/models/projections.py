"""Projections in which the tokens of a frame see each other."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.layers.basic import (
    COMMON_STARTS,
    MLP,
    check_start,
    layer_norm,
    linear,
)
from smoothsa_jax.models.layers.transformer import EncoderLayer
from smoothsa_jax.parts import check_above_zero, check_heads, check_whole


class TransformerProjection(nnx.Module):
    """LayerNorm, MLP, a Linear layer with a ReLU, and pre-norm layers without a last norm.

    From SAVi++ (Elsayed et al. 2022, arXiv 2206.07764).

    Args:
        width: C of the features.
        hidden_size: hidden width of the MLP, whose output is as wide as the features.
        size: width of the tokens.
        num_layers: number of transformer layers.
        num_heads: number of attention heads.
        mlp_size: hidden width of their feed-forwards.
        norm_epsilon: of every LayerNorm.
        start: initial values, "torch", "xavier", "lecun" or "glorot".
    """

    def __init__(
        self,
        width: int,
        *,
        hidden_size: int,
        size: int,
        num_layers: int,
        num_heads: int,
        mlp_size: int,
        norm_epsilon: float,
        start: str,
        rngs: nnx.Rngs,
    ):
        path = "model.projection"
        check_whole(f"{path}.hidden_size", hidden_size)
        check_whole(f"{path}.size", size)
        check_whole(f"{path}.num_layers", num_layers)
        check_heads(f"{path}.num_heads", num_heads, size, f"{path}.size {size}")
        check_whole(f"{path}.mlp_size", mlp_size)
        check_above_zero(f"{path}.norm_epsilon", norm_epsilon)
        check_start(f"{path}.start", start, COMMON_STARTS)
        self.width = size
        self.norm = layer_norm(width, epsilon=norm_epsilon, rngs=rngs)
        sizes = (width, hidden_size, width)
        self.mlp = MLP(sizes, activation="relu", start=start, rngs=rngs)
        self.embed = linear(width, size, start=start, rngs=rngs)
        layer = lambda: EncoderLayer(  # noqa: E731
            size,
            num_heads,
            norm="pre",
            activation="relu",
            bias=True,
            mlp_size=mlp_size,
            norm_epsilon=norm_epsilon,
            attention_start=start,
            start=start,
            rngs=rngs,
        )
        self.layers = nnx.List([layer() for _ in range(num_layers)])

    def __call__(self, features: Float[Array, "*batch M F"]) -> Float[Array, "*batch M C"]:
        tokens = jax.nn.relu(self.embed(self.mlp(self.norm(features))))
        tokens = tokens.reshape(-1, *tokens.shape[-2:])
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.reshape(*features.shape[:-1], self.width)
