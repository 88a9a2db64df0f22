"""Files of this machine, and of object stores by fsspec's URLs ("gs://...", "s3://...")."""

import hashlib
import os
import posixpath
from pathlib import Path

import fsspec

from smoothsa_jax.files import atomic_file
from smoothsa_jax.inputs.addresses import explained, file_system, is_remote

# Protocols without folders, where making those of a path would make a bucket that has a wrong name.
BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}


def protocols(system: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    """The names of a file system's protocol."""
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def read(url: str, start: int = 0, length: int = -1) -> bytes:
    """Read a file, or a range of it."""
    if length == 0:  # of which a store would make all bytes
        return b""
    end = None if length < 0 else start + length
    if not is_remote(url):
        with open(url, "rb") as file:
            file.seek(start)
            return file.read(length)
    system, path = file_system(url)
    return system.cat_file(path, start=start or None, end=end)


class Folder:
    """A folder of results, on this machine or in an object store.

    Args:
        where: a path, or a URL.
    """

    def __init__(self, where: str | os.PathLike):
        where = os.fspath(where).removeprefix("file://")
        self.is_local = not is_remote(where)
        # Workers may run in another folder than this process.
        self.where = os.path.abspath(where) if self.is_local else where.rstrip("/")

    def path(self, name: str) -> str:
        """Where a file or folder inside is; "." is the folder itself."""
        return self.where if name == "." else posixpath.join(self.where, name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file that appears whole: by a rename, or a single put.

        Raises:
            UserError: it cannot be written.
        """
        target = self.path(name)
        if self.is_local:
            with atomic_file(target) as temporary:
                temporary.write_bytes(data)
            return
        with explained(target, "written"):
            system, path = file_system(target)
            if not BUCKETS.intersection(protocols(system)):
                system.makedirs(posixpath.dirname(path), exist_ok=True)
            system.pipe_file(path, data)

    def read(self, name: str) -> bytes | None:
        """The contents of a file; None if there is none.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return read(self.path(name))
        except FileNotFoundError:
            return None
        except Exception:
            with explained(self.path(name)):
                raise

    def sizes(self, folder: str) -> dict[str, int]:
        """The names of the files in a folder inside, without those in the making, and their bytes.

        Raises:
            UserError: it cannot be listed.
        """
        if self.is_local:
            place = Path(self.path(folder))
            entries = os.scandir(place) if place.is_dir() else ()
            return {e.name: e.stat().st_size for e in entries if not e.name.startswith(".")}
        with explained(self.path(folder)):
            system, path = file_system(self.path(folder))
            system.invalidate_cache()
            if not system.isdir(path):
                return {}
            found = system.ls(path, detail=True)
        # An empty file of the folder's own name is how consoles of buckets make folders.
        files = [x for x in found if x["type"] == "file" and not x["name"].endswith("/")]
        return {posixpath.basename(x["name"]): x["size"] for x in files}

    def remove(self, name: str) -> None:
        """Remove a file, if there is one.

        Raises:
            UserError: it cannot be removed.
        """
        if self.is_local:
            Path(self.path(name)).unlink(missing_ok=True)
            return
        with explained(self.path(name), "removed"):
            system, path = file_system(self.path(name))
            if system.exists(path):
                system.rm_file(path)

    def remove_unfinished(self, folder: str) -> None:
        """Remove what killed processes have left in the making, in a folder inside."""
        if self.is_local:
            for path in Path(self.path(folder)).glob(".*"):
                path.unlink(missing_ok=True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
