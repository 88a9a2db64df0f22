"""The encoder of scenes: one set of tokens for all views."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.models.layers.basic import linear
from smoothsa_jax.models.layers.conv import Convolution, size_after
from smoothsa_jax.models.layers.rays import pixel_rays, ray_encoding
from smoothsa_jax.models.layers.scene import SceneLayer
from smoothsa_jax.parts import check_heads, check_whole


class SceneEncoder(nnx.Module):
    """The scene encoder of SRT, as OSRT improved it (arXiv 2206.06922, appendix A.4).

    Each pixel of each view enters with the encodings of its camera's position and of its ray.
    Convolutions halve the views `num_blocks` times, and transformer layers then join the tokens of
    all views: row by row, one view after the other.

    Args:
        image_size: (H, W) of the views.
        width: C.
        channels: of the first convolution; every block doubles them.
        num_blocks: number of blocks, of two convolutions each.
        num_layers: number of transformer layers.
        num_heads: their attention heads.
        hidden_size: of their feed-forwards.
        octaves: of the encodings of positions and rays.
        position_octave: the first of positions.
        every: only every so many rows and columns are seen, from the middle of the first ones on:
            2 is every second, beginning with the second.
    """

    batch_reads = ("cameras",)
    of_scenes = True
    pixels = "unit"

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        width: int,
        channels: int,
        num_blocks: int,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
        octaves: int,
        position_octave: int,
        every: int = 1,
        rngs: nnx.Rngs,
    ):
        path = "model.encoder"
        check_heads(f"{path}.num_heads", num_heads, width, f"{path}.width {width}")
        for key, value in (
            ("channels", channels),
            ("num_blocks", num_blocks),
            ("num_layers", num_layers),
            ("hidden_size", hidden_size),
            ("every", every),
        ):
            check_whole(f"{path}.{key}", value)
        self.width, self.image_size = width, image_size
        self.encoding = ray_encoding(path, octaves, position_octave)
        self.every = every
        self.grid = tuple(len(range(every // 2, length, every)) for length in image_size)
        for _ in range(num_blocks):
            self.grid = size_after("torch", 3, 2, False, self.grid)
        convolutions, inputs = [], 3 + self.encoding.width
        for block in range(num_blocks):
            hidden = inputs if block else channels
            for sizes, stride in (((inputs, hidden), 1), ((hidden, 2 * hidden), 2)):
                of_torch = {"padding": "torch", "bias": False, "start": "torch", "rngs": rngs}
                convolutions.append(Convolution(*sizes, 3, stride, **of_torch))
            inputs = 2 * hidden
        self.convolutions = nnx.List(convolutions)
        self.project = linear(inputs, width, rngs=rngs)
        self.layers = nnx.List(
            [
                SceneLayer(
                    width,
                    num_heads=num_heads,
                    head_size=width // num_heads,
                    hidden_size=hidden_size,
                    rngs=rngs,
                )
                for _ in range(num_layers)
            ]
        )

    def __call__(
        self, frames: Float[Array, "B V H W 3"], cameras: Float[Array, "B V 4 3"]
    ) -> dict[str, Float[Array, "B M C"]]:
        """Encode the views of each scene.

        Args:
            frames: pixels from 0 to 1.
            cameras: one for each view; see `smoothsa_jax/inputs`.

        Returns:
            `features`, with M = V * h * w.
        """
        seen = slice(self.every // 2, None, self.every)
        places = [np.arange(length)[seen] for length in self.image_size]
        rows, columns = np.meshgrid(*places, indexing="ij")
        positions, rays = pixel_rays(cameras[:, :, None, None], rows, columns, self.image_size)
        features = self.encode(frames[:, :, seen, seen], positions[:, :, 0, 0], rays)
        return {"features": features}

    def encode(
        self,
        images: Float[Array, "B V H W 3"],
        positions: Float[Array, "B V 3"],
        rays: Float[Array, "B V H W 3"],
    ) -> Float[Array, "B M C"]:
        """Return the tokens of pictures with given rays.

        Args:
            images: pixels from 0 to 1.
            positions: of the cameras, in world coordinates.
            rays: unit directions of the pixels, in world coordinates.
        """
        batch = len(images)
        encoded = self.encoding(positions[:, :, None, None], rays)
        x = jnp.concatenate([images.astype(jnp.float32), encoded], axis=-1)
        x = x.reshape(-1, *x.shape[2:]).astype(self.project.kernel.dtype)
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        tokens = self.project(x).reshape(batch, -1, self.width)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens
