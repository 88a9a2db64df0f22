"""The folder of a run: what it is made of, which parts are finished, and the manifest.

run.json                         what the folder is made of; a rerun has to agree
parts/part-00000-of-00012.parquet    rows of consecutive items; see `rows.py`
errors/part-00000-of-00012.parquet   what could not be read of them; written before the part
MANIFEST.json                    at the end: counts, and a hash of every file

A file's name and bytes follow from what it holds, and it appears whole. So a part that is made
twice, by a retry or by another run, is the same part.
"""

import contextlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smoothsa_jax.bulk.cluster import program, refuse_other_program
from smoothsa_jax.bulk.corpus import Item
from smoothsa_jax.bulk.lease import held
from smoothsa_jax.bulk.packing import unpacked
from smoothsa_jax.bulk.rows import Rows, Segmented, as_parquet, errors_table, noted_in, table_of
from smoothsa_jax.bulk.storage import Folder, digest
from smoothsa_jax.checkpoints.workdir import workdir_for_writing
from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.found import KIND, PARTS, part_name
from smoothsa_jax.inputs.manifest import MANIFEST

FORMAT = 1
RUN, ERRORS = "run.json", "errors"
PART_WEIGHT = 512  # of the items of a part: pictures, or as many videos as weigh the same
VIDEO_WEIGHT = 16


class Done(NamedTuple):
    """A finished part.

    Attributes:
        part: its number.
        files: number of its items, readable or not.
        frames: number of its rows.
        errors: number of its items without rows.
        noted: number of entries in its table of errors.
        bytes: of its file.
        sha256: of its file.
        sha256_of_errors: of its table of errors; "" if there is none.
    """

    part: int
    files: int
    frames: int
    errors: int
    noted: int
    bytes: int
    sha256: str
    sha256_of_errors: str


def planned(items: Sequence[Item]) -> list[tuple[int, int]]:
    """The parts of a corpus: the first item of each, and the one behind its last."""
    found, begin, weight = [], 0, 0
    for index, item in enumerate(items):
        own = VIDEO_WEIGHT if item.kind in ("video", "frames") else 1
        if weight + own > PART_WEIGHT and index > begin:
            found.append((begin, index))
            begin, weight = index, 0
        weight += own
    return [*found, (begin, len(items))] if items else found


def write_part(
    folder: Folder,
    part: int,
    number: int,
    outcomes: Sequence[Any],
    model: int,
    shape: tuple[int, int],
    masks: str | None,
) -> Done:
    """Write a part and its table of errors.

    Args:
        folder: of the run.
        part: its number.
        number: of all parts.
        outcomes: `rows.Rows` and `reading.Bad` of its items.
        model: checksum of the model's weights.
        shape: number of slots and their width.
        masks: as for `rows.Rows.of`.
    """
    rows = [x for x in outcomes if hasattr(x, "slots")]
    table, errors = table_of(rows, model, shape, masks), errors_table(part, outcomes)
    name = part_name(part, number)
    counts = {"files": len(outcomes), "errors": len(outcomes) - len(rows), "noted": len(errors)}
    counts["frames"] = len(table)
    of_errors = ""
    if len(errors):
        data = as_parquet(errors, counts)
        folder.write(f"{ERRORS}/{name}", data)
        of_errors = digest(data)
    else:  # an attempt before this one, which did not end, may have met some
        folder.remove(f"{ERRORS}/{name}")
    data = as_parquet(table, counts)
    folder.write(f"{PARTS}/{name}", data)
    return Done(
        part=part, bytes=len(data), sha256=digest(data), sha256_of_errors=of_errors, **counts
    )


def finished_part(folder: Folder, part: int, number: int) -> Done | None:
    """What an earlier run has made of a part; None if that is not whole."""
    name = part_name(part, number)
    data = folder.read(f"{PARTS}/{name}")
    if data is None:
        return None
    try:
        counts = noted_in(data)
        errors = folder.read(f"{ERRORS}/{name}") if counts["noted"] else b""
        if errors is None or (counts["noted"] and noted_in(errors) != counts):
            return None
        hashes = digest(data), digest(errors) if errors else ""
        return Done(part, bytes=len(data), sha256=hashes[0], sha256_of_errors=hashes[1], **counts)
    except (ValueError, KeyError, TypeError):
        return None


