"""Time `--mode=predict --engine=ray`, follow its memory, and kill its nodes.

    python -m benchmarks.bulk speed      clips a second: plain predict, one worker, two workers
    python -m benchmarks.bulk memory     memory of driver and workers over many small pictures
    python -m benchmarks.bulk faults     the same rows after nodes were killed at random moments?
    python -m benchmarks.bulk hours      hours and bytes of a large corpus on GPUs, on paper

`speed`: plain predict is the real command; the engine runs on this machine's cores. Start and
compilation do not count: the figure is the number of clips behind the first output, over the time
from the first output to the last. `first output` is the time from the start to the first one.
`memory`: anonymous memory of the driver, and of the largest worker, after a quarter of the pictures
and at the end (Linux).
`faults`: a cluster of two nodes in this process (`ray.cluster_utils`). In each round the second one
is killed at a random moment of the run and a new one is added; the rows are compared with those of
an undisturbed run. With --work=store, `data.store` finds slots, and its files are compared.
`hours`: what runs on cores is measured here, a stage at a time, on one core and without the engine,
with clips, slots and masks of MOVi-C's size. What runs on the GPU is what its compiler plans
(`ahead_of_time.py`) for whole clips, at the peaks of the data sheet: a lower bound, since a worker
runs frame by frame and copies frames and results. Nothing overlaps inside a worker, which fills its
places, waits for the GPU and collects what it has found; stages overlap one another. Rates are
those of the workers, for which cores have to keep up.
"""

import argparse
import hashlib
import itertools
import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil
from PIL import Image

from benchmarks.clips import write_video
from data import store
from smoothsa_jax.bulk import corpus, parts, predict, reading, segmenting
from smoothsa_jax.bulk.cluster import connected, program
from smoothsa_jax.bulk.packing import packed, unpacked
from smoothsa_jax.config.load import load_config
from smoothsa_jax.inference import predict as plain
from smoothsa_jax.inference.load import SHIPPED
from smoothsa_jax.inference.side_by_side import Frames
from smoothsa_jax.inputs.scenes import Scenes

MODEL = "sprites_gaussian"


# ------------------------------------------------------------------------------------------- inputs


def write_pictures(folder: Path, number: int, size: int = 60) -> Path:
    """Write small pictures of smooth colors, 1,000 in a folder."""
    rng = np.random.default_rng(0)
    for i in range(number):
        inner = folder / f"{i // 1000:04d}"
        inner.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        # Squares are not evenly numbered, so the pictures are no video.
        Image.fromarray(small).resize((size, size)).save(inner / f"p{i % 1000 * (i % 1000)}.png")
    return folder


