"""Write ArrayRecord shards atomically, and the files that describe a folder of them."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data.archives import CHUNK
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, all_files

# One record per group, so that any sample can be read alone. Frames are already compressed.
WRITER_OPTIONS = "group_size:1,uncompressed"
PARTIAL = ".partial"  # suffix of a shard that is being written


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
        file: the file's name in its folder.
        num_examples: the number of records.
        num_bytes: the size of the records, without the file's overhead.
        sha256: the file's checksum.
    """

    file: str
    num_examples: int
    num_bytes: int
    sha256: str


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
    return f"{dataset}-{split}.array_record-{index:05d}-of-{count:05d}"


def serializer(features: dict[str, Any]) -> Callable[[dict[str, Any]], bytes]:
    """Make a function that serializes a sample, with pictures as encoded bytes, to a record."""
    description = tfds.features.FeaturesDict(features)
    to_bytes = ExampleSerializer(description.get_serialized_info())

    def serialize(example: dict[str, Any]) -> bytes:
        proto = to_bytes.get_tf_example(description.encode_example(_as_files(example)))
        return proto.SerializeToString(deterministic=True)  # else the order of maps varies

    return serialize


def _as_files(value: Any) -> Any:
    # TFDS takes encoded pictures as file objects, and would read bytes as a path.
    if isinstance(value, dict):
        return {key: _as_files(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_files(entry) for entry in value]
    return io.BytesIO(value) if isinstance(value, bytes) else value


def write_shard(path: Path, records: Iterable[bytes]) -> tuple[int, int, str]:
    """Write a shard under a temporary name, then rename it.

    Returns:
        The number of records, their size in bytes, and the file's SHA-256.

    Raises:
        UserError: the shard cannot be written, for example on a full disk; other shards are kept.
    """
    # A name of this process alone, so that it only ever replaces whole files: a machine that Ray
    # takes for dead may still write a shard that another one makes again.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    num_records = num_bytes = 0
    try:
        with _told_as(partial):
            writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for record in records:
                with _told_as(partial):
                    writer.write(record)
                num_records, num_bytes = num_records + 1, num_bytes + len(record)
        finally:
            with _told_as(partial):
                writer.close()
        with _told_as(partial):
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            digest = sha256_of(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return num_records, num_bytes, digest


@contextlib.contextmanager
def _told_as(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be written: {error}; fix this (is the disk full?), then run the same "
            "command: finished shards are kept"
        ) from error


def sha256_of(path: Path, progress: Callable[[int], Any] = lambda num_bytes: None) -> str:
    """Hash a file, or a folder's files and their names; `progress` gets the size of each chunk."""
    digest = hashlib.sha256()
    for file in _files(path):
        if file is not path:
            digest.update(os.fsencode(f"{file.relative_to(path)}\0{file.stat().st_size}\0"))
        for chunk in _chunks(file):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """The size in bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(path / name for name in all_files(path, LeftOut())) if path.is_dir() else [path]


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def write_description(
    folder: Path,
    dataset: str,
    features: dict[str, Any],
    splits: dict[str, list[Shard]],
    description: str,
) -> None:
    """Write dataset_info.json and features.json, which TFDS needs to open the folder."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=dataset,
        filetype_suffix="array_record",
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.num_examples for shard in shards],
                num_bytes=sum(shard.num_bytes for shard in shards),
                filename_template=template,
            )
            for split, shards in splits.items()
        ],
        check_data=False,
        description=description,
    )


def read_json(path: Path) -> Any:
    """Read a JSON file; raise UserError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; download or make it again") from error
