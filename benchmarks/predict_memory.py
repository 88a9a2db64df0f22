"""Memory of `--mode=predict` over a long video: it should not grow with the number of frames.

    python benchmarks/predict_memory.py                       10,000 frames with the shipped model sprites_gaussian
    python benchmarks/predict_memory.py --frames=2000 --workdir=runs/gaussian --json

A video of sprites that drift is written first, then `main.py` is run on it, and its resident memory, without pages that
belong to files, is read from /proc five times a second (Linux). What counts is how much of it is added between a quarter of the frames
and their end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import av  # noqa: E402

from smoothsa_jax.inputs.sprites import Sprites


def write_video(path: Path, num_frames: int, scale: int = 4) -> None:
    """One clip of sprites, again and again, forwards and backwards."""
    clip = Sprites(image_size=60, num_frames=24, split="test", boxes=False)[0]["video"]
    clip = clip.repeat(scale, axis=1).repeat(scale, axis=2)
    there_and_back = np.concatenate([clip, clip[::-1]])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        for number in range(num_frames):
            pixels = there_and_back[number % len(there_and_back)]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def anonymous_memory(pid: int) -> float:
    """MB that belong to the process alone, not to files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    return 0.0  # it has ended


def measure(workdir: str, num_frames: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="smoothsa_jax_") as temporary:
        video, output = Path(temporary) / "long.mp4", Path(temporary) / "found"
        write_video(video, num_frames)
        command = [sys.executable, str(ROOT / "main.py"), "--mode=predict", f"--workdir={workdir}"]
        command += [f"--input={video}", f"--output={output}"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        labels = output / ".unfinished" / "new" / "labels"
        samples: list[tuple[int, float]] = []  # frames that are finished, MB
        os.set_blocking(process.stderr.fileno(), False)
        while process.poll() is None:
            process.stderr.read()  # the progress bar
            try:
                number, memory = len(os.listdir(labels)), anonymous_memory(process.pid)
            except OSError:  # not there yet, or finished
                number, memory = 0, 0.0
            if number and memory:
                samples.append((number, memory))
            time.sleep(0.2)
        if process.returncode:
            raise SystemExit(f"main.py ended with {process.returncode}")
        seconds = time.perf_counter() - start
        finished = len(list((output / "long.mp4" / "labels").iterdir()))
    # The last frame is left out: what is written behind it (sheet, index of the video) is no part of the growth.
    between = lambda low, high: [m for n, m in samples if low * num_frames <= n < high * num_frames]  # noqa: E731
    return {
        "frames": finished,
        "seconds": round(seconds, 1),
        "mb_at_a_quarter": max(between(0.2, 0.25)),
        "mb_at_the_end": max(between(0.95, 1.0)),
        "mb_peak": max(m for _, m in samples),
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="sprites_gaussian")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    found = measure(given.workdir, given.frames)
    if given.json:
        print(json.dumps(found))
        return 0
    print(
        f"{found['frames']} frames in {found['seconds']} s; {found['mb_at_a_quarter']:.0f} MB at a quarter of them, "
        f"{found['mb_at_the_end']:.0f} MB at the end, {found['mb_peak']:.0f} MB at most"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
