"""Compare this program with the same program in PyTorch (peer_torch/), eager and compiled.

    python benchmarks/against_peer.py --json=found.json
    python benchmarks/against_peer.py --cases train_coco image --rounds=9
    python benchmarks/against_peer.py --cases train_movi_c@64          another batch

Each side runs in its own process; they take turns, and one is measured while the others wait. Needs
PyTorch. On a GPU ours computes in bfloat16, PyTorch in float16 (the authors' way) and in bfloat16
by autocast; on a CPU all compute in float32. Figures are printed after each case. A side that fails
is reported, the others continue, and the exit status is 1.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import cases  # noqa: E402
from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        kind: train, infer, or stream: one further frame, after the slots of the one before.
        batch: the recipe's.
        cpu_batch: on a CPU, where a step takes seconds.
    """

    recipe: str
    kind: str
    batch: int
    cpu_batch: int
    frames: int
    what: str


CASES = {
    "train_movi_c": Case("movi_c", "train", 8, 1, 6, "training step, MOVi-C"),
    "train_coco": Case("coco", "train", 32, 4, 1, "training step, COCO"),
    "train_ytvis": Case("ytvis", "train", 8, 1, 5, "training step, YouTube-VIS"),
    "images": Case("coco", "infer", 256, 8, 1, "images to masks"),
    "image": Case("coco", "infer", 1, 1, 1, "one image to masks"),
    "clips": Case("movi_c", "infer", 16, 2, 24, "clips to masks"),
    "clip": Case("movi_c", "infer", 1, 1, 24, "one clip to masks"),
    "stream": Case("movi_c", "stream", 1, 1, 1, "a frame of a stream to masks"),
}
# name -> program and the dtype it computes in
CPU_SIDES = {name: (name, "float32") for name in ("ours", "eager", "compiled")}
GPU_SIDES = {
    "ours": ("ours", "bfloat16"),
    "eager float16": ("eager", "float16"),
    "eager bfloat16": ("eager", "bfloat16"),
    "compiled bfloat16": ("compiled", "bfloat16"),
}
# Dense FLOP/s in bfloat16, from the data sheets.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
ROUND_SECONDS = 1.0  # a turn is as many calls as fit, at least one


def make_config(case: Case, dtype: str, quick: bool) -> dict[str, Any]:
    config = load_config(f"{ROOT}/configs/{case.recipe}.py{':smoke' if quick else ''}")
    with config.unlocked():
        config.dtype = dtype
        config.mesh.data = 1
    return cases.without_weights(config).to_dict()  # the time does not depend on them


