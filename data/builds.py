"""TFDS builds: TFRecord files beside a dataset_info.json, in a folder or a bucket."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data import tfrecords
from data.family import Family, Job, refuse_twice
from smoothsa_jax.errors import UserError
from smoothsa_jax.text import text_of


class TfdsBuild(Family):
    """A family whose downloads are TFDS builds; each TFRecord file becomes a shard."""

    def shards(
        self, folder: str, info: Mapping[str, Any], names: Mapping[str, str]
    ) -> tuple[Job, ...]:
        """The jobs of the splits that are wanted.

        Args:
            folder: of the build.
            info: its dataset_info.json.
            names: the build's name of a split -> ours, of the splits that are wanted, in order.

        Raises:
            UserError: dataset_info.json names a split twice, or files without records.
        """
        where = f"{folder}/dataset_info.json"
        refuse_twice(
            (entry["name"] for entry in info["splits"]), where, "splits", "download it again"
        )
        entries, jobs = {entry["name"]: entry for entry in info["splits"]}, []
        for name, split in names.items():
            if name not in entries:
                continue
            lengths = [int(n) for n in entries[name]["shardLengths"]]
            if min(lengths, default=0) < 1:
                raise UserError(
                    f"{where} says that {name} has the shardLengths {lengths}, expected at least "
                    "one record in each; download it again"
                )
            left = self.options.limit
            size = entries[name].get("numBytes")  # distinguishes builds of other resolutions
            for index, length in enumerate(lengths):
                take = length if left is None else min(left, length)
                if take == 0:
                    break
                file = f"{info['name']}-{name}.tfrecord-{index:05d}-of-{len(lengths):05d}"
                jobs.append(Job(split, (folder, file, length, size), take))
                left = None if left is None else left - take
        return tuple(jobs)

    def records(self, job: Job) -> Iterator[tuple[str, bytes]]:
        """Yield the records of a job, each with its name for messages.

        Raises:
            UserError: the file is missing, or has another number of records.
        """
        folder, file, length, _ = job.payload
        with tfrecords.staged(folder, file) as path:
            if not path.is_file():
                raise UserError(
                    f"{path} is missing, but dataset_info.json names it; download it too"
                )
            digest, found = hashlib.sha256(), 0
            for index, record in enumerate(tfrecords.read_records(path, digest)):
                found += 1
                if index < job.num_items:
                    yield f"{file}, record {index}", record
            if found != length:
                raise UserError(
                    f"{path} holds {found} records, dataset_info.json says {length}; download this "
                    "file again"
                )
            self.note_source(file, path.stat().st_size, digest.hexdigest())


def find_build(source: str, *names: str) -> tuple[str, dict[str, Any]]:
    """Find the folder of TFRecord files below `source`, and read its dataset_info.json.

    Raises:
        UserError: there is no build of these names, or more than one.
    """
    name = names[0]
    files, read = _info_files(source)
    infos = {folder: _info(folder, read(folder)) for folder in files}
    mine = {folder: info for folder, info in infos.items() if info.get("name") in names}
    if not mine:
        there = ", ".join(f"{info.get('name')} in {folder}" for folder, info in infos.items())
        raise UserError(
            f"--source={source} holds no TFDS build of {name} (found "
            f"{there or 'no dataset_info.json'}); expected "
            f"<source>/[{name}/][256x256/][1.0.0/]dataset_info.json with {name}-train.tfrecord-... "
            "beside it"
        )
    if len(mine) > 1:
        raise UserError(
            f"--source={source} holds {len(mine)} builds of {name}: {', '.join(sorted(mine))}; "
            "give one of them as --source"
        )
    return next(iter(mine.items()))


def _info(folder: str, data: bytes) -> dict[str, Any]:
    text = text_of(data, f"{folder}/dataset_info.json")
    try:
        info = json.loads(text)
        for split in info["splits"]:
            if not isinstance(split["name"], str):
                raise TypeError(f"a split has the name {split['name']!r}")
            [int(length) for length in split["shardLengths"]]
        return info
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/dataset_info.json is damaged ({type(error).__name__}: {error}); download it "
            "again"
        ) from error


def _info_files(source: str):
    patterns = ["/".join(["*"] * depth + ["dataset_info.json"]) for depth in range(4)]
    if tfrecords.is_remote(source):
        file_system, folder = tfrecords.remote_file_system(source)
        protocol = source.split("://", 1)[0]
        try:
            found = itertools.chain(
                *(file_system.glob(f"{folder.rstrip('/')}/{p}") for p in patterns)
            )
            folders = [f"{protocol}://{str(f).lstrip('/').rsplit('/', 1)[0]}" for f in found]
        except OSError as error:
            raise UserError(
                f"{source} cannot be listed: {error}; check the address and the network"
            ) from error
        return folders, lambda folder: tfrecords.remote_file_system(folder)[0].cat(
            f"{tfrecords.remote_file_system(folder)[1]}/dataset_info.json"
        )
    root = Path(source)
    if not root.is_dir():
        raise UserError(
            f"--source={source} is not a folder; give the one that holds the TFDS build"
        )
    folders = [str(f.parent) for pattern in patterns for f in sorted(root.glob(pattern))]
    return folders, lambda folder: (Path(folder) / "dataset_info.json").read_bytes()
