"""What is read: a folder, a glob, a list file, Parquet, or WebDataset's tars, here or at a URL.

    clips/                  a folder, or a glob, as without --engine
    gs://bucket/clips/      the same in an object store
    corpus.txt              a path or URL a line; relative paths begin at the file's folder
    corpus.parquet          a column of paths, of bytes, or of both as Hugging Face stores pictures
    shards/*.tar            WebDataset: each picture or video of a tar counts; not compressed

The order is that of the names, so the same corpus is the same list each time.
"""

import glob
import hashlib
import itertools
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import fsspec

from smoothsa_jax.bulk.storage import protocols, read
from smoothsa_jax.errors import UserError
from smoothsa_jax.inference.listing import LeftOut, is_junk
from smoothsa_jax.inference.sources import (
    EXPECTED,
    IMAGES,
    VIDEOS,
    are_numbered_evenly,
    find_sources,
    natural,
)
from smoothsa_jax.inputs.addresses import explained, file_system, is_remote
from smoothsa_jax.text import text_of

LISTS, TABLES, TARS = (".txt", ".lst"), (".parquet",), (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MEDIA = IMAGES + VIDEOS


class Item(NamedTuple):
    """A picture or a video.

    Attributes:
        name: unique in the corpus.
        kind: one picture, a video file, a video as a folder of frames; or unknown, where a table
            holds bytes without a name.
        urls: of the file, or of the frames in order; of the tar or the table that holds it.
        place: where it lies in a tar (first byte, number of bytes) or in a table (row group, row).
        column: of a table.
    """

    name: str
    kind: Literal["picture", "video", "frames", "unknown"]
    urls: tuple[str, ...]
    place: tuple[int, int] | None = None
    column: str | None = None


class Corpus(NamedTuple):
    """All items, in order.

    Attributes:
        items: the items.
        digest: a hash of the items, by which a later run recognizes another corpus.
        left_out: lines about what is not read.
    """

    items: Sequence[Item]
    digest: str
    left_out: Sequence[str]


def find(
    named: str, folders: str = "auto", column: str | None = None, without: str | None = None
) -> Corpus:
    """Find what `--input` names; see the module.

    Args:
        named: a path, a URL, or a glob of either.
        folders: how to treat folders of pictures; see `sources.find_sources`.
        column: of a table; None: the only one that holds paths or bytes.
        without: a folder to skip, such as the output folder.

    Raises:
        UserError: it does not exist, cannot be read, or holds nothing that can be.
    """
    left_out = LeftOut()
    named, without = _first_protocol(named), without and _first_protocol(without)
    found = _checked_names(_found(named, folders, column, without, left_out), named)
    if not found:
        told = "".join(f"; {line}" for line in left_out.lines())
        raise UserError(f"--input={named} contains no readable input; {EXPECTED}{told}")
    state = hashlib.sha256()
    for item in found:
        state.update(repr(tuple(item)).encode() + b"\n")
    return Corpus(found, state.hexdigest(), left_out.lines())


def _first_protocol(named: str) -> str:
    """The same URL with the protocol that a file system itself writes, such as gs:// for gcs://."""
    scheme, _, rest = named.partition("://")
    if not rest or "::" in scheme:  # a path, or a chain of file systems
        return named
    return f"{protocols(file_system(named)[0])[0]}://{rest}"


def _checked_names(items: Iterable[Item], named: str) -> list[Item]:
    found = list(map(_absolute, items))
    seen: set[str] = set()
    for item in found:
        if item.name in seen:
            raise UserError(f"--input={named} names {item.name} twice; leave one of them out")
        seen.add(item.name)
    return found


def _absolute(item: Item) -> Item:
    """Workers may run in another folder than this process."""
    return item._replace(urls=tuple(x if is_remote(x) else os.path.abspath(x) for x in item.urls))


def _found(
    named: str, folders: str, column: str | None, without: str | None, left_out: LeftOut
) -> Iterator[Item]:
    lower = named.lower()
    if lower.endswith(COMPRESSED):
        raise UserError(
            f"--input={named} is a compressed tar, in which nothing can be reached on its own; "
            "unpack it to .tar (gunzip)"
        )
    if column is not None and not lower.endswith(TABLES):
        raise UserError(f"--column={column} belongs to Parquet files; leave it out")
    if lower.endswith((*TABLES, *TARS)):
        for url in _files_of(named):
            name = _below(url, named)
            if url.lower().endswith(TARS):
                yield from _of_tar(url, name, left_out)
            else:
                yield from _of_table(url, name, column)
    elif lower.endswith(LISTS):
        yield from _of_list(named)
    elif is_remote(named):
        yield from _of_store(named, folders, without, left_out)
    else:
        skipped = None if without is None or is_remote(without) else Path(without)
        for source in find_sources(named, folders, skipped, left_out):
            yield Item(source.name, source.kind, tuple(map(os.fspath, source.files)))


def kind_of(name: str) -> Literal["picture", "video"] | None:
    """What a file is, by its ending; None: neither."""
    lower = name.lower()
    if lower.endswith(VIDEOS):
        return "video"
    return "picture" if lower.endswith(IMAGES) else None


def _files_of(named: str) -> list[str]:
    """The files that a path, a URL or a glob names, in natural order."""
    if not is_remote(named):
        found = glob.glob(named, recursive=True) if glob.has_magic(named) else [named]
        found = [path for path in found if os.path.isfile(path)]
    else:
        system, path = file_system(named)
        with explained(f"--input={named}"):
            paths = system.glob(path) if glob.has_magic(path) else [path]
            found = [system.unstrip_protocol(x) for x in paths if system.isfile(x)]
    if not found:
        raise UserError(f"--input={named} does not exist; {EXPECTED}")
    return sorted(found, key=natural)


def _below(url: str, named: str) -> str:
    """A file's name relative to the fixed part of what was named."""
    fixed = _fixed(named)
    if not fixed or not url.startswith(fixed):
        return posixpath.basename(url)
    return url.removeprefix(fixed).lstrip("/")


def _fixed(pattern: str) -> str:
    """The folder of a path, or of a glob before its first wildcard."""
    return posixpath.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0])


