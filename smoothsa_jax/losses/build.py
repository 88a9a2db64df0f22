"""Make the loss terms that a config chooses, and weight them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.answers import Answer, Beside, Choice
from smoothsa_jax.losses.attention import AttentionDistillation, AttentionMatch
from smoothsa_jax.losses.dynamics import Decoded, Slots
from smoothsa_jax.losses.recognition import Box, Category
from smoothsa_jax.losses.reconstruction import Noise, Reconstruction, Token
from smoothsa_jax.losses.slots import Distillation, QueryKL, SlotContrast
from smoothsa_jax.losses.time import TimeSimilarity
from smoothsa_jax.losses.tokenizers import Codebook, Commitment, LatentNorm, Perceptual
from smoothsa_jax.models.interfaces import Loss, Scheduled
from smoothsa_jax.parts import check_number, make, scheduled_settings

LOSSES: dict[str, Callable] = {
    "reconstruction": Reconstruction,
    "noise": Noise,
    "token": Token,
    "distillation": Distillation,
    "slot_contrast": SlotContrast,
    "query_kl": QueryKL,
    "time_similarity": TimeSimilarity,
    "attention_distillation": AttentionDistillation,
    "attention_match": AttentionMatch,
    "codebook": Codebook,
    "commitment": Commitment,
    "latent_norm": LatentNorm,
    "perceptual": Perceptual,
    "slots": Slots,
    "decoded": Decoded,
    "category": Category,
    "box": Box,
    "answer": Answer,
    "choice": Choice,
    "beside": Beside,
}


@dataclasses.dataclass(frozen=True)
class Losses:
    """The terms of a config.

    Attributes:
        terms: name -> term, in alphabetical order.
        schedules: name -> {"weight": a number or a schedule, ...}.
    """

    terms: dict[str, Loss]
    schedules: dict[str, dict[str, Any]]

    @property
    def reads(self) -> frozenset[str]:
        """Names of the outputs that the terms need."""
        return frozenset(name for term in self.terms.values() for name in term.reads)

    def check_frames(self, num_frames: int) -> None:
        """Refuse clips that are too short for a term.

        Raises:
            UserError: a term compares more frames than clips have.
        """
        for name, term in self.terms.items():
            if (needed := getattr(term, "num_frames", 1)) > num_frames:
                raise UserError(
                    f"losses.{name} compares {needed} frames, but clips have {num_frames}: set "
                    f"data.num_frames to at least {needed}, or --config.losses.{name}.weight=0"
                )

    def check_reads(self, outputs: Iterable[str] | None) -> None:
        """Refuse terms that need what is not among the outputs; None: they are not known.

        Raises:
            UserError: names the term and what it needs.
        """
        for name, term in self.terms.items() if outputs is not None else ():
            _refuse_missing(name, term, outputs)

    def __call__(
        self, outputs: Mapping[str, Array], batch: Mapping[str, Array], scheduled: Scheduled
    ) -> dict[str, Float[Array, ""]]:
        """Return each term times its weight.

        Args:
            outputs: outputs of the model and of the frozen models, by name.
            batch: the samples.
            scheduled: the values of `schedules` at this step.

        Raises:
            UserError: an output that a term needs is missing.
        """
        found = {}
        for name, term in self.terms.items():
            _refuse_missing(name, term, outputs)
            values = scheduled[name]
            found[name] = values["weight"] * term(outputs, batch, values)
        return found


def _refuse_missing(name: str, term: Loss, outputs: Iterable[str]) -> None:
    missing = [key for key in term.reads if key not in outputs and key != "slot_mask"]
    if missing:
        advice = getattr(term, "advice", {}).get(missing[0], f"remove losses.{name}")
        raise UserError(
            f"losses.{name} needs {missing[0]}, which this model does not give; {advice}, or set "
            f"--config.losses.{name}.weight=0"
        )


def build_losses(config: Mapping[str, Any]) -> Losses:
    """Make the terms of a config's `losses`; terms of weight 0 are not computed.

    Each entry has a `weight`, the term's settings, and a `name` if it differs from the entry's key,
    such as the name of a class of your own.

    Args:
        config: the `losses` part of a config.

    Raises:
        UserError: a term or setting is unknown, a weight is missing or negative, or all are 0.
    """
    terms, schedules = {}, {}
    for name in sorted(config):
        path, term = f"losses.{name}", config[name]
        if not isinstance(term, Mapping | ConfigDict):
            raise UserError(f'{path} is {term!r}; expected its settings, such as {{"weight": 1.0}}')
        settings = {"name": name, **dict(term)}
        if "weight" not in settings:
            raise UserError(f"{path} has no weight: add {path}.weight")
        weight = settings.pop("weight")
        if not isinstance(weight, Mapping | ConfigDict):  # a schedule: see `schedules`
            check_number(f"{path}.weight", weight)
        term = make(path, settings, LOSSES)
        if weight == 0:
            continue
        terms[name] = term
        schedules[name] = {"weight": weight, **scheduled_settings(path, settings, LOSSES)}
    if not terms:
        raise UserError(
            "all loss weights are 0: set losses.reconstruction.weight or another one above 0"
        )
    return Losses(terms, schedules)
