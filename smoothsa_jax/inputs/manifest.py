"""Facts about a split from a prepared folder's MANIFEST.json, without reading records."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from smoothsa_jax.errors import UserError

MANIFEST = "MANIFEST.json"
ENTRIES = "entries"  # of a shard: the frames of each clip at which an object enters the view


def frame_counts(folder: Path, split: str) -> Int[np.ndarray, " samples"]:
    """The number of frames of each sample; a still has one.

    Raises:
        UserError: there is no manifest, or it lacks the numbers of frames.
    """
    with _read(folder, f"how many frames the samples of split {split!r} have") as manifest:
        shards = manifest["splits"][split]["shards"]
        if manifest["metadata"]["kind"] == "stills":
            return np.ones(sum(shard["num_examples"] for shard in shards), np.int32)
        counts = np.concatenate([np.zeros(0, np.int32), *(shard["frames"] for shard in shards)])
        if counts.min(initial=0) < 0:
            raise ValueError(f"a number of frames is {counts.min()}")
        return counts


@contextlib.contextmanager
def _read(folder: Path, fact: str, advice: str = "prepare the folder again") -> Iterator[Any]:
    """Give the manifest of a folder to what looks for a fact in it.

    Raises:
        UserError: there is no manifest, or the fact was not found.
    """
    path = folder / MANIFEST
    try:
        yield _parsed(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say {fact} ({_reason(error)}); {advice}") from error


def _parsed(manifest: bytes) -> Any:
    """Parse a manifest; those of millions of videos are mostly numbers of frames."""
    return json.loads(manifest, object_hook=_with_frames)


def _with_frames(entry: dict[str, Any]) -> dict[str, Any]:
    """Make an array of a shard's numbers of frames as soon as these are read: there are few lists
    in memory at a time."""
    if not isinstance(frames := entry.get("frames"), list):
        return entry
    try:
        return {**entry, "frames": np.array(frames, np.int32)}
    except OverflowError as error:
        raise ValueError(f"a number of frames is too large: {error}") from error


def sample_names(folder: Path, split: str) -> tuple[str, ...]:
    """The names of the samples of a split, in order, of data sets whose manifest lists them.

    Raises:
        UserError: there is no manifest, or it lists no names.
    """
    with _read(folder, f"which samples split {split!r} has") as manifest:
        shards = manifest["splits"][split]["shards"]
        return tuple(name for shard in shards for name in shard["sample_names"])


def entries(folder: Path, split: str) -> list[Int[np.ndarray, " k"] | None]:
    """The frames of each clip at which an object enters the view; None: they are not known.

    Raises:
        UserError: there is no manifest, or it lacks these frames, as those of data sets that do not
            tell them, and of folders that were prepared before they were kept.
    """
    fact = f"when objects enter the videos of split {split!r}"
    advice = (
        "data.last_entry needs that: prepare CLEVRER into a new folder, or set "
        "--config.data.last_entry=None"
    )
    with _read(folder, fact, advice) as manifest:
        shards = manifest["splits"][split]["shards"]
        found = [x for shard in shards if shard["num_examples"] for x in shard[ENTRIES]]
        return [None if frames is None else np.array(frames, np.int32) for frames in found]


def labelled_splits(folder: Path) -> tuple[str, ...] | None:
    """The splits whose samples have labels; None: unknown, as without a manifest."""
    try:
        return tuple(_parsed((folder / MANIFEST).read_bytes())["metadata"]["labelled"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def shows_scenes(folder: Path) -> bool:
    """Whether the frames of a clip are views of one still scene."""
    try:
        return bool(_parsed((folder / MANIFEST).read_bytes())["metadata"].get("views", False))
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def fingerprint(folder: Path, split: str) -> str | None:
    """A hash of a split's bytes, independent of the folder's path; None: no checksums."""
    try:
        shards = _parsed((folder / MANIFEST).read_bytes())["splits"][split]["shards"]
        return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checksums(manifest: bytes, name: str) -> dict[str, str]:
    """The SHA-256 of every file that a manifest lists: shards, and files beside them.

    Args:
        manifest: the contents of a MANIFEST.json.
        name: its address, for messages.

    Raises:
        UserError: it is damaged, or lists no checksums.
    """
    try:
        found = _parsed(manifest)
        shards = (shard for split in found["splits"].values() for shard in split["shards"])
        sums = {shard["file"]: str(shard["sha256"]) for shard in shards}
        return sums | {file: str(x["sha256"]) for file, x in found.get("files", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{name} does not list the checksums of the shards ({_reason(error)}); copy a whole "
            "folder of python -m data.prepare there"
        ) from error


def _reason(error: Exception) -> Any:
    return f"it lacks {error}" if isinstance(error, KeyError) else error