def _of_store(named: str, folders: str, without: str | None, left_out: LeftOut) -> Iterator[Item]:
    """The items below a URL, by the rules of `find_sources`."""
    system, path = file_system(named)
    alone: list[str] = []  # files that are named themselves are no frames
    with explained(f"--input={named}"):
        if glob.has_magic(path):
            base, searched = _fixed(path), {}  # a folder sorts before its contents
            for full, about in sorted(system.glob(path, detail=True).items()):
                if any(str(above) in searched for above in PurePosixPath(full).parents):
                    continue
                if about["type"] == "directory":
                    searched[full] = system.find(full)
                else:
                    alone.append(full)
            names = [*alone, *itertools.chain.from_iterable(searched.values())]
        elif system.isfile(path):
            base, names = posixpath.dirname(path), [path]
        else:
            base, names = path.rstrip("/"), system.find(path)
            if not names and not system.exists(path):
                raise FileNotFoundError(path)
    skipped = None if without is None else without.rstrip("/") + "/"
    whole = lambda name: system.unstrip_protocol(f"{base}/{name}" if base else name)  # noqa: E731
    found, named_alone = [], set(alone)
    by_folder: dict[str, list[str]] = {}
    for full in names:
        url = system.unstrip_protocol(full)
        name = full.removeprefix(base).lstrip("/")
        if (skipped and url.startswith(skipped)) or full.endswith("/") or not name:
            continue
        if is_junk(name) or any(part.startswith(".") for part in name.split("/")):
            continue
        if kind_of(name) is None:
            left_out.add_file(name)
        elif full in named_alone:
            found.append(Item(name, kind_of(name), (whole(name),)))
        else:
            by_folder.setdefault(posixpath.dirname(name), []).append(name)
    for folder, inside in by_folder.items():
        inside.sort(key=natural)
        pictures = [name for name in inside if kind_of(name) == "picture"]
        as_video = are_numbered_evenly(pictures) if folders == "auto" else folders == "video"
        if pictures and as_video:
            name = folder or posixpath.basename(base)
            found.append(Item(name, "frames", tuple(map(whole, pictures))))
            pictures = set(pictures)
            inside = [name for name in inside if name not in pictures]
        found += [Item(name, kind_of(name), (whole(name),)) for name in inside]
    yield from sorted(found, key=lambda item: natural(item.name))


