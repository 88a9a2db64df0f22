"""Find the inputs named by `--input`: pictures, videos, and folders of numbered frames."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from smoothsa_jax.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif")
FOLDERS = ("auto", "video", "pictures")  # how to treat a folder of pictures
EXPECTED = f"expected images ({', '.join(IMAGES)}), videos ({', '.join(VIDEOS)}) or folders of them"


class Source(NamedTuple):
    """One input.

    Attributes:
        name: its path relative to `--input`, with "/" as separator; unique among inputs.
        kind: one picture, a video file, or a video as a folder of frames.
        files: one file, or the frames in order.
    """

    name: str
    kind: Literal["picture", "video", "frames"]
    files: tuple[Path, ...]


def find_sources(named: str, folders: str = "auto", without: Path | None = None) -> list[Source]:
    """Find the inputs below a path, glob or folder, in natural order.

    Folders are searched recursively. If a folder's pictures are numbered evenly (`0001.jpg`,
    `0002.jpg`, ...; `a_00.png`, `a_05.png`, ...), they are the frames of one video, and its
    subfolders are not searched. Otherwise, each picture is an input of its own.

    Args:
        named: a path, a glob or a folder.
        folders: "video" or "pictures" treat the pictures of every folder as such, whatever their
            names.
        without: a folder to skip, such as the output folder.

    Raises:
        UserError: the path does not exist, or contains no readable input.
    """
    path = Path(named)
    if path.is_file():
        if not named.lower().endswith(IMAGES + VIDEOS):
            raise UserError(f"--input={named} has an unknown format: {EXPECTED}")
        return [_of_file(path, path.name)]
    skipped = None if without is None else without.resolve()
    if path.is_dir():
        found = list(_of_folder(path, "", folders, skipped))
    elif glob.has_magic(named):
        found = list(_of_glob(named, folders, skipped))
    else:
        raise UserError(
            f"--input={named} does not exist; {EXPECTED}, or a glob such as 'clips/*.mp4'"
        )
    if not found:
        raise UserError(f"--input={named} contains no readable input; {EXPECTED}")
    return sorted(found, key=lambda source: natural(source.name))


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts `frame_9` before `frame_10`."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def _of_file(path: Path, name: str) -> Source:
    return Source(name, "video" if name.lower().endswith(VIDEOS) else "picture", (path,))


def _of_glob(pattern: str, folders: str, skipped: Path | None) -> Iterator[Source]:
    fixed = Path(*_before_the_first_wildcard(Path(pattern)))
    searched: set[Path] = set()  # folders already searched recursively
    # A folder sorts before its contents.
    for match in sorted(set(map(Path, glob.glob(pattern, recursive=True)))):
        place = match.resolve()
        around = {place, *place.parents}
        if skipped in around or searched & around:
            continue
        name = match.relative_to(fixed).as_posix().removeprefix(".")
        if match.is_dir():
            searched.add(place)
            yield from _of_folder(match, name, folders, skipped)
        elif name.lower().endswith(IMAGES + VIDEOS):
            yield _of_file(match, name)


def _before_the_first_wildcard(path: Path) -> Iterator[str]:
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _of_folder(folder: Path, name: str, folders: str, skipped: Path | None) -> Iterator[Source]:
    if folder.resolve() == skipped:
        return
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    files = sorted((e.name for e in entries if e.is_file()), key=natural)
    images = [file for file in files if file.lower().endswith(IMAGES)]
    as_video = _are_numbered_evenly(images) if folders == "auto" else folders == "video"
    others = [e.name for e in entries if e.is_dir() or e.name.lower().endswith(VIDEOS)]
    if folders == "auto" and as_video and others:
        raise UserError(
            f"{folder} holds numbered pictures, which would be one video, and {min(others)}; use "
            "--folders=video for the pictures alone, or --folders=pictures for everything, each "
            "picture by itself"
        )
    if images and as_video:
        frames = tuple(folder / file for file in images)
        yield Source(name or folder.resolve().name, "frames", frames)
        return
    for file in files:
        if file.lower().endswith(IMAGES + VIDEOS):
            yield _of_file(folder / file, f"{name}/{file}".lstrip("/"))
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():  # links may form a cycle
            yield from _of_folder(
                folder / entry.name, f"{name}/{entry.name}".lstrip("/"), folders, skipped
            )


def _are_numbered_evenly(names: list[str]) -> bool:
    """Whether the names are a common prefix followed by numbers with a constant step."""
    matches = [re.fullmatch(r"(.*?)(\d+)", Path(name).stem) for name in names]
    if len(names) < 2 or None in matches or len({m[1] for m in matches}) > 1:
        return False
    numbers = [int(match[2]) for match in matches]
    steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
    return len(steps) == 1 and steps != {0}
