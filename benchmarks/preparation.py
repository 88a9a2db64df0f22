"""Time `python -m data.prepare` on miniatures of each family of downloads.

    python benchmarks/preparation.py
    python benchmarks/preparation.py coco ytvis_2021 --scale=4 --workers 1 2 8 --json

Prints samples, frames and MB of the download a second. The miniatures are made here, in the layout
of the downloads, with pictures of about the real size in pixels and bytes; docs/datasets.md derives
from their counts how long the real sets take. A run begins with no process and ends with the
finished folder, so it includes the start of the workers. CPU seconds, of all processes together,
say more than wall time where other work runs beside.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from tensorflow_datasets.proto import tf_example_pb2  # noqa: E402

from data import tfrecords, voc  # noqa: E402
from data.prepare import prepare  # noqa: E402

NUM_PICTURES = 16  # different ones; files repeat them


# --------------------------------------------------------------------------------------- miniatures


@functools.cache
def picture(index: int, height: int, width: int, noise: float = 6.0) -> np.ndarray:
    """Soft colours and some noise, which decides how well they compress: (H,W,3) of uint8."""
    rng = np.random.default_rng(index)
    small = rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(soft + rng.normal(0, noise, soft.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def jpeg(index: int, height: int, width: int) -> bytes:
    return encoded(picture(index, height, width), "JPEG", quality=95)


@functools.cache
def ellipses(index: int, height: int, width: int, count: int) -> np.ndarray:
    """Labels (H,W) of uint8: 0 and `count` ellipses, later ones over earlier ones."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:height, :width]
    found = np.zeros((height, width), np.uint8)
    for label in range(1, count + 1):
        centre, radius = rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.25, 2)
        inside = ((y / height - centre[0]) / radius[0]) ** 2
        found[inside + ((x / width - centre[1]) / radius[1]) ** 2 < 1] = label
    return found


@functools.cache
def png(index: int, height: int, width: int, noise: float = 6.0) -> bytes:
    return encoded(picture(index, height, width, noise))


