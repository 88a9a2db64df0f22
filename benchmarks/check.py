"""Compares a new run of against_peer.py with the recorded one, and names what got slower by more than 10 %.

    python benchmarks/against_peer.py --json=new.json
    python benchmarks/check.py new.json
    python benchmarks/check.py new.json --recorded=other.json --tolerance=0.05
    python benchmarks/check.py new.json --partial      where only some of the cases were measured anew

What is compared are ratios to the peer, measured in one run each, so that a slower or busier machine counts for little. The recorded
run of a kind of device is benchmarks/recorded/KIND.json. Status 0: nothing got slower; 1: something did; 2: they cannot be compared, or
the new run lacks what was recorded.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from smoothsa_jax.errors import UserError  # noqa: E402

RECORDED = Path(__file__).resolve().parent / "recorded"


def read(path: Path) -> dict[str, Any]:
    """What against_peer.py wrote.

    Raises:
        UserError: there is no such file, or it is something else.
    """
    try:
        found = json.loads(path.read_text())
        ratios_of(found), found["device"]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); python benchmarks/against_peer.py --json=FILE makes such files"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no run of benchmarks/against_peer.py; make one with --json=FILE"
        ) from error
    return found


def ratios_of(found: dict[str, Any]) -> dict[str, float]:
    """Case and side -> the peer's time by ours."""
    return {
        f"{row['case']} beside {side}": float(ratio)
        for row in found["rows"]
        for side, ratio in row["ratios"].items()
    }


def compare(
    new: dict[str, Any], recorded: dict[str, Any]
) -> tuple[list[tuple[str, float, float, float]], list[str]]:
    """(name, recorded ratio, new ratio, new by recorded) of all that both have, the largest loss first; what the new run lacks.

    Raises:
        UserError: runs on different kinds of devices, or without a case in common.
    """
    if new["device"] != recorded["device"]:
        raise UserError(
            f"the new run is of {new['device']}, the recorded one of {recorded['device']}: compare runs of the same kind of device"
        )
    before, after = ratios_of(recorded), ratios_of(new)
    names = [name for name in after if name in before]
    if not names:
        raise UserError(
            f"no case in common: found {', '.join(after) or 'none'}, expected some of {', '.join(before) or 'none'}"
        )
    rows = [(name, before[name], after[name], after[name] / before[name]) for name in names]
    return sorted(rows, key=lambda row: row[-1]), [name for name in before if name not in after]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("new", type=Path)
    parser.add_argument("--recorded", type=Path, help="default: benchmarks/recorded/KIND.json")
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--partial", action="store_true", help="cases may be missing")
    given = parser.parse_args(arguments)
    try:
        new = read(given.new)
        rows, missing = compare(new, read(given.recorded or RECORDED / f"{new['device']}.json"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("recorded    new  change")
    for name, before, after, change in rows:
        slower = "  slower" if change < 1 - given.tolerance else ""
        print(f"{before:8.2f} {after:6.2f} {change - 1:+7.0%}  {name}{slower}")
    for name in missing:
        print(f"not measured anew: {name}")
    if any(change < 1 - given.tolerance for *_, change in rows):
        return 1
    return 2 if missing and not given.partial else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
