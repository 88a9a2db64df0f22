"""The interface of a family of data sets, as used by `prepare`."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smoothsa_jax.errors import UserError

SPLITS = ("train", "validation", "test")


class BadSample(UserError):
    """A sample is unreadable: preparation stops or, with `--skip-bad`, skips and lists it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Command-line options that can change the written bytes.

    Attributes:
        limit: maximum number of samples per split.
        size: the shorter side of frames and labels after resizing, in pixels; None: no resizing.
        keep: additional annotations of the download to keep, by their names there.
        skip_bad: whether to skip unreadable samples instead of stopping.
        max_pixels: refuse pictures with more pixels.
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
    """One shard and the samples to read for it, in order.

    Attributes:
        payload: data for the family; keep it small, since it is sent to another process.
        num_items: the number of samples to read; None: unknown in advance.
    """

    split: str
    payload: Any
    num_items: int | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that samples were made from."""

    file: str
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that will be written.

    Attributes:
        jobs: in order; the shards of a split are its jobs.
        sources: files and folders to hash for the manifest, except those that `items` notes itself.
        features: feature name -> feature, see `data.features`.
        metadata: facts for users of the set: category names, license, the label of no segment.
        pictures: split -> the picture, or first frame, of each sample; empty if they are not known
            in advance. No two samples share one, neither within a split nor across splits.
        notes: lines for the user, such as what was left out.
        settled: options of the family whose values planning decided.
        beside: name -> contents of a further file of the prepared folder, such as questions. It
            names samples, so that skipped ones matter to its readers alone.
    """

    jobs: tuple[Job, ...]
    sources: tuple[Path, ...]
    features: dict[str, Any]
    metadata: dict[str, Any]
    pictures: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settled: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


class Family:
    """One family of data sets, bound to a source.

    Instances are sent to other processes; open files as late as possible.

    Attributes:
        names: the data sets of the family.
        summary: what `--source` is, in one line, for `--help`.
        lists_names: whether the manifest lists the samples' names, which other files refer to.
    """

    names: tuple[str, ...] = ()
    summary: str = ""
    lists_names: bool = False

    @classmethod
    def add_arguments(cls, parser: Any) -> None:
        """Add the family's own options to an argparse parser."""

    def __init__(self, name: str, source: str, options: Options, staging: Path | None = None):
        """Bind the family to a source; `staging` is a temporary folder for unpacked files."""
        self.name, self.source, self.options, self.staging = name, source, options, staging
        self.sources_read: list[Source] = []
        self.remarks: list[tuple[str, str]] = []

    def note_source(self, file: str, num_bytes: int, sha256: str) -> None:
        """Record a file that `items` has read completely, for the manifest."""
        self.sources_read.append(Source(file, num_bytes, sha256))

    def remark(self, text: str, file: str) -> None:
        """Record in `example` that a file needs a remark; there is one line for each text."""
        self.remarks.append((text, file))

    def plan(self, splits: tuple[str, ...]) -> Plan:
        """Inspect the source without reading samples.

        Raises:
            UserError: something is missing; the message lists what was looked for.
        """
        raise NotImplementedError

    def items(self, job: Job) -> Iterator[Any]:
        """Yield the input of `example` for each sample, in order."""
        raise NotImplementedError

    def example(self, item: Any) -> dict[str, Any]:
        """Make one sample in the form of its features.

        Raises:
            BadSample: the sample is unreadable.
        """
        raise NotImplementedError

    def facts(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest keeps of a sample that `example` has made, by name.

        Each name becomes a list over the samples of a shard, which is read without its records.
        """
        return {}


def shards_of(split: str, items: list[Any], per_shard: int) -> list[Job]:
    """Split a list of samples into jobs of at most `per_shard` samples."""
    return [
        Job(split, tuple(items[start : start + per_shard]), len(items[start : start + per_shard]))
        for start in range(0, len(items), per_shard)
    ]


def refuse_twice(names: Iterable[Any], where: str, what: str, fix: str) -> None:
    """Raise UserError if a name occurs twice; `what` says what such names are, in the plural."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        examples = ", ".join(str(name) for name in twice[:3]) + ", ..." * (len(twice) > 3)
        raise UserError(f"{where} has {what} more than once: {examples}; expected each once: {fix}")
