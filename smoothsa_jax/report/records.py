"""Read the log and scores of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.sample_scores import Scored, read_sample_scores
from smoothsa_jax.training.evaluating import SAMPLE_SCORES_FILE, SCORES_FILE
from smoothsa_jax.training.logging import LOG_FILE, read_log


class Records(NamedTuple):
    """The records of one workdir.

    Attributes:
        log: rows in step order; none of a converted checkpoint, which was trained elsewhere.
        scores: the content of `scores.json`.
        by_sample: the content of `scores.csv`; the model comes first.
    """

    log: list[dict[str, float]]
    scores: Mapping[str, Any]
    by_sample: list[Scored]


def read_records(workdir: Path, converted: bool) -> Records:
    """Read all three files.

    Args:
        workdir: of the run.
        converted: whether its checkpoint comes from another program, so that it may have no log.

    Raises:
        UserError: a file is missing or damaged; the message gives the command that makes it.
    """
    train = f"python main.py --workdir={workdir} (with the run's --config) trains"
    evaluate = f"python main.py --mode=evaluate --workdir={workdir} makes it"
    is_logged = not converted or (workdir / LOG_FILE).exists()
    return Records(
        _read(workdir / LOG_FILE, read_log, train) if is_logged else [],
        _read(workdir / SCORES_FILE, lambda path: json.loads(path.read_text()), evaluate),
        _read(workdir / SAMPLE_SCORES_FILE, read_sample_scores, evaluate),
    )


def _read(path: Path, reader, advice: str):
    try:
        found = reader(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged ({reason}); {advice}") from error
    if not found:
        raise UserError(f"{path} is empty; {advice}")
    return found
