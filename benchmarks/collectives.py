"""Read from a compiled program's text what its devices send to each other."""

import math
import re
from typing import NamedTuple

from benchmarks.compiled_text import Instruction, Program, Step, size_of

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        group: how many devices take part in each.
        result: bytes on a device.
        times: how often it runs.
    """

    kind: str
    group: int
    result: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends, if the devices of a group pass on parts in a ring."""
        others = self.group - 1
        share = {
            "all-reduce": 2 * others / self.group,
            "all-gather": others / self.group,
            "reduce-scatter": others,  # its result is one part of what is summed
            "all-to-all": others / self.group,
            "collective-permute": 1.0,
        }
        return share[self.kind] * self.result * self.times


def collectives(text: str) -> list[Collective]:
    """Return all collectives of an HLO module, with the loops around them.

    Raises:
        ValueError: a loop around one has an unknown number of turns, or its text is not understood.
    """
    program, found = Program(text), []
    for step in program.steps(fused=True):
        x = step.instruction
        kind = x.opcode.removesuffix("-start")
        if kind not in KINDS or _is_a_later_piece(program, step):
            continue
        if step.times is None:
            raise ValueError(
                f"a loop with collectives has no known number of turns: {step.body}, {x.name}"
            )
        if (group := _group_size(x, text)) > 1:
            found.append(Collective(kind, group, size_of(_result(x)), step.times))
    return found


def _is_a_later_piece(program: Program, step: Step) -> bool:
    """Tell whether an earlier instruction stands for the same collective.

    The TPU's compiler splits a collective that overlaps with other work into several fusions: one
    that starts it, those that overlap with it, one that ends it. All have its `chain_id`; the first
    counts.
    """
    if not step.fused or "chain_id=" not in step.instruction.rest:
        return False
    return not any("AsyncCollectiveStart" in x.rest for x in program.body(step.body))


def _result(x: Instruction) -> str:
    """Return the result's shape; of an asynchronous start, the second of (operands, results)."""
    is_pair = x.opcode.endswith("-start") and x.opcode != "all-reduce-start"
    parts = _parts(x.shape) if is_pair else []
    return parts[1] if len(parts) > 1 else x.shape


def _parts(shape: str) -> list[str]:
    """Return the parts of a shape such as `(f32[2,3]{1,0}, (pred[]))`; none of an array's."""
    if not shape.startswith("("):
        return []
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _group_size(x: Instruction, text: str) -> int:
    """Return the size of a collective's groups, in any of the ways in which XLA writes them."""
    line = x.rest
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if "source_target_pairs" in line:
        return 2
    everybody = re.search(r"^HloModule .*\bnum_partitions=(\d+)", text)
    if "replica_groups={}" in line and everybody:
        return int(everybody[1])
    raise ValueError(f"no groups found: {x.name}, {line.strip()[:200]}")
