"""Several processes that run together: how they start, agree and exit.

Every host runs the same command, with one process per host, or per device, as SLURM starts them.
JAX's coordination service in process 0 connects them, and ends all if one dies. Only process 0
writes logs and scores; all take part in checkpoints. With a single process, this module does no
communication.
"""

import contextlib
import importlib.metadata
import math
import os
import pickle
import platform
import secrets
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import smoothsa_jax
from smoothsa_jax.devices import runtime
from smoothsa_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
# Settings that may differ between hosts: where data are stored, and how they are read.
OF_EACH_HOST = ("data.folder", "data.cache", "data.keep", "train.num_threads", "train.num_workers")
LOST = 3  # exit status of a process that has lost another one
LOST_LINE = "another process is gone"
JAX_LINE = "Terminating process because the JAX distributed service detected fatal errors"
SECONDS_FOR_OTHERS = 5.0  # that an exiting process waits for the others


# ------------------------------------------------------------------------------ start and end


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int,
) -> None:
    """Join the processes that run together; call this before anything else uses a device.

    JAX detects missing arguments if SLURM, Open MPI, a TPU pod or Kubernetes started the process.

    Args:
        coordinator: "host:port" of process 0; the port must be free there.
        num_processes: number of processes.
        process_id: index of this process.
        heartbeat_timeout_seconds: a process without a heartbeat for this long counts as dead, and
            the others are ended.

    Raises:
        UserError: an argument is neither given nor detected, the coordinator does not answer, or
            JAX finds no device.
    """
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(
            f"--coordinator is {coordinator!r}; expected the host of process 0 and a free port of "
            "it, such as node0:12345"
        )
    told = None not in (coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Otherwise, a process under SLURM would use only one of its node's devices.
            cluster_detection_method="deactivate" if told else None,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"the processes cannot be connected: {' '.join(str(error).split())[:200]}; give "
            "--coordinator=HOST:PORT, --num_processes and --process_id, or start them with SLURM, "
            "Open MPI, or on a TPU pod"
        ) from error
    devices = runtime.find_devices(lambda line: print(line, file=sys.stderr))
    refuse_uneven(Counter(device.process_index for device in devices))


def refuse_uneven(devices: Mapping[int, int]) -> None:
    """Check that all processes have the same number of devices.

    Args:
        devices: process index -> number of devices.

    Raises:
        UserError: the numbers differ; raised in every process, with the numbers.
    """
    if len(set(devices.values())) > 1:
        found = ", ".join(f"process {i} has {count}" for i, count in sorted(devices.items()))
        raise UserError(
            f"the processes have different numbers of devices: {found}; expected the same on every "
            "host: check for a missing device, or leave some out with CUDA_VISIBLE_DEVICES"
        )


def is_multi_process() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process writes logs and scores."""
    return jax.process_index() == 0


def what_a_death_looks_like(heartbeat_timeout_seconds: int, command: str) -> str:
    """Explain in the log, in advance, what happens when a process dies."""
    return (
        f"{jax.process_count()} processes: when one dies, the others end by themselves within "
        f"{heartbeat_timeout_seconds + 30} s; their logs then say {LOST_LINE!r} or {JAX_LINE!r}\n"
        "to continue from the newest checkpoint, start every process again with its own command; "
        f"that of process {jax.process_index()}: {command}"
    )


def to_the_end(work: Callable[[], int]) -> int:
    """Do the work of a connected process, and exit without making others wait for long.

    Returns:
        0. A process with another exit status ends here.
    """
    try:
        status = work()
    except Exception as error:
        if is_loss(error):
            reason = " ".join(str(error).split())[:200]
            text = f"error: {LOST_LINE} ({reason}); start all again, each with its command"
            print(text, file=sys.stderr)
            status = LOST
        else:
            traceback.print_exc()
            status = 1
    if status == 0:
        jax.distributed.shutdown()  # waits for the others
        return 0
    if status != LOST:
        # If all fail for the same reason, exit together: an early exit of process 0 would kill the
        # others.
        give_others_time(jax.distributed.shutdown)
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip the interpreter's normal exit, during which JAX would wait for the others.
    os._exit(status)


def give_others_time(work: Callable[[], Any]) -> None:
    """Run work that waits for the other processes, but give up after SECONDS_FOR_OTHERS."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    waiting = threading.Thread(target=quietly, daemon=True)
    waiting.start()
    waiting.join(SECONDS_FOR_OTHERS)


