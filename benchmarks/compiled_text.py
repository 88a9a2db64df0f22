"""What a compiled program of XLA spends, read from its text: operations, bytes, the compiler's own estimates, lines of the project.

A loop counts as often as it turns. Bytes are those of an operation's results and operands, on-chip memory included; where an
operand is much larger than the result, as of a slice, it counts at most ten times the result. `estimated_cycles` are written by the
TPU's compiler; it has none for transfers that run beside other work.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s4": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(r"\b(pred|[sufb]+\d+)\[([\d,]*)\]")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
WORKSPACE = re.compile(r"s8\[\d+\]\{0\}")  # of cuBLAS, among its results

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
FREE |= {"partition-id", "replica-id", "opt-barrier"}
MOVES = {"copy", "transpose", "bitcast", "reshape", "slice", "concatenate", "pad", "parameter"}
MOVES |= {"constant", "broadcast", "tuple", "get-tuple-element", "dynamic-slice", "iota"}
MOVES |= {"dynamic-update-slice", "reverse", "bitcast-convert"}


class Instruction(NamedTuple):
    """One line of the text: `name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def cycles(self) -> int:
        return int(self.attribute(r'"estimated_cycles":"(\d+)"') or 0)


class Operation(NamedTuple):
    """Something that runs: what kind it is, the line of the project that it comes from, and what it costs in all its turns."""

    kind: str
    line: str
    times: int
    moved: int
    cycles: int


def size_of(shape: str) -> int:
    """Bytes of all arrays in a shape such as `(f32[2,3]{1,0}, pred[])`."""
    count = lambda dims: math.prod(int(x) for x in dims.split(",") if x)  # noqa: E731
    return sum(SIZES[kind] * count(dims) for kind, dims in SHAPE.findall(shape))


class Program:
    """The text of a compiled program.

    Args:
        text: of `compiled.as_text()`.
        package: lines of the folder with this name are told.
    """

    def __init__(self, text: str, package: str = "smoothsa_jax"):
        self.text = text
        self._package = package
        self._bodies: dict[str, list[Instruction]] = {}
        self._entry = ""
        self._frames: dict[str, dict[int, str]] = collections.defaultdict(dict)
        self._read(text)

    def _read(self, text: str) -> None:
        current, table = None, ""
        for line in text.splitlines():
            if head := HEAD.match(line):
                current = self._bodies.setdefault(head[2], [])
                self._entry = head[2] if head[1] else self._entry
            elif current is not None:
                if found := LINE.match(line):
                    current.append(Instruction(*found.groups()))
            elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
                table = line
            elif found := re.match(r"(\d+) (.*)$", line):
                self._frames[table][int(found[1])] = found[2]

    def operations(self) -> Iterator[Operation]:
        """All that runs and is not free, with its turns."""
        yield from self._walk(self._entry, 1)

    def _walk(self, name: str, times: int) -> Iterator[Operation]:
        shapes = {x.name: x.shape for x in self._bodies[name]}
        for x in self._bodies[name]:
            if x.opcode == "while":
                turns = self._turns(x)
                yield from self._walk(x.attribute(r"body=%?([\w.\-]+)"), times * turns)
            elif x.opcode not in FREE and not x.opcode.endswith(("-done", "-update")):
                result = size_of(WORKSPACE.sub("", x.shape))
                bound = 10 * max(1, result)
                read = sum(min(size_of(shapes.get(y, "")), bound) for y in x.operands)
                moved = times * (result + read)
                yield Operation(self._kind(x), self._line(x), times, moved, times * x.cycles)

    def _turns(self, loop: Instruction) -> int:
        """Of a loop: as the compiler notes it, else what its condition counts up to."""
        if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self._bodies.get(loop.attribute(r"condition=%?([\w.\-]+)"), [])
        counts = [x for x in condition if x.opcode == "constant" and x.shape.startswith("s32[]")]
        below = any(x.opcode == "compare" and "direction=LT" in x.rest for x in condition)
        return int(counts[0].rest.split(")")[0]) if below and len(counts) == 1 else 1

    def _kind(self, x: Instruction) -> str:
        if x.opcode.endswith("-start"):
            return "transfer beside other work"
        if x.opcode == "custom-call":
            return x.attribute(r'custom_call_target="([^"]+)"') or "custom call"
        if x.opcode != "fusion":
            return x.opcode
        inside = self._opcodes(x.attribute(r"calls=%?([\w.\-]+)"))
        if inside & {"dot", "convolution"}:
            return "matrix product"
        if inside & {"scatter", "gather", "sort"}:
            return "gather or scatter"
        if inside <= MOVES | {"convert"}:
            return "copy or cast"
        return "reduction" if inside & {"reduce", "reduce-window"} else "elementwise"

    def _opcodes(self, name: str | None) -> set[str]:
        found = set()
        for x in self._bodies.get(name, []):
            if x.opcode == "fusion":
                found |= self._opcodes(x.attribute(r"calls=%?([\w.\-]+)"))
            else:
                found.add(x.opcode)
        return found

    def _line(self, x: Instruction) -> str:
        """Of the operation, or else the line that most of what is fused in it comes from."""
        found = collections.Counter()
        for y in [x, *self._bodies.get(x.attribute(r"calls=%?([\w.\-]+)"), [])]:
            number = y.attribute(r"stack_frame_id=(\d+)")
            if number and (line := self._innermost(int(number))):
                if y.opcode in ("dot", "convolution"):
                    return line
                found[line] += 1
        return found.most_common(1)[0][0] if found else "elsewhere"

    def _innermost(self, number: int) -> str:
        """The innermost line of the package among the callers of a stack frame."""
        seen = set()
        while number in self._frames["StackFrames"] and number not in seen:
            seen.add(number)
            frame = self._frames["StackFrames"][number]
            place = self._frames["FileLocations"].get(_number("file_location_id", frame), "")
            name = self._frames["FileNames"].get(_number("file_name_id", place), "").strip('"')
            if f"/{self._package}/" in name:
                file = name.split(f"/{self._package}/")[-1]
                return f"{file}:{_number('line', place)}"
            number = _number("parent_frame_id", frame)
        return ""


def _number(key: str, text: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", text)
    return int(found[1]) if found else 0
