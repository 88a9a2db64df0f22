"""Measures ours beside the same program in PyTorch (peer_torch/), eager and compiled, in one run.

    python benchmarks/against_peer.py --json=found.json
    python benchmarks/against_peer.py --cases train_coco image --rounds=9
    python benchmarks/against_peer.py --cases train_movi_c@64          another batch

Each side is a process of its own; they take turns, one measured while the others wait. Needs PyTorch. On a GPU ours computes in
bfloat16, PyTorch in float16 (the authors' way) and in bfloat16 by autocast; on a CPU all in float32.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from smoothsa_jax.config import load_config  # noqa: E402
from smoothsa_jax.errors import UserError, did_you_mean  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured. Batches: of the recipe where an accelerator trains, smaller on a CPU, where a step takes seconds."""

    recipe: str
    kind: str  # train or infer
    batch: int
    cpu_batch: int
    frames: int
    what: str


CASES = {
    "train_movi_c": Case("movi_c", "train", 8, 2, 6, "training step, MOVi-C"),
    "train_coco": Case("coco", "train", 32, 8, 1, "training step, COCO"),
    "train_ytvis": Case("ytvis", "train", 8, 2, 5, "training step, YouTube-VIS"),
    "images": Case("coco", "infer", 256, 8, 1, "images to masks"),
    "image": Case("coco", "infer", 1, 1, 1, "one image to masks"),
    "clips": Case("movi_c", "infer", 16, 2, 24, "clips to masks"),
    "clip": Case("movi_c", "infer", 1, 1, 24, "one clip to masks"),
}
CPU_SIDES = (("ours", "float32"), ("eager", "float32"), ("compiled", "float32"))
GPU_SIDES = (
    ("ours", "bfloat16"),
    ("eager", "float16"),
    ("eager", "bfloat16"),
    ("compiled", "bfloat16"),
)
# Dense FLOP a second in bfloat16, from the makers' data sheets.
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
GPU_FRACTION = "0.6"  # of the memory, for ours; the others share the rest


def make_config(case: Case, dtype: str, quick: bool) -> dict[str, Any]:
    config = load_config(f"{ROOT}/configs/{case.recipe}.py{':smoke' if quick else ''}")
    with config.unlocked():
        config.dtype = dtype
        config.model.backbone.weights = "random"  # the time does not depend on them
        config.mesh.data = 1
    return config.to_dict()


class Worker:
    """One side of a case, in its own process (one_side.py)."""

    def __init__(self, spec: dict[str, Any]):
        self.name = spec["side"]
        if spec["device"] == "gpu" and self.name != "ours":
            self.name += f" {spec['dtype']}"
        environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": GPU_FRACTION}
        if spec["device"] == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if self.name != "ours":  # not beside JAX: it would count the cores' threads twice
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
        # A stream: the time until its masks are there.
        self.each = spec["kind"] == "infer" and spec["batch"] == 1

    def wait_until_ready(self) -> None:
        self.ready = self._read()
        self.calls = max(1, min(100, round(ROUND_SECONDS / self.ready["seconds"])))

    def take_turn(self) -> None:
        self.process.stdin.write(json.dumps({"calls": self.calls, "each": self.each}) + "\n")
        self.process.stdin.flush()
        found = self._read()
        self.times.append(found["times"])
        self.peak_bytes = max(self.peak_bytes, found["peak_bytes"])

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(
                f"the process of {self.name} ended with status {self.process.wait()}; what it says stands above"
            )
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def figures(self) -> dict[str, Any]:
        calls = sorted(second for turn in self.times for second in turn)
        return {
            "median_seconds": statistics.median(map(statistics.median, self.times)),
            "best_seconds": calls[0],
            "p99_seconds": calls[min(len(calls) - 1, int(0.99 * len(calls)))],
            "calls": self.calls * len(self.times),
            "turns": [statistics.median(turn) for turn in self.times],
            "peak_bytes": self.peak_bytes,
            "each": self.each,
            "ready_seconds": self.ready["ready_seconds"],
            **self.ready["about"],
        }


