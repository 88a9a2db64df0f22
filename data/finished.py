"""The state of a folder during preparation: finished shards and what they were made from.

Notes on finished shards are kept in `.unfinished/` until the folder is complete; then they move to
its manifest. This lets an interrupted preparation resume, and conflicting preparations are refused.
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
from data.shards import PARTIAL, read_json
from smoothsa_jax.bulk.pieces import MARK
from smoothsa_jax.errors import UserError
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inputs.manifest import MANIFEST
from smoothsa_jax.text import printable

FORMAT = 1  # of prepared folders; any other number is refused
UNFINISHED = ".unfinished"  # notes on finished shards, until the folder is complete
SETTINGS = "settings.json"  # in it: the settings on which two runs must agree
STAGING = "staging"  # in it: unpacked files


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Lock this folder so that no other process prepares it.

    Raises:
        UserError: another process is preparing the folder, or it cannot be written.
    """
    if printable(str(out)) != str(out):
        raise UserError(
            f"--out={out} has a byte that is no UTF-8, and ArrayRecord needs a name in UTF-8; use "
            "another folder"
        )
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
                f"--out={out} is being prepared by another process; wait for it, or use another "
                "folder"
            ) from error
        except OSError:  # a file system without locks
            print(
                f"warning: {out} cannot be locked; prepare it in one process at a time",
                file=sys.stderr,
            )
        try:
            yield
        finally:
            if not list((out / UNFINISHED).glob("*.array_record-*.json")):
                (out / UNFINISHED / SETTINGS).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # removed only if empty; else needed to resume
                (out / UNFINISHED).rmdir()


def settings_of(name: str, options: Options, plan: Plan) -> dict[str, Any]:
    """The settings that determine the bytes of a sample; runs on one folder must agree on them."""
    decides = ("limit", "size", "keep", "uncompressed", "extra")
    # What planning decided is recorded in place of the option, which was left to it.
    extra = dict(options.extra)
    extra |= {k: value for k, value in plan.settled.items() if value or k in extra}
    options = dataclasses.replace(options, extra=tuple(sorted(extra.items())))
    settings = {
        "format": FORMAT,
        "dataset": name,
        "options": {key: getattr(options, key) for key in decides},
        "categories": plan.metadata.get("categories"),
    }
    return json.loads(json.dumps(settings))


def manifest_of(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a complete folder, else None.

    Raises:
        UserError: the folder was prepared with other settings.
    """
    path = out / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    _compare(manifest, settings, out)
    return manifest


def in_manifest(manifest: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The manifest's notes on finished shards, by file."""
    splits = manifest["splits"].values() if manifest else ()
    return {shard["file"]: shard for split in splits for shard in split["shards"]}


def in_notes(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The notes of an unfinished preparation, by file."""
    path = out / UNFINISHED / SETTINGS
    if path.is_file():
        _compare(read_json(path), settings, out)
    else:
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(settings))
    notes = (read_json(p) for p in (out / UNFINISHED).glob("*.array_record-*.json"))
    return {note["file"]: note for note in notes}


def is_there(out: Path, file: str, known: dict[str, dict[str, Any]]) -> bool:
    """Whether a shard with a note exists with its full size."""
    path = out / file
    return file in known and path.is_file() and path.stat().st_size == known[file]["file_size"]


def digest_of(job: Job) -> str:
    """A hash of the samples of a shard, independent of where the download is stored."""
    return hashlib.sha256(json.dumps(_plain(job)).encode()).hexdigest()[:16]


def write_note(
    out: Path, file: str, job: Job, written: tuple[int, int, str], **more: Any
) -> dict[str, Any]:
    """Write the note on a finished shard, and return it.

    Args:
        out: the folder.
        file: the shard's name.
        job: what it was made of.
        written: what `shards.write_shard` returned.
        **more: further entries.
    """
    num_examples, num_bytes, sha256 = written
    note = {
        "file": file,
        "job": digest_of(job),
        "file_size": (out / file).stat().st_size,
        "num_examples": num_examples,
        "num_bytes": num_bytes,
        "sha256": sha256,
        **more,
    }
    with atomic_file(out / UNFINISHED / f"{file}.json") as path:
        path.write_text(json.dumps(note))
    return note


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
    """Raise UserError if existing shards of the wanted splits were made from other samples."""
    splits = {file.rsplit(".", 1)[0] for file in wanted}
    for file, note in known.items():
        if file.rsplit(".", 1)[0] not in splits:
            continue
        if file not in wanted or note["job"] != digest_of(wanted[file]):
            raise UserError(
                f"--out={out} holds {file}, which was made from other samples than "
                f"--source={source} has now; nothing was changed: use another folder, or remove "
                "this one"
            )
        if note["skipped"] and not options.skip_bad:
            raise UserError(
                f"--out={out} holds {file}, for which {len(note['skipped'])} samples were left "
                "out; add --skip-bad, or use another folder"
            )


def remove_unwritten(out: Path) -> None:
    """Remove the shards that killed processes were writing."""
    for stray in out.glob(f".*{PARTIAL}"):
        stray.unlink(missing_ok=True)


def remove_notes(out: Path, wanted: dict[str, Job]) -> None:
    """Remove files that only an unfinished preparation needs."""
    remove_unwritten(out)
    notes = out / UNFINISHED
    for file in wanted:
        (notes / f"{file}.json").unlink(missing_ok=True)
    for mark in notes.glob(f"{MARK}*"):  # of a run that was killed
        mark.unlink()
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
        again = "use another folder"
        if key == "options.extra":
            was, now = dict(found or ()), dict(value or ())
            name = next(k for k in sorted({*was, *now}) if was.get(k) != now.get(k))
            key, found, value = f"--{name}", was.get(name), now.get(name)
            if found is not None:
                again = f"give {key}={found}, or {again}"
        raise UserError(
            f"--out={out} was prepared with {key} {_short(found)}, now it is {_short(value)}; "
            f"nothing was changed: {again}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
