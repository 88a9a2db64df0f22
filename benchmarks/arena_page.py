"""The page of the arena, docs/arena.md, from its rows.

Every number on the page comes from a row. What people say about it stands in arena_notes.md, under
the headings that the page asks for; a number there is refused.
"""

import dataclasses
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import arena_pictures, bootstrap
from benchmarks.arena_claims import claims, figures, harder, orders
from benchmarks.arena_contestants import (
    EMPTY,
    IN_MAIN_TABLES,
    Baselines,
    Contestant,
    at,
    baselines_of,
    contestants,
    gap_text,
    interval,
    name_of_file,
    of_seeds,
    pictured,
    place_of,
    points,
    settings_of,
    signed,
    sorted_words,
    spread,
    table,
)
from benchmarks.arena_plan import PLAN
from benchmarks.arena_rows import (
    BLOCKS,
    DEFAULT_SYSTEM,
    FULL,
    KMEANS,
    LEAD,
    LEADING,
    ROOT,
    Row,
    key_of,
)
from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.scores import title_of

PAGE = ROOT / "docs" / "arena.md"
PICTURES = "arena"  # a folder beside the page
NOTES_FILE = ROOT / "benchmarks" / "arena_notes.md"
COLUMNS = (*LEADING, "count_error")
# Scores that a row has besides those of its config -> protocols of its plain and pruned scores.
WAYS = {"plain": ("plain", ""), "pruned": ("", "pruned")}
BUDGET = 480  # processor seconds of a training
WORST = 3  # clips named of each system
STUDENT, TOKENIZER = "student", "tokenizer"  # words
FAR = 0.1  # difference between two scores that is worth a sentence


def planned(place: str) -> dict[str, tuple[int | None, dict[str, Any]]]:
    """Return the systems that the plan asks for on some data, as `Contestant.system`.

    Returns:
        system -> its number of steps (None: as its config says), and its settings.
    """
    found: dict[str, tuple[int | None, dict[str, Any]]] = {}
    for part in PLAN:
        texts = {name.removeprefix("config."): text for name, text in part.overrides}
        settings = settings_of({name: None if x == "None" else x for name, x in texts.items()})
        if part.ablations != (FULL,) or settings not in IN_MAIN_TABLES:
            continue
        for data in part.data:
            if place_of(data) == place:
                found |= {sorted_words(system): (part.steps, settings) for system in part.systems}
    return {name: x for name, x in found.items() if TOKENIZER not in name.split(",")}


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
    by_place = _by_place(everyone)
    places = list(dict.fromkeys([*by_place, *_planned_places()]))
    places.sort(key=lambda place: place.partition(":")[0] != "sprites")
    found = {place: _as_planned(place, by_place.get(place, [])) for place in places}
    baselines = baselines_of(everyone)
    lines = _beginning(rows, found, baselines)
    for place, here in found.items():
        lines += [f"## {place}", ""]
        others = [x for x in by_place.get(place, []) if x not in here]
        first = _first_stages(here, everyone)
        lines += _of_place(place, here, others, baselines.get(place, Baselines()), first, notes)
    lines += harder(found, baselines, notes)
    lines += claims(scored, notes)
    lines += figures(everyone, notes)
    lines += orders(found, notes)
    lines += _method()
    return "\n".join(lines).rstrip() + "\n"


def _planned_places() -> list[str]:
    found = [place_of(data) for part in PLAN for data in part.data]
    return [place for place in dict.fromkeys(found) if planned(place)]


def _by_place(everyone: Sequence[Contestant]) -> dict[str, list[Contestant]]:
    """Return the contestants of the main tables by their data, the best first."""
    found: dict[str, list[Contestant]] = {}
    for x in everyone:
        if x.is_whole and x.mean(LEAD) is not None:
            found.setdefault(x.place, []).append(x)
    for place, here in found.items():
        first = _first_stages(here, everyone)
        before = {name: x.seconds(x.row["steps"]) for name, x in first.items()}
        here = [dataclasses.replace(x, before=before.get(x.system, 0.0)) for x in here]
        found[place] = sorted(here, key=lambda x: -x.mean(LEAD))
    return found


def _as_planned(place: str, here: Sequence[Contestant]) -> list[Contestant]:
    """Return each system once: as the plan has it, else with most seeds and steps."""

    def worth(x: Contestant) -> tuple:
        steps, settings = plan.get(x.system, (None, {}))
        as_long = x.system in plan and x.row["steps"] == (steps or _own_steps(x))
        as_planned = settings_of(x.row["overrides"]) == settings
        return as_planned, as_long, len(x.rows), x.row["steps"]

    plan, systems = planned(place), [x.system for x in here]
    best = {name: max((x for x in here if x.system == name), key=worth) for name in set(systems)}
    return [x for x in here if x is best[x.system]]


