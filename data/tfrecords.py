"""Read TFRecord files from disk or a bucket, verifying the CRC of every record."""

import contextlib
import gzip
import hashlib
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from smoothsa_jax.errors import UserError

GZIP = b"\x1f\x8b"
MASK_DELTA = 0xA282EAD8
LENGTH, CRC = struct.Struct("<Q"), struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data`, rotated by 15 bits plus a constant, as stored in TFRecord files."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path, digest: Any = None) -> Iterator[bytes]:
    """Yield the records of a TFRecord file in order; a gzipped file is unpacked on the way.

    Args:
        path: the file.
        digest: a hashlib object to update with all bytes read.

    Raises:
        UserError: a record is truncated or fails its CRC; the message names file and offset.
    """
    size = path.stat().st_size
    digest = digest or hashlib.sha256()
    with open(path, "rb") as raw:
        zipped = raw.read(2) == GZIP
        raw.seek(0)
        hashed = _Hashed(raw, digest)
        file = gzip.GzipFile(fileobj=hashed) if zipped else hashed
        offset = 0
        try:
            while zipped or offset < size:
                head = file.read(LENGTH.size + CRC.size)
                if zipped and not head:
                    break
                _check_length(head, LENGTH.size + CRC.size, path, offset)
                (length,), (crc,) = LENGTH.unpack(head[:8]), CRC.unpack(head[8:])
                if masked_crc(head[:8]) != crc:
                    raise _damaged(path, offset, "the length of a record does not match its CRC")
                end = offset + len(head) + length + CRC.size
                if not zipped and end > size:
                    raise _damaged(path, offset, f"a record of {length} bytes is cut off at {size}")
                data, tail = file.read(length), file.read(CRC.size)
                _check_length(data + tail, length + CRC.size, path, offset)
                if masked_crc(data) != CRC.unpack(tail)[0]:
                    raise _damaged(path, offset, "a record does not match its CRC")
                yield data
                offset = end
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _damaged(path, offset, f"it cannot be unpacked: {error}") from error


class _Hashed:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO, digest: Any):
        self._file, self._digest = file, digest

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data


def _check_length(data: bytes, size: int, path: Path, offset: int) -> None:
    if len(data) < size:
        raise _damaged(path, offset, "the file ends inside a record")


def _damaged(path: Path, offset: int, what: str) -> UserError:
    return UserError(f"{path} is damaged at byte {offset}: {what}; download this file again")


def is_remote(source: str) -> bool:
    return "://" in source


def check_address(source: str) -> None:
    """Refuse addresses that do not name a readable bucket.

    Raises:
        UserError: the address is http(s), or its protocol lacks a library. For http(s), the message
            gives the gs:// address to use.
    """
    if source.startswith(("http://", "https://")):
        bucket = source.split("://", 1)[1].removeprefix("storage.googleapis.com/")
        bucket = bucket.removeprefix("console.cloud.google.com/storage/browser/").rstrip("/")
        raise UserError(
            f"--source={source} is a web address, which lists no files; use --source=gs://{bucket} "
            "(install 'smoothsa_jax[cloud]'), or download the folder"
        )


def remote_file_system(source: str) -> tuple[Any, str]:
    """Open the fsspec file system of an address; also return the path in it.

    Raises:
        UserError: the library for the protocol is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{source} cannot be read ({error}); install 'smoothsa_jax[cloud]', or download the "
            "folder"
        ) from error


@contextlib.contextmanager
def staged(source: str, name: str) -> Iterator[Path]:
    """Provide a file of the folder `source` on disk; a remote one is downloaded temporarily.

    Raises:
        UserError: the file cannot be downloaded completely.
    """
    if not is_remote(source):
        yield Path(source) / name
        return
    file_system, folder = remote_file_system(source)
    there = f"{folder.rstrip('/')}/{name}"
    with tempfile.TemporaryDirectory(prefix="smoothsa_jax_") as temporary:
        here = Path(temporary) / name
        try:
            expected = file_system.size(there)
            with file_system.open(there, "rb") as remote, open(here, "wb") as local:
                shutil.copyfileobj(remote, local, 1 << 22)
        except OSError as error:
            raise UserError(
                f"{source}/{name} cannot be fetched: {error}; run the same command again: finished "
                "shards are kept"
            ) from error
        if here.stat().st_size != expected:
            raise UserError(
                f"{source}/{name} has {expected} bytes, but {here.stat().st_size} arrived; run the "
                "same command again"
            )
        yield here
