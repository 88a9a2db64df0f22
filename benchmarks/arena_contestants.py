"""What the page of the arena compares, and how it writes scores and differences."""

import collections
import dataclasses
import importlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import bootstrap
from benchmarks.arena_rows import FULL, LEAD, PLAIN, Row, seeds_apart, unpacked
from smoothsa_jax.evaluation.scores import cell

EMPTY = ""  # a cell without a value
HARMLESS = {"eval.foreground"}  # settings that change no score on the page
IN_MAIN_TABLES = ({}, PLAIN)  # the other settings of runs there: none, or scored plain alone


@dataclasses.dataclass(frozen=True)
class Contestant:
    """All training seeds of one kind of run.

    Attributes:
        rows: one of each seed, in their order.
        place: the data, such as "sprites:image".
        words: of the system, without those of the data.
        before: processor seconds of the training of a first stage; None: unknown.
    """

    rows: tuple[Row, ...]
    place: str
    words: tuple[str, ...]
    before: float | None = 0.0

    @property
    def row(self) -> Row:
        return self.rows[0]

    @property
    def system(self) -> str:
        """The system as a command line names it."""
        return ",".join((self.row["system"], *self.words))

    @property
    def title(self) -> str:
        return self.row["title"] or self.system

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out or set, so that it belongs to the main tables."""
        return self.row["ablation"] == FULL and settings_of(self.row["overrides"]) in IN_MAIN_TABLES

    def values(self, metric: str, protocol: str = "") -> list[float]:
        found = [
            row["scores"].get(protocol, {}) if protocol else row["scores"] for row in self.rows
        ]
        return [x[metric] for x in found if x.get(metric) is not None]

    def mean(self, metric: str, protocol: str = "") -> float | None:
        values = self.values(metric, protocol)
        return statistics.mean(values) if values else None

    def clips(self, protocol: str = "") -> np.ndarray | None:
        """FG-ARI (seeds, clips); None: a row has none."""
        found = [row.get("clips", {}) for row in self.rows]
        found = [x.get(protocol, {}) if protocol else x for x in found]
        if any(LEAD not in x for x in found) or len({len(x[LEAD]) for x in found}) != 1:
            return None
        return bootstrap.scores_of([x[LEAD] for x in found])

    @property
    def step_seconds(self) -> float | None:
        """Processor seconds of a training step; None: not measured."""
        found = [row["step_seconds"] for row in self.rows if "step_seconds" in row]
        return statistics.mean(found) if found else None

    def seconds(self, step: int) -> float | None:
        """Processor seconds of the training up to a step, with its first stage; None: unknown."""
        if self.before is None or self.step_seconds is None:
            return None
        return self.before + step * self.step_seconds

    def curves(self) -> list[list[Row]]:
        """The learning curves of the seeds, in processor seconds; [] unless each has one."""
        found = [[p for p in row.get("curve", []) if LEAD in p["scores"]] for row in self.rows]
        found = [[{**p, "seconds": self.seconds(p["step"])} for p in curve] for curve in found]
        return found if all(found) else []


def settings_of(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that change a score on the page."""
    return {name: x for name, x in overrides.items() if name not in HARMLESS}


def settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in settings.items())


def words_of_data(data: str, words: Iterable[str]) -> list[str]:
    """Return those of a run's words that are about the data."""
    try:
        variants = importlib.import_module(f"configs.{data}").DATA.variants
    except (ImportError, AttributeError):
        return []
    return [word for word in words if word in variants]


def contestants(rows: Sequence[Row]) -> list[Contestant]:
    """Return what the rows are of, in their order; of rows with the same key, the newest counts."""
    found = []
    for group in seeds_apart(rows):
        row, words = group[0], [word for word in group[0]["words"].split(",") if word]
        of_data = words_of_data(row["data"], words)
        place = ":".join(filter(None, (row["data"], ",".join(of_data))))
        own = tuple(word for word in words if word not in of_data)
        found.append(Contestant(tuple(group), place, own))
    return found


