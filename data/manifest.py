"""The MANIFEST.json and TFDS description of a complete folder."""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.beside import entries_of
from data.family import SPLITS, Plan, Source, refuse_twice
from data.shards import Shard, read_json, sha256_of, size_of, write_description
from smoothsa_jax.files import atomic_file
from smoothsa_jax.inference.sources import VIDEOS
from smoothsa_jax.inputs.manifest import MANIFEST
from smoothsa_jax.text import say

TOOLS = ("tensorflow-datasets", "array-record", "pillow", "numpy")


def plan_splits(plan: Plan) -> list[str]:
    """The splits for which a plan has jobs."""
    return [split for split in SPLITS if any(job.split == split for job in plan.jobs)]


def write_manifest(
    out: Path,
    name: str,
    settings: dict[str, Any],
    plan: Plan,
    notes: dict[str, dict[str, Any]],
    before: dict[str, Any] | None,
) -> None:
    """Write the description that TFDS reads and then the manifest, which marks the folder complete.

    Args:
        out: the prepared folder.
        name: the data set.
        settings: the settings on which preparations of the folder agree.
        plan: the plan of this preparation.
        notes: what is known of each shard of this preparation, by file.
        before: the manifest of an earlier preparation of other splits, which are kept.

    Raises:
        UserError: a sample is there twice.
    """
    splits = dict(before["splits"]) if before else {}
    metadata = dict(before["metadata"]) if before else {}
    for key, value in json.loads(json.dumps(plan.metadata)).items():
        # Metadata given per split is merged.
        both = isinstance(value, dict) and isinstance(metadata.get(key), dict)
        metadata[key] = {**metadata[key], **value} if both else value
    sources = [tuple(source.values()) for source in before["sources"]] if before else []
    for split in plan_splits(plan):
        mine = {file: note for file, note in notes.items() if file.startswith(f"{name}-{split}.")}
        names = [name for note in mine.values() for name in note.get("names", ())]
        refuse_twice(
            names,
            f"{split} of {out}",
            "samples",
            "take the archive that repeats them away, and prepare into another folder",
        )
        splits[split] = {
            "num_examples": sum(note["num_examples"] for note in mine.values()),
            "skipped": [line for note in mine.values() for line in note["skipped"]],
            "shards": [
                {key: value for key, value in note.items() if key not in ("sources", "names")}
                for note in mine.values()
            ],
        }
        sources += [tuple(source) for note in mine.values() for source in note.get("sources", ())]
    sizes = [size_of(path) for path in plan.sources]
    with tqdm(
        total=sum(sizes),
        desc="checksums of the source",
        unit="B",
        unit_scale=True,
        disable=not plan.sources,
    ) as bar:
        for path, size in zip(plan.sources, sizes, strict=True):
            sources.append((path.name, size, sha256_of(path, bar.update)))
    splits = {split: splits[split] for split in SPLITS if split in splits}
    shards = {
        split: [
            Shard(s["file"], s["num_examples"], s["num_bytes"], s["sha256"])
            for s in found["shards"]
        ]
        for split, found in splits.items()
    }
    write_description(out, name, plan.features, shards, f"{name}, prepared by smoothsa_jax")
    manifest = {
        **settings,
        "metadata": metadata,
        "versions": {tool: importlib.metadata.version(tool) for tool in TOOLS},
        "splits": splits,
        "sources": [dataclasses.asdict(Source(*source)) for source in sorted(set(sources))],
    }
    if files := {**(before or {}).get("files", {}), **entries_of(plan.beside)}:
        manifest["files"] = dict(sorted(files.items()))
    text = re.sub(
        r"(?<=\d,)\n\s+(?=\d)", " ", json.dumps(manifest, indent=1)
    )  # one line of numbers
    with atomic_file(out / MANIFEST) as partial:
        partial.write_text(text)


def say_end(out: Path) -> None:
    """Print what a prepared folder holds."""
    manifest = read_json(out / MANIFEST)
    for split, found in manifest["splits"].items():
        left_out = f", {len(found['skipped'])} left out" if found["skipped"] else ""
        size = sum(shard["num_bytes"] for shard in found["shards"])
        say(f"{split}: {found['num_examples']} samples, {size / 1e6:.1f} MB{left_out}")
        for line in found["skipped"]:
            say(f"  left out: {line}")
    shards = [shard for found in manifest["splits"].values() for shard in found["shards"]]
    remarks = [shard.get("remarks", {}) for shard in shards]  # folders made earlier have none
    for text in dict.fromkeys(text for found in remarks for text in found):
        mine = [found[text] for found in remarks if text in found]
        count = sum(count for count, _ in mine)
        file = mine[0][1]
        what = "video" if file.lower().endswith(VIDEOS) else "picture"
        what = "file" if file.endswith(".json") else what
        say(f"note: {count} {what}{'s' * (count > 1)}, first {file}: {text}")
    say(f"{out} is prepared; python -m data.check {out} verifies it")
