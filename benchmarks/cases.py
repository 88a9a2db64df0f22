"""What the scripts that time the model have in common: their arguments, random batches, the clock, and how a figure is told."""

import argparse
import contextlib
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

from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.compiling import memory_of
from smoothsa_jax.devices.memory_allocator import keep_freed_memory
from smoothsa_jax.devices.mesh import backend_of_mesh
from smoothsa_jax.devices.runtime import describe_machine
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import masks_from_attention
from smoothsa_jax.models.build import takes_weights
from smoothsa_jax.training.checks import check
from smoothsa_jax.training.state import copied
from smoothsa_jax.training.step import Training, build_training

# An option that does not fit, a flag that is refused, memory that is full.
TROUBLE = (UserError, jax.errors.JaxRuntimeError)
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
    return config_from_command_line(for_config, config_file(default)), options


def config_file(name: str) -> str:
    """The path of a config of the repository."""
    return str(Path(__file__).resolve().parent.parent / "configs" / f"{name}.py")


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
        backend = backend_of_mesh(training.mesh)
        return masks_from_attention(attention, training.grid, size, slot_mask, backend=backend)

    return masks


class Timed:
    """The training step of a config on a random batch, made ready stage by stage.

    Attributes:
        seconds: the best of the rounds.
        temporary_gb: what its compiler plans besides state and batch; None where it does not tell.
        failed: why it could not be timed, else "". No stage runs after one that failed.
    """

    def __init__(self, config: ConfigDict):
        self.config, self.seconds, self.temporary_gb, self.failed = config, math.nan, None, ""

    def attempt(self, stage: Callable[[], None]) -> None:
        if not self.failed:
            try:
                stage()
            except TROUBLE as error:
                self.failed = reason_of(error)

    def lower(self) -> None:
        self.training, self.batch = training_of(self.config), random_batch(self.config)
        inputs = self.training.frozen, self.training.place(self.batch), jax.random.key(0)
        self.lowered = self.training.train_step.lower(self.training.state, *inputs)

    def compile(self) -> None:
        self.compiled = self.lowered.compile()
        if (memory := memory_of(self.compiled)) is not None:
            self.temporary_gb = memory.temporary / 1e9

    def place(self) -> None:
        self.step = stepper(self.training, self.batch, self.compiled)


def time_steps(configs: Sequence[ConfigDict], rounds: int) -> list[Timed]:
    """The training step of each config: compiled side by side, then in turns. One that fails is left out."""
    found = list(map(Timed, configs))
    for timed in found:
        timed.attempt(timed.lower)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda timed: timed.attempt(timed.compile), found))
    # All states are there before the first step is done: memory that suffices for each once does so in all rounds.
    for timed in found:
        timed.attempt(timed.place)
    for timed in found:
        timed.attempt(lambda timed=timed: timed.step())  # the first call is slower
    good = [timed for timed in found if not timed.failed]
    for timed, seconds in zip(good, in_turn([x.step for x in good], rounds), strict=True):
        timed.seconds = min(seconds)
    return found


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
