"""Bytes that devices send each other in a training step, counted in the compiled program, and what follows for real machines.

    python benchmarks/communication.py --config=configs/movi_c.py
    python benchmarks/communication.py --config=configs/movi_c.py --meshes=8x1,1x8,2x4 --per_device=8 --json

Compiles the step for virtual CPU devices, once for each mesh (data x fsdp), and reads the collectives in its HLO; those in a loop
count as often as it turns. Nothing is run, no weights are loaded. docs/scaling.md says what the figures mean.
"""

import argparse
import json
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import cases  # noqa: E402
from benchmarks.memory import lowered_step, step_arguments  # noqa: E402
from benchmarks.train_step import count_flop  # noqa: E402
from smoothsa_jax.training.compiling import memory_of  # noqa: E402
from smoothsa_jax.training.step import build_training  # noqa: E402

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
CONTINUED = re.compile(r"%async-collective-done|=%?async_collective_fusion")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Machine(NamedTuple):
    """Peak rates of one device, from the maker's data sheet; docs/scaling.md names the sources."""

    name: str
    flop_per_second: float  # dense bfloat16
    link_bytes_per_second: float  # what a device can send to its neighbours


MACHINES = (
    Machine("H100 SXM", 989e12, 450e9),
    Machine("v5e", 197e12, 200e9),
)


class Collective(NamedTuple):
    """One collective of a program: its kind, the size of its groups, bytes of its result on a device, times it runs."""

    kind: str
    group: int
    result: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, where the devices of a group pass on parts in a ring."""
        others = self.group - 1
        share = {
            "all-reduce": 2 * others / self.group,
            "all-gather": others / self.group,
            "reduce-scatter": others,  # its result is one part of what is summed
            "all-to-all": others / self.group,
            "collective-permute": 1.0,
        }
        return share[self.kind] * self.result * self.times


# ---------------------------------------------------------------------------------------------- reading a program


def collectives(text: str) -> list[Collective]:
    """All collectives of an HLO module, with the loops around them."""
    bodies, entry = _computations(text)
    found: list[Collective] = []

    def walk(name: str, times: int) -> None:
        for line in bodies[name]:
            if match := re.search(r"\bwhile\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                if trips is None and _any_collective(bodies, match[2]):
                    raise ValueError(
                        f"a loop with collectives has no known number of turns: {match[2]}"
                    )
                walk(match[2], times * (int(trips[1]) if trips else 1))
                continue
            for callee in re.findall(
                r"(?:calls|to_apply|branch_computations)=\{?%?([\w.\-]+)", line
            ):
                # A TPU spreads a collective over the operations beside it, each of which names it again.
                if callee in bodies and not CONTINUED.search(line):
                    walk(callee, times)
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
            if match and (group := _group_size(line)) > 1:
                found.append(Collective(match[2], group, _bytes(match[1]), times))

    walk(entry, 1)
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the first one to run."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and line.startswith(" "):
            current.append(line)
    return bodies, entry


def _any_collective(bodies: dict[str, list[str]], name: str) -> bool:
    return any(kind in line for line in bodies[name] for kind in KINDS)


def _bytes(shape: str) -> int:
    sizes = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(
        BYTES[kind] * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in sizes
    )


def _group_size(line: str) -> int:
    """Of the three ways in which XLA writes groups."""
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if "source_target_pairs" in line:
        return 2
    raise ValueError(f"no groups found: {line.strip()[:200]}")


# ------------------------------------------------------------------------------------------------------ measuring


def flop_of(config: ConfigDict, per_device: int) -> float:
    """FLOP of one device and step: the same step for one device, its scans unrolled, as XLA counts it before optimising."""
    config = on_mesh(config, (1, 1), per_device)
    training = build_training(config)
    return count_flop(training.train_step, *step_arguments(training, config, per_device))


def on_mesh(config: ConfigDict, mesh: tuple[int, int], per_device: int) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.mesh = ConfigDict({"data": mesh[0], "fsdp": mesh[1]})
        changed.train.batch_size = per_device * mesh[0] * mesh[1]
    return changed


def measure(config: ConfigDict, mesh: tuple[int, int], per_device: int) -> dict[str, Any]:
    """What one mesh sends: bytes of a device and a step, by kind and by size of the group."""
    config = on_mesh(config, mesh, per_device)
    training = build_training(config)
    compiled = lowered_step(training, config, config.train.batch_size).compile()
    kinds: dict[str, float] = defaultdict(float)
    groups: dict[int, float] = defaultdict(float)
    messages = 0
    for found in collectives(compiled.as_text()):
        kinds[found.kind] += found.sent
        groups[found.group] += found.sent
        messages += found.times
    memory = memory_of(compiled)
    return {
        "mesh": f"{mesh[0]}x{mesh[1]}",
        "per_device": per_device,
        "sent": sum(kinds.values()),
        "by_kind": dict(kinds),
        "by_group_size": dict(groups),
        "messages": messages,
        "memory": memory.peak,
        "state": memory.arguments,
    }


def report(rows: list[dict[str, Any]]) -> str:
    flop = rows[0]["flop"]
    head = (
        f"{'mesh':<8}{'sent MB':>10}{'messages':>10}{'kept GB':>10}{'peak GB':>10}   by kind (MB)"
    )
    lines = [head]
    for row in rows:
        kinds = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in row["by_kind"].items())
        lines.append(
            f"{row['mesh']:<8}{row['sent'] / 1e6:>10.2f}{row['messages']:>10}{row['state'] / 1e9:>10.3f}"
            f"{row['memory'] / 1e9:>10.2f}   {kinds}"
        )
    each = rows[0]["per_device"]
    lines += ["", f"{flop / 1e12:.3f} TFLOP of a device and step ({each} samples)"]
    for machine in MACHINES:
        computing = flop / machine.flop_per_second
        for row in rows:
            sending = row["sent"] / machine.link_bytes_per_second
            lines.append(
                f"{machine.name}, {row['mesh']}: computing {1e3 * computing:.2f} ms, sending {1e3 * sending:.3f} ms "
                f"({sending / computing:.1%}) at the peaks"
            )
    return "\n".join(lines)


def mesh_sizes(text: str) -> list[tuple[int, int]]:
    """Of a flag, such as 8x1,2x4; argparse tells one that is not so."""
    return [(int(data), int(fsdp)) for data, fsdp in (x.split("x") for x in text.split(","))]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--meshes", type=mesh_sizes, default="8x1,1x8,2x4", help="data x fsdp, such as 8x1,2x4"
    )
    parser.add_argument("--per_device", type=int, default=1, help="samples of a device")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    config, options = cases.arguments_of(parser, arguments)
    meshes = options.meshes
    jax.config.update("jax_num_cpu_devices", max(data * fsdp for data, fsdp in meshes))
    flop = flop_of(config, options.per_device)
    rows = [{**measure(config, mesh, options.per_device), "flop": flop} for mesh in meshes]
    print(json.dumps(rows) if options.json else report(rows))
    return 0


if __name__ == "__main__":
    cases.run(main)
