"""Read the files of a download from a folder, a zip or a tar in the same way, without unpacking."""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.family import BadSample
from smoothsa_jax.errors import UserError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
GZIP = b"\x1f\x8b"  # how a compressed file begins
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)


class Files:
    """The files in a folder or archive, by name, such as `train2017/000000000009.jpg`.

    Instances can be pickled for another process, because an archive is opened only when it is first
    read. A compressed tar can be read only from its beginning; use `in_order` for it.

    Args:
        path: a folder or an archive.

    Raises:
        UserError: the path is neither, the archive is damaged, or it has a member that would be
            unpacked outside its folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._archive: zipfile.ZipFile | tarfile.TarFile | None = None
        self._members: dict[str, zipfile.ZipInfo | tarfile.TarInfo] | None = None
        if not path.exists():
            raise UserError(f"{path} does not exist; check the name, or download it")
        if path.is_file() and not path.name.endswith(ENDINGS):
            raise UserError(f"{path} is neither a folder nor one of {', '.join(ENDINGS)}")

    def __getstate__(self) -> dict:
        return {"path": self.path, "_archive": None, "_members": self._members}

    @property
    def is_sequential(self) -> bool:
        """Whether reading one file requires reading everything before it, as in a compressed tar.

        The first bytes decide, not the name: some browsers decompress a .tgz while downloading but
        keep its name.
        """
        if not self.path.is_file() or self.path.suffix == ".zip":
            return False
        with open(self.path, "rb") as file:
            return file.read(len(GZIP)) == GZIP

    def names(self) -> list[str]:
        """All file names, sorted."""
        if self.path.is_dir():
            return sorted(
                p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()
            )
        return sorted(self._open())

    def __contains__(self, name: str) -> bool:
        if self.path.is_dir():
            return (self.path / name).is_file()
        return name in self._open()

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            UserError: no file has this name.
            BadSample: the file is damaged.
        """
        if name not in self:
            raise UserError(f"{self.path} has no {name}; download it again")
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            member = self._open()[name]
            if isinstance(self._archive, zipfile.ZipFile):
                return self._archive.read(member)
            data = self._archive.extractfile(member).read()
        except DAMAGE as error:
            raise self._damaged(name, error) from error
        if len(data) != member.size:
            raise self._damaged(name, f"it ends after {len(data)} of {member.size} bytes")
        return data

    def in_order(self) -> Iterator[tuple[str, bytes]]:
        """Yield each file's name and contents in stored order.

        Raises:
            UserError: the archive is damaged. The message gives the offset of the last readable
                file.
        """
        if not self.is_sequential:
            for name in self.names():
                yield name, self.read(name)
            return
        member = None
        try:
            # Read gzip to its end, which verifies the checksum and length; tarfile would not.
            with gzip.open(self.path) as stream:
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for member in archive:
                        if self._is_file(member, member.name):
                            data = archive.extractfile(member).read()
                            yield str(PurePosixPath(member.name)), data
                while stream.read(1 << 20):
                    pass
        except DAMAGE as error:
            place = (
                f"after {member.name}, at byte {member.offset} of the tar"
                if member
                else "at its beginning"
            )
            raise UserError(
                f"{self.path} is damaged {place}: {error}; download it again"
            ) from error

    def _open(self) -> dict[str, zipfile.ZipInfo | tarfile.TarInfo]:
        if self._archive is not None and self._members is not None:
            return self._members
        try:
            if self.path.suffix == ".zip":
                self._archive = zipfile.ZipFile(self.path)
                listed = [(m.filename, m) for m in self._archive.infolist()]
            else:
                self._check_end()
                mode = "r:gz" if self.is_sequential else "r:"
                self._archive = tarfile.open(self.path, mode)  # noqa: SIM115, kept open
                listed = [(m.name, m) for m in self._archive.getmembers()]
        except DAMAGE as error:
            raise UserError(
                f"{self.path} is damaged: {error}; its {self.path.stat().st_size} bytes are "
                "incomplete or not an archive: download it again"
            ) from error
        self._members = {
            str(PurePosixPath(name)): member
            for name, member in listed
            if self._is_file(member, name)
        }
        return self._members

    def _check_end(self) -> None:
        """Raise ReadError if the blocks of zeros at the end of an uncompressed tar are missing.

        Otherwise, a tar cut between two members would read as a shorter, valid one.
        """
        if self.is_sequential:
            return
        with open(self.path, "rb") as file:
            file.seek(max(0, self.path.stat().st_size - 1024))
            if file.read().strip(b"\0"):
                raise tarfile.ReadError("its end is missing")

    def _is_file(self, member: zipfile.ZipInfo | tarfile.TarInfo, name: str) -> bool:
        if isinstance(member, zipfile.ZipInfo):
            is_link, is_file = stat.S_ISLNK(member.external_attr >> 16), not member.is_dir()
        else:
            is_link, is_file = member.issym() or member.islnk(), member.isfile()
        parts = PurePosixPath(name).parts
        if is_link or ".." in parts or name.startswith(("/", "\\")):
            kind = "a link" if is_link else "outside the folder it is unpacked to"
            raise UserError(
                f"{self.path} has the member {name!r}, which is {kind}; no official download "
                "contains such a member: get the archive from the official page"
            )
        return is_file

    def _damaged(self, name: str, error: object) -> BadSample:
        return BadSample(f"{self.path}: {name} cannot be read: {error}; download the archive again")
