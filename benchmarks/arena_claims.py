"""Sections of the arena's page on what papers claim: of SmoothSA, of others, and their orders."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.arena_contestants import (
    EMPTY,
    Baselines,
    Contestant,
    at,
    difference,
    gap_text,
    interval,
    points,
    settings_of,
    settings_text,
    signed,
    sorted_words,
    spread,
    table,
)
from benchmarks.arena_plan import INVERTED, LEARNED
from benchmarks.arena_rows import BLOCKS, FULL, KMEANS, LEAD
from smoothsa_jax.evaluation.scores import title_of

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
SEEDS_TO_JUDGE = 3  # of each system, without scores of clips
# Harder data, and the easier ones.
HARDER = {
    "sprites:hard": "sprites",
    "sprites:hard_gaussian": "sprites:gaussian",
    "sprites:hard_image": "sprites:image",
}
LOWER, ABOVE = 0.15, 0.10  # FG-ARI of the best system: than on the easier data, than k-means

Pairs = Iterable[tuple[str, Contestant | None, Contestant | None]]


def _pairs_table(what: Sequence[str], pairs: Pairs) -> list[str]:
    """Compare two columns of contestants: the second is the claim's, the first what it replaces."""
    head = ["", f"FG-ARI, {what[0]}", f"FG-ARI, {what[1]}", "difference", "seeds"]
    out = []
    for label, before, after in pairs:
        sides = [spread(LEAD, x.values(LEAD)) if x else EMPTY for x in (before, after)]
        seeds = [str(len(x.rows)) if x else "0" for x in (before, after)]
        gap = interval(after, before) if before and after else EMPTY
        out.append([label, *sides, gap, " / ".join(seeds)])
    return table(head, out)


def harder(
    found: Mapping[str, Sequence[Contestant]],
    baselines: Mapping[str, Baselines],
    notes: Mapping[str, str],
) -> list[str]:
    """Return how far the best systems fall on harder data, and whether they beat the baselines.

    Args:
        found: the contestants of the main tables by their data, the best first.
        baselines: by their data.
        notes: heading -> what people say.
    """
    head = ["harder data", "system", "FG-ARI", "on easier data", "lower by"]
    head += [f"less {KMEANS}", f"less {BLOCKS}", "all hold"]
    out = []
    for place, easier in HARDER.items():
        here, before = found.get(place, ()), found.get(easier, ())
        there, rows = baselines.get(place, Baselines()), []
        blind = [there.lead(name) for name in (KMEANS, BLOCKS)]
        for system in dict.fromkeys(x.system for x in (*here[:1], *before[:1])):
            pair = [next((x for x in each if x.system == system), None) for each in (here, before)]
            if None not in (*pair, *blind):
                rows.append([place, *_against(*pair, blind)])
        out += rows or [[place, *[EMPTY] * (len(head) - 1)]]
    lines = ["## Harder data", ""]
    lines += [
        f"The best system is to lose at least {points(LOWER)} points on harder data, to stay at "
        f"least {points(ABOVE)} above {KMEANS}, and above a {BLOCKS}, which looks at nothing. "
        "Otherwise ranks there mean little. Shown are the best system there, and the best one on "
        "the easier data.",
        "",
    ]
    return lines + table(head, out) + note(notes, "harder data")


def _against(here: Contestant, before: Contestant, baselines: Sequence[float]) -> list[str]:
    """Compare a system with itself on easier data, and with both baselines; see `harder`."""
    lower = before.mean(LEAD) - here.mean(LEAD)
    above = [here.mean(LEAD) - x for x in baselines]
    return [
        here.title,
        spread(LEAD, here.values(LEAD)),
        f"{spread(LEAD, before.values(LEAD))} on {before.place}",
        points(lower),
        *map(signed, above),
        "yes" if lower >= LOWER and above[0] >= ABOVE and above[1] > 0 else "no",
    ]