def write_clips(folder: Path, number: int, frames: int = 24, size: int = 64) -> Path:
    """Write clips of smooth colors."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(number):
        small = rng.integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
        large = (np.asarray(Image.fromarray(x).resize((size, size))) for x in small)
        write_video(folder / f"c{i:05d}.mp4", large)
    return folder


def run_engine(source: Path, output: Path, **options: Any) -> None:
    settings = plain.Options(MODEL, str(source), str(output))
    predict.predict(settings, predict.BulkOptions(max_errors=0, **options))


def rows_in(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """All rows by file and frame; none may be there twice."""
    import pyarrow.parquet as pq

    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted((folder / parts.PARTS).glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            key = row["file"], row["frame"]
            assert key not in found, f"{key} is there twice"
            found[key] = row
    return found


# -------------------------------------------------------------------------------------------- speed


def rate(times: list[tuple[float, int]], begin: float) -> tuple[float, float]:
    """Clips a second behind the first output, and seconds to the first one.

    Args:
        times: of each output, when it appeared and how many clips it holds.
        begin: when the run began.
    """
    times = sorted(times)
    clips = sum(count for _, count in times[1:])
    return clips / max(times[-1][0] - times[0][0], 1e-9), times[0][0] - begin


def speed(given: argparse.Namespace, folder: Path) -> None:
    clips = write_clips(folder / "clips", given.number, given.frames)
    begin = time.time()
    command = [sys.executable, str(ROOT / "main.py"), "--mode=predict", f"--workdir={MODEL}"]
    command += [f"--input={clips}", f"--output={folder / 'plain'}"]
    subprocess.run(command, check=True, capture_output=True)
    times = [(p.stat().st_mtime, 1) for p in (folder / "plain").glob("*/about.json")]
    base, first = rate(times, begin)
    print(f"plain predict     {base:8.2f} clips/s   first output after {first:6.1f} s", flush=True)
    for workers in (1, 2):
        output, begin = folder / f"workers_{workers}", time.time()
        parts.PART_WEIGHT = parts.VIDEO_WEIGHT * given.clips_of_part
        with connected(num_cpus=given.cores):
            run_engine(clips, output, workers=workers)
        files = (output / parts.PARTS).iterdir()
        times = [(p.stat().st_mtime, given.clips_of_part) for p in files]
        found, first = rate(times, begin)
        line = f"{workers} worker{'s' * (workers > 1)}          "[:18]
        told = f"{found:8.2f} clips/s   first output after {first:6.1f} s"
        print(f"{line}{told}   {found / base:.2f} of plain predict", flush=True)


# ------------------------------------------------------------------------------------------- memory


def memory_of(process: psutil.Process) -> int:
    """Anonymous memory in bytes: without pages of files and of the object store."""
    info = process.memory_info()
    return info.rss - info.shared


def memory(given: argparse.Namespace, folder: Path) -> None:
    pictures, output = folder / "pictures", folder / "found"
    write_pictures(pictures, given.pictures)
    me, stop = psutil.Process(), threading.Event()
    seen: list[tuple[int, float, float]] = []

    def watch() -> None:
        while not stop.wait(1.0):
            done = len(list((output / parts.PARTS).glob("part-*"))) * parts.PART_WEIGHT
            workers = [0]
            for child in me.children(recursive=True):
                try:
                    if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::"):
                        workers.append(memory_of(child))
                except psutil.Error:
                    continue
            seen.append((done, memory_of(me) / 2**20, max(workers) / 2**20))

    watcher, begin = threading.Thread(target=watch), time.time()
    watcher.start()
    run_engine(pictures, output)
    stop.set()
    watcher.join()
    print(f"{given.pictures} pictures in {time.time() - begin:.0f} s")
    for share in (0.25, 0.5, 1.0):
        rows = [x for x in seen if x[0] <= share * given.pictures and x[0] > 0]
        if rows:
            done, driver, worker = rows[-1]
            print(f"{done:8d} done: driver {driver:7.0f} MiB, largest worker {worker:7.0f} MiB")


# ------------------------------------------------------------------------------------------- faults


class Bulk(NamedTuple):
    """Work on the cluster that loses its nodes.

    Attributes:
        do: writes a folder.
        found: what is compared, of a folder.
    """

    do: Callable[[Path], None]
    found: Callable[[Path], dict[Any, Any]]


def prediction(given: argparse.Namespace, folder: Path) -> Bulk:
    source = write_clips(folder / "clips", given.number, frames=6)
    parts.PART_WEIGHT = 2 * parts.VIDEO_WEIGHT
    return Bulk(lambda output: run_engine(source, output, places=2), rows_in)


def storing(given: argparse.Namespace, folder: Path) -> Bulk:
    store.SLOT_SHARD_BYTES = 1  # a clip in a shard
    config = load_config("configs/sprites.py:gaussian,dynamics").unlock()
    config.companions.slot_model.source = str(SHIPPED / MODEL)
    config.data.num_samples = given.number
    config.eval.update(validation_samples=1, num_samples=1)
    config.lock()

    def do(output: Path) -> None:
        with connected() as cluster:
            store.store(config, output, cluster=cluster)

    def found(output: Path) -> dict[str, str]:
        files = [*output.glob("*array_record*"), *output.glob("*.json")]
        return {x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in files}

    return Bulk(do, found)


WORKS: dict[str, Callable[[argparse.Namespace, Path], Bulk]] = {
    "predict": prediction,
    "store": storing,
}


def faults(given: argparse.Namespace, folder: Path) -> int:
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    work = WORKS[given.work](given, folder)
    memory = {"object_store_memory": 200 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, **memory},
    )
    ray.init(address=cluster.address, namespace="smoothsa_jax", log_to_driver=False)
    node = cluster.add_node(num_cpus=1, **memory)
    work.do(folder / "first")  # compiles
    begin = time.time()
    work.do(folder / "undisturbed")
    lasts, expected = time.time() - begin, work.found(folder / "undisturbed")
    what = "rows" if given.work == "predict" else "files"
    print(f"undisturbed: {len(expected)} {what} in {lasts:.0f} s", flush=True)
    chance, same = random.Random(given.seed), 0
    for number in range(given.rounds):
        moment, output = chance.uniform(0.1, 0.9) * lasts, folder / f"round_{number}"
        begin = time.time()
        killer = threading.Timer(moment, lambda node=node: cluster.remove_node(node, False))
        killer.start()
        work.do(output)
        took = time.time() - begin
        killer.join()
        found = work.found(output)
        same += found == expected
        said = f"the same {what}" if found == expected else f"{len(found)} other {what}"
        late = "" if moment < took else ", after the end"
        print(f"round {number}: killed at {moment:.0f} s{late}, {said} in {took:.0f} s", flush=True)
        node = cluster.add_node(num_cpus=1, **memory)
    print(f"{same} of {given.rounds} rounds gave the same {what}")
    ray.shutdown()
    cluster.shutdown()
    return int(same != given.rounds)


# -------------------------------------------------------------------------------------------- hours

# docs/measurements.md, "Compiled, not run": movi_c, predict, a batch of 8 clips of 24 frames.
PLANNED_FRAMES, PLANNED_TFLOP, PLANNED_GB = 8 * 24, 3.308, 27.69
PEAK_TFLOP, PEAK_GB = 989.0, 3350.0  # of an H100 SXM: bfloat16 without sparsity, memory; a second
SIZE, GRID, SLOTS, SLOT_SIZE = 256, 16, 11, 256
CORES = 14, 24  # for each GPU, in machines of 8: 112 and 192


def write_scenes(folder: Path, number: int, frames: int) -> Path:
    """Write clips of the embedded 3D scenes at MOVi-C's size."""
    folder.mkdir(parents=True)
    clips = Scenes(image_size=SIZE, num_frames=frames, max_objects=9, split="test", moving=1.0)
    for index in range(number):
        write_video(folder / f"c{index:05d}.mp4", clips[index]["video"])
    return folder


