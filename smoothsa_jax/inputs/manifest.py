"""What a prepared folder's MANIFEST.json says of a split, without reading a record."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from smoothsa_jax.errors import UserError

MANIFEST = "MANIFEST.json"


def frame_counts(folder: Path, split: str) -> Int[np.ndarray, " samples"]:
    """How many frames each sample has; a still has one.

    Raises:
        UserError: there is no manifest, or it does not say so.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        shards = manifest["splits"][split]["shards"]
        if manifest["metadata"]["kind"] == "stills":
            return np.ones(sum(shard["num_examples"] for shard in shards), np.int64)
        return np.array([count for shard in shards for count in shard["frames"]], np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say how many frames the samples of split {split!r} have ({_reason(error)}); prepare the "
            "folder again"
        ) from error


def fingerprint(folder: Path, split: str) -> str | None:
    """Tells apart the bytes of splits, wherever the folder lies; None where no manifest lists their checksums."""
    try:
        shards = json.loads((folder / MANIFEST).read_text())["splits"][split]["shards"]
        return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reason(error: Exception) -> Any:
    return f"it lacks {error}" if isinstance(error, KeyError) else error
