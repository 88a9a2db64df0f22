"""`--mode=evaluate --engine=ray`: actors score the batches of a split.

Each pass over a split has its actors. They restore the checkpoint once and score shares of the
split: every n-th batch, with the random numbers of these batches in the whole split. The driver
merges the values of samples, and writes what `--mode=evaluate` writes.
"""

import contextlib
import functools
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from smoothsa_jax.bulk import pieces
from smoothsa_jax.bulk.cluster import Cluster
from smoothsa_jax.checkpoints.read import Checkpoint, read_checkpoint
from smoothsa_jax.errors import UserError
from smoothsa_jax.tasks.task import Task
from smoothsa_jax.training import evaluating
from smoothsa_jax.training.evaluating import FIRST, TRAINED, Pass, Share, Workers

SHARES_OF_AN_ACTOR = 4  # so that a slow actor gets fewer, and little is lost if one dies


def evaluate_run(
    cluster: Cluster,
    workdir: Path,
    choose_config: Callable[[ConfigDict], ConfigDict] = lambda stored: stored,
) -> dict[str, Any]:
    """Score a checkpoint of a workdir as `training.evaluating.evaluate_run` does, on a cluster.

    Args:
        cluster: that this process is connected to.
        workdir: the run's folder.
        choose_config: as there.

    Returns:
        The content of `scores.json`.

    Raises:
        UserError: as there; or a worker does not see the workdir, or is of another version.
    """
    return evaluating.evaluate_run(
        workdir,
        lambda stored: pieces.on_one_device(choose_config(stored)),
        functools.partial(workers_of, cluster, workdir),
    )


def workers_of(
    cluster: Cluster, workdir: Path, config: ConfigDict, task: Task, checkpoint: Checkpoint
) -> Workers:
    """Return what has a pass scored by actors.

    Args:
        cluster: that this process is connected to.
        workdir: the run's folder, which all machines share.
        config: to evaluate with.
        task: of this config.
        checkpoint: what is scored.
    """

    def score(weights: str | int, wanted: Pass) -> Sequence[Share]:
        _check_sendable(wanted)
        source = evaluating.source_of_split(
            config, evaluating.slots_of(config, task), wanted.split, wanted.num_samples
        )
        batches = math.ceil(len(source) / config.eval.batch_size)
        count = max(1, min(batches, SHARES_OF_AN_ACTOR * cluster.workers))
        work = f"{ScoreShare.__module__}:{ScoreShare.__name__}"
        shares: dict[int, Share] = {}
        with (
            pieces.marked(f"--workdir={workdir}", workdir) as mark,
            tqdm(total=count, unit=" shares", desc=f"scoring {len(source)} samples") as bar,
        ):
            settings = (workdir.resolve(), config, checkpoint.step)
            asked = [(weights, wanted, index, count) for index in range(count)]
            found = pieces.in_actors(cluster, work, settings, asked, mark)
            with contextlib.closing(found):
                for index, share in found:
                    shares[index] = share
                    bar.update()
        return [shares[index] for index in range(count)]

    return score


def _check_sendable(wanted: Pass) -> None:
    try:
        pickle.dumps(wanted)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the evaluator {type(wanted.evaluator).__name__} cannot be sent to other machines "
            f"({error}); leave --engine=ray out"
        ) from error


class ScoreShare:
    """Scores shares of passes, in an actor that holds the model."""

    def __init__(self, workdir: Path, config: ConfigDict, step: int):
        self._workdir, self._config = workdir, config
        self._training, params = evaluating.to_score(config, read_checkpoint(workdir, step))
        self._params = {TRAINED: params, FIRST: self._training.state.params}

    def __call__(self, asked: tuple[str | int, Pass, int, int]) -> tuple[int, Share]:
        weights, wanted, index, count = asked
        # Here and not by the driver alone: Ray wraps what is no UserError.
        with evaluating.evaluating(self._config, evaluating.REPORT_AGAIN):
            share = evaluating.share_of(
                self._config, self._training, self._of(weights), wanted, index, count
            )
        return index, share

    def _of(self, weights: str | int) -> Any:
        if weights in self._params:
            return self._params[weights]
        return evaluating.params_of(read_checkpoint(self._workdir, weights), self._training)
