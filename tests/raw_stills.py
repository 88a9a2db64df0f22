"""Miniatures of COCO, VOC and ClevrTex in the layout of their downloads, and expected labels."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image
from test_rle import compressed, run_lengths

from data.features import NO_SEGMENT

HEIGHT, WIDTH = 24, 32


def picture(seed: int, kind: str = "JPEG", size=(HEIGHT, WIDTH)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(contents: dict[str, bytes], compression: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --------------------------------------------------------------------------------------------- COCO

PERSON, CAT, GRASS = 1, 17, 193


CATEGORIES = [
    {"id": PERSON, "name": "person", "supercategory": "person", "isthing": 1},
    {"id": CAT, "name": "cat", "supercategory": "animal", "isthing": 1},
    {"id": GRASS, "name": "grass-merged", "supercategory": "plant", "isthing": 0},
]


IDS = (1000, 66_000, 10_000_000, 70, 300)  # of more than one colour channel


def regions() -> list[tuple[slice, slice]]:
    """Where things, stuff and a crowd are in each image; what is left is not annotated."""
    return [
        (slice(0, 8), slice(0, 10)),
        (slice(8, 16), slice(4, 20)),
        (slice(16, 24), slice(0, 32)),
        (slice(0, 8), slice(20, 30)),
        (slice(8, 16), slice(20, 30)),
    ]


def segments() -> list[dict[str, Any]]:
    kinds = [(CAT, 0), (GRASS, 0), (GRASS, 0), (PERSON, 0), (PERSON, 1)]
    found = []
    for (rows, columns), segment_id, (category, crowd) in zip(regions(), IDS, kinds, strict=True):
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        found.append(
            {
                "id": segment_id,
                "category_id": category,
                "iscrowd": crowd,
                "bbox": box,
                "area": box[2] * box[3],
            }
        )
    return found


def panoptic_png(rows: int = HEIGHT) -> bytes:
    ids = np.zeros((rows, WIDTH), np.int64)
    for region, segment_id in zip(regions(), IDS, strict=True):
        ids[region] = segment_id
    return encoded(Image.fromarray(np.stack([ids >> s & 255 for s in (0, 8, 16)], -1).astype("u1")))


def panoptic_labels(crowd: int) -> np.ndarray:
    labels = np.full((HEIGHT, WIDTH), NO_SEGMENT, np.uint8)
    for region, label in zip(regions(), (1, 0, 0, 2, crowd), strict=True):
        labels[region] = label
    return labels


SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]


RIGHT = [20.0, 0.0, 28.0, 0.0, 28.0, 6.0, 20.0, 6.0]


def crowd_mask(index: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10 + index : 20, 5:25:2] = True
    return mask


def instances(index: int) -> list[dict[str, Any]]:
    counts = run_lengths(crowd_mask(index))
    size = [HEIGHT, WIDTH]
    crowd = {"size": size, "counts": counts if index % 2 else compressed(counts)}
    found = [
        {"category_id": PERSON, "segmentation": [SQUARE, RIGHT], "bbox": [2.0, 0, 26, 12]},
        {"category_id": PERSON, "segmentation": crowd, "bbox": [5, 10, 20, 10], "iscrowd": 1},
        {
            "category_id": CAT,
            "segmentation": [[8, 8, 16, 8, 16, 16, 8, 16]],
            "bbox": [8, 8, 8, 8],
        },
    ]
    return [{"iscrowd": 0, "id": 10 * index + k, **entry} for k, entry in enumerate(found)]


def instance_labels(index: int, crowd: int, cat: int) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:12, 2:12] = labels[0:6, 20:28] = 1
    labels[crowd_mask(index)] = crowd
    labels[8:16, 8:16] = cat
    return labels


COUNTS = {"train2017": 3, "val2017": 2}


def coco_contents() -> dict[str, dict[str, bytes]]:
    """The archives of COCO: name -> what is in it."""
    archives: dict[str, dict[str, bytes]] = {
        "panoptic_annotations_trainval2017.zip": {},
        "annotations_trainval2017.zip": {},
    }
    for stem, count in COUNTS.items():
        names = [f"{index + 7:012d}" for index in range(count)]
        archives[f"{stem}.zip"] = {
            f"{stem}/{n}.jpg": picture(100 * count + i) for i, n in enumerate(names)
        }
        images = [
            {"id": int(n), "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in names
        ]
        panoptic = [
            {"image_id": int(n), "file_name": f"{n}.png", "segments_info": segments()}
            for n in names
        ]
        drawn = [
            {"image_id": int(n), **entry} for i, n in enumerate(names) for entry in instances(i)
        ]
        common = {"info": {"year": 2017}, "licenses": [], "images": images}
        archives["panoptic_annotations_trainval2017.zip"].update(
            {
                f"annotations/panoptic_{stem}.json": json.dumps(
                    {**common, "annotations": panoptic, "categories": CATEGORIES}
                ).encode(),
                f"annotations/panoptic_{stem}.zip": zipped(
                    {f"panoptic_{stem}/{n}.png": panoptic_png() for n in names}
                    | {f"__MACOSX/panoptic_{stem}/._{n}.png": b"?" for n in names}
                ),
            }
        )
        archives["annotations_trainval2017.zip"][f"annotations/instances_{stem}.json"] = json.dumps(
            {**common, "annotations": drawn, "categories": CATEGORIES[:2]}
        ).encode()
    return archives


def coco_source(folder: Path, archives: dict[str, dict[str, bytes]] | None = None) -> Path:
    contents = archives or coco_contents()
    return write(folder, {name: zipped(inside) for name, inside in contents.items()})


# ---------------------------------------------------------------------------------------------- VOC

VOC_LISTS = {
    "VOC2012": {"train": ["2007_000032", "2008_000001"], "val": ["2009_000005"]},
    "VOC2007": {"train": ["000032"], "val": ["000039"], "test": ["000068"]},
}


BENCHMARK = ["2008_000001", "2009_000005", "2010_000011", "2011_000009"]


VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # of the first values


def voc_labels(gap: int = 2) -> np.ndarray:
    """Two objects, with their boundaries; the second has the value `gap`."""
    objects = np.zeros((HEIGHT, WIDTH), np.uint8)
    objects[2:10, 2:10] = 1
    objects[12:20, 4:20] = gap
    objects[10, 2:10] = objects[12:20, 3] = 255
    return objects


def palette_png(values: np.ndarray) -> bytes:
    image = Image.fromarray(values)
    image.putpalette(VOC_PALETTE + [0] * (255 * 3 - len(VOC_PALETTE)) + [224, 224, 192])
    assert image.mode == "P"
    return encoded(image)


def voc_classes() -> np.ndarray:
    """A dog (12) and a train (19), of whose pixels a few are of another class."""
    classes = np.where(voc_labels() == 1, 12, np.where(voc_labels() == 2, 19, 0)).astype(np.uint8)
    classes[2:10, 2:4] = 255
    classes[12:14, 4:20] = 7
    return classes


def voc_contents(year: str, lists: tuple[str, ...]) -> dict[str, bytes]:
    root = f"VOCdevkit/{year}"
    contents = {}
    for which in lists:
        names = VOC_LISTS[year][which]
        contents[f"{root}/ImageSets/Segmentation/{which}.txt"] = "\n".join([*names, ""]).encode()
        for name in names:
            contents[f"{root}/JPEGImages/{name}.jpg"] = picture(int(name[-4:]))
            contents[f"{root}/SegmentationObject/{name}.png"] = palette_png(voc_labels())
            contents[f"{root}/SegmentationClass/{name}.png"] = palette_png(voc_classes())
    if "val" in lists:
        both = sorted(VOC_LISTS[year]["train"] + VOC_LISTS[year]["val"])
        contents[f"{root}/ImageSets/Segmentation/trainval.txt"] = "\n".join(both).encode()
    if year == "VOC2012":  # SBD's images are of VOC2012, most without a segmentation there
        for name in BENCHMARK:
            contents[f"{root}/JPEGImages/{name}.jpg"] = picture(int(name[-4:]))
    return contents


def inst(objects: np.ndarray, classes: list[int]) -> bytes:
    buffer = io.BytesIO()
    instance = {"Segmentation": objects, "Categories": np.array(classes, np.uint8)[:, None]}
    scipy.io.savemat(buffer, {"GTinst": instance})
    return buffer.getvalue()


def sbd_labels() -> np.ndarray:
    return np.where(voc_labels() == 255, 0, voc_labels()).astype(np.uint8)


def sbd_contents() -> dict[str, bytes]:
    root = "benchmark_RELEASE/dataset"
    contents = {f"{root}/inst/{n}.mat": inst(sbd_labels(), [3, 20]) for n in BENCHMARK}
    one = np.minimum(sbd_labels(), 1)  # a single category is stored as a number, not a list
    contents[f"{root}/inst/{BENCHMARK[-1]}.mat"] = inst(one, [5])
    return {f"{root}/train.txt": b"2008_000001", f"{root}/cls/{BENCHMARK[0]}.mat": b"?", **contents}


def voc_source(folder: Path, **changes: dict[str, bytes]) -> Path:
    contents = {
        "VOCtrainval_11-May-2012.tar": voc_contents("VOC2012", ("train", "val")),
        "VOCtrainval_06-Nov-2007.tar": voc_contents("VOC2007", ("train", "val")),
        "VOCtest_06-Nov-2007.tar": voc_contents("VOC2007", ("test",)),
    }
    for inside in contents.values():
        inside.update({name: data for name, data in changes.items() if name in inside})
    benchmark = {"benchmark.tgz": tarred(sbd_contents(), "gz")}
    return write(folder, {name: tarred(inside) for name, inside in contents.items()} | benchmark)


# ----------------------------------------------------------------------------------------- ClevrTex

FULL = {part: [10 * part + k for k in range(10)] for part in range(1, 6)}


def scene_labels(index: int) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label in range(1, 2 + index % 4):
        labels[4 * label : 4 * label + 3, label : label + 9] = label
    return labels


def flat(index: int) -> bytes:
    """The label map as integers with a palette, as grey values or as colours."""
    labels = scene_labels(index)
    if index % 3 == 0:
        image = Image.fromarray(labels)
        image.putpalette([0, 0, 0, 200, 1, 0] + 3 * [7, 7, 7])  # its colours do not matter
        return encoded(image)
    if index % 3 == 1:
        return encoded(Image.fromarray(labels * 2))
    colours = np.array([[0, 0, 0], [200, 1, 0], [0, 0, 9], [255, 255, 255], [5, 0, 200]], np.uint8)
    return encoded(Image.fromarray(colours[labels]))


def rendered(index: int) -> bytes:
    """Of four channels, as the real ones are."""
    image = Image.open(io.BytesIO(picture(index, "PNG")))
    image.putalpha(255 if index % 2 else 100)
    return encoded(image)


def scenes(which: str, numbers: list[int]) -> dict[str, bytes]:
    contents = {}
    for place, number in enumerate(numbers):
        stem = f"clevrtex_{which}/{number // 1000}/CLEVRTEX_{which}_{number:06d}"
        files = {
            ".json": b"{}",
            "_depth_0001.png": picture(0, "PNG"),
            ".png": rendered(number),
            "_flat.png": flat(number),
        }
        # A tar has the files in the order of the disk that it was made on.
        for ending in sorted(files, reverse=place % 2 == 0):
            contents[f"{stem}{ending}"] = files[ending]
    return contents


def clevrtex_source(folder: Path, compression: str = "gz") -> Path:
    contents = {f"full_part{part}": scenes("full", numbers) for part, numbers in FULL.items()}
    contents |= {which: scenes(which, [0, 1, 2]) for which in ("outd", "camo")}
    ending = ".tar.gz" if compression else ".tar"
    tars = {f"clevrtex_{n}{ending}": tarred(inside, compression) for n, inside in contents.items()}
    return write(folder, tars)
