"""Compile the program's real functions for a TPU or GPU without the device. Runs nothing.

    python benchmarks/ahead_of_time.py --target=v5e --config=configs/movi_c.py
    python benchmarks/ahead_of_time.py --target=h100 --config=configs/coco.py --programs=train
    python benchmarks/ahead_of_time.py --target=v5e-16 --config=configs/movi_c.py --record --top=10

Needs the target's compiler: `pip install '.[tpu]'` or `'.[cuda13]'`. Prints what the compiler plans
for each program. Every figure is compiled, not run. Weights are random: no plan depends on them.

    programs   train, predict, count (from soft masks to counted segments), and three of
               `Segmenter.stream`: a frame's features, a first frame, a later frame
    moved      what all operations read and write, on-chip memory included, as compiled_text.py
               counts; a TPU's compiler has its own count, with the body of a loop once
    FLOP       of one device, counted before compilation, with loops unrolled
    limits     by FLOP, by memory bandwidth and by the links between devices, each alone, at the
               data sheet's rates
    estimate   a TPU compiler's sum of cycles, each loop as often as it runs; and with the body of a
               loop once, as in the program's text

`--record` stores the rows in benchmarks/recorded/ahead_of_time.json; `check.py` compares new rows
with these and reports what got worse by more than 3 %.
"""

import argparse
import collections
import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import absent_devices  # noqa: E402
from benchmarks.absent_devices import TARGETS  # noqa: E402

if __name__ == "__main__":  # before JAX is imported
    absent_devices.prepare(absent_devices.target_of(sys.argv[1:]))

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases, programs  # noqa: E402
from benchmarks.collectives import collectives  # noqa: E402
from benchmarks.compiled_text import Program  # noqa: E402
from smoothsa_jax.config.load import load_config, split_command_line
from smoothsa_jax.config.values import flatten
from smoothsa_jax.errors import UserError

RECORDED = Path(__file__).resolve().parent / "recorded" / "ahead_of_time.json"
KIND = "ahead_of_time"
# The key of a row; the rest are figures.
KEY = ("program", "config", "dtype", "target", "mesh", "batch")
# Settings with a column of their own in a row, or without effect on a program.
TOLD_ELSEWHERE = ("dtype", "weights.", "companions.")


# -------------------------------------------------------------------------------------- the figures


def figures(
    call: programs.Call, chip: absent_devices.Chip, rate: float, flop: float
) -> tuple[dict[str, Any], Program]:
    """Return what the compiler plans for one call, and the program's text.

    Args:
        rate: FLOP/s of matrix products.
        flop: of one call on one device.
    """
    begin = time.perf_counter()
    lowered = call.function.lower(*call.arguments)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    program = Program(compiled.as_text())
    operations = list(program.operations())
    moved = sum(x.moved for x in operations)
    sent = collections.Counter()
    for collective in collectives(program.text):
        sent[collective.kind] += collective.sent
    found = {
        "peak_gb": memory.peak_memory_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "moved_gb": moved / 1e9,
        "tflop": flop / 1e12,
        "operations": sum(x.times for x in operations),
        "sent_mb": {kind: size / 1e6 for kind, size in sorted(sent.items())},
        "ms_by_flop": 1e3 * flop / rate,
        "ms_by_bandwidth": 1e3 * moved / chip.bandwidth,
        "ms_by_link": 1e3 * sum(sent.values()) / chip.link,
        "lower_s": round(middle - begin, 1),
        "compile_s": round(end - middle, 1),
    }
    if "bytes accessed" in cost:
        found["compiler_gb"] = cost["bytes accessed"] / 1e9
    if chip.clock:
        found["ms_estimated"] = 1e3 * sum(x.cycles for x in operations) / chip.clock
        found["ms_estimated_once"] = 1e3 * sum(x.cycles // x.times for x in operations) / chip.clock
    return found, program


def told(row: dict[str, Any]) -> str:
    """Return a row as text."""
    chip = TARGETS[row["target"]].chip
    name = f"{row['program']}, {row['config']}, {row['dtype']}, {row['batch']} samples"
    estimate, counted = "", "kernels"
    if "ms_estimated" in row:
        counted = "operations"
        estimate = (
            f"; the compiler's estimate {row['ms_estimated']:.4g} ms, "
            f"{row['ms_estimated_once']:.4g} ms with the body of a loop once"
        )
    own = f" ({row['compiler_gb']:.4g} as its compiler counts)" if "compiler_gb" in row else ""
    sent = ", ".join(f"{kind} {size:.4g} MB" for kind, size in row["sent_mb"].items()) or "nothing"
    return (
        f"{name}, {row['target']} {row['mesh']} (compiled, not run)\n"
        f"  peak memory {row['peak_gb']:.4g} of {chip.memory / 1e9:.0f} GB, "
        f"temporary {row['temporary_gb']:.4g} GB; {row['operations']} {counted}; "
        f"moved {row['moved_gb']:.4g} GB{own}; {row['tflop']:.4g} TFLOP; sent: {sent}\n"
        f"  limit by FLOP {row['ms_by_flop']:.4g} ms, "
        f"by bandwidth {row['ms_by_bandwidth']:.4g} ms, "
        f"by what is sent {row['ms_by_link']:.4g} ms{estimate}\n"
        f"  lowered in {row['lower_s']:.0f} s, compiled in {row['compile_s']:.0f} s"
    )


def largest(program: Program, count: int, clock: float) -> list[str]:
    """Return the costliest groups of operations of one kind and line, by cycles or by bytes."""
    groups = collections.defaultdict(lambda: [0, 0, 0])
    for x in program.operations():
        for at, value in enumerate((x.cycles if clock else x.moved, x.times, x.moved)):
            groups[x.kind, x.line][at] += value
    rows = sorted(groups.items(), key=lambda pair: -pair[1][0])[:count]
    time_of = lambda cost: f" {1e3 * cost / clock:7.3f} ms" if clock else ""  # noqa: E731
    return [
        f"  {moved / 1e6:9.1f} MB {times:5d}x{time_of(cost)}  {kind}, {line}"
        for (kind, line), (cost, times, moved) in rows
    ]


# ----------------------------------------------------------------------------------------- the rows


def name_of(config: ConfigDict, spec: str) -> str:
    """Return the config's name and every setting that differs from its file."""
    base = flatten(load_config(spec))
    changed = {key: value for key, value in flatten(config).items() if base.get(key) != value}
    settings = [
        f"{key}={changed[key]}" for key in sorted(changed) if not key.startswith(TOLD_ELSEWHERE)
    ]
    return " ".join([config.name, *settings])


def versions(platform: str) -> dict[str, str]:
    """Return the versions of what compiles for a platform."""
    plugins = {"tpu": ("libtpu",), "cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin")}
    found = {}
    for name in ("jax", "jaxlib", *plugins[platform]):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the text of a file of rows."""
    found = {"kind": KIND, "figures": "compiled, not run", "rows": rows}
    return json.dumps(found, indent=1) + "\n"


def record(rows: Sequence[dict[str, Any]], path: Path = RECORDED) -> None:
    """Store rows; each replaces a row with the same key."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    key = lambda row: tuple(row[name] for name in KEY)  # noqa: E731
    merged = {key(row): row for row in (*old, *rows)}
    path.write_text(written([merged[name] for name in sorted(merged)]))


