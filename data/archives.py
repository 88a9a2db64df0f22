"""Read the files of a download from a folder, a zip or a tar in the same way, without unpacking."""

import gzip
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from data.family import BadSample
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, all_files, hidden, is_junk

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
GZIP = b"\x1f\x8b"  # how a compressed file begins
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError)
CHUNK = 1 << 22
Member = zipfile.ZipInfo | tarfile.TarInfo


class _StrictTarInfo(tarfile.TarInfo):
    """Raises ReadError for a damaged header, which tarfile takes for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as error:
            raise tarfile.ReadError(f"a member has a damaged header ({error})") from error


class Files:
    """The files in a folder or archive, by name, such as `train2017/000000000009.jpg`.

    Links in a folder are followed. In archives made on Windows, backslashes divide folders as
    slashes do. Instances can be pickled for another process, because an archive is opened only when
    it is first read. A compressed tar can be read only from its beginning; use `in_order` for it.

    Args:
        path: a folder or an archive.

    Attributes:
        left_out: what `names` left out, such as broken links.

    Raises:
        UserError: the path is neither, the archive is damaged, it has two members of one name, or
            one that would be unpacked outside its folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self.left_out = LeftOut()
        self._archive: zipfile.ZipFile | tarfile.TarFile | None = None
        self._members: dict[str, Member] | None = None
        if not path.exists():
            raise UserError(f"{path} does not exist; check the name, or download it")
        if path.is_file() and not path.name.lower().endswith(ENDINGS):
            raise UserError(f"{path} is neither a folder nor one of {', '.join(ENDINGS)}")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}

    @property
    def is_sequential(self) -> bool:
        """Whether reading one file requires reading everything before it, as in a compressed tar.

        The first bytes decide, not the name: some browsers decompress a .tgz while downloading but
        keep its name.
        """
        if not self.path.is_file() or self._is_zip:
            return False
        with open(self.path, "rb") as file:
            return file.read(len(GZIP)) == GZIP

    @property
    def _is_zip(self) -> bool:
        return self.path.suffix.lower() == ".zip"

    def names(self) -> list[str]:
        """All file names, sorted."""
        if self.path.is_dir():
            self.left_out = LeftOut()
            return sorted(all_files(self.path, self.left_out))
        return sorted(self._open())

    def __contains__(self, name: str) -> bool:
        if self.path.is_dir():
            return not _leads_outside(name) and (self.path / name).is_file()
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
        except RuntimeError as error:  # encrypted, or compressed in a way that Python lacks
            raise BadSample(
                f"{self.path}: {name} cannot be read: {error}; pack it again without a password, "
                "with the usual compression (deflate), or unpack it"
            ) from error
        if len(data) != member.size:
            raise self._damaged(name, f"it ends after {len(data)} of {member.size} bytes")
        return data

    def copy(self, name: str, target: Path) -> None:
        """Copy a file that need not fit into memory.

        Raises:
            UserError: the file is damaged, or cannot be written.
        """
        try:
            with self._stream(name) as stream, open(target, "wb") as file:
                shutil.copyfileobj(stream, file, CHUNK)
        except (*DAMAGE, RuntimeError) as error:
            raise UserError(
                f"{self.path}: {name} cannot be copied to {target.parent}: {error}; download it "
                "again, unless the disk is full"
            ) from error

    def _stream(self, name: str) -> IO[bytes]:
        if self.path.is_dir():
            return open(self.path / name, "rb")
        member = self._open()[name]
        if isinstance(self._archive, zipfile.ZipFile):
            return self._archive.open(member)
        return self._archive.extractfile(member)

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
        member, seen = None, set()
        try:
            # Read gzip to its end, which verifies the checksum and length; tarfile would not.
            with gzip.open(self.path) as stream:
                with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive:
                    for member in archive:
                        if self._is_file(member):
                            name = self._new_name(member, seen)
                            yield name, archive.extractfile(member).read()
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

    def _open(self) -> dict[str, Member]:
        if self._archive is not None and self._members is not None:
            return self._members
        listed: list[Member]
        try:
            if self._is_zip:
                self._archive = zipfile.ZipFile(self.path)
                listed = self._archive.infolist()
            else:
                self._check_end()
                mode = "r:gz" if self.is_sequential else "r:"
                self._archive = tarfile.open(  # noqa: SIM115, kept open
                    self.path, mode, tarinfo=_StrictTarInfo
                )
                listed = self._archive.getmembers()
        except DAMAGE as error:
            raise UserError(
                f"{self.path} is damaged: {error}; its {self.path.stat().st_size} bytes are "
                "incomplete or not an archive: download it again"
            ) from error
        except (UnicodeDecodeError, NotImplementedError) as error:
            raise UserError(
                f"{self.path} cannot be listed ({error}); unpack it, and give the folder"
            ) from error
        seen: set[str] = set()
        self._members = {
            self._new_name(member, seen): member for member in listed if self._is_file(member)
        }
        self._note_empty_folders(listed)
        return self._members

    def _note_empty_folders(self, listed: list[Member]) -> None:
        folders = {str(PurePosixPath(_name(m))) for m in listed if _is_folder(m)} - {"."}
        everything = {*folders, *self._members}
        filled = {str(parent) for name in everything for parent in PurePosixPath(name).parents}
        for name in sorted(folders - filled):
            if not hidden(name) and not is_junk(name):
                self.left_out.add("empty folders", name)

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

    def _is_file(self, member: Member) -> bool:
        """Whether a member is a file; raise UserError if it is one that no archive should have."""
        name = _name(member)
        if isinstance(member, zipfile.ZipInfo):
            is_link = stat.S_ISLNK(member.external_attr >> 16)
            is_file = not _is_folder(member)
        else:
            is_link, is_file = member.issym() or member.islnk(), member.isfile()
        if is_link:
            raise UserError(
                f"{self.path} has the member {name!r}, which is a link; expected files only, as in "
                "the official downloads: pack it again with the files that its links name (tar "
                "--dereference --hard-dereference, or zip without -y), or unpack it and give the "
                "folder"
            )
        if _leads_outside(name):
            raise UserError(
                f"{self.path} has the member {name!r}, which is outside the folder it is unpacked "
                "to; no official download contains such a member: get the archive from the "
                "official page, or pack your own again"
            )
        if not is_file and not _is_folder(member):
            self.left_out.add("pipes or devices", name)
        return is_file

    def _new_name(self, member: Member, seen: set[str]) -> str:
        name = str(PurePosixPath(_name(member)))
        if name in seen:
            raise UserError(
                f"{self.path} has two members {name!r}, expected one, since only one could be "
                "kept: pack it again"
            )
        seen.add(name)
        return name

    def _damaged(self, name: str, error: object) -> BadSample:
        return BadSample(f"{self.path}: {name} cannot be read: {error}; download the archive again")


def _leads_outside(name: str) -> bool:
    return ".." in PurePosixPath(name).parts or re.match(r"/|[A-Za-z]:/", name) is not None


def _name(member: Member) -> str:
    """The member's name; a backslash, as some Windows tools write it, divides folders too."""
    name = member.filename if isinstance(member, zipfile.ZipInfo) else member.name
    return name.replace("\\", "/")


def _is_folder(member: Member) -> bool:
    if isinstance(member, zipfile.ZipInfo):
        is_marked = bool(member.external_attr & 0x10) and not member.file_size  # by MS-DOS
        return _name(member).endswith("/") or is_marked
    return member.isdir()
