"""What stands in a folder that is being prepared: shards that are finished, and what they were made of.

Notes of them lie in `.unfinished/` until the folder is whole; then they are in its manifest. So an interrupted
preparation goes on, and two that do not agree are refused.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.family import Job, Options, Plan
from data.shards import read_json
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inputs.manifest import MANIFEST

FORMAT = 1  # of prepared folders; another number is refused
UNFINISHED = ".unfinished"  # what is known of finished shards, until the folder is whole
SETTINGS = "settings.json"  # in it: what two runs have to agree in
STAGING = "staging"  # in it: what had to be unpacked


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Within it no other process prepares this folder.

    Raises:
        UserError: another one does, or the folder cannot be written.
    """
    try:
        (out / UNFINISHED).mkdir(parents=True, exist_ok=True)
        handle = open(out / ".lock", "a+")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(
            f"--out={out} cannot be written: {error.strerror}; use another folder"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--out={out} is being prepared by another process; wait for it, or use another folder"
            ) from error
        except OSError:  # a file system without locks
            print(f"warning: {out} cannot be locked; prepare it once at a time", file=sys.stderr)
        try:
            yield
        finally:
            if not list((out / UNFINISHED).glob("*.array_record-*.json")):
                (out / UNFINISHED / SETTINGS).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is empty, or is needed to go on
                (out / UNFINISHED).rmdir()


def settings_of(name: str, options: Options, plan: Plan) -> dict[str, Any]:
    """What decides the bytes of a sample; two preparations of one folder have to agree in it."""
    decides = ("limit", "size", "keep", "uncompressed", "extra")
    settings = {
        "format": FORMAT,
        "dataset": name,
        "options": {key: getattr(options, key) for key in decides},
        "categories": plan.metadata.get("categories"),
    }
    return json.loads(json.dumps(settings))


def manifest_of(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a folder that is whole, else None.

    Raises:
        UserError: it was prepared with other settings.
    """
    path = out / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    _compare(manifest, settings, out)
    return manifest


def in_manifest(manifest: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What the manifest tells of finished shards, by file."""
    splits = manifest["splits"].values() if manifest else ()
    return {shard["file"]: shard for split in splits for shard in split["shards"]}


def in_notes(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an unfinished preparation left, by file."""
    path = out / UNFINISHED / SETTINGS
    if path.is_file():
        _compare(read_json(path), settings, out)
    else:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(settings))
    notes = (read_json(p) for p in (out / UNFINISHED).glob("*.array_record-*.json"))
    return {note["file"]: note for note in notes}


def is_there(out: Path, file: str, known: dict[str, dict[str, Any]]) -> bool:
    """Whether a shard of which something is known is there as a whole."""
    path = out / file
    return file in known and path.is_file() and path.stat().st_size == known[file]["file_size"]


def digest_of(job: Job) -> str:
    """Tells apart the samples that shards are made of; the same wherever the download lies."""
    return hashlib.sha256(json.dumps(_plain(job)).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return sorted([_plain(key), _plain(entry)] for key, entry in value.items())
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Path):
        return value.name
    text = value if isinstance(value, str) else repr(value)
    return text.rsplit("/", 1)[-1] if text.startswith("/") or "://" in text else text


def refuse_other_samples(
    known: dict[str, dict[str, Any]],
    wanted: dict[str, Job],
    source: str,
    out: Path,
    options: Options,
) -> None:
    """Shards that are there already, of splits that are wanted, have to be of the same samples."""
    splits = {file.rsplit(".", 1)[0] for file in wanted}
    for file, note in known.items():
        if file.rsplit(".", 1)[0] not in splits:
            continue
        if file not in wanted or note["job"] != digest_of(wanted[file]):
            raise UserError(
                f"--out={out} holds {file}, which was made of other samples than --source={source} has now; nothing was "
                "changed: use another folder, or remove this one"
            )
        if note["skipped"] and not options.skip_bad:
            raise UserError(
                f"--out={out} holds {file}, of which {len(note['skipped'])} samples were left out; add --skip-bad, or use "
                "another folder"
            )


def remove_notes(out: Path, wanted: dict[str, Job]) -> None:
    """Removes what only an unfinished preparation needs."""
    notes = out / UNFINISHED
    for file in wanted:
        (notes / f"{file}.json").unlink(missing_ok=True)
    shutil.rmtree(notes / STAGING, ignore_errors=True)


def _compare(there: dict[str, Any], settings: dict[str, Any], out: Path) -> None:
    for key, value in settings.items():
        found = there.get(key)
        if found == value:
            continue
        if isinstance(value, dict) and isinstance(found, dict):
            key, found, value = next(
                (f"{key}.{k}", found.get(k), value.get(k))
                for k in sorted({*found, *value})
                if found.get(k) != value.get(k)
            )
        raise UserError(
            f"--out={out} was prepared with {key} {_short(found)}, now it is {_short(value)}; nothing was changed: "
            "use another folder"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
