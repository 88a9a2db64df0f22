"""Losses of tokenizers. They read latents and codes of the clips' frames, (B,T,M,D)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import Scheduled
from smoothsa_jax.parts import check_flag

EPSILON = 1e-5  # of the GroupNorm, as in torch


class Codebook:
    """The squared distance of the chosen codes from the latents; the codes learn.

    Van den Oord et al. 2017 (arXiv 1711.00937), equation 3, second term; the mean over elements.
    """

    reads = ("codes", "latents")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return _mean_square(outputs["codes"], jax.lax.stop_gradient(outputs["latents"]))


class Commitment:
    """The squared distance of the latents from what the decoder reads; the latents learn.

    The same, third term. VQ-VFM-OCL's tokenizer of features mixes latents into what its decoder
    reads, and commits to that.
    """

    reads = ("latents", "mixed")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return _mean_square(outputs["latents"], jax.lax.stop_gradient(outputs["mixed"]))


class LatentNorm:
    """The squared distance of the latents from normalized ones (VQ-VFM-OCL).

    A GroupNorm of one group without scale, over the positions and channels of a frame.

    Args:
        of_clips: whether it is over all frames of a clip at once, as that program has it on videos.
    """

    reads = ("latents",)

    def __init__(self, *, of_clips: bool = False):
        check_flag("losses.latent_norm.of_clips", of_clips)
        self._axes = (1, 2, 3) if of_clips else (2, 3)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        latents = outputs["latents"]
        fixed = jax.lax.stop_gradient(latents)
        mean = fixed.mean(axis=self._axes, keepdims=True)
        variance = jnp.square(fixed - mean).mean(axis=self._axes, keepdims=True)
        return _mean_square(latents, (fixed - mean) * jax.lax.rsqrt(variance + EPSILON))


class Perceptual:
    """The distance of decoded pixels from true ones, as the companion `perceptual` sees it.

    The published tokenizers of width 4 add LPIPS with weight 1.
    """

    reads = ("perceptual",)
    advice = {
        "perceptual": "set --config.companions.perceptual.source to a folder with torchvision's "
        "alexnet-owt-7be5be79.pth and alex.pth of the package lpips (its folder weights/v0.1)"
    }

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return outputs["perceptual"].mean()  # of all frames


def _mean_square(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.mean(jnp.square(x - y))
