"""The page of the arena, docs/arena.md, from its rows.

Every number on the page comes from a row. What people say about it stands in arena_notes.md, under
the headings that the page asks for; a number there is refused.
"""

import dataclasses
import importlib
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks import bootstrap
from benchmarks.arena_plan import INVERTED, LEARNED, PLAN
from benchmarks.arena_rows import FULL, KEY, KMEANS, LEADING, Row, key_of, unpacked
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.scores import cell, title_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "arena.md"
PICTURES = "arena"  # a folder beside the page
NOTES_FILE = ROOT / "benchmarks" / "arena_notes.md"
EMPTY = ""  # a cell without a value
LEAD = LEADING[0]
COLUMNS = (*LEADING, "count_error")
HARMLESS = {"eval.foreground"}  # settings that change no score on the page
WORST = 3  # clips named of each system
FAR = 0.1  # difference between two scores that is worth a sentence

# Who reports to be above whom on real data, and where.
REPORTED = (
    ("smoothsa", "dias", "arXiv 2508.05417"),
    ("smoothsa", "spot", "arXiv 2508.05417"),
    ("smoothsa", "dinosaur", "arXiv 2508.05417"),
    ("smoothsa", "randsfq", "arXiv 2508.05417"),
    ("dias", "spot", "arXiv 2507.23755"),
    ("dias", "dinosaur", "arXiv 2507.23755"),
    ("metaslot", "dinosaur", "arXiv 2505.20772"),
    ("spot", "dinosaur", "arXiv 2312.00648"),
    ("dinosaur", "slate", "arXiv 2209.14860"),
    ("dinosaur", "slot_attention", "arXiv 2209.14860"),
    ("boqsa", "slot_attention", "arXiv 2210.08990"),
    ("vvo", "slate", "arXiv 2502.20263"),
    ("slotdiffusion", "slate", "arXiv 2305.11281"),
    ("slotcontrast", "videosaur", "arXiv 2412.14295"),
    ("randsfq", "slotcontrast", "arXiv 2508.01345"),
    ("randsfq", "videosaur", "arXiv 2508.01345"),
)


# ------------------------------------------------------------------------------------- contestants


@dataclasses.dataclass(frozen=True)
class Contestant:
    """All training seeds of one kind of run.

    Attributes:
        rows: one of each seed, in their order.
        place: the data, such as "sprites:image".
        words: of the system, without those of the data.
        apart: what tells it from another one of the same title.
    """

    rows: tuple[Row, ...]
    place: str
    words: tuple[str, ...]
    apart: str = ""

    @property
    def row(self) -> Row:
        return self.rows[0]

    @property
    def system(self) -> str:
        """The system as a command line names it."""
        return ",".join((self.row["system"], *self.words))

    @property
    def title(self) -> str:
        return (self.row["title"] or self.system) + self.apart

    @property
    def is_plain_run(self) -> bool:
        """Whether nothing is left out or set, so that it belongs to the main tables."""
        return self.row["ablation"] == FULL and not set(self.row["overrides"]) - HARMLESS

    def values(self, metric: str, protocol: str = "") -> list[float]:
        found = [
            row["scores"].get(protocol, {}) if protocol else row["scores"] for row in self.rows
        ]
        return [x[metric] for x in found if x.get(metric) is not None]

    def mean(self, metric: str, protocol: str = "") -> float | None:
        values = self.values(metric, protocol)
        return statistics.mean(values) if values else None

    def clips(self, metric: str = LEAD, protocol: str = "") -> np.ndarray | None:
        """The scores (seeds, clips); None: a row has none."""
        found = [row.get("clips", {}) for row in self.rows]
        found = [x.get(protocol, {}) if protocol else x for x in found]
        if any(metric not in x for x in found) or len({len(x[metric]) for x in found}) != 1:
            return None
        return bootstrap.scores_of([x[metric] for x in found])

    def curves(self) -> list[list[Row]]:
        """The learning curves of the seeds; [] unless each has one."""
        found = [[p for p in row.get("curve", []) if LEAD in p["scores"]] for row in self.rows]
        return found if all(found) else []


def words_of_data(data: str, words: Iterable[str]) -> list[str]:
    """Return those of a run's words that are about the data."""
    try:
        variants = importlib.import_module(f"configs.{data}").DATA.variants
    except (ImportError, AttributeError):
        return []
    return [word for word in words if word in variants]


