"""ResNets with GroupNorm that are trained from pixels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.conv import tokens_of
from smoothsa_jax.models.encoders.pixels import RANGES
from smoothsa_jax.models.layers.conv import (
    Convolution,
    check_convolutions,
    group_norm,
    padding_of,
    size_after_all,
)
from smoothsa_jax.models.layers.positions import PlaceEmbedding, check_position
from smoothsa_jax.parts import check_heads, check_one_of, check_whole

ROOTS = ("small", "large")


class Block(nnx.Module):
    """Two 3x3 convolutions, each normalized, plus the input; a ReLU after the first and the sum.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        stride: of the first convolution.
        groups: of the GroupNorms.
        padding: "same" or "torch".
        start: initial values; the scale of the second norm starts at 0.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        *,
        groups: int,
        padding: str,
        start: str,
        rngs: nnx.Rngs,
    ):
        more = {"padding": padding, "bias": False, "start": start, "rngs": rngs}
        self.first = Convolution(in_features, out_features, 3, stride, **more)
        self.norm_first = group_norm(out_features, groups, rngs=rngs)
        self.second = Convolution(out_features, out_features, 3, **more)
        self.norm_second = group_norm(out_features, groups, rngs=rngs)
        self.norm_second.scale[...] = jnp.zeros_like(self.norm_second.scale[...])
        changes = stride != 1 or in_features != out_features
        self.shortcut = (
            Convolution(in_features, out_features, 1, stride, **more) if changes else None
        )
        self.norm_shortcut = group_norm(out_features, groups, rngs=rngs) if changes else None

    def __call__(self, x: Float[Array, "B H W in"]) -> Float[Array, "B h w out"]:
        update = jax.nn.relu(self.norm_first(self.first(x)))
        update = self.norm_second(self.second(update))
        if self.shortcut is not None:
            x = self.norm_shortcut(self.shortcut(x))
        return jax.nn.relu(x + update)


class ResNet(nnx.Module):
    """A ResNet (He et al. 2016) with GroupNorm and SAVi's root, then an embedding of the place.

    With blocks (3, 4, 6, 3) and a root of 64 channels it is the ResNet-34 of SAVi-L, SAVi++
    (Elsayed et al. 2022, arXiv 2206.07764) and ISA. The first layer's norm has no ReLU. The
    LayerNorm and the MLP that follow are the model's `projection`.

    Args:
        image_size: H, W of the input in pixels.
        blocks: number of blocks of each stage. Each stage but the first halves height and width and
            doubles the channels.
        root: "small", for small pictures: a 3x3 convolution; "large": a 7x7 one of stride 2, and
            the largest value of 3x3 with stride 2.
        root_width: channels of the root and of the first stage.
        groups: of the GroupNorms.
        padding: "same", as in Flax and TensorFlow, or "torch".
        position: the functions of the place, "linear", "borders" or "fourier"; or "none".
        position_waves: how many periods "fourier" has.
        pixels: range of its input: "unit", 0..1; "signed", -1..1; or "imagenet".
        start: initial values, "torch", "xavier", "lecun" or "glorot".
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        blocks: Sequence[int],
        root: str,
        root_width: int,
        groups: int,
        padding: str,
        position: str,
        position_waves: int | None = None,
        pixels: str,
        start: str,
        rngs: nnx.Rngs,
    ):
        path = "model.encoder"
        if isinstance(blocks, str | int) or not len(blocks):
            raise UserError(
                f"{path}.blocks is {blocks!r}; expected the number of blocks of each stage, such "
                "as (3, 4, 6, 3)"
            )
        for number in blocks:
            check_whole(f"{path}.blocks", number)
        check_one_of(f"{path}.root", root, ROOTS)
        check_whole(f"{path}.root_width", root_width)
        check_heads(f"{path}.groups", groups, root_width, f"{path}.root_width {root_width}")
        check_convolutions(path, padding, start)
        check_position(path, position, position_waves)
        check_one_of(f"{path}.pixels", pixels, RANGES)
        self.pixels, self.padding, self.pools = pixels, padding, root == "large"
        of_root = (7, 2) if self.pools else (3, 1)
        more = {"padding": padding, "start": start, "rngs": rngs}
        self.root = Convolution(3, root_width, *of_root, bias=False, **more)
        self.norm_root = group_norm(root_width, groups, rngs=rngs)
        widths = [root_width * 2**stage for stage in range(len(blocks))]
        stages, width = [], root_width
        for stage, (number, out) in enumerate(zip(blocks, widths, strict=True)):
            stages.append([])
            for i in range(number):
                stride = 2 if stage and not i else 1
                stages[-1].append(Block(width, out, stride, groups=groups, **more))
                width = out
        self.stages = nnx.List([nnx.List(stage) for stage in stages])
        self.width = width
        layers = [(padding, *of_root, False)] + [(padding, 3, 2, False)] * self.pools
        layers += [(padding, 3, 2, False)] * (len(blocks) - 1)
        self.grid = size_after_all(layers, image_size)
        place = (self.grid, width, position, position_waves)
        of_place = {"start": start, "rngs": rngs}
        self.place = None if position == "none" else PlaceEmbedding(*place, **of_place)

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B M C"]]:
        """Return `features` of images in the range of `pixels`."""
        x = self.norm_root(self.root(images.astype(self.root.kernel.dtype)))
        if self.pools:
            zeros = [padding_of(self.padding, 3, 2, False, side) for side in x.shape[1:3]]
            window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
            padding = ((0, 0), *zeros, (0, 0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return {"features": tokens_of(x, self.place)}
