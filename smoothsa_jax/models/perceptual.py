"""How differently two pictures look to a network that was trained to recognize objects."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import check_one_of

PERCEPTUAL = "perceptual"  # the companion, its output and its loss
LPIPS_SCORE = "lpips"  # the score, and the setting of `eval` that names its files
# LPIPS takes pixels from -1 to 1, and gives them ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TINY, EPSILON = 1e-20, 1e-10


class Backbone(NamedTuple):
    """The convolutions of a network, each followed by a ReLU.

    Attributes:
        layers: channels, kernel size, stride and padding of each.
        pooled: the layers with a maximum in front, over `window` pixels a side in steps of 2.
        window: see `pooled`.
        taps: the layers whose features are compared.
        least: pixels of a side, of which the last pooling leaves something.
    """

    layers: tuple[tuple[int, int, int, int], ...]
    pooled: tuple[int, ...]
    window: int
    taps: tuple[int, ...]
    least: int


BACKBONES = {
    # Krizhevsky 2014 (arXiv 1404.5997), as torchvision has it.
    "alexnet": Backbone(
        layers=((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
        pooled=(1, 2),
        window=3,
        taps=(0, 1, 2, 3, 4),
        least=31,
    ),
    # Simonyan & Zisserman 2015 (arXiv 1409.1556), table 1, D: the last of each block is compared.
    "vgg16": Backbone(
        layers=tuple(
            (channels, 3, 1, 1)
            for channels, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
            for _ in range(number)
        ),
        pooled=(2, 4, 7, 10),
        window=2,
        taps=(1, 3, 6, 9, 12),
        least=16,
    ),
}


class LPIPS(nnx.Module):
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924), equation 1, version 0.1.

    The features of a layer are normalized over channels. Their squared differences are weighted by
    channel, averaged over positions and summed over the five layers. Nothing of it is trained.

    Args:
        backbone: the network that sees the pictures, one of BACKBONES.
        widths: channels of its convolutions; None: those of the published network.
        rngs: of values that the published ones replace.

    Raises:
        UserError: there is no such backbone.
    """

    def __init__(
        self,
        *,
        backbone: str = "alexnet",
        widths: Sequence[int] | None = None,
        rngs: nnx.Rngs,
    ):
        check_one_of("the backbone of LPIPS", backbone, tuple(BACKBONES))
        self.backbone = backbone
        layers = BACKBONES[backbone].layers
        widths = [layer[0] for layer in layers] if widths is None else list(widths)
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
                for num_in, num_out, (_, size, stride, pad) in zip(
                    (3, *widths[:-1]), widths, layers, strict=True
                )
            ]
        )
        compared = [widths[index] for index in BACKBONES[backbone].taps]
        self.heads = nnx.List([nnx.Param(jnp.ones(width) / width) for width in compared])

    def __call__(
        self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
    ) -> Float[Array, " B"]:
        """Return the distance of each pair of pictures.

        Args:
            x: pictures, made for the range -1..1. As a loss of tokenizers it gets their range as it
                is, like in the published programs of VQ-VFM-OCL.
            y: the others.

        Raises:
            UserError: the pictures are too small for the backbone.
        """
        backbone = BACKBONES[self.backbone]
        refuse_small(self.backbone, x.shape[1:3])
        found = jnp.zeros(len(x), jnp.float32)
        both = jnp.concatenate([x, y]).astype(self.convs[0].kernel.dtype)
        both = (both - jnp.array(SHIFT, both.dtype)) / jnp.array(SCALE, both.dtype)
        for index, conv in enumerate(self.convs):
            if index in backbone.pooled:
                window = (backbone.window, backbone.window)
                both = nnx.max_pool(both, window, strides=(2, 2))
            both = jax.nn.relu(conv(both))
            if index not in backbone.taps:
                continue
            features = both.astype(jnp.float32)
            # Where all channels are 0, the root has no gradient of its own.
            length = jnp.sqrt(jnp.square(features).sum(axis=-1, keepdims=True) + TINY)
            mine, other = jnp.split(features / (length + EPSILON), 2)
            head = self.heads[backbone.taps.index(index)]
            weighted = jnp.square(mine - other) @ head[...].astype(jnp.float32)
            found += weighted.mean(axis=(1, 2))
        return found


def refuse_small(backbone: str, size: tuple[int, int]) -> None:
    """Raise UserError if pictures of this size (H, W) have too few pixels for a backbone."""
    least = BACKBONES[backbone].least
    if min(size) < least:
        raise UserError(
            f"LPIPS compares pictures of {size[0]}x{size[1]} pixels, but {backbone} needs at least "
            f"{least}; raise data.image_size, or leave LPIPS out with "
            f"--config.losses.{PERCEPTUAL}.weight=0 or --config.eval.{LPIPS_SCORE}="
        )
