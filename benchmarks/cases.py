"""Shared by the scripts: arguments, random batches, timing, and the printing of figures."""

import argparse
import contextlib
import dataclasses
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.sources import RANDOM, begin, spec_of
from smoothsa_jax.config.load import (
    config_from_command_line,
    load_config,
    split_command_line,
)
from smoothsa_jax.config.values import canonical
from smoothsa_jax.devices.memory_allocator import keep_freed_memory
from smoothsa_jax.devices.mesh import backend_of_mesh
from smoothsa_jax.devices.runtime import describe_machine
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.tasks import task as task_file
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.checks import check
from smoothsa_jax.training.step import Training, build_training

# An option that does not fit, a refused flag, or a device out of memory.
TROUBLE = (UserError, jax.errors.JaxRuntimeError)
ALWAYS = ("video", "boxes", "slot_mask")  # arrays of every batch
TABLE = "BENCHMARK_TABLE"  # names a file; every figure is appended to it as a row (gpu.sh)


def arguments_of(
    parser: argparse.ArgumentParser, arguments: Sequence[str], default: str = "sprites"
) -> tuple[ConfigDict, argparse.Namespace]:
    """Return the config that `--config...` asks for, as main.py reads it, and the script's options.

    Raises:
        UserError: the config is unknown or inconsistent.
    """
    for_config, others = split_command_line(arguments)
    parser.formatter_class, parser.allow_abbrev = argparse.RawDescriptionHelpFormatter, False
    parser.add_argument("--config", help=f"config file, with :words; default {default}")
    options = parser.parse_args(others)
    keep_freed_memory()  # as main.py does
    return config_from_command_line(for_config, config_file(default)), options


def config_file(name: str) -> str:
    """Return the path of one of the repository's configs."""
    return str(Path(__file__).resolve().parent.parent / "configs" / f"{name}.py")


def numbers(text: str) -> list[int]:
    """Parse the value of a flag, such as 8,32."""
    return [int(number) for number in text.split(",")]


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a script and exit; a `UserError` is a one-line error with status 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------------------------ what is timed


def training_of(config: ConfigDict) -> Training:
    """Return the compiled functions of a config, on this machine.

    Companions have untrained values, where the config states their models.

    Raises:
        UserError: the config cannot run on this machine, or loads trained weights, on which the
            time does not depend.
    """
    for name, companion in config.companions.items():
        if companion.get("source"):
            raise UserError(
                f"the time does not depend on the weights of companions.{name}, which "
                f"{companion.source} would give; time the same config with the word smoke, or "
                "ahead_of_time.py"
            )
    check(config)
    for name, entry in config.weights.items():
        if entry.source != RANDOM:
            raise UserError(
                "the time does not depend on the values of the weights; set "
                f"--config.weights.{name}.source={RANDOM}"
            )
    training = build_training(config)
    _, frozen, _ = begin(config, training, lambda line: print(line, file=sys.stderr))
    return dataclasses.replace(training, frozen=frozen)


def without_weights(config: ConfigDict) -> ConfigDict:
    """Return the config with random values in place of all weights that it would load.

    A companion gets the architecture that the earlier run of the same data set would have.
    """
    config = config.copy_and_resolve_references().unlock()
    for entry in config.weights.values():
        entry.source = RANDOM
        if entry.into:
            entry.seed = 0  # of one part
    for companion in config.companions.values():
        if companion.get("source") is not None and "model" not in companion:
            spec = spec_of(Path(companion.source).name)
            if spec is None:
                raise UserError(
                    f"the architecture of the companion {companion.source} is not known: expected "
                    "the default workdir of a config of the gallery"
                )
            earlier = without_weights(load_config(spec))
            companion.update(source="", title=earlier.title, model=earlier.model)
    return canonical(config)


def batch_shapes(config: ConfigDict, batch: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and dtype of each array that the model reads of a training batch."""
    found = task_file.batch_shapes(config, build_task(config), batch, config.data.num_frames)
    return {name: found[name] for name in ALWAYS}


def random_batch(config: ConfigDict, batch: int | None = None) -> dict[str, np.ndarray]:
    """Return random pixels and boxes, every slot valid; by default `train.batch_size` samples."""
    rng = np.random.default_rng(0)
    shapes = batch_shapes(config, batch or config.train.batch_size)
    corners = np.sort(rng.random((*shapes["boxes"][0][:-1], 2, 2), np.float32), axis=-2)
    return {
        "video": rng.integers(0, 256, shapes["video"][0], np.uint8),
        "boxes": corners.reshape(shapes["boxes"][0]),
        "slot_mask": np.ones(shapes["slot_mask"][0], bool),
    }


def pixels_to_masks(training: Training) -> Callable[..., jax.Array]:
    """Return a program: (params, frozen, placed batch, key) -> each pixel's slot (B,T,H,W)."""
    output, *_ = training.task.evaluator.outputs

    @jax.jit
    def masks(params: Any, frozen: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        size, slot_mask = batch["video"].shape[2:4], batch["slot_mask"]
        soft = training.predict(params, frozen, batch, key)[output]
        backend = backend_of_mesh(training.mesh)
        return segments_from_masks(soft, size, slot_mask, backend=backend)

    return masks


def reason_of(error: BaseException) -> str:
    """Return the error as one line."""
    return " ".join(str(error).split())[:200]


def times_of(call: Callable[[], Any], rounds: int) -> list[float]:
    """Return the seconds of a call in each round."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


# ----------------------------------------------------------------------------------------- printing


def tell(what: str, value: str, remark: str = "") -> None:
    """Print a figure, and append it to the table that `BENCHMARK_TABLE` names, if any."""
    print(f"{what:<54}{value:>20}  {remark}".rstrip(), flush=True)
    if table := os.environ.get(TABLE):
        with Path(table).open("a") as file:
            file.write(f"| {what} | {value} | {remark} |\n")


def machine() -> str:
    """Return devices, versions, processor and date in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    today = datetime.date.today().isoformat()
    return f"{describe_machine()}, {cores} CPU cores, {processor()}, {today}"


def processor() -> str:
    """Return the CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def of_config(config: ConfigDict) -> str:
    """Describe what was timed."""
    return (
        f"{config.name}, {config.dtype}, {config.train.batch_size} x {config.data.num_frames} "
        f"frames of {config.data.image_size}, {build_task(config).slot_model.num_slots} slots"
    )
