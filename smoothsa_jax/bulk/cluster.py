"""Connect to Ray, and refuse a cluster that cannot do the work.

Ray is imported inside functions, so that nothing else needs it.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import smoothsa_jax
from smoothsa_jax.checkout import ROOT
from smoothsa_jax.errors import UserError

ENGINES = ("ray",)  # values of --engine
NAMESPACE = "smoothsa_jax"
REACH_SECONDS = 5.0  # to find out whether anything listens; Ray itself tries for many minutes
LEAST_STORE = 75 * 2**20  # bytes of an object store; Ray's own limit
ACCELERATORS = ("GPU", "TPU")  # Ray's names
RETRIES = 5  # of a piece whose worker dies: then it is the piece
# An actor's calls fail many times where its machine is lost, until Ray knows; so its deaths are
# counted. Machines may be lost often in a long run.
DEATHS = 20
ACTOR = {"max_restarts": DEATHS, "max_task_retries": -1}  # options of Ray


class Cluster(NamedTuple):
    """A cluster that this process is connected to.

    Attributes:
        address: of its head; None: a Ray of this machine, which ends with this process.
        cpus: number of cores that Ray may use.
        accelerator: "GPU", "TPU" or None.
        accelerators: their number.
    """

    address: str | None
    cpus: int
    accelerator: str | None
    accelerators: int

    @property
    def workers(self) -> int:
        """How many processes hold a model: one an accelerator, else one a core."""
        return self.accelerators or self.cpus

    @property
    def of_worker(self) -> dict[str, Any]:
        """What Ray reserves for each. Half a core leaves room for those of lost machines."""
        if self.accelerator is None:
            return {"num_cpus": 0.5}
        cores = {"num_cpus": 1 if self._has_cores else 0.5}
        if self.accelerator == "GPU":
            return {**cores, "num_gpus": 1}
        return {**cores, "resources": {self.accelerator: 1}}

    @property
    def of_reader(self) -> dict[str, Any]:
        """How Ray runs tasks that read or write.

        Without accelerators, they need no free core: workers that have lost their machine may take
        all cores that are left, and then wait for what is read.
        """
        if self.accelerator is None:
            import ray.data

            at_once = ray.data.TaskPoolStrategy(size=2 * self.cpus)
            return {"num_cpus": 0, "compute": at_once, "max_retries": RETRIES}
        return {"num_cpus": 1 if self._has_cores else 0.25, "max_retries": RETRIES}

    @property
    def _has_cores(self) -> bool:
        """Whether all workers leave cores to reading and writing, which would else never begin."""
        return self.cpus >= 2 * self.accelerators


def check_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        UserError: it is not installed, or lacks the packages of its extra `data`.
    """
    try:
        import pyarrow  # noqa: F401
        import ray.data  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--engine=ray needs Ray, which is not installed ({error}): pip install "
            "'smoothsa_jax[ray]'"
        ) from error