class Found:
    """In place of `SideBySide`: what a GPU would give, at once. Objects are round and rest."""

    def __init__(self, places: int, frames: int):
        rng = np.random.default_rng(0)
        centers = rng.random((places, SLOTS, 2)) * GRID
        y, x = np.mgrid[:GRID, :GRID]
        apart = (y - centers[..., :1, None]) ** 2 + (x - centers[..., 1:, None]) ** 2
        shares = np.exp(-apart / 8).astype(np.float32)
        slots = rng.standard_normal((frames, places, SLOTS, SLOT_SIZE), dtype=np.float32)
        rest = np.ones((places, SLOTS), bool), np.zeros(places, bool)
        self._given = itertools.cycle([Frames(one, shares, *rest) for one in slots])

    def __call__(self, frames: np.ndarray, begins: np.ndarray) -> Frames:
        return next(self._given)


def hours(given: argparse.Namespace, folder: Path) -> None:
    """Print the time of each stage of a frame, and what follows for a corpus."""
    if given.number * given.frames * SIZE**2 * 3 > reading.MOST_BYTES:
        sys.exit(
            "--number times --frames: more than one part holds, and decoding would be elsewhere"
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    scenes = write_scenes(folder / "scenes", given.number, given.frames)
    items = corpus.find(str(scenes)).items
    row = {"part": 0, "data": pickle.dumps(list(items))}
    worker = segmenting.Worker.__new__(segmenting.Worker)
    worker.image_size, worker._masks = (SIZE, SIZE), None
    worker._places = segmenting.PLACES_OF_ACCELERATORS
    worker._step = Found(worker._places, 2 * given.frames)
    (folder / "out" / parts.PARTS).mkdir(parents=True)
    write = {
        masks: parts.Write(str(folder / "out"), 1, 0, (SLOTS, SLOT_SIZE), masks, program())
        for masks in (None, "rle")
    }
    number, taken = given.number * given.frames, {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        run()  # imports, and starts the decoder
        begin = time.perf_counter()
        found = run()
        taken[name] = (time.perf_counter() - begin) / number
        return found

    def size_of(inner: Path) -> int:
        return sum(x.stat().st_size for x in inner.iterdir())

    def segment(data: bytes) -> bytes:
        return packed(worker(unpacked(data)))

    read = timed("decoding", lambda: reading.Read((SIZE, SIZE), program())(row))
    found = timed("places filled, results collected", lambda: segment(read["data"]))
    result = {"part": 0, "data": found}
    timed("masks as RLE as well", lambda: write["rle"](result))
    timed("boxes, areas, Parquet", lambda: write[None](result))
    written = size_of(folder / "out" / parts.PARTS)
    planned = max(PLANNED_TFLOP / PEAK_TFLOP, PLANNED_GB / PEAK_GB) / PLANNED_FRAMES
    print("| of a frame | microseconds |\n| --- | --- |")
    for name, seconds in taken.items():
        print(f"| {name}, one core | {seconds * 1e6:.0f} |")
    print(f"| GPU, planned | {planned * 1e6:.0f} |")
    sizes = {
        "file": size_of(scenes),
        "decoded frames": len(read["data"]),
        "slots and small masks": len(found),
        "Parquet": written,
    }
    print("\n| of a clip | kB | of the corpus, TB |\n| --- | --- | --- |")
    for name, size in sizes.items():
        size /= given.number
        print(f"| {name} | {size / 1e3:.0f} | {given.corpus * size / 1e12:.2f} |")
    in_worker = planned + taken["places filled, results collected"]
    on_cores = taken["decoding"] + taken["boxes, areas, Parquet"]
    head = ["GPUs", "GPUs alone, h", "workers, h", *(f"{n} cores a GPU, h" for n in CORES)]
    head += ["cores that keep up", "read, GB/s", "between stages, GB/s", "written, GB/s"]
    print("\n| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for gpus in (8, 64, 512):
        frames = given.corpus * given.frames / gpus
        each = [planned, in_worker, *(max(in_worker, on_cores / n) for n in CORES)]
        line = [f"{frames * x / 3600:.2f}" for x in each]
        rate = given.corpus / (frames * in_worker) / given.number / 1e9
        moved = sizes["file"], sizes["decoded frames"] + sizes["slots and small masks"], written
        line += [f"{gpus * on_cores / in_worker:.0f}", *(f"{rate * x:.1f}" for x in moved)]
        print(f"| {gpus} | " + " | ".join(line) + " |")


WHAT: dict[str, Callable[[argparse.Namespace, Path], int | None]] = {
    "speed": speed,
    "memory": memory,
    "faults": faults,
    "hours": hours,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--number", type=int, default=32, help="clips")
    parser.add_argument("--frames", type=int, default=24, help="of a clip, for speed")
    parser.add_argument("--clips_of_part", type=int, default=4, help="for speed")
    parser.add_argument("--cores", type=int, default=2, help="of the engine, for speed")
    parser.add_argument("--pictures", type=int, default=100_000, help="for memory")
    parser.add_argument("--rounds", type=int, default=10, help="of faults")
    parser.add_argument("--work", choices=WORKS, default="predict", help="for faults")
    parser.add_argument("--corpus", type=int, default=10_000_000, help="clips, for hours")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return WHAT[given.what](given, Path(folder)) or 0


if __name__ == "__main__":
    sys.exit(main())