def _of_list(named: str) -> Iterator[Item]:
    with explained(f"--input={named}"):
        text = text_of(read(named), f"--input={named}")
    folder = posixpath.dirname(named)
    for number, line in enumerate(text.splitlines(), 1):
        if not (name := line.strip()) or name.startswith("#"):
            continue
        if (kind := kind_of(name)) is None:
            raise UserError(f"line {number} of --input={named} is {name}; {EXPECTED}")
        whole = name if is_remote(name) or name.startswith("/") else posixpath.join(folder, name)
        yield Item(name, kind, (whole,))


def _of_tar(url: str, name: str, left_out: LeftOut) -> Iterator[Item]:
    """The pictures and videos of a tar, of which only the headers are read."""
    system, path = file_system(url)
    with explained(url):
        with system.open(path, "rb", block_size=1 << 16) as file:
            yield from _members(file, url, name, left_out)


def _members(file: Any, url: str, name: str, left_out: LeftOut) -> Iterator[Item]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile() or is_junk(member.name):
                    continue
                if (kind := kind_of(member.name)) is None:
                    left_out.add_file(f"{name}/{member.name}")
                    continue
                place = (member.offset_data, member.size)
                yield Item(f"{name}/{member.name}", kind, (url,), place)
    except tarfile.TarError as error:
        raise UserError(f"{url} cannot be read as a tar: {error}; copy it again") from error


def _of_table(url: str, name: str, column: str | None) -> Iterator[Item]:
    system, path = file_system(url)
    with explained(url), system.open(path, "rb") as file:
        yield from _of_columns(file, url, name, column)


def _of_columns(file: Any, url: str, name: str, column: str | None) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"{url} cannot be read as Parquet: {error}; copy it again") from error
    column, names = column or _column(table.schema_arrow, url), table.schema_arrow.names
    if column not in names:
        raise UserError(f"{url} has no column {column!r}; it has {', '.join(names)}")
    kind = table.schema_arrow.field(column).type
    if not (holds_paths := _is_text(kind)) and not _holds_bytes(kind):
        raise UserError(f"column {column!r} of {url} is {kind}; expected paths or bytes")
    folder, number = posixpath.dirname(url), 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if not holds_paths:
            for row in range(rows):
                place = f"{name}/{number + row:08d}"
                yield Item(place, "unknown", (url,), (group, row), column)
        else:
            for row, value in enumerate(table.read_row_group(group, [column])[column].to_pylist()):
                if not value or (what := kind_of(value)) is None:
                    raise UserError(
                        f"row {number + row} of {url} has {value!r} in {column}; {EXPECTED}"
                    )
                absolute = is_remote(value) or value.startswith("/")
                yield Item(value, what, (value if absolute else posixpath.join(folder, value),))
        number += rows


def _column(schema: Any, url: str) -> str:
    """The column that holds pictures or videos, or their paths."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    found = found or [field.name for field in schema if _is_text(field.type)]
    if len(found) != 1:
        told = f"it has {', '.join(found)}" if found else "it has none"
        raise UserError(
            f"{url}: expected one column of paths or bytes, {told}; name one with --column"
        )
    return found[0]


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):  # as Hugging Face stores pictures
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class Tables:
    """Reads bytes out of tables; keeps the row group that was read last.

    The items of a part follow each other, so each row group is read about once.
    """

    def __init__(self) -> None:
        self._key: tuple[str, int, str | None] | None = None
        self._values: Any = None

    def read(self, item: Item) -> bytes:
        """The bytes of an item.

        Raises:
            ValueError: the row holds none.
        """
        import pyarrow.parquet as pq

        url, (group, row) = item.urls[0], item.place
        if self._key != (url, group, item.column):
            system, path = fsspec.core.url_to_fs(url)
            with system.open(path, "rb") as file:
                table = pq.ParquetFile(file).read_row_group(group, [item.column])
            self._key, self._values = (url, group, item.column), table[item.column]
        value = self._values[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not value:
            raise ValueError("the row holds no bytes")
        return value
