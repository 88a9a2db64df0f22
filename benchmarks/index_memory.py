"""Measure what the order of a training set costs: memory and time of its index.

    python benchmarks/index_memory.py
    python benchmarks/index_memory.py --samples 1000000

A prepared folder of so many samples is imitated: its description and manifest are real, its shards
are empty. The program's own source and loader then give batches in their shuffled order; only
reading and decoding are left out. Three kinds of folders: stills; videos of one length; and videos
of many lengths, of which long ones count more often in training (`data.repeat_frames`).

For each, in a process of its own: memory at the peak of opening and what stays (both above that of
the imports), bytes that each worker process is sent, processor seconds until the first batch, and
processor microseconds for a sample's place in the order.
"""

import argparse
import gc
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.repeats import distinct

KINDS = ("stills", "videos of one length", "videos of many lengths")
PER_SHARD = 10_000
FRAMES = 6  # of a training clip
BATCH, BATCHES = 64, 200


def imitate(folder: Path, kind: str, samples: int) -> None:
    """Write the description and the manifest of a prepared folder, and empty shards."""
    rng = np.random.default_rng(0)
    sizes = [min(PER_SHARD, samples - first) for first in range(0, samples, PER_SHARD)]
    shards = []
    for number, size in enumerate(sizes):
        file = f"big-train.array_record-{number:05d}-of-{len(sizes):05d}"
        (folder / file).touch()
        lengths = rng.integers(4, 40, size) if kind == KINDS[2] else np.full(size, 24)
        frames = [] if kind == "stills" else lengths.tolist()
        shards.append({"file": file, "num_examples": size, "sha256": "0" * 64, "frames": frames})
    manifest = {
        "metadata": {"kind": "stills" if kind == "stills" else "clips", "labelled": []},
        "splits": {"train": {"num_examples": samples, "shards": shards}},
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    lengths = [str(size) for size in sizes]
    described = {"name": "big", "splits": [{"name": "train", "shardLengths": lengths}]}
    (folder / "dataset_info.json").write_text(json.dumps(described))


class Unread(PreparedFolder):
    """A prepared folder of whose samples only the index is known."""

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"video": np.zeros((1, 1), np.uint8), "index": np.array(int(index))}


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(folder: Path, kind: str) -> dict[str, float]:
    """The figures of one folder; this process should have done nothing else."""
    gc.collect()
    before = resident()
    begin = time.process_time()
    source = Unread(
        folder,
        num_frames=1 if kind == "stills" else FRAMES,
        repeat_frames=FRAMES if kind == KINDS[2] else None,
        boxes=False,
        max_objects=1,
    )
    source.fingerprint(), distinct(source.epoch())  # a run begins so
    batches = training_batches(source, BATCH, seed=0, num_threads=0, prefetch=0)
    next(batches)
    opened = time.process_time() - begin
    gc.collect()
    begin = time.process_time()
    for _ in range(BATCHES):
        next(batches)
    each = (time.process_time() - begin) / BATCHES / BATCH
    return {
        "samples": len(source),
        "epoch": len(source.epoch()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
        "stays": resident() - before,
        "sent": len(pickle.dumps((source, source.epoch()))),
        "seconds": opened,
        "each": each,
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.folder:
        print(json.dumps(measure(given.folder, given.kind)))
        return 0
    print(f"{'':<24}{'samples':>12}{'epoch':>12}{'peak MB':>9}{'stays MB':>10}{'sent MB':>9}"
          f"{'seconds':>9}{'us each':>9}")  # fmt: skip
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            imitate(Path(name), kind, given.samples)
            command = [sys.executable, __file__, "--folder", name, "--kind", kind]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        print(
            f"{kind:<24}{found['samples']:>12,}{found['epoch']:>12,}{found['peak'] / 1e6:>9.1f}"
            f"{found['stays'] / 1e6:>10.1f}{found['sent'] / 1e6:>9.1f}{found['seconds']:>9.2f}"
            f"{1e6 * found['each']:>9.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