def _own_steps(x: Contestant) -> int:
    """Return the number of steps of a contestant's config."""
    words = [x.place.partition(":")[2], *x.system.split(",")]
    words = [word for word in words if word not in ("", DEFAULT_SYSTEM)]
    return load_config(":".join(filter(None, (x.row["data"], ",".join(words))))).train.num_steps


def _other_runs(others: Sequence[Contestant]) -> list[str]:
    if not others:
        return []
    head = ["other runs", "steps", "seeds", title_of(LEAD)]
    return table(
        head,
        [
            [x.title, f"{x.row['steps']:,}", str(len(x.rows)), spread(LEAD, x.values(LEAD))]
            for x in others
        ],
    )


def _beginning(
    rows: Sequence[Row],
    found: Mapping[str, Sequence[Contestant]],
    baselines: Mapping[str, Baselines],
) -> list[str]:
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
    head = ["data", "best system", "FG-ARI", "second", "best less second", KMEANS, BLOCKS]
    out = []
    for place, here in found.items():
        there = baselines.get(place, Baselines())
        ranks = len(here) > 1 and here[0].mean(LEAD) > FAR
        out.append(
            [
                f"[{place}](#{_anchor(place)})",
                _winner(here),
                spread(LEAD, here[0].values(LEAD)) if here else EMPTY,
                here[1].title if ranks else EMPTY,
                interval(here[0], here[1]) if ranks else EMPTY,
                *(points(there.lead(name)) for name in (KMEANS, BLOCKS)),
            ]
        )
    return lines + table(head, out)


def _winner(here: Sequence[Contestant]) -> str:
    if not here:
        return EMPTY
    return here[0].title if here[0].mean(LEAD) > FAR else "none finds objects"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _of_place(
    place: str,
    here: Sequence[Contestant],
    others: Sequence[Contestant],
    baselines: Baselines,
    first_stages: Mapping[str, Contestant],
    notes: Mapping[str, str],
) -> list[str]:
    missing = [name for name in planned(place) if name not in {x.system for x in here}]
    lines = [notes[place], ""] if place in notes else []
    if not here:
        return [*lines, f"No run has finished yet. The plan asks for {_listed(missing)}.", ""]
    lines += _scores(here, missing, baselines)
    lines += _other_runs(others)
    lines += _equal(here)
    lines += _pruned(here)
    lines += _differences(here, baselines)
    if any(x.curves() for x in here):
        curves = f"{PICTURES}/curves_{name_of_file(place)}.png"
        lines += [f"![FG-ARI over steps and over time on {place}]({curves})", ""]
    lines += _segments(place, here)
    lines += _costs(here, first_stages)
    lines += _failures(place, here, baselines, notes)
    return lines


def _listed(systems: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in systems)


def _scores(here: Sequence[Contestant], missing: Sequence[str], baselines: Baselines) -> list[str]:
    head = [
        "system",
        "pruned",
        "steps",
        "seeds",
        *map(title_of, COLUMNS),
        f"{title_of(LEAD)}, each seed",
    ]
    out = [
        [
            x.title,
            "yes" if x.values(LEAD, "plain") else "no",
            f"{x.row['steps']:,}",
            str(len(x.rows)),
            *(of_seeds(x, name) for name in COLUMNS),
            ", ".join(f"{row['seed']}: {points(row['scores'].get(LEAD))}" for row in x.rows),
        ]
        for x in here
    ]
    for name, scores in sorted(baselines.scores.items(), key=lambda x: -(x[1].get(LEAD) or 0)):
        # A baseline is told the number of segments.
        cells = [points(scores.get(metric)) for metric in LEADING] + [EMPTY]
        out.append([f"*{name}*", EMPTY, EMPTY, EMPTY, *cells, EMPTY])
    out += [[f"`{name}`"] + [EMPTY] * (len(head) - 1) for name in missing]
    lines = table(head, out)
    sizes = {x.clips().shape[1] for x in here if x.clips() is not None}
    said = [f"Of {'/'.join(map(str, sorted(sizes)))} test clips."] if sizes else []
    plain = [x.title for x in here if settings_of(x.row["overrides"])]
    if plain:
        said.append(f"Scored plain, though configured to be pruned: {'; '.join(plain)}.")
    return [*lines, " ".join(said), ""] if said else lines


