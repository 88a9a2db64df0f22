"""Time prediction with a whole model, and measure its memory over a long video.

    python benchmarks/predict.py                                                # a CPU
    python benchmarks/predict.py --config.dtype=bfloat16 --batches=64,256,1024  # a GPU
    python benchmarks/predict.py --only=memory --workdir=runs/sprites_gaussian --video=2000

`batches`: frames a second from pixels to masks with configs/coco.py's model. Batches of pictures go
from the host's memory to the device, and the masks come back; all calls start before the first is
waited for. The figure is the best round.
`stream`: the time of one step of `Segmenter.stream` with configs/movi_c.py's model, from pixels in
the host's memory to masks, slots and attention. First frames do not count: they take more
iterations.
`memory`, with `--only=memory`: the memory of `main.py --mode=predict` over a video of drifting
sprites, read from /proc five times a second (Linux), without pages that belong to files. What
counts is how much it grows between a quarter of the frames and the end.

Any `--config.key=value` changes both models.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from benchmarks.clips import write_video
from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inputs.sprites import Sprites
from smoothsa_jax.training.step import Training

MEASUREMENTS = ("batches", "stream", "memory")
WARM_UP = 10  # frames of a stream before any counts


# -------------------------------------------------------------------------------------------- speed


def frames_per_second(training: Training, config: ConfigDict, size: int, rounds: int) -> float:
    """Return the best frames a second in batches of a size."""
    masks_of, key = cases.pixels_to_masks(training), jax.random.key(0)
    batch = cases.random_batch(config, size)
    masks = lambda: masks_of(training.state.params, training.frozen, training.place(batch), key)  # noqa: E731
    jax.device_get(masks())  # compiles
    jax.device_get(masks())
    begin = time.perf_counter()
    jax.device_get(masks())
    calls = max(2, min(50, round(1 / (time.perf_counter() - begin))))
    several = lambda: jax.device_get([masks() for _ in range(calls)])  # noqa: E731
    seconds = cases.times_of(several, rounds)
    return size * calls * batch["video"].shape[1] / min(seconds)


def seconds_of_frames(config: ConfigDict, count: int) -> list[float]:
    """Return the seconds of each frame of one stream, after those that compile."""
    training = cases.training_of(config)
    segmenter = Segmenter(config, {**training.state.params, **training.frozen})
    frames = np.random.default_rng(0).integers(0, 256, (8, *segmenter.image_size, 3), np.uint8)
    height, width = segmenter.image_size
    boxes = None
    if segmenter.starts_from_boxes:
        boxes = [[0, 0, width // 2, height // 2], [width // 3, height // 3, width - 1, height - 1]]
    times = [time.perf_counter()]
    stream = segmenter.stream(itertools.cycle(frames), boxes=boxes)
    for _ in itertools.islice(stream, count + WARM_UP):
        times.append(time.perf_counter())
    return list(np.diff(times)[WARM_UP:])


def tell_batches(config: ConfigDict, sizes: Sequence[int], rounds: int) -> int:
    """Print the speed in batches of each size; return 1 if one failed, else 0."""
    training, failed = cases.training_of(config), 0
    for size in sizes:
        what = f"{config.name}, {config.dtype}: batches of {size}"
        try:
            speed = frames_per_second(training, config, size, rounds)
            cases.tell(what, f"{speed:.1f} frames/s")
        except cases.TROUBLE as error:
            failed = 1
            cases.tell(what, "failed", cases.reason_of(error))
    return failed


def tell_stream(config: ConfigDict, frames: int) -> None:
    seconds = seconds_of_frames(config, frames)
    what = f"{config.name}, {config.dtype}: a frame of a stream"
    cases.tell(f"{what}, median", f"{1e3 * statistics.median(seconds):.2f} ms")
    cases.tell(f"{what}, 99th percentile", f"{1e3 * np.percentile(seconds, 99):.2f} ms")


# ------------------------------------------------------------------------------------------- memory


def write_long_video(path: Path, num_frames: int, scale: int = 4) -> None:
    """Write one clip of sprites, forward and backward again and again."""
    clip = Sprites(image_size=60, num_frames=24, split="test", boxes=False)[0]["video"]
    clip = clip.repeat(scale, axis=1).repeat(scale, axis=2)
    there_and_back = np.concatenate([clip, clip[::-1]])
    frames = itertools.islice(itertools.cycle(there_and_back), num_frames)
    write_video(path, frames, rate=24, preset="ultrafast")


def anonymous_memory(pid: int) -> float:
    """Return the MB that belong to a process alone, not to files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    return 0.0  # it has ended


def measure_memory(workdir: str, num_frames: int) -> dict[str, float]:
    """Run `main.py --mode=predict` on a long video and return how its memory grew."""
    with tempfile.TemporaryDirectory(prefix="smoothsa_jax_") as temporary:
        video, output = Path(temporary) / "long.mp4", Path(temporary) / "found"
        write_long_video(video, num_frames)
        command = [sys.executable, str(ROOT / "main.py"), "--mode=predict", f"--workdir={workdir}"]
        command += [f"--input={video}", f"--output={output}"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        labels = output / ".unfinished" / "new" / "labels"
        samples: list[tuple[int, float]] = []  # finished frames, MB
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

    def between(low: float, high: float) -> list[float]:
        return [mb for n, mb in samples if low * num_frames <= n < high * num_frames]

    # The last frame does not count: what is written after it (contact sheet, index of the video)
    # does not grow with the frames.
    return {
        "frames": finished,
        "seconds": round(seconds, 1),
        "mb_at_a_quarter": max(between(0.2, 0.25)),
        "mb_at_the_end": max(between(0.95, 1.0)),
        "mb_peak": max(mb for _, mb in samples),
    }


def tell_memory(workdir: str, num_frames: int, as_json: bool) -> None:
    found = measure_memory(workdir, num_frames)
    if as_json:
        print(json.dumps(found))
        return
    what = f"{Path(workdir).name}: {found['frames']} frames of a video"
    cases.tell(f"{what}, memory at a quarter", f"{found['mb_at_a_quarter']:.0f} MB")
    cases.tell(f"{what}, memory at the end", f"{found['mb_at_the_end']:.0f} MB")
    remark = f"in {found['seconds']} s"
    cases.tell(f"{what}, peak memory", f"{found['mb_peak']:.0f} MB", remark)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MEASUREMENTS, help="default: batches and stream")
    parser.add_argument("--batches", type=cases.numbers, default=[1, 8], help="such as 1,8")
    parser.add_argument("--frames", type=int, default=100, help="of the stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", default="sprites_gaussian", help="of the memory: its model")
    parser.add_argument("--video", type=int, default=10_000, help="of the memory: its frames")
    parser.add_argument("--json", action="store_true", help="of the memory: one line of JSON")
    images, options = cases.arguments_of(parser, arguments, "coco")
    failed = 0
    if options.only == "memory":
        tell_memory(options.workdir, options.video, options.json)
        return failed
    print(cases.machine())
    if options.only in (None, "batches"):
        failed = tell_batches(cases.without_weights(images), options.batches, options.rounds)
    if options.only in (None, "stream"):
        overrides = split_command_line(arguments)[0]
        video = config_from_command_line(overrides, cases.config_file("movi_c"))
        tell_stream(cases.without_weights(video), options.frames)
    return failed


if __name__ == "__main__":
    cases.run(main)
