"""Prepared folders in a bucket: read through copies of their shards on this machine.

An address such as gs://bucket/movi_c stands wherever a prepared folder does. fsspec reads it. The
description and the manifest are copied when the folder is opened; a shard, when it is first read.
The folder of copies is named by the address and by the manifest, so another preparation at the same
address gets another one.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from smoothsa_jax.environment import CACHE_VARIABLE
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file, expanded
from smoothsa_jax.inputs.addresses import explained, file_system, is_remote
from smoothsa_jax.inputs.manifest import MANIFEST, checksums

INFO = "dataset_info.json"
COPY_OF = "COPY_OF.json"  # in a folder of copies: the address
FULL = (errno.ENOSPC, errno.EDQUOT)
RESERVE = 1 << 26  # bytes of the disk that copies leave free


def local_folder(folder: str | os.PathLike, cache: str | os.PathLike | None = None) -> Path:
    """Return a prepared folder on this machine, whose shards `available` gives.

    Of an address, it is a folder of copies. A process that opens an address again gets the same
    one, even if the bucket has changed since.

    Args:
        folder: a path, with ~ for the home folder, or an address.
        cache: the folder to keep copies in; None: `prepared` in the folder that the variable
            SMOOTHSA_JAX_CACHE names, by default ~/.cache/smoothsa_jax.

    Raises:
        UserError: the address cannot be read, or is of no prepared folder.
    """
    if not is_remote(folder):
        return expanded(folder)
    return _opened(os.fspath(folder).rstrip("/"), _root(cache))


def _root(cache: str | os.PathLike | None) -> Path:
    if cache is not None:
        return expanded(cache)
    return expanded(os.environ.get(CACHE_VARIABLE) or "~/.cache/smoothsa_jax") / "prepared"


@functools.cache
def _opened(address: str, root: Path) -> Path:
    found = {name: _fetched(address, name) for name in (MANIFEST, INFO)}
    checksums(found[MANIFEST], f"{address}/{MANIFEST}")  # raises where there are none
    about = json.dumps({"address": address}).encode()
    key = hashlib.sha256(b"\0".join((about, *found.values()))).hexdigest()
    folder = root / f"{address.rsplit('/', 1)[-1]}-{key[:16]}"
    for name, data in {COPY_OF: about, **found}.items():
        if not (folder / name).is_file():
            with atomic_file(folder / name) as partial:
                partial.write_bytes(data)
    return folder


@functools.cache  # what a folder of copies is to hold never changes
def _checksums(folder: Path) -> dict[str, str]:
    return checksums((folder / MANIFEST).read_bytes(), f"{address_of(folder)}/{MANIFEST}")


def _fetched(address: str, name: str) -> bytes:
    """The bytes of a small file."""
    system, path = file_system(address)
    try:
        with explained(f"{address}/{name}", missing=False):
            return system.cat_file(f"{path}/{name}")
    except FileNotFoundError as error:
        raise UserError(
            f"{address} has no {name}: there is no such bucket or folder, or it is no prepared "
            "folder; copy a whole folder of python -m data.prepare there, or correct the address"
        ) from error


def address_of(folder: Path) -> str | None:
    """The address that a folder has copies of; None: it is a folder of its own."""
    try:
        return json.loads((folder / COPY_OF).read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def missing(folder: Path, names: Sequence[str]) -> list[str]:
    """List the files that a folder lacks; if it has copies, those that the bucket lacks.

    Args:
        folder: of `local_folder`.
        names: of its files.

    Raises:
        UserError: the bucket cannot be listed.
    """
    absent = [name for name in names if not (folder / name).is_file()]
    address = address_of(folder) if absent else None
    if address is None:
        return absent
    sizes = _sizes(address)
    return [name for name in absent if name not in sizes or name not in _checksums(folder)]


def refuse_full_disk(folder: Path, names: Sequence[str]) -> None:
    """Refuse a disk without room for the copies of these files that a folder still lacks.

    Raises:
        UserError: it has no room, or the bucket cannot be listed.
    """
    absent = [name for name in names if not (folder / name).is_file()]
    if absent and (address := address_of(folder)) is not None:
        sizes = _sizes(address)
        _refuse_full(folder, address, sum(sizes.get(name, 0) for name in absent))


def _sizes(address: str) -> dict[str, int]:
    """The bytes of every file in a bucket's folder."""
    system, path = file_system(address)
    try:
        with explained(address, missing=False):
            entries = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: entry.get("size") or 0 for entry in entries}


def available(folder: Path, name: str) -> Path:
    """Return a file of a prepared folder, copied from the bucket if it is not there yet.

    A file that neither has is not there. The copy appears as a whole, once its checksum is the one
    of the manifest. Of several processes that ask for it, one copies it.

    Raises:
        UserError: it cannot be read or has another checksum, or the disk is full.
    """
    path = folder / name
    address = None if path.is_file() else address_of(folder)
    if address is None:
        return path
    expected = _checksums(folder).get(name)
    if expected is None:
        return path
    with _locked(folder / "locks" / name):
        if path.is_file():
            return path
        # What processes that were killed have left; nobody else writes this file now.
        for left in folder.glob(f".{path.stem}-*{path.suffix}"):
            left.unlink(missing_ok=True)
        _copy(address, name, path, expected)
    return path


def _copy(address: str, name: str, path: Path, expected: str) -> None:
    system, folder = file_system(address)
    whole, there = f"{address}/{name}", f"{folder}/{name}"
    try:
        with explained(whole, missing=False):
            size = system.info(there)["size"]
        _refuse_full(path.parent, whole, size or 0)
        with atomic_file(path) as partial:
            with explained(whole, missing=False), _telling_full_disk(whole):
                system.get_file(there, str(partial))
            with open(partial, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise UserError(
                    f"{whole} has the SHA-256 {found[:12]}..., its {MANIFEST} says "
                    f"{expected[:12]}...: the shard was changed or damaged; copy the whole folder "
                    "there again"
                )
    except FileNotFoundError as error:
        raise UserError(
            f"{whole} is not there any more; copy the whole folder there again"
        ) from error


@contextlib.contextmanager
def _telling_full_disk(address: str) -> Iterator[None]:
    """Turn a disk that gets full while an address is copied into one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"the disk is full while {address} is copied; make room, or name a larger disk with "
            "--config.data.cache"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the system releases it when the process ends
        except OSError as error:  # some network file systems have no locks
            raise UserError(
                f"{path} cannot be locked ({error.strerror}); name a folder on a disk of this "
                "machine with --config.data.cache"
            ) from error
        yield


def _refuse_full(folder: Path, address: str, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + RESERVE > free:
        raise UserError(
            f"the copy of {address} takes {size / 1e9:.2f} GB, {folder.parent} has "
            f"{free / 1e9:.2f} GB left; make room, or name a larger disk with --config.data.cache"
        )
