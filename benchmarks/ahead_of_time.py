"""Compiles the program's real functions for a TPU or GPU that is not there, and prints what its compiler plans. Runs nothing.

    python benchmarks/ahead_of_time.py --target=v5e --config=configs/movi_c.py --config.dtype=bfloat16
    python benchmarks/ahead_of_time.py --target=h100 --config=configs/coco.py --programs=train --top=10
    python benchmarks/ahead_of_time.py --target=v5e-16 --config=configs/movi_c.py --mesh=1x16 --record

Needs the compiler of the target: `pip install '.[tpu]'` or `'.[cuda13]'`. Programs:

    train     the training step
    predict   the model's slots and masks of a batch at evaluation
    count     what turns attention into counted masks, for the scores
    stream    the three programs of `Segmenter.stream`: a frame's features, a first frame, a later frame

Every figure is compiled, not run. "moved" is what all operations read and write: on a TPU as its compiler counts, on-chip memory
included; on a GPU as `compiled_text.py` counts. FLOP are the compiler's on a TPU, a loop counted once, and on a GPU, whose compiler
counts none, those of the same program before it is compiled, its loops written out. `--record` keeps the rows in
benchmarks/recorded/ahead_of_time.json; `check.py` names what is worse there by more than 3 %.
"""

import argparse
import collections
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import absent_devices  # noqa: E402
from benchmarks.absent_devices import TARGETS  # noqa: E402

if __name__ == "__main__":  # before JAX is imported
    named = [x.partition("=")[2] for x in sys.argv[1:] if x.startswith("--target=")]
    absent_devices.prepare(named[-1] if named and named[-1] in TARGETS else "v5e")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from benchmarks.collectives import collectives  # noqa: E402
from benchmarks.compiled_text import Program  # noqa: E402
from benchmarks.train_step import unrolled_scans  # noqa: E402
from smoothsa_jax.config import image_size_of  # noqa: E402
from smoothsa_jax.errors import UserError  # noqa: E402
from smoothsa_jax.evaluation import counting  # noqa: E402
from smoothsa_jax.inference.segmenter import Segmenter  # noqa: E402
from smoothsa_jax.models.build import build_model  # noqa: E402
from smoothsa_jax.models.parameters import shapes_in_place, split  # noqa: E402
from smoothsa_jax.training.mesh import AXES, backend_of_mesh, replicated, spread  # noqa: E402
from smoothsa_jax.training.recognition import build_recognition  # noqa: E402
from smoothsa_jax.training.step import build_training  # noqa: E402

RECORDED = Path(__file__).resolve().parent / "recorded" / "ahead_of_time.json"
KIND = "ahead_of_time"
PROGRAMS = ("train", "predict", "count", "stream")
WHOLE_VIDEO = 24  # frames, where a config evaluates whole videos
# What makes a row; the rest of it are figures.
KEY = ("program", "config", "dtype", "target", "mesh", "batch")

Call = tuple[Callable, tuple[Any, ...]]  # a jitted function and the shapes that it is lowered for


# ------------------------------------------------------------------------------------------------------ the programs


def calls(config: ConfigDict, mesh: Mesh, batch: int, wanted: Sequence[str]) -> Iterator[tuple]:
    """(name, jitted function, shapes) of the wanted programs."""
    recognizes = "recognition" in config
    build = build_recognition if recognizes else build_training
    training = build(config, mesh, shapes_only=True)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))
    frames = config.eval.get("num_frames") or config.data.num_frames
    frames = WHOLE_VIDEO if frames == -1 else frames
    if "train" in wanted:
        inputs = batch_shapes(config, mesh, batch, config.data.num_frames)
        yield "train", training.train_step, (training.state, training.cast_frozen, inputs, key)
    if "predict" in wanted:
        inputs = batch_shapes(config, mesh, batch, frames)
        params = training.cast(training.state.params)
        yield "predict", training.predict_on, (mesh, params, training.cast_frozen, inputs, key)
    if "count" in wanted and not recognizes:
        yield "count", *count_call(config, mesh, training.grid, batch, frames)
    if "stream" in wanted and not recognizes:
        for name, call in stream_calls(config, mesh).items():
            yield f"stream: {name}", *call


def batch_shapes(config: ConfigDict, mesh: Mesh, batch: int, frames: int) -> dict[str, Any]:
    """What a program sees of a batch, spread over the mesh."""
    shapes = dict(cases.batch_shapes(config, batch))
    for name in ("video", "boxes"):
        (_, _, *rest), dtype = shapes[name]
        shapes[name] = ((batch, frames, *rest), dtype)
    if "recognition" in config:
        shapes["segmentations"] = ((batch, frames, *image_size_of(config)), jnp.uint8)
        shapes["categories"] = ((batch, config.data.max_objects), jnp.int32)
    place = spread(mesh)
    return {name: jax.ShapeDtypeStruct(*x, sharding=place) for name, x in shapes.items()}


