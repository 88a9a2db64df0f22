"""Losses of the decoder's prediction."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.interfaces import TOKEN_LOSS, Scheduled
from smoothsa_jax.parts import check_one_of

REDUCTIONS = ("mean", "sum")
TOKENIZER = "tokenizer"  # begins the names of outputs of a tokenizer that is trained along


class Reconstruction:
    """Squared error between prediction and target.

    Args:
        reduction: "mean", over all elements; or "sum", over all of a sample, then the mean over
            samples, as in SAVi (Kipf et al. 2022, arXiv 2111.12594); or "frame", over all of a
            frame, then the mean over frames, as in STEVE (Singh et al. 2022, arXiv 2205.14065).
        of: which of several targets is compared, such as "flow"; "tokenizer": the pictures of a
            tokenizer that is trained along; None: all of the prediction.
    """

    def __init__(self, *, reduction: str = "mean", of: str | None = None):
        check_one_of("losses.reconstruction.reduction", reduction, (*REDUCTIONS, "frame"))
        # How many axes are those of samples, (B) or (B,T); None: the mean over all elements.
        self.summed_after = {"mean": None, "sum": 1, "frame": 2}[reduction]
        self.reads = (
            ("prediction", "target") if of is None else (f"{of}.prediction", f"{of}.target")
        )
        if of is not None:
            several = f"name it in model.target, with model.target.name='several', to have {of}"
            along = "give the model a tokenizer that is trained along, model.tokenizer"
            self.advice = dict.fromkeys(self.reads, along if of == TOKENIZER else several)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> Float[Array, ""]:
        del batch, scheduled
        prediction, target = (outputs[name] for name in self.reads)
        if prediction.shape != target.shape:
            raise UserError(
                f"losses.reconstruction compares {self.reads[0]} {list(prediction.shape)} with "
                f"{self.reads[1]} {list(target.shape)}, which is no prediction of it; set a loss "
                "that fits model.target, such as losses.token for tokens"
            )
        return reconstruction_loss(prediction, target, self.summed_after)


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
    prediction: Float[Array, "... C"],
    target: Float[Array, "... C"],
    summed_after: int | None = None,
) -> Float[Array, ""]:
    """Return the squared error; no gradient flows into the target.

    Args:
        prediction: what is compared.
        target: with what.
        summed_after: the number of first axes, over which the mean is taken, while all others are
            summed; None: the mean over all elements.
    """
    errors = (prediction - jax.lax.stop_gradient(target)) ** 2
    if summed_after is None:
        return jnp.mean(errors)
    return jnp.sum(errors) / math.prod(errors.shape[:summed_after])
