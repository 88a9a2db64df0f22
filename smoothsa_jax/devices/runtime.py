"""The environment of a run: the compilation cache, a description of the machine, library logs."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import absl.logging
import jax

from smoothsa_jax.devices.memory_allocator import keep_freed_memory

CACHE_VARIABLE = "SMOOTHSA_JAX_CACHE"


def start(say: Callable[[str], None]) -> None:
    """Set up the process: library logs and compilation cache; then describe the machine."""
    # Orbax logs every file, and long tracebacks for errors that are reported in one line here.
    absl.logging.set_verbosity(absl.logging.FATAL)
    keep_freed_memory()
    use_compilation_cache()
    say(describe_machine())
    if warning := idle_accelerator():
        say(f"warning: {warning}")


def use_compilation_cache() -> Path | None:
    """Cache compiled programs, so that later starts are faster.

    The folder is JAX's own `JAX_COMPILATION_CACHE_DIR` if set, else `SMOOTHSA_JAX_CACHE`, else
    `~/.cache/smoothsa_jax`.

    Returns:
        The folder, or None if it is not writable or the variable is empty; a run works without it.
    """
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    root = os.environ.get(CACHE_VARIABLE, str(Path.home() / ".cache" / "smoothsa_jax"))
    if not root:
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
