"""Pieces of work on the machines of a Ray cluster, as tasks or in actors that hold a model.

Work is a class, by its name. A worker process makes one object of it, from the same settings as all
others, and calls it with one piece after the other. Ray decides where and when, and runs a piece
again if its worker or its machine dies. So a piece may run twice: work that writes files names and
fills them by the piece alone, and has them appear whole.
"""

import contextlib
import dataclasses
import os
import pickle
import platform
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smoothsa_jax.bulk.cluster import (
    ACTOR,
    RETRIES,
    Cluster,
    program,
    quiet_ray_data,
    refuse_other_program,
    taken_by_this_ray,
    telling_deaths,
)
from smoothsa_jax.checkout import beside_the_package
from smoothsa_jax.environment import settle
from smoothsa_jax.errors import UserError
from smoothsa_jax.parts import choose

MARK = ".shared_with_workers_"  # so names of marks begin
SECONDS_TO_STOP = 10.0  # that interrupted pieces have to remove their unfinished files


@dataclasses.dataclass(frozen=True)
class Mark:
    """A file that all workers must see, so that they and the driver mean the same folder.

    Attributes:
        option: what names the folder, such as "--out=prepared/own".
        file: its absolute path, with a random name.
    """

    option: str
    file: Path


@dataclasses.dataclass(frozen=True)
class Work:
    """What a worker needs before its first piece; nothing in it needs a module of the work.

    Attributes:
        name: of the class, "module:Class".
        settings: the arguments of the class, pickled.
        uses_jax: whether it computes with JAX.
        folder: in which the program was started; relative paths are relative to it.
        mark: see `marked`.
        program: see `cluster.program`; a machine may join while the work is done.
        accelerator: "GPU" or "TPU" if each worker has one; else None.
    """

    name: str
    settings: bytes
    uses_jax: bool
    folder: str
    mark: Mark
    program: str
    accelerator: str | None = None


# -------------------------------------------------------------------------------- the driver's side


@contextlib.contextmanager
def marked(option: str, folder: Path) -> Iterator[Mark]:
    """Leave a mark in a folder that the workers must see, for as long as they work.

    Args:
        option: what names the folder, for messages.
        folder: exists, and can be written.
    """
    mark = Mark(option, folder.resolve() / f"{MARK}{secrets.token_hex(8)}")
    mark.file.touch()
    try:
        yield mark
    finally:
        mark.file.unlink(missing_ok=True)


def in_tasks(
    name: str, settings: Sequence[Any], pieces: Sequence[Any], mark: Mark
) -> Iterator[Any]:
    """Do pieces of work that needs a core and no model, each in a task of Ray.

    After an error, or if the caller closes the iterator, no further piece begins and those at work
    are interrupted.

    Args:
        name: of the class, "module:Class".
        settings: its arguments; they can be pickled, as can pieces and results.
        pieces: each is an argument of a call.
        mark: see `marked`.

    Yields:
        The results, in the order in which they are ready.

    Raises:
        UserError: a piece raised it, a worker does not fit, or the workers of a piece died.
    """
    import ray

    work = _work(name, settings, mark)
    do = ray.remote(_do).options(num_cpus=1, max_retries=RETRIES)
    waiting = [do.remote(work, pickle.dumps(piece)) for piece in pieces]
    try:
        with telling_deaths():
            while waiting:
                (ready,), waiting = ray.wait(waiting)
                yield _result(ray.get(ready))
    finally:
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting), timeout=SECONDS_TO_STOP)


