"""Several processes that run together: how they start, what they agree on, how they leave.

Every host runs the same command, one process a host (or one a device, as SLURM starts them). JAX's coordination service,
in process 0, connects them and ends all when one dies. Process 0 alone writes logs and scores; all take part in
checkpoints. With one process nobody is asked and nothing is moved.
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
from smoothsa_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
# Each host may have its own: where its data lie, and how it reads them.
OF_EACH_HOST = ("data.folder", "data.keep", "train.num_threads", "train.num_workers")
LOST = 3  # exit status of a process that noticed itself that another one is gone
LOST_LINE = "another process is gone"
JAX_LINE = "Terminating process because the JAX distributed service detected fatal errors"
SECONDS_FOR_OTHERS = 5.0  # that a process which leaves waits for them


# ------------------------------------------------------------------------------------------------- start and end


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int,
) -> None:
    """Join the processes that run together; before anything else touches a device.

    What is not given JAX finds out where SLURM, Open MPI, a TPU pod or Kubernetes started the process.

    Args:
      coordinator: "host:port" of process 0, the port free there.
      heartbeat_timeout_seconds: a process that was not heard of for so long is dead, and the others are ended.

    Raises:
      UserError: neither given nor found out, or the coordinator does not answer.
    """
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(
            f"--coordinator is {coordinator!r}; expected the host of process 0 and a free port of it, such as node0:12345"
        )
    told = None not in (coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Otherwise a process under SLURM would see one of its node's devices only.
            cluster_detection_method="deactivate" if told else None,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"the processes cannot be connected: {' '.join(str(error).split())[:200]}; give --coordinator=HOST:PORT, "
            "--num_processes and --process_id, or start them with SLURM, Open MPI, or on a TPU pod"
        ) from error
    refuse_uneven(Counter(device.process_index for device in jax.devices()))


def refuse_uneven(devices: Mapping[int, int]) -> None:
    """See that all processes have as many devices: process -> number.

    Raises:
      UserError: in every process, with the numbers.
    """
    if len(set(devices.values())) > 1:
        found = ", ".join(f"process {i} has {count}" for i, count in sorted(devices.items()))
        raise UserError(
            f"the processes have different numbers of devices: {found}; expected the same on every host, look there for a "
            "device that is missing, or leave some out with CUDA_VISIBLE_DEVICES"
        )


def is_multi_process() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Whether this process is the one that writes logs and scores."""
    return jax.process_index() == 0


def what_a_death_looks_like(heartbeat_timeout_seconds: int, command: str) -> str:
    """For the log, before there is anything to lose."""
    return (
        f"{jax.process_count()} processes: when one dies, the others end by themselves within "
        f"{heartbeat_timeout_seconds + 30} s; their logs then say {LOST_LINE!r} or {JAX_LINE!r}\n"
        "to go on from the newest checkpoint, start every process again with its own command; "
        f"that of process {jax.process_index()}: {command}"
    )


def to_the_end(work: Callable[[], int]) -> int:
    """Do the work of a connected process, and leave so that no other one waits for this one for long.

    Returns:
      0. A process that has another exit status ends here.
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
        # Where all leave for the same reason they do so together: process 0 would take the others with it.
        give_others_time(jax.distributed.shutdown)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end, where JAX would wait for the others.
    os._exit(status)


def give_others_time(work: Callable[[], Any]) -> None:
    """Do what waits for the other processes; where they do not come to it, or it fails, for some seconds only."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    waiting = threading.Thread(target=quietly, daemon=True)
    waiting.start()
    waiting.join(SECONDS_FOR_OTHERS)


def is_loss(error: BaseException | None) -> bool:
    """Whether an error is that of a connection to another process."""
    words = ("Gloo", "coordination service", "CoordinationService", "heartbeat")
    while error is not None:
        text = str(error)
        # NCCL has other troubles too: its own memory, an interface that it does not find.
        nccl = "NCCL" in text and any(word in text for word in ("remote process", "onnection"))
        if not isinstance(error, UserError) and (nccl or any(word in text for word in words)):
            return True
        error = error.__cause__ or error.__context__
    return False


# ------------------------------------------------------------------------------------------------------- agreeing


def gather(value: Any) -> list[Any]:
    """`value` of every process, in their order; all have to call it, and wait for each other."""
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
    """Compare what should be the same in all processes.

    Raises:
      UserError: in every process, with the first that differs.
    """
    of_first, *others = gather(dict(mine))
    for index, found in enumerate(others, start=1):
        for name in sorted(of_first.keys() | found.keys()):
            if of_first.get(name) != found.get(name):
                raise UserError(
                    f"process {index} has {name}={found.get(name)}, process 0 has {of_first.get(name)}; "
                    "start all with the same command and packages, and one workdir that all hosts share"
                )


def refuse_other_folders(folder: Path) -> None:
    """See that all processes have the same folder, which holds: the first leaves a file there, and the others look for it.

    Raises:
      UserError: in every process, with the first that does not find it.
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
                f"process {index} has the workdir {own}, which is not the folder {found[0][1]} of process 0; give all the same "
                "one, in a place that all hosts share"
            )


def refuse_misfit(config: ConfigDict, batches: Sequence[str]) -> None:
    """Refuse what several processes cannot do.

    Args:
      batches: as of `validation.validate`.

    Raises:
      UserError: a mesh that leaves devices out, whose process would have nothing to do; a batch that does not fit.
    """
    if not is_multi_process():
        return
    sizes, devices, own = list(config.mesh.values()), len(jax.devices()), jax.local_device_count()
    if -1 not in sizes and math.prod(sizes) != devices:
        raise UserError(
            f"the mesh of {math.prod(sizes)} devices leaves some of the {devices} devices of {jax.process_count()} processes "
            "out; set --config.mesh.data=-1"
        )
    if config.eval.batch_size % own:
        raise UserError(
            f"eval.batch_size is {config.eval.batch_size}, which the {own} devices of a process do not divide; choose a "
            f"multiple of {own}"
        )
    if "train.batch_size" in batches and config.train.match_paper:
        raise UserError(
            "train.match_paper looks at whole batches, and each of several processes has a part: train in one process"
        )


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {
        "Python": platform.python_version(),
        "smoothsa_jax": smoothsa_jax.__version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def first_then_others(work: Callable[[], Any]) -> Any:
    """What `work` returns, done by process 0 before the others do it: what moves files finds nothing to move there."""
    if is_primary():
        result = work()
    gather(None)
    return result if is_primary() else work()


class StopTogether:
    """A signal to any process, known to all at the same step.

    Each process sends its number of the signal beside the step's program. It is read a step later, when it is there: no
    step waits for it.
    """

    def __init__(self) -> None:
        self._sent: jax.Array | None = None
        if is_multi_process():
            mesh = Mesh(np.array(jax.devices()), ("process",))
            self._spread = NamedSharding(mesh, PartitionSpec("process"))
            self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def asked(self, received: int | None) -> int | None:
        """The signal that any process had got at the last call; with one process the one it has now.

        Args:
          received: number of the signal that this process has got.
        """
        if not is_multi_process():
            return received
        mine = np.full(jax.local_device_count(), received or 0, np.int32)
        before = self._sent
        self._sent = self._largest(jax.make_array_from_process_local_data(self._spread, mine))
        return None if before is None else int(before) or None