def measure(name: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All sides of a case, in turns."""
    base, _, batch = name.partition("@")
    case = CASES[base]
    size = int(batch) if batch else case.cpu_batch if device == "cpu" else case.batch
    frames = case.frames
    if options.quick:
        size, frames = min(size, 2), min(frames, 3)
    workers = []
    try:
        for side, dtype in GPU_SIDES if device == "gpu" else CPU_SIDES:
            if side in options.sides:
                spec = {
                    "side": side,
                    "dtype": dtype,
                    "config": make_config(case, dtype, options.quick),
                    "kind": case.kind,
                    "batch": size,
                    "frames": frames,
                    "device": device,
                    "threads": options.threads,
                    "clock": options.clock,
                    "mode": options.compile_mode,
                    "whole": frames == 1 or options.compile_whole,
                }
                workers.append(Worker(spec))
                if device == "cpu":  # one after the other: few cores, and much memory to compile
                    workers[-1].wait_until_ready()
        if device == "gpu":
            for worker in workers:
                worker.wait_until_ready()
        for turn in range(options.rounds):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                time.sleep(options.pause)  # threads that still spin come to rest
                worker.take_turn()
    finally:
        for worker in workers:
            worker.close()
    sides = {worker.name: worker.figures() for worker in workers}
    flop = next((x["flop"] for x in sides.values() if "flop" in x), None)
    row = {"case": name, "what": case.what, "batch": size, "frames": frames, "flop": flop}
    return {**row, "image_size": spec["config"]["data"]["image_size"], "sides": sides} | ratios(
        sides
    )


def ratios(sides: dict[str, Any]) -> dict[str, Any]:
    """How many times as long as ours each other side takes: the median over turns that lie beside each other, and by the best calls."""
    if "ours" not in sides:
        return {"ratios": {}, "ratios_of_best": {}}
    mine = sides["ours"]
    others = {name: x for name, x in sides.items() if name != "ours"}
    paired = {
        name: statistics.median(a / b for a, b in zip(x["turns"], mine["turns"], strict=True))
        for name, x in others.items()
    }
    best = {name: x["best_seconds"] / mine["best_seconds"] for name, x in others.items()}
    return {"ratios": paired, "ratios_of_best": best}


def peak_of(device_name: str) -> float | None:
    """FLOP a second of an accelerator, None where it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def header(device: str, options: argparse.Namespace) -> dict[str, Any]:
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device,
        "machine": f"{processor()}, {options.threads} of {os.cpu_count()} CPU cores used",
        "load_before": os.getloadavg()[0],
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "torch")
        }
        | {"python": platform.python_version()},
        "rounds": options.rounds,
        "clock": options.clock,
    }
    if device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        shown = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        found["machine"] = f"{shown.strip()}, {found['machine']}"
    return found


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    measured = "" if found["device"] == "gpu" else " Not measured on a GPU."
    lines = [
        f"{found['machine']}; {versions}; {found['date']}; {found['rounds']} turns each, {found['clock']} time; "
        f"load {found['load_before']:.1f} before.{measured}",
        "",
    ]
    others = list(dict.fromkeys(name for row in found["rows"] for name in row["ratios"]))
    peak = peak_of(found["machine"]) if found["device"] == "gpu" else None
    heads = ["", "batch x frames", "ours, ms", *(f"{name}, ms" for name in others)]
    heads += [f"ours against {name}" for name in others] + ["peak memory, MB: ours"]
    heads += [*others, *(["MFU ours"] if peak else [])]
    lines += [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in found["rows"]:
        sides = row["sides"]
        names = ["ours", *others]
        cells = [row["what"], f"{row['batch']} x {row['frames']}"]
        cells += [milliseconds(sides[name]) if name in sides else "" for name in names]
        cells += [f"**{row['ratios'][name]:.2f}**" if name in sides else "" for name in others]
        cells += [
            f"{sides[name]['peak_bytes'] / 1e6:.0f}" if name in sides else "" for name in names
        ]
        if peak and row["flop"] and "ours" in sides:
            cells.append(f"{row['flop'] / sides['ours']['median_seconds'] / peak:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def milliseconds(side: dict[str, Any]) -> str:
    median = f"{1e3 * side['median_seconds']:.4g}"
    return f"{median} (p99 {1e3 * side['p99_seconds']:.4g})" if side["each"] else median


def find_device(asked: str) -> str:
    if asked != "auto":
        return asked
    code = "import torch; print('gpu' if torch.cuda.is_available() else 'cpu')"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


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
        help="processor, with --threads=1: what the CPU spends, also where other work runs beside",
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after them")
    parser.add_argument("--compile_mode", default="default", help="of torch.compile")
    parser.add_argument(
        "--compile_whole", action="store_true", help="clips as one program, not in parts"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models: does the script run?")
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
                f"--cases {name} is unknown: expected {', '.join(CASES)}, with @BATCH for another batch{did_you_mean(base, CASES)}"
            )
    device = find_device(options.device)
    if options.clock == "processor" and (device != "cpu" or options.threads != 1):
        raise UserError("--clock=processor counts what one core does: add --device=cpu --threads=1")
    found = header(device, options) | {"rows": []}
    start = time.perf_counter()
    for name in options.cases:
        begin = time.perf_counter()
        if begin - start > options.seconds:
            print(f"{name}: left out, --seconds={options.seconds:.0f} are over", file=sys.stderr)
            continue
        found["rows"].append(measure(name, options, device))
        line = ", ".join(f"{x:.2f}x {side}" for side, x in found["rows"][-1]["ratios"].items())
        print(f"{name}: {line} ({time.perf_counter() - begin:.0f} s)", file=sys.stderr, flush=True)
        if options.json:  # as far as it went
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
