"""What a compiled program says of itself: its loops, and the collectives in them with their bytes.

Reads the text of `jax.stages.Compiled.as_text()`. Pure.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_MANY = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" (?:ragged-)?({'|'.join(KINDS)})(-start)?\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    dtypes, shapes: of the arrays a device has of it when done (several where XLA joined some). loops: trip counts of
    the loops around it, outermost first; None where the program decides when to end. name: what traced it.
    """

    kind: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    loops: tuple[int | None, ...]
    name: str

    @property
    def bytes(self) -> int:
        """Bytes of its arrays on one device."""
        return sum(math.prod(shape) * _itemsize(dtype) for dtype, shape in zip(self.dtypes, self.shapes, strict=True))

    def times(self, unknown: int) -> int:
        """How often it runs, `unknown` being the trips of a loop that ends when it pleases."""
        return math.prod(unknown if trips is None else trips for trips in self.loops)


def _itemsize(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else max(int(bits[0]) // 8, 1)


@dataclass(frozen=True)
class Loop:
    """A while loop of a computation. trips: None where not known."""

    body: str
    trips: int | None
    name: str


@dataclass
class Computation:
    """What a computation holds, and the computations it calls other than through a loop."""

    collectives: list[tuple[str, tuple[str, ...], tuple[tuple[int, ...], ...], str]]
    loops: list[Loop]
    called: list[str]


@dataclass(frozen=True)
class Program:
    """The computations of a compiled module."""

    computations: dict[str, Computation]
    entry: str

    def collectives(self) -> list[Collective]:
        """All of them, each as often as it stands in the program."""
        return list(self._walk(self.entry, ()))

    def collectives_within(self, loop: Loop) -> list[Collective]:
        """Those of a loop's body and of what it calls."""
        return list(self._walk(loop.body, (loop.trips,)))

    def loops(self, ending: str) -> list[Loop]:
        """The loops traced under a name that ends so, such as 'decode/while'."""
        every = [loop for computation in self.computations.values() for loop in computation.loops]
        return [loop for loop in every if loop.name.endswith(ending)]

    def _walk(self, name: str, loops: tuple[int | None, ...]) -> Iterator[Collective]:
        computation = self.computations[name]
        for kind, dtypes, shapes, traced in computation.collectives:
            yield Collective(kind, dtypes, shapes, loops, traced)
        for called in computation.called:
            yield from self._walk(called, loops)
        for loop in computation.loops:
            yield from self._walk(loop.body, (*loops, loop.trips))


def read(text: str) -> Program:
    """The program of `as_text()`."""
    computations: dict[str, Computation] = {}
    entry, here = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            here = computations[head[2]] = Computation([], [], [])
            entry = head[2] if head[1] else entry
        elif here is not None and (found := _INSTRUCTION.match(line)):
            _add(here, found[2])
    for computation in computations.values():
        computation.called = [name for name in computation.called if name in computations]
    return Program(computations, entry)


def _add(computation: Computation, instruction: str) -> None:
    traced = _OP_NAME.search(instruction)
    name = traced[1] if traced else ""
    if found := _COLLECTIVE.search(instruction.partition(", metadata=")[0]):
        arrays = _result(instruction[: found.start()], started=bool(found[2]) and found[1] != "all-reduce")
        dtypes, shapes = zip(*arrays, strict=True) if arrays else ((), ())
        computation.collectives.append((found[1], tuple(dtypes), tuple(shapes), name))
    if re.search(r" while\(", instruction):
        trips, body = _TRIPS.search(instruction), re.search(r"body=%?([\w.\-]+)", instruction)
        assert body is not None, instruction
        computation.loops.append(Loop(body[1], int(trips[1]) if trips else None, name))
        return
    computation.called += [c for c in _CALLED.findall(instruction) if c]
    for group in _CALLED_MANY.findall(instruction):
        computation.called += [c.strip().lstrip("%") for c in group.split(",") if c.strip()]


def _result(type_: str, *, started: bool) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of the arrays of a result type; of (operands, results, ...) as a started collective has it, the
    results."""
    parts = _split(type_.strip()) if started else [type_]
    wanted = parts[1] if started and len(parts) > 1 else type_
    return [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(wanted)]


def _split(type_: str) -> list[str]:
    """The elements of a tuple type '(a, b, ...)'."""
    if not type_.startswith("("):
        return [type_]
    parts, depth = [""], 0
    for character in type_[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def totals(collectives: Sequence[Collective], unknown: int) -> dict[str, tuple[int, int, int]]:
    """Kind -> (how many stand in the program, how many run, bytes a device has of them in all)."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in collectives:
        times = one.times(unknown)
        for i, value in enumerate((1, times, times * one.bytes)):
            sums[one.kind][i] += value
    return {kind: (n, runs, size) for kind, (n, runs, size) in sorted(sums.items())}
