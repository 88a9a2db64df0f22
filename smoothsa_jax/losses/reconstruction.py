"""Losses of the decoder's prediction."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.models.interfaces import TOKEN_LOSS, Scheduled
from smoothsa_jax.parts import check_one_of

REDUCTIONS = ("mean", "sum")


class Reconstruction:
    """Squared error between prediction and target.

    Args:
        reduction: "mean", over all elements; or "sum", over all of a sample, then the mean over
            samples, as in SAVi (Kipf et al. 2022, arXiv 2111.12594).
        of: which of several targets is compared, such as "flow"; None: all of the prediction.
    """

    def __init__(self, *, reduction: str = "mean", of: str | None = None):
        check_one_of("losses.reconstruction.reduction", reduction, REDUCTIONS)
        self.summed = reduction == "sum"
        self.reads = (
            ("prediction", "target") if of is None else (f"{of}.prediction", f"{of}.target")
        )
        if of is not None:
            several = f"name it in model.target, with model.target.name='several', to have {of}"
            self.advice = dict.fromkeys(self.reads, several)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return reconstruction_loss(*(outputs[name] for name in self.reads), self.summed)


class Noise:
    """Mean squared error of the predicted noise (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""

    reads = ("prediction", "target", "noisy")
    advice = dict.fromkeys(reads, "set model.target.name='noise', and a decoder that denoises")

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        return reconstruction_loss(outputs["prediction"], outputs["target"])


class Token:
    """Cross-entropy of the predicted tokens (SLATE, Singh et al. 2022, arXiv 2110.11405).

    The decoder gives it for each token, so that the logits of a batch never exist at once.

    Args:
        reduction: "mean", over all tokens; or "sum", over the tokens of a frame, then the mean over
            frames, as in the originals.
    """

    reads = (TOKEN_LOSS,)
    advice = {TOKEN_LOSS: "set model.decoder.name='causal_transformer' and give it a tokenizer"}

    def __init__(self, *, reduction: str = "mean"):
        check_one_of("losses.token.reduction", reduction, REDUCTIONS)
        self.summed = reduction == "sum"

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        losses = outputs[TOKEN_LOSS]  # (B,T,M)
        return jnp.mean(jnp.sum(losses, axis=-1)) if self.summed else jnp.mean(losses)


def reconstruction_loss(
    prediction: Float[Array, "... C"], target: Float[Array, "... C"], summed: bool = False
) -> Float[Array, ""]:
    """Return the squared error; no gradient flows into the target.

    Args:
        prediction: what is compared.
        target: with what.
        summed: whether it is summed over all but the first axis, and not the mean over all.
    """
    errors = (prediction - jax.lax.stop_gradient(target)) ** 2
    return jnp.sum(errors) / len(errors) if summed else jnp.mean(errors)