def claims(scored: Sequence[Contestant], notes: Mapping[str, str]) -> list[str]:
    def find(
        system: str,
        place: str,
        ablation: str,
        steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Contestant | None:
        found = [
            x
            for x in scored
            if x.system == system
            and x.place == place
            and x.row["ablation"] == ablation
            and settings_of(x.row["overrides"]) == (settings or {})
            and steps in (None, x.row["steps"])
        ]
        return max(found, key=lambda x: (len(x.rows), x.row["steps"]), default=None)

    def ablated(ablation: str, places: Sequence[str]) -> Pairs:
        for place in places:
            # Both sides with the settings of the config, then with each of those that both have.
            without = find("smoothsa", place, ablation)
            steps = without.row["steps"] if without else None
            yield place, without, find("smoothsa", place, FULL, steps)
            for x in scored:
                settings = settings_of(x.row["overrides"])
                if (x.system, x.place, x.row["ablation"]) == ("smoothsa", place, ablation):
                    whole = find("smoothsa", place, FULL, x.row["steps"], settings)
                    if settings and whole:
                        yield f"{place}, {settings_text(settings)}", x, whole

    places = ("sprites", "sprites:gaussian", "sprites:image")
    lines = ["## The claims of SmoothSA's paper", ""]
    lines += ["### The warmer", ""]
    lines += _pairs_table(("no warmer", "with the warmer"), ablated("no warmer", places))
    lines += note(notes, "the warmer")
    lines += ["### Three iterations, then one", ""]
    for ablation in ("3/3", "1/1"):
        lines += _pairs_table((f"{ablation} iterations", "3/1"), ablated(ablation, places[:2]))
    lines += note(notes, "three iterations, then one")
    lines += ["### It can be attached to other systems", ""]
    pairs = []
    for place in places[:2]:
        for system in ("videosaur", "slotcontrast", "randsfq"):
            after = find(f"{system},smooth", place, FULL)
            before = find(system, place, FULL, after.row["steps"] if after else None)
            title = before.title if before else system
            pairs.append((f"{title} on {place}", before, after))
    lines += _pairs_table(("as it is", "with the word smooth"), pairs)
    return lines + note(notes, "attached")


def note(notes: Mapping[str, str], heading: str) -> list[str]:
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
        names = [sorted_words(name) for name in self.systems]
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


def figures(everyone: Sequence[Contestant], notes: Mapping[str, str]) -> list[str]:
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
        lines += note(notes, figure.title)
    return lines


def _seeds_apart(first: Contestant, second: Contestant) -> bool:
    """Whether each of at least three seeds of one is above all of the other.

    By chance, three and three are so in one of ten cases (an exact permutation test).
    """
    low, high = sorted((first.values(LEAD), second.values(LEAD)), key=max)
    return min(len(low), len(high)) >= SEEDS_TO_JUDGE and max(low) < min(high)


def _at_equal_steps(first: Contestant, second: Contestant) -> str:
    """Return a difference of FG-ARI at the last step that all learning curves reach."""
    curves = first.curves(), second.curves()
    if not all(curves):
        return EMPTY
    step = min(curve[-1]["step"] for curve in itertools.chain(*curves))
    values = [[at(curve, "step", step) for curve in found] for found in curves]
    if None in itertools.chain(*values):
        return EMPTY
    return f"{signed(statistics.mean(values[0]) - statistics.mean(values[1]))} after {step:,}"


def orders(found: Mapping[str, Sequence[Contestant]], notes: Mapping[str, str]) -> list[str]:
    head = ["reported on real data", "by", "data here", "steps", "FG-ARI, difference"]
    head += ["on validation clips, at equal steps", "here", "reason"]
    out = []
    for better, worse, source in REPORTED:
        for place, here in found.items():
            first = next((x for x in here if x.system == better), None)
            second = next((x for x in here if x.system == worse), None)
            if first is None or second is None:
                continue
            gap = difference(first, second)
            here_too = gap[0] > 0
            apart = gap[1] > 0 or gap[2] < 0 if len(gap) > 1 else _seeds_apart(first, second)
            reason = notes.get(f"{better} above {worse} on {place}", "not found")
            out.append(
                [
                    f"{first.title} above {second.title}",
                    source,
                    place,
                    " / ".join(f"{x.row['steps']:,}" for x in (first, second)),
                    gap_text(gap),
                    _at_equal_steps(first, second),
                    ("the same" if here_too else "**the reverse**") if apart else "undecided",
                    EMPTY if here_too or not apart else reason,
                ]
            )
    lines = ["## Orders that authors report", ""]
    return lines + (table(head, out) if out else ["No pair of systems has finished yet.", ""])