# -------------------------------------------------------------------------------------- the command


def mesh_shape(text: str) -> tuple[int, int]:
    """Parse the value of a flag such as 1x16."""
    data, fsdp = (int(x) for x in text.split("x"))
    return data, fsdp


def names_of_programs(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in programs.NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(programs.NAMES)}")
    return names


def arguments_of(arguments: Sequence[str]) -> tuple[ConfigDict, argparse.Namespace]:
    """Return the config, with random weights, and the options.

    Raises:
        UserError: a config or an option that does not fit, or no compiler for the target.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--programs", type=names_of_programs, help="default: all of the config")
    parser.add_argument("--mesh", type=mesh_shape, help="data x fsdp, such as 8x1")
    parser.add_argument("--batch", type=int, help="samples; default: the recipe's on each device")
    parser.add_argument("--top", type=int, default=0, help="how many groups of operations to list")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--text", type=Path, help="a folder for the texts of the programs")
    parser.add_argument("--record", action="store_true")
    config, options = cases.arguments_of(parser, arguments)
    if missing := absent_devices.missing_plugin(options.target):
        raise UserError(missing)
    options.mesh = options.mesh or TARGETS[options.target].mesh
    absent_devices.check_mesh(options.target, options.mesh)
    devices, parts = options.mesh[0] * options.mesh[1], config.train.accumulate
    options.batch = config.train.batch_size * devices if options.batch is None else options.batch
    if options.batch < 1 or options.batch % (devices * parts):
        raise UserError(
            f"--batch={options.batch} does not divide over {devices} devices with "
            f"train.accumulate={parts}; give a multiple of {devices * parts}"
        )
    options.programs = options.programs or programs.names_for(config)
    return cases.without_weights(config), options


def main(arguments: Sequence[str]) -> int:
    config, options = arguments_of(arguments)
    spec = dict(split_command_line(arguments)[0]).get("config") or cases.config_file("sprites")
    chip = TARGETS[options.target].chip
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = absent_devices.mesh_of(options.target, options.mesh)
    rate = chip.flops_of(config.dtype, config.matmul_precision)
    flop = programs.counted_flop(config, options.batch, options.programs)
    rows = []
    for call in programs.calls(config, mesh, options.batch, options.programs):
        found, program = figures(call, chip, rate, flop[call.name] / call.mesh.size)
        row = {
            "program": call.name,
            "config": name_of(config, spec),
            "dtype": config.dtype,
            "target": options.target,
            "mesh": "x".join(map(str, call.mesh.devices.shape)),
            "batch": call.batch,
            **found,
            "versions": versions(chip.platform),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
        rows.append(row)
        print(told(row), flush=True)
        if options.top:
            print("\n".join(largest(program, options.top, chip.clock)), flush=True)
        if options.text:
            options.text.mkdir(parents=True, exist_ok=True)
            file = "_".join(str(row[key]) for key in KEY).replace(" ", "_").replace(":", "")
            (options.text / f"{file}.txt").write_text(program.text)
        if options.record:
            record([row])
    if options.json:
        options.json.write_text(written(rows))
    return 0


if __name__ == "__main__":
    cases.run(main)