def count_call(
    config: ConfigDict, mesh: Mesh, grid: tuple[int, int], batch: int, frames: int
) -> Call:
    slots, place = config.model.slot_attention.num_slots, spread(mesh)
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((batch, *sizes), dtype, sharding=place)  # noqa: E731
    return counting._counted, (
        shape(jnp.float32, frames, slots, grid[0] * grid[1]),
        shape(jnp.uint8, frames, *image_size_of(config)),
        shape(jnp.bool_, slots),
        shape(jnp.int32),
        grid,
        place,
        backend_of_mesh(mesh),
    )


def stream_calls(config: ConfigDict, mesh: Mesh) -> dict[str, Call]:
    """Of one frame, on one device."""
    _, trained, frozen = split(build_model(config.model, image_size_of(config), 0), config.dtype)
    segmenter = Segmenter(config, {**trained, **frozen}, backend=backend_of_mesh(mesh))
    whole = replicated(mesh)
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=whole)  # noqa: E731
    arrays = jax.eval_shape(segmenter.definition.cast, segmenter.params)
    arrays = shapes_in_place(arrays, {name: whole for name in arrays})
    slots, width = segmenter.num_slots, config.model.backbone.width
    features = shape(config.dtype, 1, segmenter.grid[0] * segmenter.grid[1], width)
    boxes = shape(jnp.float32, 1, 1, slots, 4) if segmenter.starts_from_boxes else None
    mask, key = shape(jnp.bool_, 1, slots), shape(jax.random.key(0).dtype)
    found = {
        "features": (
            segmenter._extract,
            (arrays, shape(jnp.uint8, *image_size_of(config), 3)),
        ),
        "first frame": (segmenter._first, (arrays, features, boxes, mask, key)),
    }
    if segmenter.follows:
        before = shape(jnp.float32, 1, slots, segmenter.slot_size)
        found["later frame"] = (segmenter._following, (arrays, features, before, mask))
    return found


# ------------------------------------------------------------------------------------------------------- the figures


def figures(
    function: Callable, shapes: tuple, target: str, flop: float | None
) -> tuple[dict[str, Any], Program]:
    """What the compiler plans for one call, and the program's text.

    Args:
        flop: of one call on one device, where the compiler counts none.
    """
    chip = TARGETS[target]
    begin = time.perf_counter()
    lowered = function.lower(*shapes)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    program = Program(text)
    operations = list(program.operations())
    if chip.platform == "tpu":
        flop, moved = cost["flops"], cost["bytes accessed"]
    else:
        moved = sum(x.moved for x in operations)
    sent = collections.Counter()
    for collective in collectives(text):
        sent[collective.kind] += collective.sent
    found = {
        "peak_gb": memory.peak_memory_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "moved_gb": moved / 1e9,
        "tflop": flop / 1e12,
        "operations": sum(x.times for x in operations),
        "sent_mb": {kind: size / 1e6 for kind, size in sorted(sent.items())},
        "ms_by_flop": 1e3 * flop / chip.flops,
        "ms_by_bandwidth": 1e3 * moved / chip.bandwidth,
        "lower_s": round(middle - begin, 1),
        "compile_s": round(end - middle, 1),
    }
    if chip.clock:
        found["ms_estimated"] = 1e3 * sum(x.cycles for x in operations) / chip.clock
    return found, program


def counted_flop(
    config: ConfigDict, batch: int, wanted: Sequence[str], devices: int
) -> dict[str, float]:
    """Of each program, for one of the devices that share a batch; counted on the same programs for a CPU."""
    mesh = Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1), AXES)
    found = {}
    for name, function, shapes in calls(config, mesh, batch, wanted):
        share = 1 if name.startswith("stream") else devices
        with unrolled_scans():
            found[name] = function.lower(*shapes).cost_analysis()["flops"] / share
    return found


