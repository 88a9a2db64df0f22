"""Further files of a prepared folder, beside its shards: questions and labels of videos."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.shards import sha256_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inputs.manifest import MANIFEST

KEY = "files"  # of the manifest


def entries_of(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """What the manifest says of files, given by name and contents."""
    return {
        name: {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }


def is_there(out: Path, files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> bool:
    """Whether a finished folder holds these files."""
    listed = manifest.get(KEY, {})
    return all(listed.get(x) == y and (out / x).is_file() for x, y in entries_of(files).items())


def refuse_other(out: Path, files: Mapping[str, bytes]) -> None:
    """Raise UserError if a file of these names has other contents."""
    for name, entry in entries_of(files).items():
        path = out / name
        if path.is_file() and sha256_of(path) != entry["sha256"]:
            raise UserError(
                f"--out={out} holds {name}, which was made from other files than --source has "
                "now; nothing was changed: remove it to replace it, or use another folder"
            )


def write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write the files that are not there."""
    for name, data in files.items():
        if not (out / name).is_file():
            with atomic_file(out / name) as partial:
                partial.write_bytes(data)


def wrong_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """List the problems of a folder's further files, one per line."""
    wrong = []
    for name, entry in manifest.get(KEY, {}).items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256_of(folder / name) != entry["sha256"]:
            wrong.append(f"{name} differs from its checksum in {MANIFEST}")
    return wrong
