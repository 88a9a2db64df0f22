"""Count the bytes that devices send each other in a training step, from the compiled program.

    python benchmarks/communication.py --config=configs/movi_c.py
    python benchmarks/communication.py --config=configs/movi_c.py \\
        --meshes=8x1,1x8,2x4 --per_device=8 --json

Compiles the step for virtual CPU devices, once for each mesh (data x fsdp), and reads the
collectives in its HLO; those in a loop count as often as the loop runs. Runs nothing and loads no
weights. docs/measurements.md explains the figures.
"""

import argparse
import json
import os
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
from benchmarks.collectives import collectives  # noqa: E402
from benchmarks.memory import lowered_step, step_arguments  # noqa: E402
from benchmarks.train_step import count_flop  # noqa: E402
from smoothsa_jax.devices.compiling import memory_of
from smoothsa_jax.training.step import build_training


class Machine(NamedTuple):
    """Peak rates of one device, from its data sheet; docs/measurements.md names the sources."""

    name: str
    flop_per_second: float  # dense bfloat16
    link_bytes_per_second: float  # what a device can send to its neighbors


MACHINES = (
    Machine("H100 SXM", 989e12, 450e9),
    Machine("v5e", 197e12, 200e9),
)


# ---------------------------------------------------------------------------------------- measuring


def flop_of(config: ConfigDict, per_device: int) -> float:
    """Return the FLOP of a device and step: XLA's count for one device before it optimizes, with
    scans unrolled."""
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
    """Return what a device sends in a step on a mesh, by kind and by size of the group."""
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
            f"{row['mesh']:<8}{row['sent'] / 1e6:>10.2f}{row['messages']:>10}"
            f"{row['state'] / 1e9:>10.3f}{row['memory'] / 1e9:>10.2f}   {kinds}"
        )
    each = rows[0]["per_device"]
    lines += ["", f"{flop / 1e12:.3f} TFLOP of a device and step ({each} samples)"]
    for machine in MACHINES:
        computing = flop / machine.flop_per_second
        for row in rows:
            sending = row["sent"] / machine.link_bytes_per_second
            lines.append(
                f"{machine.name}, {row['mesh']}: computing {1e3 * computing:.2f} ms, "
                f"sending {1e3 * sending:.3f} ms ({sending / computing:.1%}) at the peaks"
            )
    return "\n".join(lines)


def mesh_sizes(text: str) -> list[tuple[int, int]]:
    """Parse the value of a flag such as 8x1,2x4."""
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
