"""Variables of the environment that libraries read: checked, and JAX's set where results depend
on them."""

import os
import subprocess
import sys

from smoothsa_jax.errors import UserError

# Results depend on these, or a run fails with other values. Shells set them for other programs.
PINNED = {
    "jax_debug_key_reuse": False,
    "jax_default_matmul_precision": None,  # config.matmul_precision chooses
    "jax_default_prng_impl": "threefry2x32",
    "jax_disable_jit": False,
    "jax_enable_x64": False,
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_nan": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_random_seed_offset": 0,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_partitionable": True,
    "jax_transfer_guard": None,
}
CACHE_VARIABLE = "SMOOTHSA_JAX_CACHE"  # compiled programs, and copies of shards of buckets
# What XLA does when it reads its flags; it ends the process at one that it does not know.
READ_FLAGS = "import jaxlib.xla_client; jaxlib.xla_client.CompileOptions()"


def check_progress_bars() -> None:
    """Import tqdm, which reads variables, if any of them is set.

    Raises:
        UserError: tqdm refuses a variable.
    """
    names = sorted(name for name in os.environ if name.startswith("TQDM_"))
    if not names:
        return
    try:
        import tqdm  # noqa: F401
    except ValueError as error:
        raise UserError(
            f"tqdm refuses {' or '.join(names)}: {error}; correct or unset the variable"
        ) from error


def settle() -> None:
    """Import JAX and pin the settings that results depend on; a program calls this first.

    A library that uses this package keeps its settings.

    Raises:
        UserError: JAX or XLA refuses a variable.
    """
    _check_xla_flags()
    try:
        import jax
    except ValueError as error:
        raise UserError(
            f"JAX refuses a variable of the environment: {error}; correct or unset it"
        ) from error
    for name, value in PINNED.items():
        variable = name.upper()
        if variable in os.environ and getattr(jax.config, name, value) != value:
            jax.config.update(name, value)
            print(
                f"{variable}={os.environ[variable]} is ignored: the results of a run depend on its "
                "config alone",
                file=sys.stderr,
            )


def _check_xla_flags() -> None:
    """Read XLA_FLAGS in another process first.

    Raises:
        UserError: XLA refuses them.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if not flags or "jaxlib" in sys.modules:
        return
    done = subprocess.run(
        [sys.executable, "-c", READ_FLAGS], capture_output=True, text=True, errors="replace"
    )
    reasons = [line for line in done.stderr.splitlines() if "flags" in line and ".cc:" in line]
    if done.returncode and reasons:
        reason = reasons[0].partition("] ")[2].rstrip(".")
        raise UserError(f"XLA refuses XLA_FLAGS={flags}: {reason}; correct or unset XLA_FLAGS")