def _equal(here: Sequence[Contestant]) -> list[str]:
    found = [x for x in here if x.curves()]
    if len(found) < 2:
        return []
    step = min(curve[-1]["step"] for x in found for curve in x.curves())
    seconds = min(filter(None, (x.seconds(x.row["steps"]) for x in found)), default=None)
    until = EMPTY if seconds is None else f": after {seconds:.0f} s"
    head = ["FG-ARI on validation clips", "as trained", "after processor s"]
    head += [f"equal steps: after {step:,}", f"equal time{until}"]
    out = []
    for x in found:
        curves, whole = x.curves(), x.seconds(x.row["steps"])
        at_end = [at(c, "step", c[-1]["step"]) for c in curves]
        at_step = [at(c, "step", step) for c in curves]
        at_time = [] if seconds is None else [at(c, "seconds", seconds) for c in curves]
        texts = [EMPTY if None in values else spread(LEAD, values) for values in (at_step, at_time)]
        out.append([x.title, spread(LEAD, at_end), f"{whole:.0f}" if whole else EMPTY, *texts])
    text = (
        "Read off the learning curves at the last step, and at the last second, that all of them "
        "reached. Learning rates follow the length of each run, so a point in its middle is not a "
        "shorter run. Time is that of processors, summed over cores, of the compiled training step "
        "on one core, which other programs hardly change: the run's own, and that of a first "
        "stage, which trains a tokenizer or a teacher. A run may take "
        f"{BUDGET} s, four minutes of two cores. A cell is empty where the time of a step was not "
        "measured, or where a curve begins later."
    )
    return [*table(head, out), text, ""]


def _pruned(here: Sequence[Contestant]) -> list[str]:
    # Of each, one of the two is as configured. Both are of the same seeds.
    found = []
    for x, (name, ways) in itertools.product(here, WAYS.items()):
        if rows := tuple(row for row in x.rows if name in row["scores"]):
            found.append((dataclasses.replace(x, rows=rows), ways))
    if not found:
        return []
    found.sort(key=lambda one: -one[0].mean(LEAD, one[1][0]))
    head = ["plain against pruned", "seeds", "FG-ARI, plain", "FG-ARI, pruned"]
    head += ["pruned less plain", "ARI, plain", "ARI, pruned"]
    head += ["count error, plain", "count error, pruned"]
    out = [
        [
            x.title,
            str(len(x.rows)),
            *(of_seeds(x, LEAD, way) for way in ways),
            interval(x, x, ways[::-1]),
            *(of_seeds(x, name, way) for name in ("ari", "count_error") for way in ways),
        ]
        for x, ways in found
    ]
    text = (
        "Plain: as many slots as in training, none left out; the order is that of these scores. "
        "Pruned: redundant slots are left out, of more slots than in training where the table "
        "above says that a system is pruned (DIAS trains with as many), else of as many. The "
        "weights are the same."
    )
    return [*table(head, out), text, ""]


def _differences(here: Sequence[Contestant], baselines: Baselines) -> list[str]:
    if len(here) < 2:
        return []
    best, names = here[0], [name for name in (KMEANS, BLOCKS) if baselines.lead(name) is not None]
    head = ["FG-ARI, difference", f"less {best.title}, the best", *(f"less {x}" for x in names)]
    out = []
    for x in here:
        gaps = [_less_baseline(x, baselines, name) for name in names]
        out.append([x.title, EMPTY if x is best else interval(x, best), *gaps])
    return table(head, out)


def _less_baseline(x: Contestant, baselines: Baselines, name: str) -> str:
    """Return the text of a difference from a baseline, with its interval if it has scores of clips.

    The baseline has no seeds.
    """
    clips, others = x.clips(), baselines.clips.get(name)
    if clips is None or others is None or clips.shape[1] != len(others):
        return gap_text((x.mean(LEAD) - baselines.lead(name),))
    return gap_text(bootstrap.difference(clips, bootstrap.scores_of([others])))


def _segments(place: str, here: Sequence[Contestant]) -> list[str]:
    found = pictured(here)
    without = [x.title for x in here if x not in found]
    if not found:
        return ["No run has left segments for pictures.", ""]
    lines = [f"![The same clips in every system]({PICTURES}/clips_{name_of_file(place)}.png)", ""]
    text = "The same three test clips: frames, true segments, and those of each system, in colors "
    text += "that match the true ones best."
    text += f" No segments were kept of {'; '.join(without)}." if without else ""
    return [*lines, text, ""]