def is_loss(error: BaseException | None) -> bool:
    """Whether an error is that of a lost connection to another process."""
    words = ("Gloo", "coordination service", "CoordinationService", "heartbeat")
    while error is not None:
        text = str(error)
        # NCCL also has unrelated errors, such as lack of memory or a missing interface.
        nccl = "NCCL" in text and any(word in text for word in ("remote process", "onnection"))
        if not isinstance(error, UserError) and (nccl or any(word in text for word in words)):
            return True
        error = error.__cause__ or error.__context__
    return False


# ----------------------------------------------------------------------------------- agreement


def gather(value: Any) -> list[Any]:
    """Gather `value` from every process, in order; all processes must call this, and wait."""
    if not is_multi_process():
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(row[:size].tobytes())
        for row, size in zip(rows.reshape(len(sizes), -1), sizes, strict=True)
    ]


def refuse_differences(mine: Mapping[str, Any]) -> None:
    """Check that values are the same in all processes.

    Args:
        mine: name -> value in this process.

    Raises:
        UserError: a value differs; raised in every process, with the first difference.
    """
    of_first, *others = gather(dict(mine))
    for index, found in enumerate(others, start=1):
        for name in sorted(of_first.keys() | found.keys()):
            if of_first.get(name) != found.get(name):
                raise UserError(
                    f"process {index} has {name}={found.get(name)}, process 0 has "
                    f"{of_first.get(name)}; start all with the same command and packages, and one "
                    "workdir that all hosts share"
                )


def refuse_other_folders(folder: Path) -> None:
    """Check that all processes share one folder: process 0 creates a file that the others look for.

    Raises:
        UserError: a process does not find the file; raised in every process.
    """
    if not is_multi_process():
        return
    mark = folder / f".{gather(secrets.token_hex(8))[0]}"
    if is_primary():
        mark.touch()
    gather(None)
    found = gather((mark.exists(), folder))
    if is_primary():
        mark.unlink()
    for index, (there, own) in enumerate(found):
        if not there:
            raise UserError(
                f"process {index} has the workdir {own}, which is not the folder {found[0][1]} of "
                "process 0; give all the same one, in a place that all hosts share"
            )


def refuse_misfit(config: ConfigDict, batches: Sequence[str]) -> None:
    """Refuse configs that several processes cannot run.

    Args:
        config: the run's config.
        batches: as for `config.schema.check`.

    Raises:
        UserError: the mesh leaves out devices, whose process would be idle, or a batch does not
            fit.
    """
    if not is_multi_process():
        return
    sizes, devices, own = list(config.mesh.values()), len(jax.devices()), jax.local_device_count()
    if -1 not in sizes and math.prod(sizes) != devices:
        raise UserError(
            f"the mesh of {math.prod(sizes)} devices leaves some of the {devices} devices of "
            f"{jax.process_count()} processes out; set --config.mesh.data=-1"
        )
    if config.eval.batch_size % own:
        raise UserError(
            f"eval.batch_size is {config.eval.batch_size}, which the {own} devices of a process do "
            f"not divide; choose a multiple of {own}"
        )
    if "train.batch_size" in batches and config.train.match_paper:
        raise UserError(
            "train.match_paper needs whole batches, and each of several processes has only a "
            "part: train in one process"
        )


def versions() -> dict[str, str]:
    """The versions of everything that affects results."""
    return {
        "Python": platform.python_version(),
        "smoothsa_jax": smoothsa_jax.__version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def first_then_others(work: Callable[[], Any]) -> Any:
    """Run `work` in process 0 before the others, for work that moves files only once."""
    if is_primary():
        result = work()
    gather(None)
    return result if is_primary() else work()


class StopTogether:
    """Shares a signal received by any process, so that all see it at the same step.

    Each process sends the number of its signal along with the step's program. The result is read
    one step later, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._sent: jax.Array | None = None
        if is_multi_process():
            mesh = Mesh(np.array(jax.devices()), ("process",))
            self._spread = NamedSharding(mesh, PartitionSpec("process"))
            self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def asked(self, received: int | None) -> int | None:
        """The signal received by any process at the last call; with one process, the current one.

        Args:
            received: the number of the signal that this process has received, if any.
        """
        if not is_multi_process():
            return received
        mine = np.full(jax.local_device_count(), received or 0, np.int32)
        before = self._sent
        self._sent = self._largest(jax.make_array_from_process_local_data(self._spread, mine))
        return None if before is None else int(before) or None