@contextlib.contextmanager
def connected(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to a cluster, and leave it at the end.

    Where this process is connected already, as in a test, that connection is used and kept.

    Args:
        address: "auto" for the cluster that this machine is part of, "HOST:PORT" for that of this
            head; None: starts Ray on this machine's cores.
        num_cpus: cores of a Ray that is started; None: all that this process may use.

    Raises:
        UserError: Ray is not installed, cannot be started or reached, or a node has no program or
            another version of it.
    """
    check_ray()
    import ray

    if ray.is_initialized():
        yield _checked(address)
        return
    with _settings(local=address is None) as folder:
        try:
            if address is None:
                cores = num_cpus or len(os.sched_getaffinity(0))
                options = {"include_dashboard": False, "_temp_dir": folder}
                _init(address="local", num_cpus=cores, **options)
            else:
                check_reachable(address)
                _init(address=address)
        except (ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(_why(error, address)) from error
        try:
            yield _checked(address)
        finally:
            ray.shutdown()


def _init(**options: Any) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {x: signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings():
        # JAX warns of forks in general; the processes that Ray starts run other programs at once.
        warnings.filterwarnings("ignore", "os.fork")
        with _without_stderr():  # it tells of its own settings
            ray.init(namespace=NAMESPACE, **quiet, **options)
    for number, handler in handlers.items():  # Ray has put its own in place of the program's
        signal.signal(number, handler)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Discard what C++ code writes to standard error; errors come as exceptions."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _settings(local: bool) -> Iterator[str]:
    """Set what Ray reads from the environment, and yield a folder for its files.

    Its path is short: it holds sockets, whose paths have at most 107 characters.
    """
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    # Read by this process; else what Ray kills for lack of memory would be tried for ever.
    wanted["RAY_task_oom_retries"] = "5"
    if local:  # workers import the same program as this process
        search = [str(Path(smoothsa_jax.__file__).parent.parent), str(ROOT)]
        search += filter(None, [os.environ.get("PYTHONPATH")])
        wanted["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(search))
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="ssa", dir=short)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_reachable(address: str) -> None:
    """Refuse an address where nothing listens, for which Ray itself would wait many minutes.

    Raises:
        UserError: it is no address, or nothing is there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "//" in address:
        raise UserError(
            f"--address={address}: expected auto, or HOST:PORT of the head of a Ray cluster, such "
            "as 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address={address}: nothing can be reached there ({error.strerror or error}); start "
            "a cluster with ray start --head, or leave --address out for this machine's cores"
        ) from error


def _why(error: Exception, address: str | None) -> str:
    text = " ".join(str(error).split())
    if "object_store_memory" in text or "object store" in text.lower():
        least = f"{LEAST_STORE / 2**20:.0f} MiB"
        return f"Ray cannot start ({text}); an object store needs at least {least}: free memory"
    if address is None:
        return f"Ray cannot start on this machine ({text}); see docs/use.md"
    if _is_about_tokens(error):
        return (
            f"--address={address}: this Ray cluster lets in who has its token; bring that of its "
            "head, as the file ~/.ray/auth_token or the variable RAY_AUTH_TOKEN, and set "
            "RAY_AUTH_MODE=token (docs/devices.md)"
        )
    return (
        f"--address={address}: no Ray cluster can be reached ({text}); start one with ray start "
        "--head, or leave --address out for this machine's cores"
    )


def _is_about_tokens(error: BaseException) -> bool:
    """Whether Ray refused this process for want of a token, as far as what it raised tells."""
    return any("authentication" in f"{type(x).__name__} {x}".lower() for x in _behind(error))


def _checked(address: str | None) -> Cluster:
    """Describe the cluster; refuse nodes with another program."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mine = program()
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "scheduling_strategy": place, "max_retries": 3}
            reference = ray.remote(_program_there).options(**options).remote()
            asked.append((node["NodeManagerAddress"], reference))
    for where, reference in asked:
        try:
            refuse_other_program(mine, ray.get(reference), where)
        except ray.exceptions.RayTaskError as error:
            told = " ".join(str(error.cause).split())
            raise UserError(
                f"node {where} of the cluster cannot import this program ({told}); install "
                f"smoothsa_jax {mine} there"
            ) from error
        except ray.exceptions.RayError:
            continue  # the node is gone; workers that start later look for themselves
    resources = ray.cluster_resources()
    kind = next((name for name in ACCELERATORS if resources.get(name, 0) >= 1), None)
    return Cluster(
        address=address,
        cpus=max(1, int(resources.get("CPU", 1))),
        accelerator=kind,
        accelerators=int(resources.get(kind, 0)) if kind else 0,
    )


def quiet_ray_data() -> Any:
    """Turn off what Ray Data prints of its own, since programs here have a progress bar; restarts
    are told too, for which nobody needs to do anything.

    Returns:
        Ray Data's context, for further settings.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return context


@functools.cache
def program() -> str:
    """The version of this program, with a checksum of its files: "0.2.0 (3f9a0c...)"."""
    found = hashlib.sha256()
    for root in (Path(smoothsa_jax.__file__).parent, ROOT / "data"):
        for path in sorted(root.rglob("*.py")):
            found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{smoothsa_jax.__version__} ({found.hexdigest()[:12]})"


def _program_there() -> str:
    return program()  # Ray takes no cached function


def refuse_other_program(mine: str, theirs: str, where: str) -> None:
    """Refuse a worker that would run another version of the program than this process.

    Raises:
        UserError: the two differ.
    """
    if mine != theirs:
        raise UserError(
            f"{where} has smoothsa_jax {theirs}, and this process has {mine}; install the same "
            "version on all nodes of the cluster"
        )


@contextlib.contextmanager
def taken_by_this_ray() -> Iterator[None]:
    """Pass settings that this Ray takes, with a warning that the next one will not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def telling_deaths() -> Iterator[None]:
    """Turn the death of workers, which Ray has tried again, into a one-line error.

    Raises:
        UserError: the workers of a piece died.
    """
    from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError

    try:
        yield
    except (RayTaskError, TaskCancelledError):
        raise  # an error of this program, with its traceback
    except RayError as error:
        reason = " ".join(str(error).split())[:300]
        times = f"{RETRIES + 1} times at the same piece of work"
        if isinstance(error, RayActorError):
            times = f"{DEATHS + 1} times"
        raise UserError(
            f"a worker died {times}, perhaps for lack of memory ({reason}); finished pieces are "
            "kept: start Ray with fewer cores on each machine (ray start --num-cpus=N), then run "
            "the same command"
        ) from error


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it was raised from, as Ray and Python keep it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [getattr(found, "cause", None), found.__cause__, found.__context__]


def reason_of(error: BaseException) -> UserError | None:
    """The `UserError` that a worker raised, out of what Ray wraps around it; None: another one.

    What the system explains, such as a full disk, becomes one too. Of a worker that fails to start,
    Ray keeps the text alone.
    """
    for found in _behind(error):
        if isinstance(found, UserError):
            return UserError(str(found.args[0]) if found.args else str(found))
        if isinstance(found, OSError) and found.strerror:
            where = f"{found.filename}: " if found.filename else ""
            return UserError(f"a worker: {where}{found.strerror}; fix this, then run it again")
    told = re.findall(r"^(?:\w+\.)*UserError: (.+)$", str(error), re.MULTILINE)
    return UserError(told[-1]) if told else None
