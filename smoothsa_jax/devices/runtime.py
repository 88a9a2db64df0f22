"""The environment of a run: the compilation cache, a description of the machine, library logs."""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import absl.logging
import jax

from smoothsa_jax.devices.memory_allocator import keep_freed_memory
from smoothsa_jax.environment import CACHE_VARIABLE
from smoothsa_jax.errors import UserError

NOT_CACHED = "Error writing persistent compilation cache entry"  # so JAX's warning begins


def start(say: Callable[[str], None], computes: bool = True) -> None:
    """Set up the process: library logs and compilation cache; then describe the machine.

    Args:
        say: called with each line.
        computes: false for a process whose workers compute: it leaves accelerators to them.

    Raises:
        UserError: JAX finds no device of the platform that it is to use.
    """
    # Orbax logs every file, and long tracebacks for errors that are reported in one line here.
    absl.logging.set_verbosity(absl.logging.FATAL)
    keep_freed_memory()
    if not computes:
        jax.config.update("jax_platforms", "cpu")
    find_devices(say)
    use_compilation_cache()
    say(describe_machine())
    if not computes:
        return
    if warning := idle_accelerator():
        say(f"warning: {warning}")


def find_devices(say: Callable[[str], None]) -> list[jax.Device]:
    """Start JAX's backends, and return the devices.

    Args:
        say: called with a warning for each plugin of JAX that cannot be started.

    Raises:
        UserError: there is no device of a platform that JAX_PLATFORMS names.
    """
    failures: list[str] = []

    def is_kept(record: logging.LogRecord) -> bool:
        """Keep what JAX logs, but for failures with their tracebacks."""
        if record.exc_info is None:
            return True
        failures.append(f"{record.getMessage()}: {record.exc_info[1]}")
        return False

    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(is_kept)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it found one
        variable = "JAX_PLATFORM_NAME"  # the older of the two variables
        variable = variable if os.environ.get(variable) else "JAX_PLATFORMS"
        asked = os.environ.get(variable) or jax.config.jax_platforms
        told = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        reason = "; ".join(filter(None, [*failures, told])) or "no such device was found"
        choice = f"{variable}={asked} is set" if asked else "JAX finds no device"
        raise UserError(
            f"{choice}, and JAX cannot start it: {reason}; unset {variable} to use what there is, "
            f"or set {variable}=cpu"
        ) from error
    finally:
        logger.removeFilter(is_kept)
    for failure in failures:
        say(f"warning: {failure}")
    return devices


def use_compilation_cache() -> Path | None:
    """Cache compiled programs, so that later starts are faster.

    The folder is JAX's own `JAX_COMPILATION_CACHE_DIR` if set, else `SMOOTHSA_JAX_CACHE`, else
    `~/.cache/smoothsa_jax`.

    Returns:
        The folder, or None if there is none to write to (no home folder, no permission) or the
        variable is empty; a run works without it.
    """
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    root = os.path.expanduser(os.environ.get(CACHE_VARIABLE, "~/.cache/smoothsa_jax"))
    if not root or root.startswith("~"):  # it stays where there is no home folder
        return None
    # Programs compiled for one kind of CPU run only there, and hosts of several kinds may share a
    # home folder.
    folder = Path(root) / f"compiled_{_cpu_kind()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Cache small programs too: about forty of them make the initial values, ten seconds in total.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    drop_unfinished_entries(folder)
    return folder


def drop_unfinished_entries(folder: Path) -> None:
    """Remove what JAX leaves in its cache of a program that it cannot write, as on a full disk.

    Otherwise JAX fails to read it, and compiles again, in every later start. The first such program
    is reported in one line.
    """
    show, told = warnings.showwarning, False

    def show_others(message, *details, **options) -> None:
        nonlocal told
        if not str(message).startswith(NOT_CACHED):
            show(message, *details, **options)
            return
        with contextlib.suppress(OSError, ValueError):  # another process may have removed it
            newest = max(folder.glob("*-cache"), key=lambda file: file.stat().st_mtime)
            if time.time() - newest.stat().st_mtime < 10:
                newest.unlink()
        if not told:
            reason = str(message).rpartition("] ")[2]
            text = f"warning: compiled programs cannot be kept in {folder} ({reason}); "
            print(f"{text}later starts compile again", file=sys.stderr, flush=True)
        told = True

    warnings.filterwarnings("always", NOT_CACHED)
    warnings.showwarning = show_others


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
    """Describe devices and versions in one line."""
    devices = jax.devices()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax")
    )
    kind, processes = devices[0].device_kind, jax.process_count()
    spread = f" of {processes} processes" if processes > 1 else ""
    return (
        f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}{spread} ({kind}), "
        f"{versions}, Python {platform.python_version()}"
    )


def idle_accelerator() -> str | None:
    """A warning if a GPU or TPU is present but JAX computes on the CPU, else None."""
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
