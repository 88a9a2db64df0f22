"""Features without pretrained weights: statistics of color."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.pixels import IMAGENET_MEAN, IMAGENET_STD, grid_of
from smoothsa_jax.models.layers.positions import position_waves
from smoothsa_jax.parts import check_whole


class ColourFourier(nnx.Module):
    """Random Fourier features of local color statistics; there are no weights to download.

    A token is the mean and covariance of the colors in its window (9 numbers), mapped by cosines of
    random frequencies and phases, and standardized over its width. It distinguishes textures of
    different colors, independent of their phase, but knows nothing of objects, so it can replace a
    real encoder on synthetic textures only. Like a ViT's tokens, these also encode their position:
    the last channels are cosines of the position.

    Args:
        image_size: H, W of the input in pixels.
        width: C, including position channels.
        patch: distance between neighboring tokens in pixels.
        window: size of a token's window in pixels, centered on its patch; at least `patch`.
        bandwidth: standard deviation of the frequencies, for colors in 0..1.
        position_width: number of position channels, half of them along either axis.
        position_scale: standard deviation of the position channels; that of color channels is 1.

    Raises:
        UserError: the image does not divide into patches, or `position_width` is out of range.
    """

    COVARIANCE_SCALE = 4.0  # brings the covariance, at most 1/4, to the range of the mean

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        width: int,
        patch: int,
        window: int,
        bandwidth: float,
        position_width: int,
        position_scale: float,
        rngs: nnx.Rngs,
    ):
        check_whole("model.encoder.window", window)
        self.grid = grid_of(image_size, patch, "data.image_size")
        if position_width % 2 or not 0 <= position_width < width:
            raise UserError(
                f"model.encoder.position_width is {position_width}: expected an even number below "
                f"the width {width}"
            )
        self.position_width, self.position_scale = position_width, position_scale
        self.patch, self.window = patch, window
        self.width = width
        self.num_tokens = self.grid[0] * self.grid[1]
        waves = width - position_width
        self.frequencies = nnx.Variable(
            bandwidth * jax.random.normal(rngs.params(), (9, waves), jnp.float32)
        )
        self.phases = nnx.Variable(
            2 * jnp.pi * jax.random.uniform(rngs.params(), (waves,), jnp.float32)
        )

    def __call__(self, images: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B M C"]]:
        """Return `features`: tokens of ImageNet-normalized images.

        All values are float32, because covariances are small differences.
        """
        mean, std = (jnp.asarray(x, jnp.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
        colours = (images * std + mean) / 255.0
        red, green, blue = (colours[..., channel] for channel in range(3))
        products = jnp.stack(
            [red * red, green * green, blue * blue, red * green, green * blue, blue * red], axis=-1
        )
        mean = self._average(colours)
        r, g, b = (mean[..., channel] for channel in range(3))
        covariance = self._average(products) - jnp.stack(
            [r * r, g * g, b * b, r * g, g * b, b * r], axis=-1
        )
        statistics = jnp.concatenate([mean, self.COVARIANCE_SCALE * covariance], axis=-1)
        waves = jnp.cos(
            jnp.matmul(statistics, self.frequencies[...], precision="highest") + self.phases[...]
        )
        colour = jax.nn.standardize(waves, axis=-1, epsilon=1e-6)
        place = self.position_scale * position_waves(self.grid, self.position_width)
        place = jnp.broadcast_to(place, (*colour.shape[:3], self.position_width))
        tokens = jnp.concatenate([colour, place], axis=-1)
        return {"features": tokens.reshape(tokens.shape[0], self.num_tokens, -1)}

    def _average(self, pixels: Float[Array, "B H W k"]) -> Float[Array, "B h w k"]:
        """Average over the windows; at the border, over the part inside the image."""
        margin = self.window - self.patch
        low = margin // 2
        window, stride = (1, self.window, self.window, 1), (1, self.patch, self.patch, 1)
        padding = ((0, 0), (low, margin - low), (low, margin - low), (0, 0))
        add = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, window, stride, padding)  # noqa: E731
        return add(pixels) / add(jnp.ones((1, *pixels.shape[1:3], 1), pixels.dtype))
