"""What surrounds a run: the compilation cache, what the machine is, signals, the lock of a workdir."""

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import absl.logging
import jax

from smoothsa_jax.errors import UserError
from smoothsa_jax.training.memory_allocator import keep_freed_memory

CACHE_VARIABLE = "SMOOTHSA_JAX_CACHE"


def start(say: Callable[[str], None]) -> None:
    """Set up the process: logs of libraries, the compilation cache; say what the machine is."""
    # Orbax logs each file, and pages of traceback for what is told in a line here.
    absl.logging.set_verbosity(absl.logging.FATAL)
    keep_freed_memory()
    use_compilation_cache()
    say(describe_machine())
    if warning := idle_accelerator():
        say(f"warning: {warning}")


def use_compilation_cache() -> Path | None:
    """Keep compiled programs, so that a second start is quick.

    In JAX's own `JAX_COMPILATION_CACHE_DIR` where that is set, else in `SMOOTHSA_JAX_CACHE`, else in
    `~/.cache/smoothsa_jax`.

    Returns:
      the folder, or None where it cannot be written or the variable is empty: a run works without.
    """
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    root = os.environ.get(CACHE_VARIABLE, str(Path.home() / ".cache" / "smoothsa_jax"))
    if not root:
        return None
    # Programs for a CPU serve that kind of CPU only, and a home folder may be shared by several kinds.
    folder = Path(root) / f"compiled_{_cpu_kind()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs count: initial values are made by some forty of them, ten seconds together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def _cpu_kind() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = sorted(
            {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        )
    except OSError:
        kind = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:12]


def describe_machine() -> str:
    """One line: devices and versions."""
    devices = jax.devices()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax")
    )
    kind, processes = devices[0].device_kind, jax.process_count()
    spread = f" of {processes} processes" if processes > 1 else ""
    return f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}{spread} ({kind}), {versions}, Python {platform.python_version()}"


def idle_accelerator() -> str | None:
    """A warning when a GPU or TPU is there but JAX computes on the CPU, else None."""
    if jax.default_backend() != "cpu":
        return None
    found = None
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        found, extra = "an NVIDIA GPU", "cuda13"
    elif Path("/dev/kfd").exists():
        found, extra = "an AMD GPU", ""
    elif any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        found, extra = "a TPU", "tpu"
    if found is None:
        return None
    if os.environ.get("JAX_PLATFORMS", "").strip():
        advice = f"unset JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} to use it"
    elif extra:
        advice = f'install JAX for it: pip install "smoothsa_jax[{extra}]"'
    else:
        advice = "install a JAX that supports it"
    return f"{found} is visible, but JAX runs on the CPU; {advice}"


class Stopped(Exception):  # noqa: N818, it is no error
    """A signal asked the run to leave."""

    def __init__(self, number: int, message: str = ""):
        self.number = number
        super().__init__(
            message or f"stopped by {signal.Signals(number).name}; the same command goes on"
        )

    @property
    def exit_code(self) -> int:
        """What shells report for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class SignalGuard:
    """SIGTERM and Ctrl-C: the first asks, the second leaves at once.

    Inside `with guard.finishing_steps():` the first signal only sets `received`, so that the loop can save. Elsewhere it
    raises `Stopped`: there is nothing to save.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._finishing = False

    def __enter__(self) -> "SignalGuard":
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *ignored: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            os.write(2, b"\nleaving at once\n")
            os._exit(128 + number)
        self.received = number
        if not self._finishing:
            raise Stopped(number)
        name = signal.Signals(number).name
        os.write(
            2, f"\n{name}: finishing this step, then saving; once more to leave at once\n".encode()
        )


@contextmanager
def workdir_for_writing(workdir: Path, flag: str = "workdir") -> Iterator[None]:
    """Make the workdir (or the folder of another flag), see that it can be written, and keep a second run out of it meanwhile.

    Raises:
      UserError: it cannot be written, or another run is writing to it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / ".lock", "a+")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(
            f"{flag} {workdir} cannot be written: {error.strerror}; mend its permissions or use another --{flag}"
        ) from error
    with handle:
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise UserError(
                f"{flag} {workdir} is in use by another run (process {owner}); wait for it or use another --{flag}"
            ) from error
        except OSError as error:  # a file system without locks
            print(
                f"warning: {workdir} cannot be locked ({error.strerror}); let one run at a time write to it",
                file=sys.stderr,
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