@functools.cache
def label_png(index: int, height: int, width: int, count: int, value: int | None = None) -> bytes:
    """The labels of `ellipses` with a palette; all of one `value`, if given."""
    labels = ellipses(index, height, width, count)
    if value is not None:
        labels = np.where(labels > 0, value, 0).astype(np.uint8)
    image = Image.fromarray(labels)
    image.putpalette(bytes(range(256)) * 3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def write_tar(path: Path, contents: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def movi_c(folder: Path, count: int) -> int:
    """Write records of the real size, about 27 MB, with flow and depth, which are skipped."""
    frames, size, per_file = 24, 256, 10

    def record(index: int) -> bytes:
        rng = np.random.default_rng(index)
        labels = [ellipses(index + t, size, size, 8) for t in range(frames)]
        flow = rng.integers(20_000, 45_000, 2 * frames * size * size)
        deep = encoded(rng.integers(0, 65_536, (size, size)).astype(np.uint16))  # as normals are
        numbers = {
            "metadata/num_frames": [frames],
            "metadata/num_instances": [8],
            "instances/category": [0] * 8,
            "instances/visibility": [1] * 8 * frames,
            "instances/bbox_frames/ragged_row_lengths_0": [frames] * 8,
            "instances/bbox_frames/ragged_flat_values": list(range(frames)) * 8,
            "forward_flow": flow,
            "backward_flow": flow,
        }
        texts = {
            "metadata/video_name": [b"%05d" % index],
            "video": [encoded(picture(t % NUM_PICTURES, size, size)) for t in range(frames)],
            "segmentations": [encoded(label) for label in labels],
            "normal": [deep] * frames,
        }
        example = tf_example_pb2.Example()
        for name, values in numbers.items():
            example.features.feature[name].int64_list.value.extend(values)
        for name, values in texts.items():
            example.features.feature[name].bytes_list.value.extend(values)
        boxes = example.features.feature["instances/bboxes/ragged_flat_values"]
        boxes.float_list.value.extend([0.25] * 4 * 8 * frames)
        return example.SerializeToString()

    records = [record(index) for index in range(min(count, 4))]
    lengths = [min(per_file, count - start) for start in range(0, count, per_file)]
    for index, length in enumerate(lengths):
        name = f"movi_c-train.tfrecord-{index:05d}-of-{len(lengths):05d}"
        with open(folder / name, "wb") as file:
            for data in (records[i % len(records)] for i in range(length)):
                head = struct.pack("<Q", len(data))
                file.write(head + struct.pack("<I", tfrecords.masked_crc(head)))
                file.write(data + struct.pack("<I", tfrecords.masked_crc(data)))
    split = {"name": "train", "shardLengths": [str(n) for n in lengths], "numBytes": "0"}
    (folder / "dataset_info.json").write_text(json.dumps({"name": "movi_c", "splits": [split]}))
    (folder / "instances-category.labels.txt").write_text("Shoe\n")
    return count * frames


def coco(folder: Path, count: int) -> int:
    return _coco(folder, count, panoptic=True)


def coco_instances(folder: Path, count: int) -> int:
    return _coco(folder, count, panoptic=False)


def _coco(folder: Path, count: int, *, panoptic: bool) -> int:
    height, width, objects = 480, 640, 8
    names = [f"{index:012d}" for index in range(count)]
    images = [
        {"id": i, "file_name": f"{n}.jpg", "height": height, "width": width}
        for i, n in enumerate(names)
    ]
    write_zip(
        folder / "train2017.zip",
        {f"train2017/{n}.jpg": jpeg(i % NUM_PICTURES, height, width) for i, n in enumerate(names)},
    )
    category = [{"id": 1, "name": "person", "isthing": 1}]
    box = [10.0, 20.0, 30.0, 40.0]
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    annotations: list[dict[str, Any]] = []
    maps = {}
    for i, name in enumerate(names):
        if panoptic:
            labels = ellipses(i % NUM_PICTURES, height, width, objects)
            segments = [
                {"id": int(k) + 1000, "category_id": 1, "iscrowd": 0, "bbox": box}
                for k in np.unique(labels)
            ]
            annotations.append(
                {"image_id": i, "file_name": f"{name}.png", "segments_info": segments}
            )
            maps[f"panoptic_train2017/{name}.png"] = _panoptic_png(i % NUM_PICTURES, height, width)
            continue
        for k in range(objects):
            rng = np.random.default_rng(objects * i + k)
            x = np.clip(rng.uniform(60, width - 60) + rng.uniform(10, 60) * np.cos(angles), 0, 640)
            y = np.clip(rng.uniform(60, height - 60) + rng.uniform(10, 60) * np.sin(angles), 0, 480)
            polygon = np.stack([x, y], -1).round(2).reshape(-1).tolist()
            annotations.append(
                {
                    "id": objects * i + k,
                    "image_id": i,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": box,
                    "segmentation": [polygon],
                }
            )
    values = {"images": images, "annotations": annotations, "categories": category}
    kind = "panoptic" if panoptic else "instances"
    contents = {f"annotations/{kind}_train2017.json": json.dumps(values).encode()}
    if panoptic:
        write_zip(folder / "maps.zip", maps)
        contents["annotations/panoptic_train2017.zip"] = (folder / "maps.zip").read_bytes()
        (folder / "maps.zip").unlink()
    prefix = "panoptic_" if panoptic else ""
    write_zip(folder / f"{prefix}annotations_trainval2017.zip", contents)
    return count


@functools.cache
def _panoptic_png(index: int, height: int, width: int) -> bytes:
    ids = ellipses(index, height, width, 8).astype(np.int64) + 1000
    return encoded(np.stack([ids >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8))


def voc_images(folder: Path, count: int) -> int:
    height, width = 375, 500
    root = "VOCdevkit/VOC2012"
    contents = {}
    for i in range(count):
        index = i % NUM_PICTURES
        contents[f"{root}/JPEGImages/{i:06d}.jpg"] = jpeg(i % NUM_PICTURES, height, width)
        contents[f"{root}/SegmentationObject/{i:06d}.png"] = label_png(index, height, width, 3)
        contents[f"{root}/SegmentationClass/{i:06d}.png"] = label_png(index, height, width, 3, 15)
    names = "\n".join(f"{i:06d}" for i in range(count))
    contents[f"{root}/{voc.LIST_FOLDER}/trainval.txt"] = names.encode()
    write_tar(folder / "VOCtrainval_11-May-2012.tar", contents)
    return count


def clevrtex(folder: Path, count: int) -> int:
    """Five parts, each scene of six pictures, of which two are used."""
    height, width, parts = 240, 320, 5
    for part in range(parts):
        contents = {}
        for number in range(part * count // parts, (part + 1) * count // parts):
            index = number % NUM_PICTURES
            stem = f"clevrtex_full/{number // 1000}/CLEVRTEX_full_{number:06d}"
            contents[f"{stem}.png"] = png(index, height, width)
            contents[f"{stem}_flat.png"] = label_png(index, height, width, 6)
            for other in ("albedo", "depth_0001", "normal", "shadow"):
                contents[f"{stem}_{other}.png"] = png(index, height, width, 1.0)
        write_tar(folder / f"clevrtex_full_part{part + 1}.tar.gz", contents, "w:gz")
    return count


def ytvis(folder: Path, count: int) -> int:
    """Videos of 30 frames of 1280x720 with two objects."""
    height, width, frames = 720, 1280, 30
    videos, annotations, contents = [], [], {}
    masks = [ellipses(i, height, width, 2) for i in range(NUM_PICTURES)]
    texts = [[run_lengths(labels == k) for labels in masks] for k in (1, 2)]
    for v in range(count):
        files = [f"video{v:05d}/{5 * t:05d}.jpg" for t in range(frames)]
        for t, file in enumerate(files):
            contents[f"train/JPEGImages/{file}"] = jpeg((v + t) % NUM_PICTURES, height, width)
        videos.append({"id": v, "file_names": files, "height": height, "width": width})
        for rles in texts:
            annotations.append(
                {
                    "video_id": v,
                    "category_id": 1,
                    "segmentations": [rles[(v + t) % NUM_PICTURES] for t in range(frames)],
                    "bboxes": [[1, 2, 3, 4]] * frames,
                }
            )
    values = {
        "videos": videos,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    contents["train/instances.json"] = json.dumps(values).encode()
    write_zip(folder / "train.zip", contents)
    return count * frames


def davis(folder: Path, count: int) -> int:
    """Sequences of 70 frames of 854x480 with two objects."""
    height, width, frames = 480, 854, 70
    contents = {}
    for v in range(count):
        for t in range(frames):
            contents[f"DAVIS/JPEGImages/480p/s{v}/{t:05d}.jpg"] = jpeg(
                (v + t) % NUM_PICTURES, height, width
            )
            contents[f"DAVIS/Annotations/480p/s{v}/{t:05d}.png"] = label_png(
                (v + t) % NUM_PICTURES, height, width, 2
            )
    names = "\n".join(f"s{v}" for v in range(count))
    contents["DAVIS/ImageSets/2017/train.txt"] = names.encode()
    write_zip(folder / "DAVIS-2017-trainval-480p.zip", contents)
    return count * frames


# data set -> function that makes its miniature and returns the number of frames; its samples
KINDS: dict[str, tuple[Callable[[Path, int], int], int]] = {
    "movi_c": (movi_c, 40),
    "coco": (coco, 2000),
    "coco_instances": (coco_instances, 2000),
    "voc": (voc_images, 2000),
    "clevrtex": (clevrtex, 1000),
    "ytvis_2022": (ytvis, 64),
    "davis_2017": (davis, 64),
}

# ------------------------------------------------------------------------------------------- timing


def measure(name: str, samples: int, workers: Sequence[int]) -> dict[str, Any]:
    """Seconds of preparing one miniature with each number of workers, and its sizes in bytes."""
    make = KINDS[name][0]
    with tempfile.TemporaryDirectory(prefix="smoothsa_jax_") as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        frames = make(source, samples)
        seconds, cpu_seconds = {}, {}
        for count in workers:
            out = Path(temporary) / f"out{count}"
            start, cpu_start = time.perf_counter(), used_cpu()
            with contextlib.redirect_stdout(io.StringIO()):
                prepare(name, str(source), out, ("train",), workers=count)
            seconds[count] = time.perf_counter() - start
            cpu_seconds[count] = used_cpu() - cpu_start
        manifest = json.loads((out / "MANIFEST.json").read_text())
        prepared = manifest["splits"]["train"]["num_examples"]
        return {
            "samples": prepared,
            "frames": frames * prepared // samples,
            "source_bytes": sum(f.stat().st_size for f in source.rglob("*") if f.is_file()),
            "out_bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }


def used_cpu() -> float:
    """CPU seconds of this process and of those that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def line(name: str, found: dict[str, Any]) -> str:
    rates = "; ".join(
        f"{count} worker{'s' * (count > 1)}: {found['samples'] / seconds:.1f} samples/s, "
        f"{found['frames'] / seconds:.0f} frames/s, "
        f"{found['source_bytes'] / seconds / 1e6:.0f} MB/s ({seconds:.1f} s); "
        f"CPU {found['cpu_seconds'][count] / found['frames'] * 1e3:.1f} ms a frame"
        for count, seconds in found["seconds"].items()
    )
    return (
        f"{name}: {found['samples']} samples, {found['source_bytes'] / 1e6:.0f} MB -> "
        f"{found['out_bytes'] / 1e6:.0f} MB; {rates}"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(KINDS)}; default all")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many samples")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    results = {}
    for name in given.names or KINDS:
        results[name] = measure(name, max(5, round(KINDS[name][1] * given.scale)), given.workers)
        if not given.json:
            print(line(name, results[name]), flush=True)
    if given.json:
        load = os.getloadavg()[0]
        print(json.dumps({"cores": os.cpu_count(), "load": load, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