def make_spec(
    name: str, case: Case, batch: int, device: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the specification for one side's process (one_side.py)."""
    side, dtype = (GPU_SIDES if device == "gpu" else CPU_SIDES)[name]
    return {
        "side": side,
        "dtype": dtype,
        "config": make_config(case, dtype, options.quick),
        "kind": case.kind,
        "batch": batch,
        "frames": case.frames,
        "device": device,
        "threads": options.threads,
        "clock": options.clock,
        "mode": options.compile_mode,
        "whole": case.frames == 1 or options.compile_whole,
    }


class Worker:
    """One side of a case, in its own process (one_side.py).

    Raises:
        UserError: from every method but `close`: the process ended, or was not ready in time.
    """

    def __init__(self, spec: dict[str, Any]):
        # All sides run at once: none reserves memory that it does not use.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if spec["device"] == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if spec["side"] != "ours":  # not for JAX, which would count the cores' threads twice
            environment["OMP_NUM_THREADS"] = str(spec["threads"])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("one_side.py")), json.dumps(spec)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.times: list[list[float]] = []
        self.peak_bytes = 0
        # One picture or clip after another: the time until its masks are ready.
        self.each = spec["kind"] != "train" and spec["batch"] == 1

    def wait_until_ready(self, patience: float) -> None:
        self.ready = self._read(patience)
        self.calls = max(1, min(100, round(ROUND_SECONDS / self.ready["seconds"])))

    def take_turn(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended: reported below
            self.process.stdin.write(json.dumps({"calls": self.calls, "each": self.each}) + "\n")
            self.process.stdin.flush()
        found = self._read()
        self.times.append(found["times"])
        self.peak_bytes = max(self.peak_bytes, found["peak_bytes"])

    def _read(self, patience: float | None = None) -> dict[str, Any]:
        if not select.select([self.process.stdout], [], [], patience)[0]:
            self.process.kill()
            raise UserError(
                f"it was not ready after {patience:.0f} s; give it more with --patience"
            )
        line = self.process.stdout.readline()
        if not line:
            raise UserError(
                f"its process ended with status {self.process.wait()}; its messages are above"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process; immediately if there is nothing to wait for."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def figures(self) -> dict[str, Any]:
        calls = sorted(second for turn in self.times for second in turn)
        return {
            "median_seconds": statistics.median(map(statistics.median, self.times)),
            "p99_seconds": calls[min(len(calls) - 1, int(0.99 * len(calls)))],
            "calls": self.calls * len(self.times),
            "turns": [statistics.median(turn) for turn in self.times],
            "peak_bytes": self.peak_bytes,
            "each": self.each,
            "ready_seconds": self.ready["ready_seconds"],
            **self.ready["about"],
        }


def measure(name: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Measure all sides of a case in turns; `failed` says why a side is missing."""
    base, _, batch = name.partition("@")
    case = CASES[base]
    size = int(batch) if batch else case.cpu_batch if device == "cpu" else case.batch
    if options.quick:
        size, case = min(size, 2), dataclasses.replace(case, frames=min(case.frames, 3))
    workers: dict[str, Worker] = {}
    failed: dict[str, str] = {}

    def attempt(names: Iterable[str], do: Callable[[str], None]) -> None:
        for side in list(names):
            try:
                do(side)
            except UserError as error:
                failed[side] = str(error)
                workers.pop(side).close()

    def begin(side: str) -> None:
        workers[side] = Worker(make_spec(side, case, size, device, options))
        workers[side].wait_until_ready(options.patience)

    def take_turn(side: str) -> None:
        time.sleep(options.pause)  # let spinning threads come to rest
        workers[side].take_turn()

    try:
        # One after the other: compilers choose kernels by timing them, and need cores and memory.
        attempt(sides_of(device, options), begin)
        for turn in range(options.rounds):
            attempt(workers if turn % 2 == 0 else reversed(workers), take_turn)
    finally:
        for worker in workers.values():
            worker.close()
    sides = {side: worker.figures() for side, worker in workers.items()}
    config = make_config(case, "float32", options.quick)
    quick = ", quick" if options.quick else ""  # compared with no other
    return {
        "case": f"{base}@{size}{quick}",
        "what": f"{case.what}{quick}",
        "batch": size,
        "frames": case.frames,
        "image_size": config["data"]["image_size"],
        "flop": next((x["flop"] for x in sides.values() if "flop" in x), None),
        "sides": sides,
        "ratios": ratios(sides),
        "failed": failed,
    }


def sides_of(device: str, options: argparse.Namespace) -> list[str]:
    """The names of the chosen sides."""
    all_sides = GPU_SIDES if device == "gpu" else CPU_SIDES
    return [name for name, (side, _) in all_sides.items() if side in options.sides]


def ratios(sides: dict[str, Any]) -> dict[str, float]:
    """Return each side's time by ours, the median over neighboring turns."""
    if "ours" not in sides:
        return {}
    mine = sides["ours"]["turns"]
    return {
        name: statistics.median(a / b for a, b in zip(side["turns"], mine, strict=True))
        for name, side in sides.items()
        if name != "ours"
    }


def peak_of(device_name: str) -> float | None:
    """Return an accelerator's FLOP/s, or None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def header(device: str, options: argparse.Namespace) -> dict[str, Any]:
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "machine": f"{cases.processor()}, {options.threads} of {os.cpu_count()} CPU cores used",
        "load_before": os.getloadavg()[0],
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "torch")
        }
        | {"python": platform.python_version()},
        "rounds": options.rounds,
        "clock": options.clock,
    }
    if device == "gpu":
        found["machine"] = f"{run_python(GPU_NAME)}, {found['machine']}"
    return found


def tell(row: dict[str, Any], peak: float | None) -> None:
    """Print the figures of a case, a line for each side.

    Args:
        peak: FLOP/s of the accelerator, if known.
    """
    for name, side in row["sides"].items():
        remarks = [f"{megabytes(side)} MB"]
        if side["each"]:
            remarks.insert(0, f"p99 {1e3 * side['p99_seconds']:.4g} ms")
        if name in row["ratios"]:
            remarks.insert(0, f"{row['ratios'][name]:.2f} times as long as ours")
        if name == "ours" and peak and row["flop"]:
            remarks.append(f"{row['flop'] / side['median_seconds'] / peak:.0%} of the peak")
        what = f"{row['what']}, {row['batch']} x {row['frames']}: {name}"
        cases.tell(what, f"{1e3 * side['median_seconds']:.4g} ms", ", ".join(remarks))
    for name, why in row["failed"].items():
        cases.tell(f"{row['what']}, {row['batch']} x {row['frames']}: {name}", "failed", why)


def table(found: dict[str, Any]) -> str:
    """Return all cases as a Markdown table."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    measured = "" if found["device"] == "gpu" else " Not measured on a GPU."
    lines = [
        f"{found['machine']}; {versions}; {found['date']}; {found['rounds']} turns each, "
        f"{found['clock']} time; load {found['load_before']:.1f} before.{measured}",
        "",
    ]
    others = list(dict.fromkeys(x for row in found["rows"] for x in row["sides"] if x != "ours"))
    peak = peak_of(found["machine"]) if found["device"] == "gpu" else None
    heads = ["", "batch x frames", "ours, ms", *(f"{name}, ms" for name in others)]
    heads += [f"{name} / ours" for name in others] + ["memory, MB: ours"]
    heads += [*others, *(["MFU ours"] if peak else [])]
    lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in found["rows"]:
        sides, ratio = row["sides"], row["ratios"]
        names = ["ours", *others]
        cells = [row["what"], f"{row['batch']} x {row['frames']}"]
        cells += [milliseconds(sides[name]) if name in sides else "" for name in names]
        cells += [f"**{ratio[name]:.2f}**" if name in ratio else "" for name in others]
        cells += [megabytes(sides[name]) if name in sides else "" for name in names]
        if peak and row["flop"] and "ours" in sides:
            cells.append(f"{row['flop'] / sides['ours']['median_seconds'] / peak:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def milliseconds(side: dict[str, Any]) -> str:
    median = f"{1e3 * side['median_seconds']:.4g}"
    return f"{median} (p99 {1e3 * side['p99_seconds']:.4g})" if side["each"] else median


def megabytes(side: dict[str, Any]) -> str:
    """Return the peak, and in brackets what the compiler plans for one call of ours."""
    planned = f" ({side['program_bytes'] / 1e6:.0f})" if "program_bytes" in side else ""
    return f"{side['peak_bytes'] / 1e6:.0f}{planned}"


JAX_DEVICE = "import jax; print(jax.default_backend())"
GPU_NAME = "import torch; print(torch.cuda.get_device_name())"
TORCH_DEVICE = "import torch; print('gpu' if torch.cuda.is_available() else 'cpu')"


def run_python(code: str) -> str:
    """Return what code prints in another process, so that this one takes no GPU memory.

    What it writes to standard error is shown above.
    """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return "no device" if done.returncode else done.stdout.strip()


def find_device(asked: str, sides: Sequence[str]) -> str:
    """Return the kind of device that all sides compute on.

    Raises:
        UserError: PyTorch or JAX sees no GPU where one is used.
    """
    if asked == "cpu":
        return asked
    device = run_python(TORCH_DEVICE)
    if asked == "gpu" and device != "gpu":
        raise UserError("--device=gpu: PyTorch sees no GPU; install its build for one, or use cpu")
    if device == "gpu" and "ours" in sides and (found := run_python(JAX_DEVICE)) != "gpu":
        raise UserError(
            f"PyTorch computes on a GPU and JAX on {found}; install smoothsa_jax[cuda13] and unset "
            "JAX_PLATFORMS, or use --device=cpu"
        )
    return device


def main(arguments: Sequence[str]) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE[@BATCH]")
    sides = ("ours", "eager", "compiled")
    parser.add_argument("--sides", nargs="+", default=sides, choices=sides)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--pause", type=float, default=0.3, help="seconds between turns")
    parser.add_argument("--threads", type=int, default=cores, help="cores that each side has")
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor, with --threads=1: processor time, which other programs disturb less",
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after that time")
    parser.add_argument(
        "--patience", type=float, default=900, help="seconds within which a side has to be ready"
    )
    parser.add_argument("--compile_mode", default="default", help="of torch.compile")
    parser.add_argument(
        "--compile_whole", action="store_true", help="compile clips as one program, not in parts"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the script")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("PyTorch is not installed: pip install torch==2.13.0") from None
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}; expected at least 1")
    for name in options.cases:
        base, _, batch = name.partition("@")
        if base not in CASES or (batch and not batch.isdigit()):
            raise UserError(
                f"--cases {name} is unknown: expected {', '.join(CASES)}, with @BATCH for another "
                f"batch{did_you_mean(base, CASES)}"
            )
    device = find_device(options.device, options.sides)
    if options.clock == "processor" and (device != "cpu" or options.threads != 1):
        raise UserError("--clock=processor counts what one core does: add --device=cpu --threads=1")
    found = header(device, options) | {"rows": []}
    peak = peak_of(found["machine"]) if device == "gpu" else None
    start = time.perf_counter()
    for name in options.cases:
        begin = time.perf_counter()
        if begin - start > options.seconds:
            print(f"{name}: left out, --seconds={options.seconds:.0f} have passed", file=sys.stderr)
            continue
        row = measure(name, options, device)
        found["rows"].append(row)
        tell(row, peak)
        print(f"{row['case']}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        if options.json:  # the figures so far
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{table(found)}")
    return int(any(row["failed"] for row in found["rows"]))


if __name__ == "__main__":
    cases.run(main)
