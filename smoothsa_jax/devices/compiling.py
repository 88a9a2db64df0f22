"""Compile a training step, estimate its memory, and explain out-of-memory errors."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from smoothsa_jax.devices.mesh_shape import mesh_shape
from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import Backend

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Memory:
    """The compiler's estimate of a program's memory on each device, in bytes.

    Attributes:
        arguments: size of all arguments.
        outputs: size of all outputs.
        temporary: size of intermediate values.
        in_place: size of outputs that reuse the memory of arguments.
    """

    arguments: int
    outputs: int
    temporary: int
    in_place: int

    @property
    def peak(self) -> int:
        """Estimated peak use, in bytes."""
        return self.arguments + self.outputs + self.temporary - self.in_place

    def __str__(self) -> str:
        return (
            f"{self.peak / GB:.2f} GB (state and batch {self.arguments / GB:.2f}, results "
            f"{(self.outputs - self.in_place) / GB:.2f}, temporary {self.temporary / GB:.2f})"
        )


def memory_of(compiled: Any) -> Memory | None:
    """Return the memory of a compiled program; None if the compiler gives no estimate."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.temp_size_in_bytes,
        found.alias_size_in_bytes,
    )


def compiler_options(config: ConfigDict, backend: Backend) -> dict[str, str | bool] | None:
    """Return `train.xla_flags` as options of the compiler; None on other devices than GPUs."""
    if not backend.is_gpu:
        return None
    pairs = (flag.lstrip("-").partition("=") for flag in config.train.xla_flags.split())
    truth = {"true": True, "false": False, "": True}
    return {name: truth.get(value.lower(), value) for name, _, value in pairs}


def at_precision(function: Callable, config: ConfigDict) -> Callable:
    """Wrap a function so that its float32 matrix products use `config.matmul_precision`.

    Pass the result to `jax.jit`. "default" leaves the precision to JAX: TF32 on an H100, one
    bfloat16 pass on a TPU, float32 on a CPU.
    """
    precision = config.matmul_precision
    if precision == "default":
        return function

    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*arguments, **options)

    return traced


class CompiledOnce:
    """A jitted step, compiled once, for the arguments of its first call.

    Args:
        step: the jitted function; a plain function is called directly.
        say: called with one line about the memory that the step takes.
        has_flags: whether `train.xla_flags` are among the step's compiler options.

    Attributes:
        memory: the compiler's estimate; None before the first call, or if there is none.
    """

    def __init__(self, step: Callable, say: Callable[[str], None], has_flags: bool = False):
        self.memory: Memory | None = None
        self._has_flags = has_flags
        self._step, self._say = step, say
        self._compiled: Callable | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the step; compile it first if needed.

        Raises:
            UserError: XLA does not accept a flag in `train.xla_flags`.
        """
        if self._compiled is None:
            self._compiled = self._compile(arguments)
        return self._compiled(*arguments)

    def _compile(self, arguments: tuple) -> Callable:
        if not hasattr(self._step, "lower"):  # a plain function: there is nothing to compile
            return self._step
        try:
            compiled = self._step.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            about_options = str(error).startswith("INVALID_ARGUMENT") and "option" in str(error)
            if not (self._has_flags and about_options):
                raise
            reason = str(error).removeprefix("INVALID_ARGUMENT: ")
            raise UserError(
                f"train.xla_flags is refused by this version of XLA: {reason}; leave that flag out"
            ) from error
        self.memory = memory_of(compiled)
        if self.memory is not None:
            self._say(f"the training step takes {self.memory} on each device{_limit(', of {}')}")
        return compiled


@contextlib.contextmanager
def telling_out_of_memory(
    doing: str, advice: str, program: CompiledOnce | None = None
) -> Iterator[None]:
    """Turn out-of-memory errors of a device into a one-line error.

    Args:
        doing: what needs the memory, including its batch size.
        advice: how to reduce the memory.
        program: the program that runs; the error quotes its estimate.

    Raises:
        UserError: a device is out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        estimate = ""
        if program is not None and program.memory is not None:
            estimate = f"the compiler estimated {program.memory.peak / GB:.2f} GB, "
        reason = " ".join(str(error).split()).removeprefix("RESOURCE_EXHAUSTED: ")[:160].rstrip(".")
        raise UserError(
            f"{doing} does not fit into the memory of a device{_limit(' ({})')}: {estimate}"
            f"{reason}; {advice}"
        ) from error


def advice_for_training(config: ConfigDict) -> str:
    """Suggest options that reduce the memory of a training step.

    Options that a run may continue with come first, then those that need a new run.
    """
    train, parts = config.train, config.train.accumulate
    data, fsdp = mesh_shape(config.mesh.data, config.mesh.fsdp, len(jax.devices()))
    options = []
    if train.batch_size % (2 * parts * data * fsdp) == 0:
        options.append(f"--config.train.accumulate={2 * parts} (the same training, in parts)")
    if fsdp == 1 and data % 2 == 0:
        half = f"--config.mesh.data={data // 2} " * (config.mesh.data != -1)
        options.append(f"{half}--config.mesh.fsdp=2 (parameters sharded over two devices)")
    if train.remat == "none" and "decoder" in config.model:
        options.append("--config.train.remat=all (slower, the same training)")
    others = ["--config.dtype=bfloat16"] * (config.dtype == "float32")
    others.append(
        "a smaller " + ("train.batch_size" if train.batch_size > data * fsdp else "model")
    )
    options.append(f"{'or ' * bool(options)}with another --workdir {' or '.join(others)}")
    return f"use {', '.join(options)}"


def _limit(text: str) -> str:
    """Insert the memory of a device that JAX may use into a text; "" if unknown, as on a CPU."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return "" if limit is None else text.format(f"{limit / GB:.1f} GB")
