"""What a family of data sets has to say, so that `prepare` can write it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smoothsa_jax.errors import UserError

SPLITS = ("train", "validation", "test")


class BadSample(UserError):
    """One sample cannot be read: it stops the preparation, or is left out and listed with `--skip-bad`."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; all of it can change the bytes that are written.

    Attributes:
        limit: samples of each split at most.
        size: the shorter side of frames and labels after resizing, in pixels; None: as they are.
        keep: further annotations of the download to take along, by their names there.
        max_pixels: refuse pictures with more, of whatever file.
        uncompressed: write all pictures as PNG without compression.
        extra: the family's own options.
    """

    limit: int | None = None
    size: int | None = None
    keep: tuple[str, ...] = ()
    skip_bad: bool = False
    max_pixels: int = 100_000_000
    uncompressed: bool = False
    extra: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.extra).get(name, default)


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard: what is read for it, in order.

    Attributes:
        payload: for the family alone; small, since it travels to another process.
        num_items: how many samples are read; None: not known before.
    """

    split: str
    payload: Any
    num_items: int | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that samples were made of."""

    file: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that will be written.

    Attributes:
        jobs: in order; the shards of a split are its jobs.
        sources: files and folders that are hashed for the manifest, those aside that `items` notes itself.
        features: feature name -> feature, see `data.features`.
        metadata: what users need to know of the set: names of categories, licence, the label of no segment.
    """

    jobs: tuple[Job, ...]
    sources: tuple[Path, ...]
    features: dict[str, Any]
    metadata: dict[str, Any]


class Family:
    """One family of data sets, bound to a source. Instances travel to other processes: open files late.

    Attributes:
        names: the data sets of the family.
        summary: one line: what is read, for `--help`.
    """

    names: tuple[str, ...] = ()
    summary: str = ""

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        """Adds the family's own options to an argparse parser."""

    def __init__(self, name: str, source: str, options: Options, staging: Path | None = None):
        """`staging`: a folder for what has to be unpacked first; it is removed when all is done."""
        self.name, self.source, self.options, self.staging = name, source, options, staging
        self.sources_read: list[Source] = []

    def note_source(self, file: str, num_bytes: int, sha256: str) -> None:
        """For the manifest: a file that `items` has read whole."""
        self.sources_read.append(Source(file, num_bytes, sha256))

    def plan(self, splits: tuple[str, ...]) -> Plan:
        """Looks at the source, without reading samples.

        Raises:
            UserError: something is missing; it lists what was looked for.
        """
        raise NotImplementedError

    def items(self, job: Job) -> Iterator[Any]:
        """What `example` is made of, one a sample, in order."""
        raise NotImplementedError

    def example(self, item: Any) -> dict[str, Any]:
        """One sample, as its features take it.

        Raises:
            BadSample: it cannot be read.
        """
        raise NotImplementedError


def shards_of(split: str, items: list[Any], per_shard: int) -> list[Job]:
    """Cuts a list of samples into jobs of at most `per_shard` samples."""
    return [
        Job(split, tuple(items[start : start + per_shard]), len(items[start : start + per_shard]))
        for start in range(0, len(items), per_shard)
    ]
