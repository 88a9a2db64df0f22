"""ArrayRecord shards that appear whole or not at all, and the files that make a folder of them."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from smoothsa_jax.errors import UserError

# One record a group: any sample is read alone. Frames are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
CHUNK = 1 << 22
PARTIAL = ".partial"  # the end of the name of a shard that is being written


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of a finished shard.

    Attributes:
        num_bytes: of the records.
    """

    file: str
    num_examples: int
    num_bytes: int
    sha256: str


def shard_name(dataset: str, split: str, index: int, count: int) -> str:
    return f"{dataset}-{split}.array_record-{index:05d}-of-{count:05d}"


def serializer(features: dict[str, Any]) -> Callable[[dict[str, Any]], bytes]:
    """A function from a sample, pictures as encoded bytes, to a record."""
    description = tfds.features.FeaturesDict(features)
    to_bytes = ExampleSerializer(description.get_serialized_info())

    def serialize(example: dict[str, Any]) -> bytes:
        proto = to_bytes.get_tf_example(description.encode_example(_as_files(example)))
        return proto.SerializeToString(deterministic=True)  # a map's order is chance otherwise

    return serialize


def _as_files(value: Any) -> Any:
    # TFDS takes encoded pictures as files, and would read bytes as a path.
    if isinstance(value, dict):
        return {key: _as_files(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_files(entry) for entry in value]
    return io.BytesIO(value) if isinstance(value, bytes) else value


def write_shard(path: Path, records: Iterable[bytes]) -> tuple[int, int, str]:
    """Writes a shard under a temporary name, then gives it its own.

    Returns:
        the number of records, their bytes, and the file's SHA-256.

    Raises:
        UserError: it could not be written, for want of space say; what other shards hold stays.
    """
    # Its own name for each process: whoever comes last replaces a whole file by a whole file.
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
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
            f"{path} cannot be written: {error}; mend that (is the disk full?), then run the same command: "
            "the shards that are finished stay"
        ) from error


def sha256_of(path: Path, progress: Callable[[int], Any] = lambda num_bytes: None) -> str:
    """Of a file, or of all files of a folder with their names; `progress` is told of bytes as they are read."""
    digest = hashlib.sha256()
    for file in _files(path):
        if file is not path:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        for chunk in _chunks(file):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


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
    """Writes what TFDS needs to open the folder: dataset_info.json and features.json."""
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
    """Raises UserError where the file is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; get it or make it again") from error
