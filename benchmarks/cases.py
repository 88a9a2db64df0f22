"""What the scripts that time the model have in common: their arguments, random batches, the clock, and how a figure is told."""

import argparse
import contextlib
import dataclasses
import datetime
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.config import config_from_command_line, image_size_of, split_command_line
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import masks_from_attention
from smoothsa_jax.models.build import takes_weights
from smoothsa_jax.training.checks import check
from smoothsa_jax.training.compiling import memory_of
from smoothsa_jax.training.memory_allocator import keep_freed_memory
from smoothsa_jax.training.runtime import describe_machine
from smoothsa_jax.training.state import copied
from smoothsa_jax.training.step import Training, build_training

TROUBLE = (
    UserError,
    jax.errors.JaxRuntimeError,
)  # an option that does not fit, a flag that is refused, memory that is full
TABLE = "BENCHMARK_TABLE"  # a file to which every figure is added as a row (gpu.sh)


def arguments_of(
    parser: argparse.ArgumentParser, arguments: Sequence[str], default: str = "sprites"
) -> tuple[ConfigDict, argparse.Namespace]:
    """The config that `--config...` asks for, as for main.py, and the script's own options.

    Raises:
        UserError: the config is unknown, or does not hold together.
    """
    for_config, others = split_command_line(arguments)
    parser.formatter_class, parser.allow_abbrev = argparse.RawDescriptionHelpFormatter, False
    parser.add_argument("--config", help=f"config file, with :variant; default {default}")
    options = parser.parse_args(others)
    keep_freed_memory()  # as main.py does
    default = str(Path(__file__).resolve().parent.parent / "configs" / f"{default}.py")
    return config_from_command_line(for_config, default), options


def numbers(text: str) -> list[int]:
    """Of a flag, such as 8,32; argparse tells one that is not so."""
    return [int(number) for number in text.split(",")]


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a script: status 2 and one line where it was asked for something that cannot be."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# --------------------------------------------------------------------------------------------------- what is timed


def training_of(config: ConfigDict) -> Training:
    """The compiled functions of a config, on this machine.

    Raises:
        UserError: the config cannot run on this machine, or wants trained weights, on which no time depends.
    """
    check(config)
    if takes_weights(config.model.backbone):
        raise UserError(
            "the time does not depend on the values of the backbone; set --config.model.backbone.weights=random"
        )
    return build_training(config)


def batch_shapes(config: ConfigDict, batch: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of what the model sees of a training batch."""
    size, slots = image_size_of(config), config.model.slot_attention.num_slots
    return {
        "video": ((batch, config.data.num_frames, *size, 3), jnp.uint8),
        "boxes": ((batch, config.data.num_frames, slots, 4), jnp.float32),
        "slot_mask": ((batch, slots), jnp.bool_),
    }


def random_batch(config: ConfigDict, batch: int | None = None) -> dict[str, np.ndarray]:
    """Random pixels and boxes, every slot valid; of `train.batch_size` samples unless told otherwise."""
    rng = np.random.default_rng(0)
    shapes = batch_shapes(config, batch or config.train.batch_size)
    corners = np.sort(rng.random((*shapes["boxes"][0][:-1], 2, 2), np.float32), axis=-2)
    return {
        "video": rng.integers(0, 256, shapes["video"][0], np.uint8),
        "boxes": corners.reshape(shapes["boxes"][0]),
        "slot_mask": np.ones(shapes["slot_mask"][0], bool),
    }


def stepper(training: Training, batch: dict[str, np.ndarray], compiled: Any) -> Callable[[], None]:
    """A function that does one training step with a compiled program and waits for it."""
    placed, key = training.place(batch), jax.random.key(0)
    state = [copied(training.state)]

    def step() -> None:
        state[0], _ = jax.block_until_ready(compiled(state[0], training.frozen, placed, key))

    return step


def pixels_to_masks(training: Training) -> Callable[..., jax.Array]:
    """(params, frozen, placed batch, key) -> the slot of each pixel (B,T,H,W), one program."""

    @jax.jit
    def masks(params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        size, slot_mask = batch["video"].shape[2:4], batch["slot_mask"]
        attention = training.predict(params, frozen, batch, key)["decoder_attention"]
        return masks_from_attention(attention, training.grid, size, slot_mask)

    return masks


@dataclasses.dataclass(frozen=True)
class Timed:
    """The best seconds of a training step, GB that its compiler plans besides state and batch; or why it could not be timed."""

    seconds: float = math.nan
    temporary_gb: float | None = None
    failed: str = ""


def time_steps(configs: Sequence[ConfigDict], rounds: int) -> list[Timed]:
    """The training step of each config, on a random batch: compiled side by side, then in turns. One that fails is left out."""
    failed: dict[int, str] = {}

    def attempt(number: int, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except TROUBLE as error:
            failed[number] = reason_of(error)

    def lowered(config: ConfigDict) -> tuple[Training, dict[str, np.ndarray], Any]:
        training, batch = training_of(config), random_batch(config)
        placed, key = training.place(batch), jax.random.key(0)
        return (
            training,
            batch,
            training.train_step.lower(training.state, training.frozen, placed, key),
        )

    whole = {i: attempt(i, lambda config=x: lowered(config)) for i, x in enumerate(configs)}
    compiling = [i for i in whole if i not in failed]
    with ThreadPoolExecutor() as threads:
        programs = list(threads.map(lambda i: attempt(i, whole[i][2].compile), compiling))
    found = dict(zip(compiling, programs, strict=True))
    steps = {
        i: attempt(i, lambda i=i: stepper(*whole[i][:2], found[i]))
        for i in compiling
        if i not in failed
    }
    for i in [i for i in steps if i not in failed]:
        attempt(i, steps[i])  # the first call is slower
    left = [i for i in steps if i not in failed]
    seconds = dict(zip(left, map(min, in_turn([steps[i] for i in left], rounds)), strict=True))

    def timed(i: int) -> Timed:
        if i in failed:
            return Timed(failed=failed[i])
        memory = memory_of(found[i])
        return Timed(seconds[i], None if memory is None else memory.temporary / 1e9)

    return list(map(timed, range(len(configs))))


def reason_of(error: BaseException) -> str:
    """One line."""
    return " ".join(str(error).split())[:200]


def clock() -> float:
    """Seconds: on a CPU of the process's own time, all cores together, which other programs disturb less; else of the clock."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def in_turn(
    calls: Sequence[Callable[[], Any]], rounds: int, clock: Callable[[], float] = clock
) -> list[list[float]]:
    """Seconds of every call in each of the rounds, one after the other within a round; each has run before."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            begin = clock()
            call()
            found.append(clock() - begin)
    return times


# ------------------------------------------------------------------------------------------------ how it is told


def tell(what: str, value: str, remark: str = "") -> None:
    """Prints a figure, and adds it to the table that is being made, where one is."""
    print(f"{what:<54}{value:>20}  {remark}".rstrip(), flush=True)
    if table := os.environ.get(TABLE):
        with Path(table).open("a") as file:
            file.write(f"| {what} | {value} | {remark} |\n")


def machine() -> str:
    """Devices, versions, processor and date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{describe_machine()}, {cores} CPU cores, {processor()}, {datetime.date.today().isoformat()}"


def processor() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def of_config(config: ConfigDict) -> str:
    """What was timed, in words."""
    return (
        f"{config.name}, {config.dtype}, {config.train.batch_size} x {config.data.num_frames} frames of "
        f"{config.data.image_size}, {config.model.slot_attention.num_slots} slots"
    )
