"""Verify a prepared folder: files, hashes, counts, and that every picture and label is readable.

    python -m data.check prepared/movi_c

Prints one line per split and one per problem. The exit status is 2 if there are problems.
"""

import sys

if __name__ == "__main__":  # before the imports: what makes one of them fail is explained as well
    from smoothsa_jax.guard import run_module

    sys.exit(run_module("data.check"))

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, starmap
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from data import beside
from data.features import NO_SEGMENT
from data.finished import FORMAT
from data.shards import read_json, sha256_of
from smoothsa_jax.checkout import as_started
from smoothsa_jax.errors import UserError
from smoothsa_jax.guard import exit_status
from smoothsa_jax.inputs import media
from smoothsa_jax.inputs.manifest import MANIFEST
from smoothsa_jax.text import say

PICTURES = {"image": "segmentation", "video": "segmentations"}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=as_started("python -m data.check"), description=as_started(__doc__)
    )
    parser.add_argument("folder", type=Path, help="a prepared folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args(arguments)

    def work() -> int:
        wrong = check(given.folder, max(1, given.workers))
        for line in wrong:
            print(f"wrong: {line}", file=sys.stderr)
        if wrong:
            raise UserError(f"{given.folder} is damaged; remove it and prepare it again")
        return 0

    return exit_status(work)


def check(folder: Path, workers: int = 1) -> list[str]:
    """List the problems of a prepared folder, one per line, and print the size of each split.

    Raises:
        UserError: the folder is not a finished prepared folder.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} has no {MANIFEST}: it is not a prepared folder, or not finished; run python "
            "-m data.prepare again"
        )
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {manifest.get('format')}, expected {FORMAT}; prepare it again"
        )
    # Numbers, one record per frame.
    of_features = manifest["metadata"].get("kind") in ("features", "slots")
    shards = [
        (folder, shard, of_features)
        for found in manifest["splits"].values()
        for shard in found["shards"]
    ]
    bar = partial(tqdm, total=len(shards), unit=" shards")
    if workers == 1 or len(shards) < 2:
        results = list(bar(starmap(_check_shard, shards)))
    else:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            results = list(bar(pool.map(_check_shard, *zip(*shards, strict=True))))
    wrong = list(chain.from_iterable(results))
    for split, found in manifest["splits"].items():
        total = sum(shard["num_examples"] for shard in found["shards"])
        if total != found["num_examples"]:
            wrong.append(
                f"{split} has {total} samples in its shards, {found['num_examples']} in {MANIFEST}"
            )
        say(f"{split}: {total} samples in {len(found['shards'])} shards")
    wrong += beside.wrong_files(folder, manifest)
    listed = {
        split["name"]: [int(length) for length in split["shardLengths"]]
        for split in read_json(folder / "dataset_info.json")["splits"]
    }
    for split, found in manifest["splits"].items():
        lengths = [shard["num_examples"] for shard in found["shards"]]
        if listed.get(split) != lengths:
            wrong.append(
                f"dataset_info.json has {listed.get(split)} for {split}, {MANIFEST} {lengths}"
            )
    return wrong


def _check_shard(folder: Path, shard: dict[str, Any], of_features: bool = False) -> list[str]:
    path = folder / shard["file"]
    if not path.is_file():
        return [f"{shard['file']} is missing"]
    if sha256_of(path) != shard["sha256"]:
        return [f"{shard['file']} is not the file listed in {MANIFEST}: its SHA-256 differs"]
    reader = ArrayRecordReader(str(path))
    try:
        count = reader.num_records()
        if count != shard["num_examples"]:
            return [f"{shard['file']} has {count} records, {MANIFEST} says {shard['num_examples']}"]
        if of_features:
            return []
        wrong, frames = [], []
        for index in range(count):
            features = tf_example_pb2.Example.FromString(reader.read([index])[0]).features.feature
            if "video" in features:
                frames.append(len(features["video"].bytes_list.value))
            wrong += [
                f"{shard['file']}, record {index}: {line}" for line in _check_record(features)
            ]
        if frames != shard["frames"]:
            wrong.append(f"{shard['file']} has clips of other lengths than {MANIFEST} says")
        return wrong
    finally:
        reader.close()


def _check_record(features: Any) -> Iterator[str]:
    frames_name = next((name for name in PICTURES if name in features), None)
    if frames_name is None:
        yield "neither image nor video"
        return
    frames = features[frames_name].bytes_list.value
    maps = features[PICTURES[frames_name]].bytes_list.value
    num_objects = len(features["categories"].int64_list.value) if "categories" in features else None
    if len(frames) != len(maps):
        yield f"{len(frames)} frames, {len(maps)} label maps"
    for t, (frame, labels) in enumerate(zip(frames, maps, strict=False)):
        try:
            pixels, segmentation = _decode(frame), _decode(labels)
        except media.Unreadable as error:
            yield f"frame {t} cannot be read: {error}"
            continue
        if pixels.shape[:2] != segmentation.shape:
            yield f"frame {t} has {pixels.shape[:2]} pixels, its labels {segmentation.shape}"
        largest = segmentation[segmentation != NO_SEGMENT].max(initial=0)
        if num_objects is not None and largest > num_objects:
            yield f"frame {t} has label {largest}, the sample {num_objects} objects"


def _decode(data: bytes) -> np.ndarray:
    return np.asarray(media.opened(data, max_pixels=sys.maxsize).image)
