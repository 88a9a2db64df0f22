"""Files and folders that appear completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from smoothsa_jax.errors import UserError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """`with atomic_file(path) as temporary:` write to `temporary`; it replaces `path` at the end,
    or is removed if the body fails. Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.stem}-"
    try:
        # In the same folder: a rename is atomic within one file system only.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    except OSError as error:
        error.filename = str(path)  # not the temporary name
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes it readable by its owner only
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of writing it: the system names none if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def expanded(path: str | os.PathLike) -> Path:
    """Return the path with its `~` expanded.

    Raises:
        UserError: there is no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} starts with ~, and there is no home folder; set HOME, or give the whole path"
        ) from error


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path`; it gets that name at the end, or is removed if the body fails.

    `path` may be an empty folder. Missing folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it readable by its owner only
        folder.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
