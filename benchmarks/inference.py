"""Pixels to masks with the whole model: frames a second in batches, and the time of one frame in a stream.

    python benchmarks/inference.py                                                   # COCO's and MOVi-C's models, float32
    python benchmarks/inference.py --config.dtype=bfloat16 --batches=64,256,1024     # a GPU

`--config.key=value` changes both models. Batches of pictures go from the host's memory through configs/coco.py's model, and the
masks come back, all calls started before the first is waited for; the best of the rounds. A frame of a stream is
one step of `Segmenter.stream` with configs/movi_c.py's model: from the pixels in the host's memory until masks, slots and
attention are there. Its first frame, which has three iterations, is not counted.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from smoothsa_jax.config.load import config_from_command_line, split_command_line
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.training.step import Training

VIDEO = str(Path(__file__).resolve().parent.parent / "configs" / "movi_c.py")


def frames_per_second(training: Training, config: ConfigDict, size: int, rounds: int) -> float:
    """The most frames a second in batches of a size."""
    masks_of, key = cases.pixels_to_masks(training), jax.random.key(0)
    batch = cases.random_batch(config, size)
    masks = lambda: masks_of(training.state.params, training.frozen, training.place(batch), key)  # noqa: E731
    jax.device_get(masks())  # compiles
    jax.device_get(masks())
    begin = time.perf_counter()
    jax.device_get(masks())
    calls = max(2, min(50, round(1 / (time.perf_counter() - begin))))
    several = lambda: jax.device_get([masks() for _ in range(calls)])  # noqa: E731
    ((*seconds,),) = cases.in_turn([several], rounds, time.perf_counter)
    return size * calls * batch["video"].shape[1] / min(seconds)


def seconds_of_frames(config: ConfigDict, count: int) -> list[float]:
    """Of each frame of one stream behind the first ones, which compile."""
    training = cases.training_of(config)
    segmenter = Segmenter(config, {**training.state.params, **training.frozen})
    frames = np.random.default_rng(0).integers(0, 256, (8, *segmenter.image_size, 3), np.uint8)
    height, width = segmenter.image_size
    boxes = None
    if segmenter.starts_from_boxes:
        boxes = [[0, 0, width // 2, height // 2], [width // 3, height // 3, width - 1, height - 1]]
    times = [time.perf_counter()]
    stream = segmenter.stream(itertools.cycle(frames), boxes=boxes)
    for _ in itertools.islice(stream, count + 10):
        times.append(time.perf_counter())
    return list(np.diff(times)[10:])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=cases.numbers, default=[1, 8], help="such as 1,8")
    parser.add_argument("--frames", type=int, default=100, help="of the stream")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = ["--config.weights.encoder.source=random", *arguments]
    images, options = cases.arguments_of(parser, arguments, "coco")
    video = config_from_command_line(split_command_line(arguments)[0], VIDEO)
    print(cases.machine())
    training, failed = cases.training_of(images), False
    for size in options.batches:
        what = f"{images.name}, {images.dtype}: batches of {size}"
        try:
            speed = frames_per_second(training, images, size, options.rounds)
            cases.tell(what, f"{speed:.1f} frames/s")
        except cases.TROUBLE as error:
            failed = True
            cases.tell(what, "failed", cases.reason_of(error))
    seconds = seconds_of_frames(video, options.frames)
    what = f"{video.name}, {video.dtype}: a frame of a stream"
    cases.tell(f"{what}, median", f"{1e3 * statistics.median(seconds):.2f} ms")
    cases.tell(f"{what}, 99th percentile", f"{1e3 * np.percentile(seconds, 99):.2f} ms")
    return int(failed)


if __name__ == "__main__":
    cases.run(main)
