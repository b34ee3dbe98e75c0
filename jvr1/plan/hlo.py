"""What a compiled program is made of: computations, their instructions, loops with their trips, collectives with their
bytes.

Reads the text of `jax.stages.Compiled.as_text()`, of any platform. What its products cost is in
`jvr1.plan.products`, what it reads and writes in `jvr1.plan.traffic`. Pure.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

Sizes = tuple[int, ...]
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([\w\-]+)\(")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_CALLED_MANY = re.compile(r"\b(?:called_computations|calls)=\{([^}]*)\}")
_BRANCH = re.compile(r"\b(?:true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?")
_COLLECTIVE = re.compile(rf"^(?:ragged-)?({'|'.join(COLLECTIVES)})(-start)?$")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COMMENT = re.compile(r"/\*index=\d+\*/")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Buffer:
    """An array that an instruction makes. space: the memory it lies in; 0: the chip's main memory."""

    dtype: str
    shape: Sizes
    space: int = 0

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Instruction:
    """A line of a computation: name = type opcode(operands), rest. The operands of a constant or a parameter are its
    value or number."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @cached_property
    def buffers(self) -> tuple[Buffer, ...]:
        """The arrays of its result, those of a tuple in order."""
        return tuple(_buffers(self.type))

    @property
    def shape(self) -> Sizes:
        """Of its only or its first array."""
        return self.buffers[0].shape if self.buffers else ()

    @property
    def elements(self) -> list[tuple[Buffer, ...]]:
        """The arrays of each element of its result, a tuple; of another result, one element."""
        return [tuple(_buffers(part)) for part in _split(self.type)]

    @property
    def op_name(self) -> str:
        """What traced it."""
        found = _OP_NAME.search(self.rest)
        return found[1].replace("\\'", "'") if found else ""

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in what follows the operands; '' where it does not occur."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it calls, but for the branches of a conditional and what a loop runs."""
        names = _CALLED.findall(self.rest)
        return (*names, *(name for group in _CALLED_MANY.findall(self.rest) for name in _names(group)))

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """Computations of which it runs one."""
        names = _BRANCH.findall(self.rest)
        return (*names, *(name for group in _BRANCHES.findall(self.rest) for name in _names(group)))


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    dtypes, shapes: of the arrays a device has of it when done (several where XLA joined some). loops: trip counts of
    the loops around it, outermost first; None where the program decides when to end. name: what traced it.
    """

    kind: str
    dtypes: tuple[str, ...]
    shapes: tuple[Sizes, ...]
    loops: tuple[int | None, ...]
    name: str

    @property
    def bytes(self) -> int:
        """Bytes of its arrays on one device."""
        return sum(math.prod(shape) * itemsize(dtype) for dtype, shape in zip(self.dtypes, self.shapes, strict=True))

    def times(self, unknown: int) -> int:
        """How often it runs, `unknown` being the trips of a loop that ends when it pleases."""
        return math.prod(unknown if trips is None else trips for trips in self.loops)


@dataclass(frozen=True)
class CompiledLoop:
    """A while loop, an instruction of the computation `inside`. trips: None where the program decides when to end.
    name: what traced it."""

    condition: str
    body: str
    trips: int | None
    name: str
    inside: str
    instruction: str

    def times(self, unknown: int) -> int:
        """How often its body runs, `unknown` being the trips of a loop that ends when it pleases."""
        return unknown if self.trips is None else self.trips


@dataclass
class Computation:
    """Instructions by name, in the program's order; the last is its result. loops: in the same order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    loops: list[CompiledLoop] = field(default_factory=list)

    @cached_property
    def root(self) -> Instruction:
        return next(reversed(self.instructions.values()))

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        every = self.instructions.values()
        return {int(one.operands[0]): one for one in every if one.opcode == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Of each instruction those that it is an operand of."""
        found: dict[str, list[Instruction]] = defaultdict(list)
        for one in self.instructions.values():
            for name in dict.fromkeys(one.operands):
                found[name].append(one)
        return found


@dataclass(frozen=True)
class CompiledProgram:
    """The computations of a compiled module."""

    computations: dict[str, Computation]
    entry: str

    def called(self, one: Instruction) -> list[Computation]:
        """What an instruction calls, but for branches and loops."""
        return [self.computations[name] for name in one.called if name in self.computations]

    def branches(self, one: Instruction) -> list[Computation]:
        """Those of which a conditional runs one."""
        return [self.computations[name] for name in one.branches if name in self.computations]

    def collectives(self) -> list[Collective]:
        """All of them, each as often as it stands in the program."""
        return list(self._walk(self.entry, ()))

    def collectives_within(self, loop: CompiledLoop) -> list[Collective]:
        """Those of a loop, in its body and condition and in what they call."""
        return [one for part in (loop.body, loop.condition) for one in self._walk(part, (loop.trips,))]

    def loops(self, ending: str) -> list[CompiledLoop]:
        """The loops traced under a name that ends so, such as 'decode/while'."""
        every = [loop for computation in self.computations.values() for loop in computation.loops]
        return [loop for loop in every if loop.name.endswith(ending)]

    def _walk(self, name: str, loops: tuple[int | None, ...]) -> Iterator[Collective]:
        here = self.computations[name]
        for one in here.instructions.values():
            if (collective := _collective(one)) is not None:
                yield replace(collective, loops=loops)
            for called in chain(self.called(one), self.branches(one)):
                yield from self._walk(called.name, loops)
        for loop in here.loops:
            for part in (loop.body, loop.condition):
                yield from self._walk(part, (*loops, loop.trips))


def read_program(text: str) -> CompiledProgram:
    """The program of `as_text()`."""
    computations: dict[str, Computation] = {}
    entry, here = "", Computation("")
    for line in text.splitlines():
        if head := _HEAD.match(line):
            here = computations[head[2]] = Computation(head[2])
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            here.instructions[found[2]] = _instruction(found[2], found[3])
    for computation in computations.values():
        for one in computation.instructions.values():
            if one.opcode == "while" and (parts := _WHILE.search(one.rest)):
                computation.loops.append(_loop(computations, computation, one, *parts.groups()))
    return CompiledProgram(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    text = _COMMENT.sub("", text)
    start = _closing(text, 0) + 1 if text.startswith("(") else 0
    found = _OPCODE.search(text, start)
    assert found is not None, text
    end = _closing(text, found.end() - 1)
    inside = text[found.end() : end]
    operands = tuple(part.split(" ")[-1].lstrip("%") for part in _parted(inside)) if inside else ()
    return Instruction(name, text[: found.start()], found[1], operands, text[end + 1 :])


def _loop(
    computations: dict[str, Computation], inside: Computation, one: Instruction, condition: str, body: str
) -> CompiledLoop:
    told = _TRIPS.search(one.rest)
    trips = int(told[1]) if told else _trips(computations[condition], computations[body])
    return CompiledLoop(condition, body, trips, one.op_name, inside.name, one.name)


def _trips(condition: Computation, body: Computation) -> int | None:
    """N / stride of a loop that runs while element i of its state, from 0, is less than N, and nothing else."""
    less = condition.root
    if less.opcode != "compare" or "direction=LT" not in less.rest:
        return None
    what, than = less.operands
    counter, bound = _counter(condition, what), _constant(condition, than)
    if counter is None or bound is None:
        return None
    sums = [one.operands for one in body.instructions.values() if one.opcode == "add" and _is_scalar(one)]
    steps = [
        by
        for pair in sums
        for what, than in (pair, pair[::-1])
        if _counter(body, what) == counter and (by := _constant(body, than)) is not None
    ]
    return math.ceil(bound / max(steps, default=1))  # a body made of two trips has +1 and +2


def _counter(here: Computation, name: str) -> int | None:
    """Which element of the argument this is; None: none of them, or no whole number."""
    one = here.instructions.get(name)
    while one is not None and one.opcode == "copy":
        one = here.instructions.get(one.operands[0])
    if one is None or one.opcode != "get-tuple-element" or not _is_scalar(one):
        return None
    return int(one.attribute(r"index=(\d+)"))


def _constant(here: Computation, name: str) -> int | None:
    one = here.instructions.get(name)
    return int(one.operands[0]) if one is not None and one.opcode == "constant" and _is_scalar(one) else None


def _is_scalar(one: Instruction) -> bool:
    return one.type.partition("{")[0] in ("s32[]", "u32[]")


def _collective(one: Instruction) -> Collective | None:
    found = _COLLECTIVE.match(one.opcode)
    if found is None:
        return None
    # of (operands, results, ...), as a started one has it, the results; an all-reduce has results only
    parts = _split(one.type) if found[2] and found[1] != "all-reduce" else [one.type]
    arrays = list(_buffers(parts[1] if len(parts) > 1 else one.type))
    shapes = tuple(array.shape for array in arrays)
    return Collective(found[1], tuple(array.dtype for array in arrays), shapes, (), one.op_name)


def itemsize(dtype: str) -> int:
    """Bytes of a value: 's32' -> 4, 'pred' -> 1."""
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else max(int(bits[0]) // 8, 1)


def sizes(text: str) -> Sizes:
    """'2,3' -> (2, 3)."""
    return tuple(int(n) for n in text.split(",") if n)


def _buffers(type_: str) -> Iterator[Buffer]:
    for dtype, shape, space in _ARRAY.findall(type_):
        yield Buffer(dtype, sizes(shape), int(space or 0))


def _names(group: str) -> list[str]:
    return [one.strip().lstrip("%") for one in group.split(",") if one.strip()]


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _parted(text: str) -> list[str]:
    """Parts between commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[(){}\[\],]", text):
        if found[0] == ",":
            if depth == 0:
                parts.append(text[start : found.start()].strip())
                start = found.end()
        else:
            depth += 1 if found[0] in "([{" else -1
    return [*parts, text[start:].strip()]


def _split(type_: str) -> list[str]:
    """The elements of a tuple type '(a, b, ...)'; of any other type itself."""
    return _parted(type_[1:-1]) if type_.startswith("(") else [type_]


def totals(collectives: Sequence[Collective], unknown: int) -> dict[str, tuple[int, int, int]]:
    """Kind -> (how many stand in the program, how many run, bytes a device has of them in all)."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in collectives:
        times = one.times(unknown)
        for i, value in enumerate((1, times, times * one.bytes)):
            sums[one.kind][i] += value
    return {kind: (n, runs, size) for kind, (n, runs, size) in sorted(sums.items())}