def _first_stages(
    here: Sequence[Contestant], everyone: Sequence[Contestant]
) -> dict[str, Contestant]:
    """Return the runs that come first, of a tokenizer or a teacher: system -> contestant."""
    by_name = {(x.system, x.place): x for x in everyone if x.is_whole}
    found = {}
    for x in here:
        name, *words = x.system.split(",")
        teacher = ",".join((name, *(word for word in words if word != STUDENT)))
        first = teacher if STUDENT in words else sorted_words(f"{x.system},{TOKENIZER}")
        if (first, x.place) in by_name:
            found[x.system] = by_name[first, x.place]
    return found


def _seconds(x: Contestant) -> str:
    found = [row["seconds"] for row in x.rows if row["seconds"]]
    return f"{statistics.mean(found):.0f}" if found else EMPTY


def _costs(here: Sequence[Contestant], first_stages: Mapping[str, Contestant]) -> list[str]:
    head = ["cost", "parameters, trained", "frozen", "memory, MB", "steps/s", "training, s"]
    head += ["first stage, s", "cores", "untrained, FG-ARI", "revision"]
    out = []
    for x in here:
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
                " to ".join(dict.fromkeys(f"{f(speeds):.1f}" for f in (min, max) if speeds)),
                _seconds(x),
                _seconds(first_stages[x.system]) if x.system in first_stages else EMPTY,
                ", ".join(sorted({str(row.get("cores", EMPTY)) for row in x.rows})),
                spread(LEAD, untrained),
                ", ".join(sorted({f"`{row['revision'][:7]}`" for row in x.rows})),
            ]
        )
    return table(head, out)


def _failures(
    place: str, here: Sequence[Contestant], baselines: Baselines, notes: Mapping[str, str]
) -> list[str]:
    clips = [x.clips() for x in here]
    known = [x.mean(axis=0) for x in clips if x is not None]
    sizes = {len(x) for x in known}
    everyone = np.mean(known, axis=0) if len(sizes) == 1 else None
    lines = [f"### Where they fail on {place}", ""]
    for x, own in zip(here, clips, strict=True):
        said = [
            _on_baselines(x, baselines),
            _on_background(x),
            _on_count(x),
            _on_seeds(x),
            _on_progress(x),
            _on_clips(own, everyone),
            notes.get(f"{x.system} on {place}", ""),
        ]
        lines += [f"* **{x.title}**, {x.row['steps']:,} steps. " + " ".join(filter(None, said))]
    return [*lines, ""]


def _on_baselines(x: Contestant, baselines: Baselines) -> str:
    said, unit = [], " points of FG-ARI"
    for name in (KMEANS, BLOCKS):
        if (of_baseline := baselines.lead(name)) is not None:
            gap = x.mean(LEAD) - of_baseline
            side, article = "above" if gap > 0 else "below", "a " * (name == BLOCKS)
            said.append(f"{points(abs(gap))}{unit} {side} {article}{name}")
            unit = ""
    return f"{' and '.join(said)}." if said else ""


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
    ends = [[at(c, "step", share * c[-1]["step"]) for share in (0.75, 1.0)] for c in curves]
    if any(before is None for before, _ in ends):
        return ""
    rise = statistics.mean(after - before for before, after in ends)
    return f"In the last quarter of its steps it changed by {signed(rise)} points."


def _on_clips(own: np.ndarray | None, everyone: np.ndarray | None) -> str:
    if own is None or everyone is None:
        return "Scores of single clips were not recorded."
    own = own.mean(axis=0)
    order = [
        int(i) for i in np.argsort(np.where(np.isnan(own), np.inf, own), kind="stable")[:WORST]
    ]
    texts = [f"{i} ({points(own[i])}, all systems {points(everyone[i])})" for i in order]
    return f"Worst on clips {', '.join(texts)}."


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
        "* **The block pattern** divides every frame into as many equal blocks as there are true "
        "segments, whatever it shows (a baseline of DINOSAUR's, arXiv 2209.14860). FG-ARI leaves "
        "out the background, so regions score high too: ARI and mBO tell them from objects.",
        "* **Count error** is the mean absolute difference between the number of slots that win a "
        "pixel and the true number of segments, background included.",
        "* **Orders** without scores of clips are decided where each of at least three seeds of "
        "one system is above all of the other; by chance, three and three are so in one of ten "
        "cases.",
        "* **Memory** is what the compiler plans for a training step.",
        "",
    ]


def write(rows: Sequence[Row], path: Path = PAGE, notes: Mapping[str, str] | None = None) -> None:
    """Write the page and its pictures.

    Raises:
        UserError: a note holds a number, or matplotlib is missing.
    """
    notes = read_notes() if notes is None else notes
    path.write_text(page(rows, notes))
    for place, here in _by_place(contestants(rows)).items():
        arena_pictures.draw(place, _as_planned(place, here), path.parent / PICTURES)
