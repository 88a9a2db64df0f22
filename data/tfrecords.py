"""Records of a TFRecord file, each checked against its CRC, from a local disk or a bucket."""

import contextlib
import hashlib
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from smoothsa_jax.errors import UserError

MASK_DELTA = 0xA282EAD8
LENGTH, CRC = struct.Struct("<Q"), struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated by 15 bits and shifted by a constant, as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path, digest: Any = None) -> Iterator[bytes]:
    """The records of a TFRecord file in order.

    Args:
        digest: a hashlib object that is fed all bytes that are read.

    Raises:
        UserError: a record is cut off or does not match its CRC; file and offset are named.
    """
    end = path.stat().st_size
    digest = digest or hashlib.sha256()
    with open(path, "rb") as file:
        while (offset := file.tell()) < end:
            head = _read(file, LENGTH.size + CRC.size, path, offset, digest)
            (length,), (crc,) = LENGTH.unpack(head[:8]), CRC.unpack(head[8:])
            if masked_crc(head[:8]) != crc:
                raise _damaged(path, offset, "the length of a record does not match its CRC")
            if offset + len(head) + length + CRC.size > end:
                raise _damaged(path, offset, f"a record of {length} bytes is cut off at {end}")
            data = _read(file, length, path, offset, digest)
            (crc,) = CRC.unpack(_read(file, CRC.size, path, offset, digest))
            if masked_crc(data) != crc:
                raise _damaged(path, offset, "a record does not match its CRC")
            yield data


def _read(file: BinaryIO, size: int, path: Path, offset: int, digest: Any) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _damaged(path, offset, "the file ends inside a record")
    digest.update(data)
    return data


def _damaged(path: Path, offset: int, what: str) -> UserError:
    return UserError(f"{path} is damaged at byte {offset}: {what}; download this file again")


def is_remote(source: str) -> bool:
    return "://" in source


def check_address(source: str) -> None:
    """Refuses addresses that name a bucket in a way that cannot be read as one.

    Raises:
        UserError: http(s), with the gs:// address to use; or a protocol without its library.
    """
    if source.startswith(("http://", "https://")):
        bucket = source.split("://", 1)[1].removeprefix("storage.googleapis.com/")
        bucket = bucket.removeprefix("console.cloud.google.com/storage/browser/").rstrip("/")
        raise UserError(
            f"--source={source} is a web address, which lists no files; use --source=gs://{bucket} "
            "(install 'smoothsa_jax[cloud]'), or download the folder"
        )


def remote_file_system(source: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path there.

    Raises:
        UserError: the library for the protocol is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{source} cannot be read ({error}); install 'smoothsa_jax[cloud]', or download the folder"
        ) from error


@contextlib.contextmanager
def staged(source: str, name: str) -> Iterator[Path]:
    """A file of the folder `source` on the local disk; a remote one is fetched for as long as it is used.

    Raises:
        UserError: it cannot be fetched whole.
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
                f"{source}/{name} cannot be fetched: {error}; run the same command again: what is finished stays"
            ) from error
        if here.stat().st_size != expected:
            raise UserError(
                f"{source}/{name} has {expected} bytes, {here.stat().st_size} came; run the same command again"
            )
        yield here
