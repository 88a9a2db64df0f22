"""Look into folders: follow links, and account for what is left out.

`data.prepare` and `--mode=predict` list files by these rules.
"""

import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from smoothsa_jax.text import printable

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
# Every system writes these; nobody misses them.
JUNK = (".ds_store", "thumbs.db", "desktop.ini", "__macosx")


class LeftOut:
    """The names that a listing left out, by reason, and the links that it followed."""

    def __init__(self) -> None:
        # Dictionaries in place of sets, which have no order.
        self._names: dict[str, dict[str, None]] = {}
        self._files: dict[str, dict[str, None]] = {}  # by ending
        self._followed: dict[str, None] = {}

    def add(self, reason: str, name: str) -> None:
        self._names.setdefault(reason, {})[name] = None

    def add_file(self, name: str) -> None:
        """Add a file that was not read because of its ending."""
        self._files.setdefault(PurePosixPath(name).suffix.lower(), {})[name] = None

    def follow(self, name: str) -> None:
        """Note a link to a folder that was followed."""
        self._followed[name] = None

    def merge(self, other: "LeftOut") -> None:
        for mine, theirs in ((self._names, other._names), (self._files, other._files)):
            for key, names in theirs.items():
                mine.setdefault(key, {}).update(names)
        self._followed |= other._followed

    def lines(self) -> list[str]:
        """A line for each reason, with the count and examples."""
        found = {reason: list(names) for reason, names in self._names.items()}
        others: dict[str, list[str]] = {}
        for ending, names in self._files.items():
            if ending in ARCHIVES:
                found.setdefault("archives inside, to be unpacked", []).extend(names)
            else:
                others[ending or "no ending"] = list(names)
        lines = []
        if self._followed:
            count = len(self._followed)
            lines.append(f"followed: links to folders ({count}): {_some(list(self._followed))}")
        lines += [
            f"left out: {reason} ({len(names)}): {_some(names)}" for reason, names in found.items()
        ]
        if others:
            count = sum(map(len, others.values()))
            kinds = "; ".join(f"{ending}: {_some(names)}" for ending, names in others.items())
            lines.append(f"left out: files with other endings ({count}): {kinds}")
        return lines


class Folder(NamedTuple):
    """A folder on the way down from where a walk begins.

    Attributes:
        path: where it is.
        name: its path relative to the beginning, with "/" as separator; "" at the beginning.
        way: the real paths of the folders from the beginning to this one.
    """

    path: Path
    name: str
    way: tuple[str, ...]

    @classmethod
    def begin(cls, path: Path, name: str = "") -> "Folder":
        return cls(path, name, (os.path.realpath(path),))

    def contents(self, left_out: LeftOut) -> tuple[list[str], list["Folder"]]:
        """The names of its files, relative to the beginning, and its sub-folders, both sorted.

        Links are followed, except those to a folder above them, which have no end.
        """
        files, folders, is_empty = [], [], True
        try:
            entries = sorted(os.scandir(self.path), key=lambda entry: entry.name)
        except OSError as error:
            left_out.add(f"folders that cannot be read ({error.strerror})", self.name or ".")
            return [], []
        for entry in entries:
            name = f"{self.name}/{entry.name}" if self.name else entry.name
            is_empty = is_empty and is_junk(name)
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # links in a circle
                is_folder = is_file = False
            if is_folder:
                if (way := self._way_to(entry)) is None:
                    left_out.add("links to a folder above them", name)
                    continue
                folders.append(Folder(self.path / entry.name, name, way))
                if entry.is_symlink():
                    left_out.follow(name)
            elif is_file:
                files.append(name)
            elif entry.is_symlink():
                left_out.add("links that lead nowhere", name)
            else:
                left_out.add("pipes or devices", name)
        if is_empty and self.name:
            left_out.add("empty folders", self.name)
        return files, folders

    def _way_to(self, entry: os.DirEntry) -> tuple[str, ...] | None:
        """The way with a sub-folder at its end; None if it leads back."""
        if not entry.is_symlink():
            return (*self.way, os.path.join(self.way[-1], entry.name))
        target = os.path.realpath(entry.path)
        return None if leads_back(target, self.way) else (*self.way, target)


def leads_back(target: str, way: tuple[str, ...]) -> bool:
    """Whether a real path is one of these real paths, or above one of them."""
    return any(os.path.commonpath((target, path)) == target for path in way)


def all_files(folder: Path, left_out: LeftOut) -> list[str]:
    """The names of all files below a folder, relative to it, in no order.

    Nothing is said of what hidden folders hold.
    """
    found, waiting = [], [Folder.begin(folder)]
    while waiting:
        inner = waiting.pop()
        is_silent = hidden(inner.name) or is_junk(inner.name)
        files, folders = inner.contents(LeftOut() if is_silent else left_out)
        found += files
        waiting += folders
    return found


def is_junk(name: str) -> bool:
    """Whether a file is of the kind that systems put into every folder."""
    parts = [part.lower() for part in PurePosixPath(name).parts]
    return any(part.startswith(("._", "__macosx")) or part in JUNK for part in parts)


def hidden(name: str) -> str:
    """The path up to the first part with a dot in front; "" if there is none."""
    parts = PurePosixPath(name).parts
    place = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
    return "" if place is None else "/".join(parts[: place + 1])


def _some(names: list[str]) -> str:
    return ", ".join(map(_in_one_line, names[:2])) + (", ..." if len(names) > 2 else "")


def _in_one_line(name: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in printable(name)
    )
