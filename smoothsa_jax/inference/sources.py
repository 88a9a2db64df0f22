"""Find the inputs named by `--input`: pictures, videos, and folders of numbered frames."""

import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import Folder, LeftOut, is_junk

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


def find_sources(
    named: str,
    folders: str = "auto",
    without: Path | None = None,
    left_out: LeftOut | None = None,
) -> list[Source]:
    """Find the inputs below a path, glob or folder, in natural order.

    Folders are searched recursively, and links are followed. If a folder's pictures are numbered
    evenly (`0001.jpg`, `0002.jpg`, ...; `a_00.png`, `a_05.png`, ...), they are the frames of one
    video, and its subfolders are not searched. Otherwise, each picture is an input of its own.

    Args:
        named: a path, a glob or a folder.
        folders: "video" or "pictures" treat the pictures of every folder as such, whatever their
            names.
        without: a folder to skip, such as the output folder.
        left_out: collects what is left out, except in `without`.

    Raises:
        UserError: the path does not exist, or contains no readable input.
    """
    path, left_out = Path(named), left_out or LeftOut()
    if path.is_file():
        return [file_source(path, f"--input={named}")]
    skipped = None if without is None else without.resolve()
    if path.is_dir():
        found = list(_of_folder(Folder.begin(path), folders, skipped, left_out))
    elif glob.has_magic(named):
        found = list(_of_glob(named, folders, skipped, left_out))
    else:
        raise UserError(
            f"--input={named} does not exist; {EXPECTED}, or a glob such as 'clips/*.mp4'"
        )
    if not found:
        told = "".join(f"; {line}" for line in left_out.lines())
        raise UserError(f"--input={named} contains no readable input; {EXPECTED}{told}")
    return sorted(found, key=lambda source: natural(source.name))


def file_source(path: Path, what: str) -> Source:
    """Return one file as an input.

    Args:
        path: of an existing file.
        what: what was given, for the message.

    Raises:
        UserError: it is neither a picture nor a video, by its name.
    """
    if not path.name.lower().endswith(IMAGES + VIDEOS):
        raise UserError(f"{what} has an unknown format: {EXPECTED}")
    return _of_file(path, path.name)


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts `frame_9` before `frame_10`."""
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name) if p]


def _of_file(path: Path, name: str) -> Source:
    return Source(name, "video" if name.lower().endswith(VIDEOS) else "picture", (path,))


def _of_glob(
    pattern: str, folders: str, skipped: Path | None, left_out: LeftOut
) -> Iterator[Source]:
    fixed = Path(*_before_the_first_wildcard(Path(pattern)))
    if not fixed.is_dir():
        return
    parts = Path(pattern).parts[len(fixed.parts) :]
    searched: set[str] = set()  # folders already searched recursively
    # A folder sorts before its contents.
    for name, folder in sorted(dict(_matches(Folder.begin(fixed), parts, left_out)).items()):
        place = (fixed / name).resolve()
        around = {name, *map(str, PurePosixPath(name).parents)}
        if skipped in (place, *place.parents) or searched & around:
            continue
        if folder is not None:
            searched.add(name or ".")
            yield from _of_folder(folder, folders, skipped, left_out)
        elif name.lower().endswith(IMAGES + VIDEOS):
            yield _of_file(fixed / name, name)
        elif not is_junk(name):
            left_out.add_file(name)


def _matches(
    folder: Folder, parts: Sequence[str], left_out: LeftOut
) -> Iterator[tuple[str, Folder | None]]:
    """Yield what the parts of a pattern match, as `glob` does: files as their names and None.

    Unlike `glob`, this never walks in circles.
    """
    if not parts:
        yield folder.name, folder
        return
    first, *rest = parts
    files, below = folder.contents(left_out)
    if first == "**":
        yield from _matches(folder, rest, left_out)
        for inner in below:
            if not _last(inner.name).startswith("."):
                yield from _matches(inner, parts, left_out)
        if not rest:
            yield from ((name, None) for name in files if not _last(name).startswith("."))
        return
    for inner in below:
        if _fits(inner.name, first):
            yield from _matches(inner, rest, left_out)
    if not rest:
        yield from ((name, None) for name in files if _fits(name, first))


def _fits(name: str, wanted: str) -> bool:
    own = _last(name)
    return fnmatch.fnmatchcase(own, wanted) and own.startswith(".") == wanted.startswith(".")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _before_the_first_wildcard(path: Path) -> Iterator[str]:
    for part in path.parts:
        if glob.has_magic(part):
            return
        yield part


def _of_folder(
    folder: Folder, folders: str, skipped: Path | None, left_out: LeftOut
) -> Iterator[Source]:
    if folder.way[-1] == str(skipped):
        return
    entries, below = folder.contents(left_out)
    files = sorted((n for n in entries if _is_seen(n, left_out)), key=natural)
    below = [inner for inner in below if _is_seen(inner.name, left_out)]
    images = [name for name in files if name.lower().endswith(IMAGES)]
    as_video = are_numbered_evenly(images) if folders == "auto" else folders == "video"
    others = [name for name in files if name.lower().endswith(VIDEOS)]
    others += [inner.name for inner in below if inner.way[-1] != str(skipped)]
    for name in files:
        if not name.lower().endswith(IMAGES + VIDEOS):
            left_out.add_file(name)
    if folders == "auto" and as_video and others:
        raise UserError(
            f"{folder.path} holds numbered pictures, which would be one video, and "
            f"{PurePosixPath(min(others)).name}; use --folders=video for the pictures alone, or "
            "--folders=pictures for everything, each picture by itself"
        )
    if images and as_video:
        frames = tuple(folder.path / PurePosixPath(name).name for name in images)
        yield Source(folder.name or folder.path.resolve().name, "frames", frames)
        for name in others:
            left_out.add("videos and sub-folders beside frames", name)
        return
    for name in files:
        if name.lower().endswith(IMAGES + VIDEOS):
            yield _of_file(folder.path / PurePosixPath(name).name, name)
    for inner in below:
        yield from _of_folder(inner, folders, skipped, left_out)


def _is_seen(name: str, left_out: LeftOut) -> bool:
    """Whether a name in a folder is neither hidden nor of the kind that systems write."""
    if is_junk(_last(name)):
        return False
    if _last(name).startswith("."):
        left_out.add("hidden names", name)
        return False
    return True


def are_numbered_evenly(names: list[str]) -> bool:
    """Whether the names are a common prefix followed by numbers with a constant step."""
    matches = [re.fullmatch(r"(.*?)(\d+)", Path(name).stem) for name in names]
    if len(names) < 2 or None in matches or len({m[1] for m in matches}) > 1:
        return False
    numbers = [int(match[2]) for match in matches]
    steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
    return len(steps) == 1 and steps != {0}
