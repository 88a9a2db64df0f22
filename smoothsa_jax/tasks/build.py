"""Make the task of a config."""

from collections.abc import Callable

from ml_collections import ConfigDict

from smoothsa_jax.parts import choose
from smoothsa_jax.tasks.answers import Answers
from smoothsa_jax.tasks.discovery import Discovery
from smoothsa_jax.tasks.dynamics import Dynamics
from smoothsa_jax.tasks.recognition import Recognition
from smoothsa_jax.tasks.task import Task
from smoothsa_jax.tasks.tokenizer import Tokenization
from smoothsa_jax.tasks.views import Views

TASKS: dict[str, Callable[[ConfigDict], Task]] = {
    "discovery": Discovery,
    "recognition": Recognition,
    "dynamics": Dynamics,
    "answers": Answers,
    "tokenizer": Tokenization,
    "views": Views,
}


def build_task(config: ConfigDict) -> Task:
    """Make the task that a config names.

    Raises:
        UserError: there is no such task.
    """
    return choose("task", config.task, TASKS)(config)


def stored_splits(config: ConfigDict) -> tuple[str, ...]:
    """Return the splits of which the task of a config reads stored slots.

    Raises:
        UserError: there is no such task.
    """
    return getattr(choose("task", config.task, TASKS), "stored_splits", ("train",))