def told(row: dict[str, Any]) -> str:
    """A row for people."""
    name = f"{row['program']}, {row['config']}, {row['dtype']}, {row['batch']} samples"
    estimate, counted = "", "kernels"
    if "ms_estimated" in row:
        estimate, counted = f", the compiler's estimate {row['ms_estimated']:.2f} ms", "operations"
    sent = ", ".join(f"{kind} {size:.1f} MB" for kind, size in row["sent_mb"].items()) or "nothing"
    return (
        f"{name}, {row['target']} {row['mesh']} (compiled, not run)\n"
        f"  peak memory {row['peak_gb']:.2f} GB, temporary {row['temporary_gb']:.2f} GB; "
        f"{row['operations']} {counted}; moved {row['moved_gb']:.2f} GB, {row['tflop']:.3f} TFLOP; sent: {sent}\n"
        f"  limit by FLOP {row['ms_by_flop']:.2f} ms, by bandwidth {row['ms_by_bandwidth']:.2f} ms{estimate}; "
        f"lowered in {row['lower_s']:.0f} s, compiled in {row['compile_s']:.0f} s"
    )


def largest(program: Program, count: int, by_cycles: bool) -> list[str]:
    """The groups of operations of one kind from one line that cost most."""
    groups = collections.defaultdict(lambda: [0, 0, 0])
    for x in program.operations():
        for at, value in enumerate((x.cycles if by_cycles else x.moved, x.times, x.moved)):
            groups[x.kind, x.line][at] += value
    rows = sorted(groups.items(), key=lambda pair: -pair[1][0])[:count]
    return [
        f"  {moved / 1e6:9.1f} MB {times:5d}x{f' {cycles / 1.5e6:7.3f} ms' * by_cycles}  {kind}, {line}"
        for (kind, line), (cycles, times, moved) in rows
    ]


def record(rows: Sequence[dict[str, Any]], path: Path = RECORDED) -> None:
    """Puts rows in the place of those with the same key."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    key = lambda row: tuple(row[name] for name in KEY)  # noqa: E731
    merged = {key(row): row for row in (*old, *rows)}
    ordered = [merged[name] for name in sorted(merged)]
    path.write_text(json.dumps({"kind": KIND, "rows": ordered}, indent=1) + "\n")


def versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def mesh_shape(text: str) -> tuple[int, int]:
    """Of a flag such as 1x16; argparse tells one that is not so."""
    data, fsdp = (int(x) for x in text.split("x"))
    return data, fsdp


def names_of_programs(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PROGRAMS)}")
    return names


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--programs", type=names_of_programs, default=list(PROGRAMS))
    parser.add_argument("--mesh", type=mesh_shape, help="data x fsdp, such as 8x1")
    parser.add_argument("--batch", type=int, help="samples; default: the recipe's on each device")
    parser.add_argument("--top", type=int, default=0, help="how many groups of operations to list")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--text", type=Path, help="a folder for the texts of the programs")
    parser.add_argument("--record", action="store_true")
    config, options = cases.arguments_of(parser, arguments)
    if missing := absent_devices.missing_plugin(options.target):
        raise UserError(missing)
    if "weights" in config.model.backbone:
        with config.unlocked():
            config.model.backbone.weights = "random"  # nothing here depends on their values
    jax.config.update("jax_enable_compilation_cache", False)
    shape = options.mesh or TARGETS[options.target].devices
    batch = options.batch or config.train.batch_size * shape[0] * shape[1]
    if batch % (shape[0] * shape[1]):
        raise UserError(
            f"--batch={batch} does not divide over the {shape[0]}x{shape[1]} devices; give a multiple of {shape[0] * shape[1]}"
        )
    mesh = absent_devices.mesh_of(options.target, shape)
    settings = [x.removeprefix("--config.") for x in arguments if x.startswith("--config.")]
    settings = [x for x in settings if not x.startswith(("dtype=", "model.backbone.weights="))]
    rows = []
    flop = {}
    if TARGETS[options.target].platform == "cuda":
        flop = counted_flop(config, batch, options.programs, devices=shape[0] * shape[1])
    for name, function, shapes in calls(config, mesh, batch, options.programs):
        found, program = figures(function, shapes, options.target, flop.get(name))
        row = {
            "program": name,
            "config": " ".join([config.name, *settings]),
            "dtype": config.dtype,
            "target": options.target,
            "mesh": f"{shape[0]}x{shape[1]}",
            "batch": 1 if name.startswith("stream") else batch,
            **found,
            "versions": versions(),
        }
        rows.append(row)
        print(told(row), flush=True)
        if options.top:
            print("\n".join(largest(program, options.top, TARGETS[options.target].clock > 0)))
        if options.text:
            options.text.mkdir(parents=True, exist_ok=True)
            file = "_".join(str(row[key]) for key in KEY).replace(" ", "_").replace(":", "")
            (options.text / f"{file}.txt").write_text(program.text)
        if options.record:
            record([row])
    if options.json:
        options.json.write_text(json.dumps({"kind": KIND, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    cases.run(main)