def begin(folder: Folder, made_of: Mapping[str, Any]) -> list[Done] | None:
    """Begin or continue a run.

    Args:
        folder: of the run.
        made_of: what determines its parts, as JSON values.

    Returns:
        The parts that the manifest lists; None if the run was never finished.

    Raises:
        UserError: the folder holds something else.
    """
    made_of = json.loads(json.dumps(made_of))
    data = folder.read(RUN)
    if data is None:
        strangers = sorted({*folder.sizes("."), *folder.sizes(PARTS)} - {".lock"})
        if strangers:
            raise UserError(
                f"--output={folder.where} holds {strangers[0]}, which --mode=predict --engine=ray "
                "has not made; nothing was changed: use another --output"
            )
        folder.write(RUN, (json.dumps(made_of, indent=1) + "\n").encode())
        return None
    try:
        found = json.loads(data)
        changed = [key for key in made_of if found.get(key) != made_of[key]]
    except (ValueError, AttributeError):
        raise UserError(
            f"{folder.path(RUN)} is damaged; nothing was changed: use another --output"
        ) from None
    if changed:
        key = changed[0]
        raise UserError(
            f"--output={folder.where} was made with other settings ({key}: {found.get(key)}, now "
            f"{made_of[key]}); nothing was changed: use another --output"
        )
    data = folder.read(MANIFEST)
    if data is None:
        return None
    try:
        return [Done(**x) for x in json.loads(data)["parts"]]
    except (ValueError, KeyError, TypeError):
        return None  # it is written once more


def refuse_lost(folder: Folder, done: Sequence[Done], number: int) -> None:
    """Refuse to end a run whose parts are elsewhere, as on the disks of other nodes.

    Raises:
        UserError: a part is not in the folder.
    """
    sizes = folder.sizes(PARTS)
    lost = [x for x in done if sizes.get(part_name(x.part, number)) != x.bytes]
    if lost:
        raise UserError(
            f"{len(lost)} of {number} parts were written and are not in --output={folder.where}: "
            "workers of other nodes do not see it; give a folder that all nodes share, or a URL"
        )


def write_manifest(folder: Folder, made_of: Mapping[str, Any], done: Sequence[Done]) -> None:
    """End a run."""
    for inside in (PARTS, ERRORS):
        folder.remove_unfinished(inside)
    done = sorted(done)
    totals = {key: sum(getattr(x, key) for x in done) for key in ("files", "frames", "errors")}
    manifest = {
        "metadata": {"kind": KIND, "model": made_of["weights"]},
        "made_of": made_of,
        **totals,
        "parts": [x._asdict() for x in done],
    }
    folder.write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def only_one(folder: Folder) -> contextlib.AbstractContextManager[None]:
    """Keep other runs out of the folder.

    A folder of this machine is locked; for an object store, see `lease`.

    Raises:
        UserError: another run writes to it, or it cannot be written.
    """
    return workdir_for_writing(Path(folder.where), "output") if folder.is_local else held(folder)


class Write:
    """Measure masks at the pictures' own size and write a part: a task on a core."""

    def __init__(
        self,
        where: str,
        number: int,
        model: int,
        shape: tuple[int, int],
        masks: str | None,
        own_program: str,
    ):
        self._where, self._number, self._model = where, number, model
        self._shape, self._masks, self._program = shape, masks, own_program

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        refuse_other_program(self._program, program(), "a worker")
        outcomes = [
            Rows.of(x, self._masks) if isinstance(x, Segmented) else x
            for x in unpacked(row["data"])
        ]
        made = (int(row["part"]), self._number, outcomes, self._model, self._shape, self._masks)
        return {"done": pickle.dumps(write_part(Folder(self._where), *made))}


class Verify:
    """Read a part that an earlier run has made: a task on a core."""

    def __init__(self, where: str, number: int):
        self._where, self._number = where, number

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        found = finished_part(Folder(self._where), int(row["item"]), self._number)
        return {"done": pickle.dumps(found)}
