"""What evaluation and inference ask of a model besides what it was trained to do.

Pruning has a file of its own, `pruning.py`, and so has starting anew, `anew.py`; here is the number
of iterations.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from smoothsa_jax.models.anew import Anew
from smoothsa_jax.models.interfaces import Scheduled
from smoothsa_jax.models.pruning import Prune, pruning_of
from smoothsa_jax.parts import check_iterations


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["first", "later"])
@dataclasses.dataclass(frozen=True)
class Iterations:
    """How many iterations an aggregator runs, in place of its settings `first` and `later`.

    They are static: another number compiles another program.

    Attributes:
        first: on the first frame, and on every frame that starts anew.
        later: on every later frame.
    """

    first: int
    later: int


def iterations_of(value: Any, prefix: str = "") -> Iterations | None:
    """Return what a setting of inference asks for; None: as in training.

    Args:
        value: None; a whole number, of every frame; or two, (first, later).
        prefix: in front of the setting's name in messages, such as "eval.".

    Raises:
        UserError: the value is none of these.
    """
    if value is None:
        return None
    check_iterations(f"{prefix}iterations", value)
    return Iterations(*((value, value) if isinstance(value, int) else value))


def as_scheduled(
    prune: Prune | None = None, iterations: Iterations | None = None, anew: Anew | None = None
) -> Scheduled:
    """Return the argument `scheduled` of a model that runs in this way at evaluation."""
    given = {"pruning": prune, "iterations": iterations, "anew": anew}
    return {name: {"asked": x} for name, x in given.items() if x is not None}


def of_evaluation(settings: Mapping[str, Any]) -> Scheduled:
    """Return the argument `scheduled` of a model at evaluation.

    Args:
        settings: the `eval` part of a config.

    Raises:
        UserError: a setting is out of range.
    """
    return as_scheduled(pruning_of(settings), iterations_of(settings["iterations"], "eval."))


def asked_iterations(scheduled: Scheduled | None, first: bool) -> dict[str, int]:
    """Return the keyword of an aggregator's call that is asked for; {}: none is.

    Args:
        scheduled: as for a call of the model.
        first: whether the frame is the first one.
    """
    asked = (scheduled or {}).get("iterations", {}).get("asked")
    return {} if asked is None else {"iterations": asked.first if first else asked.later}
