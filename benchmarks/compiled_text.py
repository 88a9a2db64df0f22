"""Read the cost of a compiled program from its text: operations, bytes and estimates, by line.

A loop counts as often as it runs. The compilers for CPUs and GPUs state how often that is; the
TPU's does not, and the bound of the loop's condition is used: JAX's scans count up to it from 0.
Bytes are those of an operation's results and operands, on-chip memory included; an operand much
larger than the result, as of a slice, counts at most ten times the result.
The TPU's compiler writes `estimated_cycles`, but none for transfers that overlap with other work.
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
CALLS, BODY = r"calls=%?([\w.\-]+)", r"body=%?([\w.\-]+)"
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


class Step(NamedTuple):
    """An instruction that runs.

    Attributes:
        times: how often the loops around it turn; None: unknown.
        body: the name of the computation that it stands in.
        fused: whether it is a part of another instruction.
    """

    instruction: Instruction
    times: int | None
    body: str
    fused: bool


class Operation(NamedTuple):
    """An operation that runs: its kind, its line in the project, its cost over all turns."""

    kind: str
    line: str
    times: int
    moved: int
    cycles: int


def size_of(shape: str) -> int:
    """Return the bytes of all arrays in a shape such as `(f32[2,3]{1,0}, pred[])`."""
    count = lambda dims: math.prod(int(x) for x in dims.split(",") if x)  # noqa: E731
    return sum(SIZES[kind] * count(dims) for kind, dims in SHAPE.findall(shape))


class Program:
    """The text of a compiled program.

    Args:
        text: of `compiled.as_text()`.
        package: lines of the folder with this name are reported.
    """

    def __init__(self, text: str, package: str = "smoothsa_jax"):
        self.text = text
        self._package = package
        self._bodies: dict[str, list[Instruction]] = {}
        self._shapes: dict[str, dict[str, str]] = {}
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
        """Return all that runs and is not free; an unknown number of turns counts as one."""
        for x, times, body, _ in self.steps():
            if x.opcode not in FREE and not x.opcode.endswith(("-done", "-update")):
                times = times or 1
                result = size_of(WORKSPACE.sub("", x.shape))
                bound = 10 * max(1, result)
                shapes = self._shapes_in(body)
                read = sum(min(size_of(shapes.get(y, "")), bound) for y in x.operands)
                moved = times * (result + read)
                yield Operation(self._kind(x), self._line(x), times, moved, times * x.cycles)

    def steps(self, fused: bool = False) -> Iterator[Step]:
        """Return all instructions that run, those of loops and branches among them.

        Args:
            fused: also the parts of fusions, which run as one.
        """
        yield from self._walk(self._entry, 1, fused, False)

    def body(self, name: str) -> list[Instruction]:
        """Return the instructions of a computation."""
        return self._bodies[name]

    def _walk(self, name: str, times: int | None, fused: bool, inside: bool) -> Iterator[Step]:
        for x in self._bodies[name]:
            if x.opcode == "while":
                turns = self._turns(x)
                known = None if turns is None or times is None else times * turns
                yield from self._walk(x.attribute(BODY), known, fused, inside)
                continue
            if x.opcode in ("call", "conditional"):
                for callee in self._callees(x):
                    yield from self._walk(callee, times, fused, inside)
                continue
            yield Step(x, times, name, inside)
            if fused and not x.opcode.endswith(("-done", "-update")):
                callee = x.attribute(CALLS)
                if callee in self._bodies:
                    yield from self._walk(callee, times, fused, True)

    def _callees(self, x: Instruction) -> list[str]:
        if callee := x.attribute(r"to_apply=%?([\w.\-]+)"):
            return [callee]
        branches = x.attribute(r"branch_computations=\{([^}]*)\}")
        if branches is not None:
            return re.findall(r"%?([\w.\-]+)", branches)
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", x.rest)

    def _turns(self, loop: Instruction) -> int | None:
        """Return a loop's turns: as the compiler states, or else the bound of its counter."""
        if said := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(said)
        condition = self._bodies.get(loop.attribute(r"condition=%?([\w.\-]+)"), [])
        compared = [x for x in condition if x.opcode == "compare"]
        if len(compared) != 1 or "direction=LT" not in compared[0].rest:
            return None
        bounds = [x for x in condition if x.name in compared[0].operands[1:]]
        found = re.match(r"(\d+)\)", bounds[0].rest) if bounds else None
        return int(found[1]) if found and bounds[0].opcode == "constant" else None

    def _shapes_in(self, body: str) -> dict[str, str]:
        if body not in self._shapes:
            self._shapes[body] = {x.name: x.shape for x in self._bodies[body]}
        return self._shapes[body]

    def _kind(self, x: Instruction) -> str:
        if x.opcode.endswith("-start"):
            return "transfer beside other work"
        if x.opcode == "custom-call":
            return x.attribute(r'custom_call_target="([^"]+)"') or "custom call"
        if x.opcode != "fusion":
            return x.opcode
        inside = self._opcodes(x.attribute(CALLS))
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
                found |= self._opcodes(x.attribute(CALLS))
            else:
                found.add(x.opcode)
        return found

    def _line(self, x: Instruction) -> str:
        """Return the line of an operation, or the one most of its fused parts come from."""
        found = collections.Counter()
        for y in [x, *self._bodies.get(x.attribute(CALLS), [])]:
            number = y.attribute(r"stack_frame_id=(\d+)")
            if number and (line := self._innermost(int(number))):
                if y.opcode in ("dot", "convolution"):
                    return line
                found[line] += 1
        return found.most_common(1)[0][0] if found else "elsewhere"

    def _innermost(self, number: int) -> str:
        """Return the innermost line of the package among the callers of a stack frame."""
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
