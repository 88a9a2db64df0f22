"""Time the input pipeline on one core, stage by stage, and the authors' way on the same frames.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --frames=jpeg --json

Clips of MOVi's size (24 frames of 256x256, 6 used) are drawn procedurally, written as frames and
label maps, and prepared by `data.prepare`; nothing is downloaded. Times are the processor's own
(all threads of this process), so other work on the machine matters little: 1 / time is what one
core delivers. All data are in the page cache.

The authors' way is rewritten after their public readers (see data/authors_lmdb.py): an LMDB record
is the pickled dict of a whole clip. `2025`: AVI, and all 24 frames are decoded before 6 are cut out
(MOVi of their version 3, to which the published scores belong). `2026`: PNG, and the 6 frames are
cut out before they are decoded. Then crop, resize, flip, normalize to float32, labels as one-hot
masks, and boxes from these. They resize with PyTorch; without it their resize is left out. So are
flow and depth, which are in each of their MOVi records and are read with it.
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2  # noqa: E402
import lmdb  # noqa: E402
import numpy as np  # noqa: E402

from data.family import Options  # noqa: E402
from data.prepare import prepare  # noqa: E402
from smoothsa_jax.devices.memory_allocator import keep_freed_memory
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.augment import draw_view, draw_window
from smoothsa_jax.inputs.encoded import EncodedClip, decode_frames, decode_labels, parse_clip
from smoothsa_jax.inputs.loader import training_batches
from smoothsa_jax.inputs.prepared import PreparedFolder
from smoothsa_jax.inputs.sprites import Sprites

try:
    import torch
except ModuleNotFoundError:
    torch = None

USED = 6  # frames of a clip
BATCH = 8
WANTED = 150  # clips a second that an accelerator may take
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
STAGES = ("read", "decode", "augment", "batch")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--frames", choices=("png", "jpeg", "uncompressed"), default="png")
    parser.add_argument("--clips", type=int, default=8, help="different clips")
    parser.add_argument("--rounds", type=int, default=4, help="times that all of them are read")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--length", type=int, default=24, help="frames of a clip")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    options = parser.parse_args(arguments)
    if options.clips % BATCH:
        raise UserError(
            f"--clips is {options.clips}; expected a multiple of {BATCH}, whole batches"
        )
    for key in ("clips", "rounds", "size", "length"):
        if getattr(options, key) < 1:
            raise UserError(f"--{key} is {getattr(options, key)}; expected at least 1")
    keep_freed_memory()  # as main.py does
    found = measure(options)
    print(json.dumps(found) if options.json else report(found))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a core for each stage of a clip, by pipeline."""
    source = Sprites(num_frames=options.length, num_samples=options.clips, image_size=options.size)
    clips = [source[i] for i in range(options.clips)]
    clips = [(clip["video"], clip["segmentations"]) for clip in clips]
    with tempfile.TemporaryDirectory() as folder:
        prepared = write_prepared(Path(folder), clips, options.frames)
        pipelines = {"ours": Ours(prepared, options.size)}
        for generation in ("2025", "2026"):
            if generation == "2025" and not _can_write_avi():
                continue
            pipelines[f"authors {generation}"] = Authors(Path(folder), clips, generation)
        # In turn, so that what else the machine does meets all alike.
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in pipelines}
        for number in range(options.rounds + 1):
            for name, pipeline in pipelines.items():
                times = pipeline.stages(np.random.default_rng(number))
                if number:  # the first round warms up
                    rounds[name].append(times)
        num_bytes = sum(p.stat().st_size for p in prepared.glob("*array_record*"))
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "frames": options.frames,
        "size": options.size,
        "length": options.length,
        "used": USED,
        "kilobytes_per_frame": num_bytes / options.clips / options.length / 1000,
        "torch": None if torch is None else torch.__version__,
        "milliseconds": {
            # The best round: a core that others use too takes longer for the same work.
            name: {stage: 1e3 * time for stage, time in min(times, key=_total).items()}
            for name, times in rounds.items()
        },
    }


def _total(stages: dict[str, float]) -> float:
    return sum(stages.values())


