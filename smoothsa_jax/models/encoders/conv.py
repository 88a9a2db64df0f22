"""A convolutional encoder that is trained from pixels."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.encoders.pixels import RANGES
from smoothsa_jax.models.layers.conv import (
    NORMS,
    Convolutions,
    check_convolutions,
    check_strides,
    size_after_all,
)
from smoothsa_jax.models.layers.positions import PlaceEmbedding, check_position
from smoothsa_jax.parts import check_flag, check_one_of, check_whole


class Conv(nnx.Module):
    """Convolutions with ReLUs, then an embedding of the place.

    From slot attention (Locatello et al. 2020, arXiv 2006.15055, appendix E.3), as SAVi (Kipf et
    al. 2022, arXiv 2111.12594), ISA (arXiv 2302.04973), BO-QSA (arXiv 2210.08990) and STEVE (arXiv
    2205.14065) have it. The LayerNorm and the MLP that follow are the model's `projection`.

    Args:
        image_size: H, W of the input in pixels.
        width: the channels after every layer.
        out_width: C, those after the last; None: as `width`.
        kernel_size: of every layer.
        strides: of each layer.
        padding: "same", as in Flax and TensorFlow, or "torch".
        last_relu: whether a ReLU follows the last layer; ISA and STEVE have none.
        norm: "none", or what stands between convolution and ReLU; see `Convolutions`.
        position: the functions of the place, "linear", "borders", "centers" or "fourier"; or
            "none".
        position_waves: how many periods "fourier" has.
        pixels: range of its input: "unit", 0..1; "signed", -1..1; or "imagenet".
        start: initial values, "torch", "xavier", "lecun", "glorot" or "he".
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        width: int,
        out_width: int | None = None,
        kernel_size: int,
        strides: Sequence[int],
        padding: str,
        last_relu: bool,
        norm: str,
        position: str,
        position_waves: int | None = None,
        pixels: str,
        start: str,
        rngs: nnx.Rngs,
    ):
        path = "model.encoder"
        check_whole(f"{path}.width", width)
        if out_width is not None:
            check_whole(f"{path}.out_width", out_width)
        check_whole(f"{path}.kernel_size", kernel_size)
        check_strides(f"{path}.strides", strides)
        check_convolutions(path, padding, start)
        check_flag(f"{path}.last_relu", last_relu)
        check_one_of(f"{path}.norm", norm, NORMS)
        check_position(path, position, position_waves)
        check_one_of(f"{path}.pixels", pixels, RANGES)
        self.width, self.pixels = out_width or width, pixels
        layers = [(padding, kernel_size, stride, False) for stride in strides]
        self.grid = size_after_all(layers, image_size)
        self.layers = Convolutions(
            3,
            (*(width,) * (len(strides) - 1), self.width),
            (kernel_size,) * len(strides),
            tuple(strides),
            padding=padding,
            norm=norm,
            last_relu=last_relu,
            start=start,
            rngs=rngs,
        )
        place = (self.grid, self.width, position, position_waves)
        self.place = None if position == "none" else PlaceEmbedding(*place, start=start, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B M C"]]:
        """Return `features` of images in the range of `pixels`."""
        images = images.astype(self.layers.layers[0].kernel.dtype)
        return {"features": tokens_of(self.layers(images), self.place)}


def tokens_of(
    features: Float[Array, "B h w C"], place: PlaceEmbedding | None
) -> Float[Array, "B M C"]:
    """Add the place, and put the features in a row."""
    features = features if place is None else place(features)
    return jnp.reshape(features, (len(features), -1, features.shape[-1]))
