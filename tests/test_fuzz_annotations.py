"""Every value of an annotation file may be wrong: the file is read, or refused in one line."""

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_clips import Videos, prefixed, write
from raw_stills import coco_contents

from data.families import family_of
from data.family import SPLITS, Options
from data.finished import digest_of, settings_of
from data.shards import serializer
from smoothsa_jax.errors import UserError

WRONG = (None, True, -1, 0.5, 10**30, float("nan"), float("inf"), "x", "\ud800", [], {})
Keys = tuple[Any, ...]


def read_all(name: str, source: Path) -> int:
    """Do what preparing does, but write nothing; return the number of samples."""
    family = family_of(name, Options())(name, str(source), Options())
    plan = family.plan(SPLITS)
    settings_of(name, Options(), plan)
    serialize = serializer(plan.features)
    count = 0
    for job in plan.jobs:
        digest_of(job)
        for item in family.items(job):
            serialize(family.example(item))
            count += 1
    return count


def coco(folder: Path, name: str) -> tuple[Path, Path, dict[str, Any]]:
    """An unpacked source with one image; its JSON file, and the contents of that."""
    kind = {"coco": "panoptic", "coco_instances": "instances"}[name]
    archives = coco_contents()
    file = f"annotations/{kind}_train2017.json"
    contents = json.loads(next(a for a in archives.values() if file in a)[file])
    (image, *_) = contents["images"]
    contents["images"] = [image]
    contents["annotations"] = [a for a in contents["annotations"] if a["image_id"] == image["id"]]
    write(folder, {k: v for k, v in archives["train2017.zip"].items() if image["file_name"] in k})
    if kind == "panoptic":
        inside = archives["panoptic_annotations_trainval2017.zip"]
        with zipfile.ZipFile(io.BytesIO(inside["annotations/panoptic_train2017.zip"])) as maps:
            write(folder / "annotations", {n: maps.read(n) for n in maps.namelist()})
    return folder, folder / file, contents


def ytvis(folder: Path, name: str) -> tuple[Path, Path, dict[str, Any]]:
    videos = Videos(1, num_frames=2)
    write(folder, prefixed("train/JPEGImages/", videos.frames))
    return folder, folder / "train/instances.json", json.loads(videos.json())


MAKERS = {"coco": coco, "coco_instances": coco, "ytvis_2021": ytvis}


def places(value: Any, above: Keys = ()) -> Iterator[Keys]:
    """Where the values of a JSON are; of lists, the first and the last entry."""
    if above:
        yield above
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*above, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*above, index))


def changed(contents: Any, keys: Keys, value: Any, removed: bool = False) -> Any:
    whole = copy.deepcopy(contents)
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    if removed:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return whole


@pytest.mark.parametrize("name", MAKERS)
def test_a_wrong_value_is_read_or_refused_in_one_line(tmp_path, name):
    source, file, contents = MAKERS[name](tmp_path / "in", name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(contents))
    assert read_all(name, source) == 1
    variants = [
        (keys, value, removed)
        for keys in places(contents)
        if keys[0] not in ("info", "licenses")
        for value, removed in [*((value, False) for value in WRONG), (None, True)]
    ]
    bad, refused = [], 0
    for keys, value, removed in variants:
        file.write_text(json.dumps(changed(contents, keys, value, removed)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read_all(name, source)
        except UserError as error:
            refused += 1
            if str(file) not in str(error) and str(source) not in str(error):
                bad.append((keys, value, f"names no file: {error}"))
        except Exception as error:  # what a person would see as a traceback
            bad.append((keys, value, repr(error)))
    assert not bad, "\n".join(f"{keys} = {value!r}: {error}" for keys, value, error in bad[:20])
    assert refused > len(variants) / 3