def contestants(rows: Sequence[Row]) -> list[Contestant]:
    """Return what the rows are of, in their order; of rows with the same key, the newest counts."""
    newest = {key_of(row): row for row in rows}
    groups: dict[str, list[Row]] = {}
    for row in newest.values():
        name = json.dumps({name: row[name] for name in KEY if name != "seed"}, sort_keys=True)
        groups.setdefault(name, []).append(row)
    found = []
    for group in groups.values():
        row, words = group[0], [word for word in group[0]["words"].split(",") if word]
        of_data = words_of_data(row["data"], words)
        place = ":".join(filter(None, (row["data"], ",".join(of_data))))
        own = tuple(word for word in words if word not in of_data)
        found.append(Contestant(tuple(sorted(group, key=lambda x: x["seed"])), place, own))
    return found


def planned(place: str) -> list[str]:
    """Return the systems that the plan asks for on some data, as `Contestant.system`."""
    found = []
    for part in PLAN:
        if part.ablations != (FULL,) or {name for name, _ in part.overrides} - {
            f"config.{name}" for name in HARMLESS
        }:
            continue
        for data in part.data:
            if _place_of(data) == place:
                found += [_sorted_words(system) for system in part.systems]
    return [name for name in dict.fromkeys(found) if "tokenizer" not in name.split(",")]


def _place_of(data: str) -> str:
    name, _, words = data.partition(":")
    return ":".join(filter(None, (name, ",".join(sorted(filter(None, words.split(",")))))))


def _sorted_words(system: str) -> str:
    name, *words = system.split(",")
    return ",".join((name, *sorted(words)))


# ------------------------------------------------------------------------------------------- text


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