class Clock:
    """Processor seconds, summed by stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def __call__(self, stage: str, function: Callable, *arguments: Any) -> Any:
        begin = time.process_time()
        result = function(*arguments)
        self.seconds[stage] += time.process_time() - begin
        return result

    def of_each(self, count: int) -> dict[str, float]:
        return {stage: seconds / count for stage, seconds in self.seconds.items()}


# --------------------------------------------------------------------------------------------- ours


class Ours:
    """A prepared folder through the loader that trains."""

    def __init__(self, folder: Path, size: int):
        self._source = PreparedFolder(folder, image_size=size, num_frames=USED, max_objects=20)

    def stages(self, rng: np.random.Generator) -> dict[str, float]:
        source = self._source

        def read(index: int) -> EncodedClip:
            return parse_clip(source.records[index], "clip")

        def decode(index: int) -> None:
            clip = read(index)
            which = draw_window(rng, len(clip), USED)
            decode_frames(clip, which)
            decode_labels(clip, which)

        # Without threads nothing is prefetched, so the time of a batch is the time of its work.
        batches = training_batches(Long(source), BATCH, seed=0, num_threads=0, prefetch=0)
        next(batches)
        # Each does what those before it do, and more; a stage is the difference.
        up_to = {
            "read": self._of_each(read),
            "decode": self._of_each(decode),
            "augment": self._of_each(lambda index: source.draw(index, rng)),
            "batch": self._of_each(lambda index: index % BATCH or next(batches)),
        }
        batches.close()
        return {
            stage: up_to[stage] - up_to.get(before, 0.0)
            for before, stage in zip((None, *STAGES), STAGES, strict=False)
        }

    def _of_each(self, function: Callable[[int], Any]) -> float:
        """Processor seconds that `function` takes for a clip."""
        begin = time.process_time()
        for index in range(len(self._source)):
            function(index)
        return (time.process_time() - begin) / len(self._source)


class Long:
    """As many clips as MOVi-C has, by repetition: Grain shuffles few clips at a higher cost."""

    def __init__(self, source: PreparedFolder):
        self._source = source
        self.fingerprint = source.fingerprint

    def __len__(self) -> int:
        return 9750

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[index % len(self._source)]

    def epoch(self) -> np.ndarray:
        return np.arange(len(self))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self._source.draw(int(index) % len(self._source), rng)


def write_prepared(folder: Path, clips: list[tuple[np.ndarray, np.ndarray]], kind: str) -> Path:
    """Clips as files of frames and label maps, prepared as anyone's own folder is."""
    ending, parameters = (".png", [])
    if kind == "jpeg":
        ending, parameters = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 95])
    for number, (video, labels) in enumerate(clips):
        for part, pictures, end, how in (
            ("", video[..., ::-1], ending, parameters),
            ("labels/", labels, ".png", []),
        ):
            place = folder / "frames" / f"{part}{number:04d}"
            place.mkdir(parents=True)
            for t, picture in enumerate(pictures):
                data = cv2.imencode(end, picture, how)[1]
                (place / f"{t:04d}{end}").write_bytes(data.tobytes())
    options = Options(uncompressed=kind == "uncompressed", extra=(("holdout", 0.0),))
    with contextlib.redirect_stdout(sys.stderr):
        prepare("folder", str(folder / "frames"), folder / "prepared", options=options)
    return folder / "prepared"


# -------------------------------------------------------------------------------------- the authors


