"""Miniatures of YouTube-VIS, HQ-YTVIS, DAVIS and MOVi in their original layouts, and results."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from data import tfrecords

HEIGHT, WIDTH = 24, 32
MOVI = Path(__file__).parent / "fixtures" / "movi_c"  # files as TFDS builds them
BUILD = Path("64x64") / "1.0.0"


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture, so that lossy formats stay near to it."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin((x + c * y + 7 * seed) / (9 + c)) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def palette_png(labels: np.ndarray) -> bytes:
    image = Image.fromarray(labels, "P")
    image.putpalette([(37 * k) % 256 for k in range(768)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


# ---------------------------------------------------------------------------------------------- RLE


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths down the columns, one pixel after the other."""
    counts, last = [0], False
    for value in mask.T.reshape(-1):
        if bool(value) != last:
            counts.append(0)
            last = bool(value)
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict:
    """COCO's string, from its definition: signed numbers, 5 bits a character, lowest first."""
    counts = uncompressed(mask)["counts"]
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return {"size": list(mask.shape), "counts": text}


# -------------------------------------------------------------------------------------- YouTube-VIS

KINDS = [{"id": 3, "name": "ape"}, {"id": 1, "name": "person"}, {"id": 7, "name": "zebra"}]


NAMES = ["person", "ape", "zebra"]  # in the order of the ids


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


class Videos:
    """A miniature of a split: `count` videos, the second of them without annotation."""

    def __init__(self, count: int, encode=uncompressed, seed: int = 0, num_frames: int = 3):
        self.frames: dict[str, bytes] = {}
        self.labels: dict[str, np.ndarray] = {}
        self.videos, self.annotations = [], []
        for v in range(count):
            name = f"{seed:02d}{v:02d}f3a9c1"
            files = [f"{name}/{5 * t:05d}.jpg" for t in range(num_frames)]
            for t, file in enumerate(files):
                self.frames[file] = encoded(picture(seed + 10 * v + t), "JPEG", quality=95)
            self.videos.append(
                {
                    "id": 100 + v,
                    "file_names": files,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "length": num_frames,
                }
            )
            if v == 1:
                continue
            labels = np.zeros((num_frames, HEIGHT, WIDTH), np.uint8)
            # The second object lies over a part of the first one, and is absent from the second
            # frame.
            first = [block(4 + t, 4, 10, 12) for t in range(num_frames)]
            second = [None if t == 1 else block(8, 10 + t, 10, 12) for t in range(num_frames)]
            for k, (masks, kind) in enumerate(((first, 3), (second, 7))):
                rles = [None if m is None else encode(m) for m in masks]
                boxes = [None if m is None else box_of(m) for m in masks]
                self.annotations.append(
                    {
                        "id": len(self.annotations) + 1,
                        "video_id": 100 + v,
                        "category_id": kind,
                        "iscrowd": 0,
                        "height": HEIGHT,
                        "width": WIDTH,
                        "segmentations": rles,
                        "bboxes": boxes,
                    }
                )
                for t, m in enumerate(masks):
                    if m is not None:
                        labels[t][m] = k + 1
            self.labels[name] = labels

    def json(self, **changes) -> bytes:
        values = {"videos": self.videos, "annotations": self.annotations, "categories": KINDS}
        return json.dumps({**values, **changes}).encode()

    def check(self, sample: dict) -> None:
        name = sample["name"]
        frames = [data for file, data in self.frames.items() if file.startswith(f"{name}/")]
        assert np.array_equal(sample["video"], np.stack([decoded(data) for data in frames]))
        assert np.array_equal(sample["segmentations"][..., 0], self.labels[name])
        assert sample["metadata"]["num_frames"] == len(frames)
        assert list(sample["categories"]) == [NAMES.index("ape"), NAMES.index("zebra")]
        expected = [4 / HEIGHT, 4 / WIDTH, 14 / HEIGHT, 16 / WIDTH]
        np.testing.assert_allclose(sample["bboxes"][0, 0], expected, atol=1e-6)
        assert sample["bboxes"].shape == (2, len(frames), 4) and not sample["bboxes"][1, 1].any()


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [
        float(columns[0]),
        float(rows[0]),
        float(len(columns)),
        float(len(rows)),
    ]


def prefixed(prefix: str, contents: dict[str, bytes]) -> dict[str, bytes]:
    return {prefix + name: data for name, data in contents.items()}