def at(curve: Sequence[Row], key: str, place: float) -> float | None:
    """Return FG-ARI of a learning curve at a step or second, linear between its points.

    Returns:
        None: the curve begins later, or its times are unknown.
    """
    known = [(p[key], p["scores"][LEAD]) for p in curve if p[key] is not None]
    if not known or place < known[0][0]:
        return None
    return float(np.interp(place, *zip(*known, strict=True)))


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What needs no training, on some data.

    Attributes:
        scores: baseline -> metric -> its mean.
        clips: baseline -> FG-ARI of each clip; of some baselines.
    """

    scores: Mapping[str, Row] = dataclasses.field(default_factory=dict)
    clips: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    def lead(self, name: str) -> float | None:
        """Return the FG-ARI of a baseline."""
        return self.scores.get(name, {}).get(LEAD)


def baselines_of(everyone: Sequence[Contestant]) -> dict[str, Baselines]:
    """Return the baselines of each data, which do not depend on the system.

    Runs with other settings of a system count as well. A system that trains its own encoder has
    features of its own: the scores that most rows agree on count.
    """
    rows: dict[str, list[Row]] = {}
    for x in everyone:
        if not any(name.startswith("data.") for name in x.row["overrides"]):
            rows.setdefault(x.place, []).extend(x.rows)
    return {place: _baselines(here) for place, here in rows.items()}


def _baselines(rows: Sequence[Row]) -> Baselines:
    scores, clips = {}, {}
    names = dict.fromkeys(name for row in rows for name in row.get("baselines", {}))
    for name in (name for name in names if "untrained" not in name):
        having = [row for row in rows if name in row.get("baselines", {})]
        leads = [row["baselines"][name].get(LEAD) for row in having]
        ((lead, _),) = collections.Counter(leads).most_common(1)
        agreeing = [row for row, own in zip(having, leads, strict=True) if own == lead]
        scores[name] = agreeing[-1]["baselines"][name]
        of_clips = [row.get("baseline_clips", {}) for row in agreeing]
        if own := [x[name][LEAD] for x in of_clips if name in x]:
            clips[name] = own[-1]
    return Baselines(scores, clips)


def pictured(here: Sequence[Contestant]) -> list[Contestant]:
    """Return those whose rows hold segments for pictures, of clips of one size."""
    found = [x for x in here if any("segments" in row for row in x.rows)]
    shapes = [tuple(unpacked(segments_of(x)).shape) for x in found]
    return [x for x, shape in zip(found, shapes, strict=True) if shape == shapes[0]]


def segments_of(contestant: Contestant) -> Row:
    return next(row["segments"] for row in contestant.rows if "segments" in row)


def name_of_file(place: str) -> str:
    """Return the part of a picture's name that stands for the data."""
    return re.sub(r"\W+", "_", place)


def place_of(data: str) -> str:
    name, _, words = data.partition(":")
    return ":".join(filter(None, (name, ",".join(sorted(filter(None, words.split(",")))))))


def sorted_words(system: str) -> str:
    name, *words = system.split(",")
    return ",".join((name, *sorted(words)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]


def spread(metric: str, values: Sequence[float]) -> str:
    """Return the mean and the sample standard deviation; empty without a value."""
    if not values:
        return EMPTY
    text = cell(metric, statistics.mean(values))
    return text + (f" ± {cell(metric, statistics.stdev(values))}" if len(values) > 1 else "")


def of_seeds(x: Contestant, metric: str, protocol: str = "") -> str:
    """Return the `spread` of a contestant, and of how many seeds if some have no value."""
    values = x.values(metric, protocol)
    part = f" ({len(values)} of {len(x.rows)} seeds)"
    return spread(metric, values) + part * (0 < len(values) < len(x.rows))


def points(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def difference(
    first: Contestant, second: Contestant, protocols: tuple[str, str] = ("", "")
) -> tuple[float, ...] | None:
    """Return a difference of FG-ARI and, where there are scores of clips, its interval."""
    means = first.mean(LEAD, protocols[0]), second.mean(LEAD, protocols[1])
    if None in means:
        return None
    clips = first.clips(protocols[0]), second.clips(protocols[1])
    if any(x is None for x in clips) or clips[0].shape[1] != clips[1].shape[1]:
        return (means[0] - means[1],)
    return bootstrap.difference(*clips)


def interval(first: Contestant, second: Contestant, protocols: tuple[str, str] = ("", "")) -> str:
    """Return the text of `difference`."""
    return gap_text(difference(first, second, protocols))


def gap_text(found: tuple[float, ...] | None) -> str:
    if found is None:
        return EMPTY
    ends = " to ".join(map(signed, found[1:]))
    return signed(found[0]) + (f" ({ends})" if ends else ", no interval")
