"""How differently two pictures look to a network that was trained to recognize objects."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError

PERCEPTUAL = "perceptual"  # the companion, its output and its loss
# Channels, kernel size, stride and padding of AlexNet's convolutions.
LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
POOLED = (1, 2)  # the layers with a pooling in front
LEAST = 31  # pixels of a side, of which the second pooling leaves something
# LPIPS takes pixels from -1 to 1, and gives them ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TINY, EPSILON = 1e-20, 1e-10


class LPIPS(nnx.Module):
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924), equation 1: features of AlexNet, version 0.1.

    The features of a layer are normalized over channels. Their squared differences are weighted by
    channel, averaged over positions and summed over the five layers. Nothing of it is trained.

    Args:
        rngs: of values that the published ones replace.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        ins = (3, *(layer[0] for layer in LAYERS))
        self.convs = nnx.List(
            [
                nnx.Conv(
                    num_in,
                    num_out,
                    (size, size),
                    strides=stride,
                    padding=((pad, pad), (pad, pad)),
                    rngs=rngs,
                )
                for num_in, (num_out, size, stride, pad) in zip(ins, LAYERS, strict=False)
            ]
        )
        self.heads = nnx.List([nnx.Param(jnp.ones(layer[0]) / layer[0]) for layer in LAYERS])

    def __call__(
        self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
    ) -> Float[Array, " B"]:
        """Return the distance of each pair of pictures.

        Args:
            x: pictures in any range: like the published programs of VQ-VFM-OCL, we give it the
                range of the tokenizer as it is, though it was made for -1..1.
            y: the others.
        """
        if min(x.shape[1:3]) < LEAST:
            raise UserError(
                f"losses.{PERCEPTUAL} compares pictures of {x.shape[1]}x{x.shape[2]} pixels, but "
                f"AlexNet needs at least {LEAST}; raise data.image_size, or set "
                f"--config.losses.{PERCEPTUAL}.weight=0"
            )
        found = jnp.zeros(len(x), jnp.float32)
        both = jnp.concatenate([x, y]).astype(self.convs[0].kernel.dtype)
        both = (both - jnp.array(SHIFT, both.dtype)) / jnp.array(SCALE, both.dtype)
        for index, (conv, head) in enumerate(zip(self.convs, self.heads, strict=True)):
            if index in POOLED:
                both = nnx.max_pool(both, (3, 3), strides=(2, 2))
            both = jax.nn.relu(conv(both))
            features = both.astype(jnp.float32)
            # Where all channels are 0, the root has no gradient of its own.
            length = jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True) + TINY)
            mine, other = jnp.split(features / (length + EPSILON), 2)
            weighted = jnp.square(mine - other) @ head[...].astype(jnp.float32)
            found += weighted.mean(axis=(1, 2))
        return found
