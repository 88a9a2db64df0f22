"""Compare a new run of against_peer.py or ahead_of_time.py with the recorded one.

    python benchmarks/against_peer.py --json=new.json
    python benchmarks/check.py new.json
    python benchmarks/ahead_of_time.py --target=h100 --config=configs/movi_c.py \\
        --config.dtype=bfloat16 --json=new.json
    python benchmarks/check.py new.json --partial      only some of the cases were measured
    python benchmarks/check.py new.json --recorded=other.json --tolerance=0.05

Of against_peer.py it compares ratios to the peer: each is measured within one run, so a slower or
busier machine matters little. Slower by more than 10 % is worse. The recorded run of a kind of
device is benchmarks/recorded/KIND.json. Of ahead_of_time.py it compares what the compiler plans;
an increase of more than 3 % is worse. Programs of the same name are compared even if other versions
or flags compiled them; the differences are reported.
Status 0: nothing got worse; 1: something did; 2: the runs cannot be compared, or the new run lacks
what was recorded.
"""

import argparse
import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from smoothsa_jax.errors import UserError
from smoothsa_jax.guard import exit_status

RECORDED = Path(__file__).resolve().parent / "recorded"

# Of a row of ahead_of_time.py: less is better.
PLANNED = (
    "peak_gb",
    "moved_gb",
    "tflop",
    "operations",
    "ms_estimated",
    "sent_mb",
)
PLANNED_KEY = ("program", "config", "dtype", "target", "mesh", "batch")


def read(path: Path) -> dict[str, Any]:
    """Read what against_peer.py or ahead_of_time.py wrote.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    try:
        found = json.loads(path.read_text())
        if is_planned(found):
            planned_of(found)
        else:
            ratios_of(found), found["device"]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); python benchmarks/against_peer.py "
            "--json=FILE makes such files"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no run of benchmarks/against_peer.py or ahead_of_time.py; make one with "
            "--json=FILE"
        ) from error
    return found


def is_planned(found: dict[str, Any]) -> bool:
    """Tell whether ahead_of_time.py wrote it."""
    return found.get("kind") == "ahead_of_time"


def planned_of(found: dict[str, Any]) -> dict[str, float]:
    """Return what the compiler plans, by program and figure."""
    planned = {}
    for row in found["rows"]:
        name = ", ".join(str(row[key]) for key in PLANNED_KEY)
        for figure in PLANNED:
            if figure in row:
                value = row[figure]
                value = sum(value.values()) if isinstance(value, dict) else value
                planned[f"{name}: {figure}"] = float(value)
    return planned


def conditions_of(found: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what each program was compiled with: versions, and flags if known."""
    conditions = {}
    for row in found["rows"]:
        name = ", ".join(str(row[key]) for key in PLANNED_KEY)
        conditions[name] = dict(row.get("versions", {}))
        if "xla_flags" in row:
            conditions[name]["XLA_FLAGS"] = row["xla_flags"]
    return conditions


def other_conditions(new: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Return how programs of both were compiled differently: a change may be the compiler's."""
    before, found = conditions_of(recorded), collections.Counter()
    for name, after in conditions_of(new).items():
        old = before.get(name, {})
        for what in (what for what in sorted(after) if old.get(what, after[what]) != after[what]):
            found[f"{what}: recorded {old[what] or 'none'}, new {after[what] or 'none'}"] += 1
    return [f"{text} ({count} programs)" for text, count in found.items()]


def compare_planned(
    new: dict[str, Any], recorded: dict[str, Any]
) -> tuple[list[tuple[str, float, float, float]], list[str]]:
    """Compare as `compare` does; the last figure is recorded by new, so below one is worse.

    Raises:
        UserError: no program in common.
    """
    before, after = planned_of(recorded), planned_of(new)
    names = [name for name in after if name in before]
    if not names:
        raise UserError(
            f"no program in common: found {', '.join(after) or 'none'}, expected some of "
            f"{', '.join(before) or 'none'}"
        )
    by = lambda name: 1.0 if before[name] == after[name] else before[name] / max(after[name], 1e-9)  # noqa: E731
    rows = [(name, before[name], after[name], by(name)) for name in names]
    there = {name.rsplit(": ", 1)[0] for name in after}
    missing = [name for name in before if name not in after]
    # Name a missing program once, without its figures.
    whole = lambda name: name if name.rsplit(": ", 1)[0] in there else name.rsplit(": ", 1)[0]  # noqa: E731
    return sorted(rows, key=lambda row: row[-1]), list(dict.fromkeys(map(whole, missing)))


def ratios_of(found: dict[str, Any]) -> dict[str, float]:
    """Return the peer's time by ours, by case and side."""
    return {
        f"{row['case']} beside {side}": float(ratio)
        for row in found["rows"]
        for side, ratio in row["ratios"].items()
    }


def compare(
    new: dict[str, Any], recorded: dict[str, Any]
) -> tuple[list[tuple[str, float, float, float]], list[str]]:
    """Compare ratios.

    Returns:
        (name, recorded ratio, new ratio, new by recorded) of what both have, the largest loss
        first; and the names that the new run lacks.

    Raises:
        UserError: runs on different kinds of devices, or without a case in common.
    """
    if new["device"] != recorded["device"]:
        raise UserError(
            f"the new run is of {new['device']}, the recorded one of {recorded['device']}: compare "
            "runs of the same kind of device"
        )
    before, after = ratios_of(recorded), ratios_of(new)
    names = [name for name in after if name in before]
    if not names:
        raise UserError(
            f"no case in common: found {', '.join(after) or 'none'}, expected some of "
            f"{', '.join(before) or 'none'}"
        )
    rows = [(name, before[name], after[name], after[name] / before[name]) for name in names]
    return sorted(rows, key=lambda row: row[-1]), [name for name in before if name not in after]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("new", type=Path)
    parser.add_argument("--recorded", type=Path, help="default: benchmarks/recorded/KIND.json")
    parser.add_argument("--tolerance", type=float, help="default: 0.1, of compiled programs 0.03")
    parser.add_argument("--partial", action="store_true", help="cases may be missing")
    given = parser.parse_args(arguments)

    def work() -> int:
        new = read(given.new)
        planned = is_planned(new)
        kind = "ahead_of_time" if planned else new["device"]
        recorded = read(given.recorded or RECORDED / f"{kind}.json")
        if is_planned(recorded) != planned:
            raise UserError(
                f"{given.new} and {given.recorded} are of different scripts; give two files of the "
                "same one"
            )
        rows, missing = (compare_planned if planned else compare)(new, recorded)
        tolerance = given.tolerance or (0.03 if planned else 0.1)
        limit = 1 / (1 + tolerance) if planned else 1 - tolerance
        if planned:
            for text in other_conditions(new, recorded):
                print(f"compiled differently, {text}")
        print("recorded    new  change")
        for name, before, after, change in rows:
            worse = "worse" if planned else "slower"
            slower = f"  {worse}" if change < limit else ""
            change = after / max(before, 1e-9) if planned and before != after else change
            print(f"{before:8.2f} {after:6.2f} {change - 1:+7.0%}  {name}{slower}")
        for name in missing:
            print(f"not measured anew: {name}")
        if any(change < limit for *_, change in rows):
            return 1
        return 2 if missing and not given.partial else 0

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