class Authors:
    """One LMDB record a clip, as their readers turn it into a batch."""

    def __init__(self, folder: Path, clips: list[tuple[np.ndarray, np.ndarray]], generation: str):
        self._generation, self._size = generation, clips[0][0].shape[1]
        file = folder / f"{generation}.lmdb"
        self._environment = lmdb.open(str(file), map_size=1 << 32, subdir=False)
        self._keys = [f"{i:06d}".encode() for i in range(len(clips))]
        with self._environment.begin(write=True) as transaction:
            for key, (video, labels) in zip(self._keys, clips, strict=True):
                transaction.put(key, pickle.dumps(self._record(video, labels)))

    def _record(self, video: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        if self._generation == "2025":
            return {"video": _avi(video), "segment": _avi(labels)}
        how = [cv2.IMWRITE_PNG_COMPRESSION, 9]
        how += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
        encode = lambda picture: cv2.imencode(".png", picture, how)[1]  # noqa: E731
        return {
            "video": [encode(frame) for frame in video],
            "segment": [encode(frame) for frame in labels],
            "s": labels.max(),
        }

    def stages(self, rng: np.random.Generator) -> dict[str, float]:
        clock, waiting = Clock(), []
        for key in self._keys:
            record = clock("read", self._read, key)
            video, labels = clock("decode", self._decode, record, rng)
            waiting.append(clock("augment", self._augment, video, labels, rng))
            if len(waiting) == BATCH:
                clock("batch", _padded, waiting)
                waiting = []
        if waiting:
            clock("batch", _padded, waiting)
        return clock.of_each(len(self._keys))

    def _read(self, key: bytes) -> dict[str, Any]:
        with self._environment.begin() as transaction:
            return pickle.loads(transaction.get(key))  # written here, a moment ago

    def _decode(self, record: dict, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self._generation == "2025":
            video, labels = _frames_of(record["video"]), _frames_of(record["segment"])
            start = int(rng.integers(max(1, len(video) // USED))) * USED
            return video[start : start + USED], labels[start : start + USED]
        start = int(rng.integers(max(1, len(record["video"]) // USED))) * USED
        decode = lambda data: cv2.imdecode(data, cv2.IMREAD_UNCHANGED)  # noqa: E731
        video = np.array([decode(data) for data in record["video"][start : start + USED]])
        labels = np.array([decode(data) for data in record["segment"][start : start + USED]])
        return video, labels

    def _augment(
        self, video: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        view = draw_view(rng, *video.shape[1:3])
        rows = slice(view.top, view.top + view.height)
        columns = slice(view.left, view.left + view.width)
        video, labels = video[:, rows, columns].transpose(0, 3, 1, 2), labels[:, rows, columns]
        video, labels = self._resize(video, "bilinear"), self._resize(labels, "nearest-exact")
        if view.flipped:
            video, labels = video[..., ::-1], labels[..., ::-1]
        video = (video - MEAN[:, None, None]) / STD[:, None, None]
        masks = labels[..., None] == np.arange(labels.max() + 1)
        masks = masks[..., masks.any(axis=(0, 1, 2))]
        return {"video": video, "segment": masks, "bbox": _boxes(masks[..., 1:])}

    def _resize(self, pictures: np.ndarray, mode: str) -> np.ndarray:
        if torch is None:
            return pictures
        from torch.nn.functional import interpolate

        values = torch.from_numpy(np.ascontiguousarray(pictures))
        values = values if mode == "bilinear" else values[:, None]
        antialias = {"antialias": True} if mode == "bilinear" else {}
        resized = interpolate(values, (self._size, self._size), mode=mode, **antialias).numpy()
        return resized if mode == "bilinear" else resized[:, 0]


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Return boxes (T,S,4) of masks (T,H,W,S), found by a search over all pixels of each mask."""
    frames, height, width, count = masks.shape
    flat = masks.transpose(1, 2, 0, 3).reshape(height, width, frames * count)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    low = [np.where(flat, place, np.inf).min(axis=(0, 1), initial=np.inf) for place in (x, y)]
    high = [np.where(flat, place, -np.inf).max(axis=(0, 1), initial=-np.inf) for place in (x, y)]
    boxes = np.stack([*low, *high], axis=1)
    boxes[~flat.any(axis=(0, 1))] = 0
    return (boxes.reshape(frames, count, 4) / (width, height, width, height)).astype(np.float32)


def _padded(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    most = max(sample["segment"].shape[3] for sample in samples)
    smallest = np.min([sample["video"].shape[2:] for sample in samples], axis=0)
    height, width = smallest  # without a resize crops differ in size; the smallest counts for all
    for sample in samples:
        more = most - sample["segment"].shape[3]
        sample["video"] = sample["video"][:, :, :height, :width]
        masks = sample["segment"][:, :height, :width]
        sample["segment"] = np.pad(masks, [(0, 0)] * 3 + [(0, more)])
        sample["bbox"] = np.pad(sample["bbox"], [(0, 0), (0, more), (0, 0)])
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def _can_write_avi() -> bool:
    try:
        import av

        av.codec.Codec("libx264rgb", "w")
    except (ModuleNotFoundError, ValueError):
        return False
    return True


def _avi(frames: np.ndarray) -> io.BytesIO:
    import av

    grey, buffer = frames.ndim == 3, io.BytesIO()
    with av.open(buffer, mode="w", format="avi") as container:
        stream = container.add_stream("ffv1" if grey else "libx264rgb", rate=12)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "gray" if grey else "rgb24"
        stream.options = {"level": "3", "coder": "1"}
        if not grey:
            stream.options = {"qp": "0", "tune": "fastdecode", "preset": "ultrafast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=stream.pix_fmt)))
        container.mux(stream.encode())
    buffer.seek(0)
    return buffer


def _frames_of(buffer: io.BytesIO) -> np.ndarray:
    import av

    with av.open(buffer, mode="r", format="avi") as container:
        return np.stack([frame.to_ndarray() for frame in container.decode(video=0)])


# ------------------------------------------------------------------------------------------- report


def report(found: dict[str, Any]) -> str:
    """The figures as lines for people."""
    lines = [
        f"{found['cores']} CPU cores, {found['processor']}, {found['date']}",
        f"clips of {found['length']} frames of {found['size']}x{found['size']}, {found['used']} "
        f"used; {found['frames']}, {found['kilobytes_per_frame']:.0f} kB a frame with its labels",
        "",
        f"{'ms of a core for a clip':<25}" + "".join(f"{stage:>9}" for stage in (*STAGES, "all")),
    ]
    totals = {name: _total(stages) for name, stages in found["milliseconds"].items()}
    for name, stages in found["milliseconds"].items():
        cells = "".join(f"{stages[stage]:>9.2f}" for stage in STAGES)
        lines.append(
            f"{name:<25}{cells}{totals[name]:>9.2f}   {1e3 / totals[name]:.1f} clips/s a core"
        )
    lines.append("")
    for name, total in totals.items():
        if name != "ours":
            lines.append(f"ours against {name}: {total / totals['ours']:.1f} times as fast")
    resize = f"PyTorch {found['torch']}" if found["torch"] else "left out: PyTorch is not installed"
    cores = WANTED * totals["ours"] / 1e3
    lines += [
        f"the authors' resize: {resize}; their flow and depth are left out",
        f"{WANTED} clips/s take {cores:.1f} such cores "
        f"(train.num_workers={int(np.ceil(cores))}), extrapolated from one",
    ]
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
