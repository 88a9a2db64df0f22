"""Setup of all tests: on the CPU, in full float32, with compiled programs shared in a session."""

import gc
import importlib.metadata
import os

import pytest

# Set before JAX is imported. Another platform may be chosen; the tolerances are those of the CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The compiler takes nearly all the time of these tests; these flags reduce it to a fifth.
# `XLA_FLAGS= pytest` compiles as users do.
QUICK = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    # One piece of machine code per program: less work in total, and there are as many test
    # processes as cores.
    QUICK += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Let all tests and subprocesses of this session, and no other, share compiled programs."""
    folder = str(tmp_path_factory.mktemp("jax_cache"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    os.environ["SMOOTHSA_JAX_CACHE"] = folder  # where main.py keeps them
    return folder


@pytest.fixture(scope="module", autouse=True)
def frozen_objects():
    """After each file, take what is left out of garbage collection.

    Compiled programs stay in memory, in millions of objects, and each collection would walk over
    all of them: in a fifth of the files that is a tenth of the time.
    """
    yield
    gc.freeze()