def ytvis_2022(folder: Path, layout: str, num_frames: int = 3) -> dict[str, Videos]:
    """As downloaded: valid's own json has no annotations, the ground truth is apart."""
    train, valid = Videos(4, num_frames=num_frames), Videos(3, seed=50, num_frames=num_frames)
    hidden = valid.json(annotations=None)
    trains = prefixed("train/JPEGImages/", train.frames)
    valids = prefixed("valid/JPEGImages/", valid.frames)
    if layout == "zip":
        write_zip(folder / "train.zip", {**trains, "train/instances.json": train.json()})
        write_zip(folder / "valid.zip", {**valids, "valid/instances.json": hidden})
        write_zip(folder / "validation_gt.zip", {"gt.json": valid.json()})
    elif layout == "zip without its folder, json beside":
        write_zip(folder / "train.zip", prefixed("JPEGImages/", train.frames))
        write_zip(folder / "valid.zip", prefixed("JPEGImages/", valid.frames))
        write(folder, {"train.json": train.json(), "valid.json": valid.json()})
    else:
        write(folder, {**trains, **valids})
        write(folder, {"train/instances.json": train.json(), "valid/instances.json": hidden})
        write(folder, {"valid/gt.json": valid.json()})
    return {"train": train, "validation": valid}


def hq_source(folder: Path) -> Path:
    """HQ-YTVIS with its frames beside its json files."""
    frames = {}
    for seed, short in ((0, "train"), (20, "val"), (40, "test")):
        videos = Videos(3, seed=seed, num_frames=6)
        write(folder, {f"ytvis_hq-{short}.json": videos.json()})
        frames |= videos.frames
    return write(folder, prefixed("JPEGImages/", frames))


# -------------------------------------------------------------------------------------------- DAVIS

SEQUENCES = {"train": ["bear", "dog-agility"], "val": ["camel"]}


def davis(year: int, labelling: str = "Annotations/480p") -> tuple[dict[str, bytes], dict]:
    """The files of a download, and the expected frames and labels of each sequence."""
    contents, drawn = {}, {}
    for split, sequences in SEQUENCES.items():
        lines = []
        for s, sequence in enumerate(sequences):
            frames, maps = [], []
            for t in range(3):
                frame = f"JPEGImages/480p/{sequence}/{t:05d}.jpg"
                label = f"{labelling}/{sequence}/{t:05d}.png"
                contents[frame] = encoded(picture(9 * s + t + year), "JPEG")
                labels = np.zeros((HEIGHT, WIDTH), np.uint8)
                labels[block(2 + t, 3, 9, 10)] = 1
                labels[block(12, 8 + t, 9, 10)] = 2 if year == 2017 else 1
                if year == 2017:
                    labels[0] = 255
                    contents[label] = palette_png(labels)
                elif t == 2:  # one of the official files has an alpha channel
                    grey_alpha = np.stack([255 * labels, np.full_like(labels, 255)], axis=-1)
                    contents[label] = encoded(grey_alpha, "PNG")
                else:
                    contents[label] = encoded(255 * labels if t else labels, "PNG")
                lines.append(f"/{frame} /{label}")
                frames.append(decoded(contents[frame]))
                maps.append(labels)
            drawn[sequence] = np.stack(frames), np.stack(maps)
        if year == 2017:
            contents[f"ImageSets/2017/{split}.txt"] = "\n".join([*sequences, ""]).encode()
        else:
            contents[f"ImageSets/480p/{split}.txt"] = "\n".join(lines).encode()
    return contents, drawn


# --------------------------------------------------------------------------------------------- MOVi


def movi_source(folder: Path, name: str) -> Path:
    """The miniature of MOVi-C as another MOVi's; A and B have shapes in place of categories."""
    key = "shape_label" if name in ("movi_a", "movi_b") else "category"
    folder.mkdir(parents=True)
    for path in (MOVI / BUILD).iterdir():
        target = folder / path.name.replace("movi_c", name).replace("category", key)
        if "tfrecord" not in path.name:
            target.write_text(path.read_text().replace("movi_c", name))
            continue
        examples = [tf_example_pb2.Example.FromString(r) for r in tfrecords.read_records(path)]
        for features in (example.features.feature for example in examples):
            if key != "category":
                features[f"instances/{key}"].CopyFrom(features["instances/category"])
                del features["instances/category"]
        write_records(target, [example.SerializeToString() for example in examples])
    return folder


def write_records(path: Path, records: list[bytes]) -> None:
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", tfrecords.masked_crc(length)))
            file.write(record + struct.pack("<I", tfrecords.masked_crc(record)))