def points(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _difference(
    first: Contestant, second: Contestant, protocols: tuple[str, str] = ("", "")
) -> tuple[float, ...] | None:
    """Return a difference of FG-ARI and, where there are scores of clips, its interval."""
    means = first.mean(LEAD, protocols[0]), second.mean(LEAD, protocols[1])
    if None in means:
        return None
    clips = first.clips(LEAD, protocols[0]), second.clips(LEAD, protocols[1])
    if any(x is None for x in clips) or clips[0].shape[1] != clips[1].shape[1]:
        return (means[0] - means[1],)
    return bootstrap.difference(*clips)


def _interval(first: Contestant, second: Contestant, protocols: tuple[str, str] = ("", "")) -> str:
    """Return the text of `_difference`."""
    return _gap_text(_difference(first, second, protocols))


def _gap_text(found: tuple[float, ...] | None) -> str:
    if found is None:
        return EMPTY
    ends = " to ".join(map(_signed, found[1:]))
    return _signed(found[0]) + (f" ({ends})" if ends else ", no interval")


def read_notes(path: Path = NOTES_FILE) -> dict[str, str]:
    """Return the notes by heading.

    Raises:
        UserError: a note holds a number; those come from rows.
    """
    notes: dict[str, str] = {}
    for part in re.split(r"^## ", path.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        text = " ".join(text.split())
        if number := re.search(r"(?<![\w.`])\d[\d.,]*", re.sub(r"`[^`]*`", "", text)):
            raise UserError(
                f"{path}: the note on {heading!r} holds the number {number.group()}; numbers come "
                "from rows: say it without"
            )
        notes[heading.strip()] = text
    return notes


def page(rows: Sequence[Row], notes: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        rows: of the arena.
        notes: heading -> what people say; see `read_notes`.
    """
    everyone = contestants(rows)
    scored = [x for x in everyone if x.mean(LEAD) is not None]
    main = [x for x in scored if x.is_plain_run]
    places = list(dict.fromkeys([*(x.place for x in main), *_planned_places()]))
    places.sort(key=lambda place: place.partition(":")[0] != "sprites")
    found = {place: _ranked([x for x in main if x.place == place]) for place in places}
    lines = _beginning(rows, found)
    for place, here in found.items():
        lines += [f"## {place}", ""]
        lines += _of_place(place, here, notes)
    lines += _claims(scored, notes)
    lines += _figures(everyone, notes)
    lines += _orders(found, notes)
    lines += _method()
    return "\n".join(lines).rstrip() + "\n"


def _planned_places() -> list[str]:
    found = [_place_of(data) for part in PLAN for data in part.data]
    return [place for place in dict.fromkeys(found) if planned(place)]


def _ranked(here: Sequence[Contestant]) -> list[Contestant]:
    titles = [x.title for x in here]
    apart = [f", {x.row['steps']:,} steps" * (titles.count(x.title) > 1) for x in here]
    named = [dataclasses.replace(x, apart=y) for x, y in zip(here, apart, strict=True)]
    return sorted(named, key=lambda x: -x.mean(LEAD))


def baselines_of(here: Sequence[Contestant]) -> dict[str, Row]:
    """Return the scores of the baselines that do not depend on the system, of the newest row."""
    found: dict[str, Row] = {}
    for contestant in here:
        for row in contestant.rows:
            own = {k: x for k, x in row.get("baselines", {}).items() if "untrained" not in k}
            found |= own
    return found


def _beginning(rows: Sequence[Row], found: Mapping[str, Sequence[Contestant]]) -> list[str]:
    count = len({key_of(row) for row in rows})
    lines = [
        "# The arena",
        "",
        "Every system on the same data, in the same program, trained on a CPU for minutes. "
        "`python benchmarks/arena.py --page` writes this page from the "
        f"{count} runs in `benchmarks/recorded/arena.jsonl`; do not edit it. Cells stay empty "
        "where no run has finished. Scores are in percent: mean ± standard deviation (n - 1) over "
        "training seeds. [How differences and curves are computed](#how-it-is-computed) stands at "
        "the end. Small models on embedded data rank differently from large ones on photographs.",
        "",
        "## Which system",
        "",
    ]
    head = ["data", "best system", "FG-ARI", "second", "best less second", KMEANS]
    out = []
    for place, here in found.items():
        kmeans = baselines_of(here).get(KMEANS, {}).get(LEAD)
        out.append(
            [
                f"[{place}](#{_anchor(place)})",
                here[0].title if here else EMPTY,
                spread(LEAD, here[0].values(LEAD)) if here else EMPTY,
                here[1].title if len(here) > 1 else EMPTY,
                _interval(here[0], here[1]) if len(here) > 1 else EMPTY,
                points(kmeans),
            ]
        )
    return lines + table(head, out)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def name_of_file(place: str) -> str:
    """Return the part of a picture's name that stands for the data."""
    return re.sub(r"\W+", "_", place)


def _of_place(place: str, here: Sequence[Contestant], notes: Mapping[str, str]) -> list[str]:
    missing = [name for name in planned(place) if name not in {x.system for x in here}]
    lines = [notes[place], ""] if place in notes else []
    if not here:
        return [*lines, f"No run has finished yet. The plan asks for {_listed(missing)}.", ""]
    lines += _scores(here, missing)
    lines += _equal(here)
    lines += _pruned(here)
    lines += _differences(here)
    if any(x.curves() for x in here):
        curves = f"{PICTURES}/curves_{name_of_file(place)}.png"
        lines += [f"![FG-ARI over steps and over time on {place}]({curves})", ""]
    lines += _segments(place, here)
    lines += _costs(here)
    lines += _failures(place, here, notes)
    return lines


def _listed(systems: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in systems)


def _scores(here: Sequence[Contestant], missing: Sequence[str]) -> list[str]:
    head = ["as trained", "steps", "seeds", *map(title_of, COLUMNS), f"{title_of(LEAD)}, each seed"]
    out = [
        [
            x.title,
            f"{x.row['steps']:,}",
            str(len(x.rows)),
            *(spread(name, x.values(name)) for name in COLUMNS),
            ", ".join(f"{row['seed']}: {points(row['scores'].get(LEAD))}" for row in x.rows),
        ]
        for x in here
    ]
    for name, scores in sorted(baselines_of(here).items(), key=lambda x: -(x[1].get(LEAD) or 0)):
        # A baseline is told the number of segments.
        cells = [points(scores.get(metric)) for metric in LEADING] + [EMPTY]
        out.append([f"*{name}*", EMPTY, EMPTY, *cells, EMPTY])
    out += [[f"`{name}`"] + [EMPTY] * (len(head) - 1) for name in missing]
    lines = table(head, out)
    sizes = {x.clips().shape[1] for x in here if x.clips() is not None}
    if sizes:
        lines += [f"Of {'/'.join(map(str, sorted(sizes)))} test clips.", ""]
    return lines


def at(curve: Sequence[Row], key: str, place: float) -> float:
    """Return FG-ARI of a learning curve at a step or second, linear between its points."""
    known = [(p[key], p["scores"][LEAD]) for p in curve if p[key] is not None]
    return float(np.interp(place, *zip(*known, strict=True)))


def _equal(here: Sequence[Contestant]) -> list[str]:
    found = [x for x in here if x.curves()]
    found = [x for x in found if all(c[-1]["seconds"] is not None for c in x.curves())]
    if len(found) < 2:
        return []
    ends = {
        key: min(curve[-1][key] for x in found for curve in x.curves())
        for key in ("step", "seconds")
    }
    head = [
        "FG-ARI on validation clips",
        "as trained",
        "after s",
        f"equal steps: after {ends['step']:,}",
        f"equal time: after {ends['seconds']:.0f} s",
    ]
    out = []
    for x in found:
        curves = x.curves()
        seconds = statistics.mean(c[-1]["seconds"] for c in curves)
        at_end = [at(c, "step", c[-1]["step"]) for c in curves]
        equal = {key: [at(c, key, end) for c in curves] for key, end in ends.items()}
        texts = [spread(LEAD, equal[key]) for key in ("step", "seconds")]
        out.append([x.title, spread(LEAD, at_end), f"{seconds:.0f}", *texts])
    text = (
        "Read off the learning curves at the last step, and at the last second, that all of them "
        "reached. Learning rates follow the length of each run, so a point in its middle is not a "
        "shorter run. Seconds are of training alone, on the cores that the row names, beside "
        "whatever else ran."
    )
    return [*table(head, out), text, ""]


def _pruned(here: Sequence[Contestant]) -> list[str]:
    found = [x for x in here if x.values(LEAD, "plain")]
    if not found:
        return []
    head = ["plain against pruned", "FG-ARI, plain", "FG-ARI, pruned", "pruned less plain"]
    head += ["ARI, plain", "ARI, pruned", "count error, plain", "count error, pruned"]
    out = [
        [
            x.title,
            spread(LEAD, x.values(LEAD, "plain")),
            spread(LEAD, x.values(LEAD)),
            _interval(x, x, ("", "plain")),
            spread("ari", x.values("ari", "plain")),
            spread("ari", x.values("ari")),
            spread("count_error", x.values("count_error", "plain")),
            spread("count_error", x.values("count_error")),
        ]
        for x in found
    ]
    text = (
        "Plain: as many slots as in training, none left out. Pruned: more slots, of which "
        "redundant ones are left out. The weights are the same."
    )
    return [*table(head, out), text, ""]


def _differences(here: Sequence[Contestant]) -> list[str]:
    if len(here) < 2:
        return []
    best = here[0]
    kmeans = next(
        (
            row["baseline_clips"][KMEANS][LEAD]
            for x in here
            for row in x.rows
            if KMEANS in row.get("baseline_clips", {})
        ),
        None,
    )
    head = ["FG-ARI, difference", f"less {best.title}, the best", f"less {KMEANS}"]
    out = []
    for x in here:
        clips, text = x.clips(), EMPTY
        if kmeans is not None and clips is not None and clips.shape[1] == len(kmeans):
            text = _gap_text(bootstrap.difference(clips, bootstrap.scores_of([kmeans])))
        out.append([x.title, EMPTY if x is best else _interval(x, best), text])
    return table(head, out)


def pictured(here: Sequence[Contestant]) -> list[Contestant]:
    """Return those whose rows hold segments for pictures, of clips of one size."""
    found = [x for x in here if any("segments" in row for row in x.rows)]
    shapes = [tuple(unpacked(segments_of(x)).shape) for x in found]
    return [x for x, shape in zip(found, shapes, strict=True) if shape == shapes[0]]


def segments_of(contestant: Contestant) -> Row:
    return next(row["segments"] for row in contestant.rows if "segments" in row)


def _segments(place: str, here: Sequence[Contestant]) -> list[str]:
    found = pictured(here)
    without = [x.title for x in here if x not in found]
    if not found:
        return ["No run has left segments for pictures.", ""]
    lines = [f"![The same clips in every system]({PICTURES}/clips_{name_of_file(place)}.png)", ""]
    text = "The same three test clips: frames, true segments, and those of each system, in colors "
    text += "that match the true ones best."
    text += f" No segments were kept of {', '.join(without)}." if without else ""
    return [*lines, text, ""]


def _costs(here: Sequence[Contestant]) -> list[str]:
    head = ["cost", "parameters, trained", "frozen", "memory, MB", "steps/s", "training, s"]
    head += ["cores", "untrained, FG-ARI"]
    out = []
    for x in here:
        seconds = [row["seconds"] for row in x.rows if row["seconds"]]
        speeds = [row["steps"] / row["seconds"] for row in x.rows if row["seconds"]]
        memory = [row["memory"] for row in x.rows if row["memory"]]
        untrained = [
            scores[LEAD]
            for row in x.rows
            for name, scores in row.get("baselines", {}).items()
            if "untrained" in name and scores.get(LEAD) is not None
        ]
        out.append(
            [
                x.title,
                f"{x.row['parameters']['trained']:,}",
                f"{x.row['parameters']['frozen']:,}",
                f"{max(memory) / 1e6:.0f}" if memory else EMPTY,
                f"{statistics.mean(speeds):.1f}" if speeds else EMPTY,
                f"{statistics.mean(seconds):.0f}" if seconds else EMPTY,
                ", ".join(sorted({str(row.get("cores", EMPTY)) for row in x.rows})),
                spread(LEAD, untrained),
            ]
        )
    return table(head, out)


# ------------------------------------------------------------------------------ where systems fail


def _failures(place: str, here: Sequence[Contestant], notes: Mapping[str, str]) -> list[str]:
    clips = {x.system + str(x.row["steps"]): x.clips() for x in here}
    known = [x.mean(axis=0) for x in clips.values() if x is not None]
    sizes = {len(x) for x in known}
    everyone = np.mean(known, axis=0) if len(sizes) == 1 else None
    kmeans = baselines_of(here).get(KMEANS, {}).get(LEAD)
    lines = [f"### Where they fail on {place}", ""]
    for x in here:
        own = clips[x.system + str(x.row["steps"])]
        said = [
            _on_kmeans(x, kmeans),
            _on_background(x),
            _on_count(x),
            _on_seeds(x),
            _on_progress(x),
            _on_clips(own, everyone),
            notes.get(f"{x.system} on {place}", ""),
        ]
        lines += [f"* **{x.title}**, {x.row['steps']:,} steps. " + " ".join(filter(None, said))]
    return [*lines, ""]


def _on_kmeans(x: Contestant, kmeans: float | None) -> str:
    if kmeans is None:
        return ""
    gap = x.mean(LEAD) - kmeans
    return f"{points(abs(gap))} points of FG-ARI {'above' if gap > 0 else 'below'} {KMEANS}."


def _on_background(x: Contestant) -> str:
    mean = x.mean("ari")
    if mean is None:
        return ""
    if x.mean(LEAD) < FAR:
        return "It finds no objects."
    gap = x.mean(LEAD) - mean
    if gap > FAR:
        return (
            f"ARI, which counts the background, is {points(gap)} points below FG-ARI: masks of "
            "objects take background along, or several slots share it."
        )
    if gap < -FAR:
        return (
            f"ARI, which counts the background, is {points(-gap)} points above FG-ARI: the "
            "background is found, objects are merged or lost."
        )
    return f"ARI and FG-ARI are {points(abs(gap))} points apart: background and objects fare alike."


def true_count(x: Contestant) -> float | None:
    """Return the mean true number of segments: k-means finds as many as there are."""
    for row in x.rows:
        if (count := row.get("baselines", {}).get(KMEANS, {}).get("segments_found")) is not None:
            return count
        if (count := row["scores"].get("segments")) is not None:
            return count
    return None


def _on_count(x: Contestant) -> str:
    error, found, true = x.mean("count_error"), x.mean("segments_found"), true_count(x)
    if error is None or found is None or true is None:
        return "How many segments it finds was not recorded."
    text = f"It finds {found:.2f} segments where there are {true:.2f}, and is off by {error:.2f}"
    return text + (f"; unpruned {plain:.2f}." if (plain := x.mean("count_error", "plain")) else ".")


def _on_seeds(x: Contestant) -> str:
    values = x.values(LEAD)
    if len(values) < 2:
        return "One seed alone." if len(x.rows) == 1 else ""
    wide = max(values) - min(values)
    return f"Its seeds are {points(wide)} points apart." if wide > FAR / 2 else ""


def _on_progress(x: Contestant) -> str:
    curves = x.curves()
    if not curves:
        return ""
    rise = statistics.mean(
        at(c, "step", c[-1]["step"]) - at(c, "step", 0.75 * c[-1]["step"]) for c in curves
    )
    return f"In the last quarter of its steps it changed by {_signed(rise)} points."


def _on_clips(own: np.ndarray | None, everyone: np.ndarray | None) -> str:
    if own is None or everyone is None:
        return "Scores of single clips were not recorded."
    own = own.mean(axis=0)
    order = [
        int(i) for i in np.argsort(np.where(np.isnan(own), np.inf, own), kind="stable")[:WORST]
    ]
    texts = [f"{i} ({points(own[i])}, all systems {points(everyone[i])})" for i in order]
    return f"Worst on clips {', '.join(texts)}."


# -------------------------------------------------------------------------- claims, figures, orders


Pairs = Iterable[tuple[str, Contestant | None, Contestant | None]]


def _pairs_table(what: Sequence[str], pairs: Pairs) -> list[str]:
    """Compare two columns of contestants: the second is the claim's, the first what it replaces."""
    head = ["", f"FG-ARI, {what[0]}", f"FG-ARI, {what[1]}", "difference", "seeds"]
    out = []
    for label, before, after in pairs:
        sides = [spread(LEAD, x.values(LEAD)) if x else EMPTY for x in (before, after)]
        seeds = [str(len(x.rows)) if x else "0" for x in (before, after)]
        gap = _interval(after, before) if before and after else EMPTY
        out.append([label, *sides, gap, " / ".join(seeds)])
    return table(head, out)


def _claims(scored: Sequence[Contestant], notes: Mapping[str, str]) -> list[str]:
    def find(system: str, place: str, ablation: str, steps: int | None = None) -> Contestant | None:
        found = [
            x
            for x in scored
            if x.system == system
            and x.place == place
            and x.row["ablation"] == ablation
            and not set(x.row["overrides"]) - HARMLESS
            and steps in (None, x.row["steps"])
        ]
        return max(found, key=lambda x: (len(x.rows), x.row["steps"]), default=None)

    def ablated(place: str, ablation: str) -> tuple[str, Contestant | None, Contestant | None]:
        without = find("smoothsa", place, ablation)
        steps = without.row["steps"] if without else None
        return place, without, find("smoothsa", place, FULL, steps)

    places = ("sprites", "sprites:gaussian", "sprites:image")
    lines = ["## The claims of SmoothSA's paper", ""]
    lines += ["### The warmer", ""]
    lines += _pairs_table(
        ("no warmer", "with the warmer"), [ablated(place, "no warmer") for place in places]
    )
    lines += _note(notes, "the warmer")
    lines += ["### Three iterations, then one", ""]
    for ablation in ("3/3", "1/1"):
        lines += _pairs_table(
            (f"{ablation} iterations", "3/1"), [ablated(place, ablation) for place in places[:2]]
        )
    lines += _note(notes, "three iterations, then one")
    lines += ["### It can be attached to other systems", ""]
    pairs = []
    for place in places[:2]:
        for system in ("videosaur", "slotcontrast", "randsfq"):
            after = find(f"{system},smooth", place, FULL)
            before = find(system, place, FULL, after.row["steps"] if after else None)
            title = before.title if before else system
            pairs.append((f"{title} on {place}", before, after))
    lines += _pairs_table(("as it is", "with the word smooth"), pairs)
    return lines + _note(notes, "attached")


def _note(notes: Mapping[str, str], heading: str) -> list[str]:
    return [notes[heading], ""] if heading in notes else []


@dataclasses.dataclass(frozen=True)
class Figure:
    """Runs that repeat a figure of a paper.

    Attributes:
        title: of the figure.
        systems: in its order.
        place: the data.
        ablations: those that belong to it, in their order.
    """

    title: str
    systems: tuple[str, ...]
    place: str
    ablations: tuple[str, ...] = (FULL,)

    def of(self, everyone: Sequence[Contestant]) -> list[Contestant]:
        names = [_sorted_words(name) for name in self.systems]
        found = [
            x
            for x in everyone
            if x.place == self.place and x.system in names and x.row["ablation"] in self.ablations
        ]
        order = lambda x: (names.index(x.system), self.ablations.index(x.row["ablation"]))  # noqa: E731
        return sorted(found, key=order)


LAYERS = (FULL, "4 iterations", "6 iterations", "8 iterations")
FIGURES = (
    Figure("Figure 3: queries from one Gaussian", INVERTED, "sprites:image"),
    Figure("Figure 6: layers and iterations", ("inverted", "inverted,sa"), "sprites:image", LAYERS),
    Figure("Figure 7: learned queries", LEARNED, "sprites:image"),
    Figure("Figure 9: SA-ID", ("inverted,sa_id", "inverted,sa"), "sprites:image"),
    Figure("Figure 4: SAVi", ("savi,sa", "savi,tf_inv", "savi,tf_inv_gru"), "scenes"),
    Figure("Table 1: OSRT", ("osrt", "osrt,sa", "osrt,sa_id", "osrt,tf_inv"), "scenes:views"),
)


def _figures(everyone: Sequence[Contestant], notes: Mapping[str, str]) -> list[str]:
    names = (LEAD, "fg_miou", "ari", "psnr")
    lines = ["## The figures of the inverted-attention paper", ""]
    for figure in FIGURES:
        found = figure.of(everyone)
        lines += [f"### {figure.title}", ""]
        if not found:
            lines += ["No run has finished yet.", ""]
            continue
        shown = [name for name in names if any(x.values(name) for x in found)]
        head = ["", "ablation", "steps", "seeds", *map(title_of, shown)]
        out = [
            [
                x.title,
                x.row["ablation"],
                f"{x.row['steps']:,}",
                str(len(x.rows)),
                *(spread(name, x.values(name)) for name in shown),
            ]
            for x in found
        ]
        lines += table(head, out)
        lines += _note(notes, figure.title)
    return lines


def _orders(found: Mapping[str, Sequence[Contestant]], notes: Mapping[str, str]) -> list[str]:
    head = ["reported on real data", "by", "data here", "FG-ARI, difference", "here", "reason"]
    out = []
    for better, worse, source in REPORTED:
        for place, here in found.items():
            first = next((x for x in here if x.system == better), None)
            second = next((x for x in here if x.system == worse), None)
            if first is None or second is None:
                continue
            gap = _difference(first, second)
            here_too, apart = gap[0] > 0, len(gap) == 1 or gap[1] > 0 or gap[2] < 0
            reason = notes.get(f"{better} above {worse} on {place}", "not found")
            out.append(
                [
                    f"{first.title} above {second.title}",
                    source,
                    place,
                    _gap_text(gap),
                    ("the same" if here_too else "**the reverse**") if apart else "undecided",
                    EMPTY if here_too or not apart else reason,
                ]
            )
    lines = ["## Orders that authors report", ""]
    return lines + (table(head, out) if out else ["No pair of systems has finished yet.", ""])


def _method() -> list[str]:
    level = f"{100 * bootstrap.LEVEL:.0f}"
    return [
        "## How it is computed",
        "",
        f"* **Intervals** hold {level} % of {bootstrap.ROUNDS:,} bootstrap rounds (Efron and "
        "Tibshirani 1993). A round draws clips with replacement, the same for both systems (Koehn "
        "2004), then the training seeds of each system (Agarwal et al. 2021, arXiv 2108.13264). "
        "Papers of this field mostly report mean and standard deviation over three seeds, which "
        "says nothing about the choice of clips. Intervals over few seeds are too narrow; those of "
        "one seed are about clips alone.",
        "* **Learning curves** are of clips of the validation split, scored as the test clips are.",
        "* **Count error** is the mean absolute difference between the number of slots that win a "
        "pixel and the true number of segments, background included.",
        "* **Memory** is what the compiler plans for a training step.",
        "",
    ]


def write(rows: Sequence[Row], path: Path = PAGE, notes: Mapping[str, str] | None = None) -> None:
    """Write the page and its pictures.

    Raises:
        UserError: a note holds a number, or matplotlib is missing.
    """
    from benchmarks import arena_pictures

    notes = read_notes() if notes is None else notes
    path.write_text(page(rows, notes))
    main: dict[str, list[Contestant]] = {}
    for x in contestants(rows):
        if x.is_plain_run and x.mean(LEAD) is not None:
            main.setdefault(x.place, []).append(x)
    folder = path.parent / PICTURES
    for place, here in main.items():
        arena_pictures.draw(place, _ranked(here), folder)
