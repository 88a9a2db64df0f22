"""The table that `arena.py --list` prints."""

import itertools
import statistics
from collections.abc import Sequence

from benchmarks.arena_contestants import settings_text, spread
from benchmarks.arena_rows import BY_PROTOCOL, FULL, LEADING, OTHERS, Row, kind_of, seeds_apart
from smoothsa_jax.evaluation.scores import title_of


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown: a table, a line for each kind of run, and comparisons.

    Of runs with the same key the newest counts.
    """
    if not rows:
        return "No run has finished yet.\n"
    groups = seeds_apart(rows)
    newest = list(itertools.chain(*groups))
    names = list(dict.fromkeys([*LEADING, *itertools.chain(*(row["scores"] for row in newest))]))
    names = [name for name in names if name not in BY_PROTOCOL]
    names = [name for name in names if any(name in row["scores"] for row in newest)]
    leading = names[0] if names else None
    of_each = f"{title_of(leading)} of each seed"
    head = ["system", "data", "ablation", "overrides", "steps", "seeds"]
    head += [*(title_of(name) for name in names), of_each, "training, s"]
    lines = [head, ["---"] * 6 + ["---:"] * len(names) + ["---", "---:"]]
    for found, protocol in itertools.product(groups, ("", *OTHERS)):
        scores = [row["scores"].get(protocol, {}) if protocol else row["scores"] for row in found]
        if not any(scores):
            continue
        row = found[0]
        times = [x["seconds"] for x in found if x["seconds"] is not None]
        lines.append(
            [
                row["title"] or row["system"],
                ":".join(filter(None, (row["data"], row["words"]))),
                ", ".join(filter(None, (row["ablation"], protocol))),
                settings_text(row["overrides"]) or "none",
                str(row["steps"]),
                str(len(found)),
                *(_mean_and_spread(name, [x.get(name) for x in scores]) for name in names),
                ", ".join(
                    f"{x['seed']}: {percent(values.get(leading))}"
                    for x, values in zip(found, scores, strict=True)
                ),
                f"{statistics.mean(times):.0f}" if times else "-",
            ]
        )
    text = ["| " + " | ".join(cells) + " |" for cells in lines]
    text += ["", "Scores in percent: mean ± standard deviation (n - 1) over the training seeds."]
    if any("plain" in row["scores"] for row in newest):
        text += ["", "Plain: with as many slots as in training, none of them pruned."]
    if any("pruned" in row["scores"] for row in newest):
        text += ["", "Pruned: with as many slots as in training, redundant ones pruned."]
    if said := comparisons(groups):
        text += ["", *(f"* {sentence}" for sentence in said)]
    return "\n".join(text) + "\n"


def comparisons(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Return a sentence for each ablation: how far it is from the full system, seed by seed."""
    by_kind = {kind_of(found[0]): found for found in groups}
    sentences = []
    for found in groups:
        name = found[0]["ablation"]
        whole = by_kind.get(kind_of({**found[0], "ablation": FULL}), [])
        metric = next((x for x in LEADING if x in found[0]["scores"]), None)
        if name == FULL or metric is None:
            continue
        full = {row["seed"]: row["scores"].get(metric) for row in whole}
        pairs = [(row["scores"].get(metric), full.get(row["seed"])) for row in found]
        gaps = [mine - other for mine, other in pairs if mine is not None and other is not None]
        if not gaps:
            continue
        gap, below = statistics.mean(gaps), sum(gap < 0 for gap in gaps)
        sentences.append(
            f"{name}: mean {title_of(metric)} {abs(100 * gap):.1f} points "
            f"{'below' if gap < 0 else 'above'} full over the {counted(len(gaps), 'seed')} that "
            f"both have; below full with {below} of {len(gaps)}."
        )
    most = max((len(found) for found in groups), default=0)
    sentences += [
        f"Not complete: {found[0]['system']} on {found[0]['data']}, {found[0]['ablation']}, has "
        f"{len(found)} of {counted(most, 'seed')}."
        for found in groups
        if len(found) < most
    ]
    return sentences


def _mean_and_spread(name: str, values: Sequence[float | None]) -> str:
    return spread(name, [value for value in values if value is not None]) or "-"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