def in_actors(
    cluster: Cluster,
    name: str,
    settings: Sequence[Any],
    pieces: Sequence[Any],
    mark: Mark,
) -> Iterator[Any]:
    """Do pieces of work that needs a model, in a pool of actors of Ray Data.

    Each actor has one accelerator, or one core if the cluster has no accelerators, and makes its
    object of the class, and thus the model, once. See `in_tasks` for the rest.

    Raises:
        UserError: as there; or JAX is told to use an accelerator that the cluster lacks.
    """
    if not pieces:  # of which Ray Data makes no data set
        return
    import ray.data

    refuse_missing_accelerator(cluster)
    work = _work(name, settings, mark)
    work = dataclasses.replace(work, uses_jax=True, accelerator=cluster.accelerator)
    quiet_ray_data()
    rows = ray.data.from_items(
        [{"piece": pickle.dumps(piece)} for piece in pieces], override_num_blocks=len(pieces)
    )
    size = min(cluster.workers, len(pieces))
    with taken_by_this_ray():
        rows = rows.map(
            _Actor,
            fn_constructor_args=(work,),
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=1
            ),
            ray_remote_args_fn=lambda: dict(ACTOR),
            **cluster.of_worker,
        )
    with telling_deaths():
        for row in rows.iter_rows():
            yield _result(row["result"])


def on_one_device(config: ConfigDict) -> ConfigDict:
    """Return the config with a mesh of one device: each actor has one."""
    config = config.copy_and_resolve_references().unlock()
    config.mesh.update(data=1, fsdp=1)
    return config.lock()


def refuse_missing_accelerator(cluster: Cluster) -> None:
    """Refuse a cluster of cores where JAX is told to use accelerators.

    Raises:
        UserError: JAX_PLATFORMS names an accelerator, and the cluster has none.
    """
    asked = os.environ.get("JAX_PLATFORMS", "").lower()
    if cluster.accelerator is None and asked.split(",")[0] in ("cuda", "gpu", "rocm", "tpu"):
        raise UserError(
            f"JAX_PLATFORMS={asked} is set, and no machine of the Ray cluster has such a device; "
            "start Ray with --num-gpus on machines that have one, or set JAX_PLATFORMS=cpu"
        )


def _work(name: str, settings: Sequence[Any], mark: Mark) -> Work:
    return Work(name, pickle.dumps(tuple(settings)), False, os.getcwd(), mark, program())


def _result(outcome: bytes) -> Any:
    error, result = pickle.loads(outcome)
    if error is not None:
        raise error
    return result


# -------------------------------------------------------------------------------- the worker's side

_held: tuple[Work, Callable[[Any], Any]] | None = None  # of this process


def _do(work: Work, piece: bytes) -> bytes:
    """Do a piece, and return what is told of it: (error, result), pickled.

    Errors that a person can fix are results to Ray, which would wrap them otherwise.
    """
    global _held
    try:
        if _held is None or _held[0] != work:
            _held = None  # before another one takes memory
            _held = work, _begin(work)
        return pickle.dumps((None, _held[1](pickle.loads(piece))))
    except (UserError, OSError) as error:
        return pickle.dumps((error, None))


class _Actor:
    """A worker of Ray Data, which sends rows."""

    def __init__(self, work: Work):
        self._work = work  # its model is made at the first call, where an error is told

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": _do(self._work, row["piece"])}


def _begin(work: Work) -> Callable[[Any], Any]:
    machine = platform.node()
    refuse_other_program(work.program, program(), f"the machine {machine}")
    try:
        os.chdir(work.folder)
    except OSError as error:
        raise UserError(
            f"the machine {machine} has no folder {work.folder}, in which this was started "
            f"({error.strerror}); start it in a folder that all machines share"
        ) from error
    if not os.path.exists(work.mark.file):
        raise UserError(
            f"the machine {machine} does not see {work.mark.option} as the one does on which this "
            "was started; give a folder that all machines share"
        )
    if work.uses_jax:
        _start_jax(work.accelerator, machine)
    beside_the_package(work.name.partition(":")[0])  # `data` may lie in the package
    return choose("work", work.name, {})(*pickle.loads(work.settings))


def _start_jax(accelerator: str | None, machine: str) -> None:
    settle()
    import jax

    from smoothsa_jax.devices import runtime

    runtime.start(lambda line: None)
    if accelerator is not None and jax.default_backend() == "cpu":
        raise UserError(
            f"Ray gives workers on {machine} a {accelerator}, and JAX there computes on the CPU; "
            "install JAX for it on all machines, or start Ray with --num-gpus=0"
        )
