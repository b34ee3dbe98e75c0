"""What a compiled program says of itself: its loops, and in them collectives with their bytes, and products.

Reads the text of `jax.stages.Compiled.as_text()`. Pure.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

Sizes = tuple[int, ...]
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_CALLED_MANY = re.compile(r"\b(?:called_computations|calls)=\{([^}]*)\}")
_BRANCH = re.compile(r"\b(?:true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]+\d+\w*|pred)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" (?:ragged-)?({'|'.join(COLLECTIVES)})(-start)?\(")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"^[a-z]+\d*\w*\[([\d,]*)\]")
_PRODUCT = re.compile(r"^[a-z]+\d+\w*\[([\d,]*)\]\S* (dot|convolution)\((?:\S+ )?%?([\w.\-]+), (?:\S+ )?%?([\w.\-]+)\)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# counters: s32[] constant(28), s32[] get-tuple-element(p), index=0, s32[] add(a, b), pred[] compare(a, b), direction=LT
_CONSTANT = re.compile(r"^[su]32\[\]\S* constant\((\d+)\)")
_ELEMENT = re.compile(r"^[su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)")
_COPY = re.compile(r"^[su]32\[\]\S* copy\(%?([\w.\-]+)\)")
_ADD = re.compile(r"^[su]32\[\]\S* add\(%?([\w.\-]+), %?([\w.\-]+)\)")
_LESS = re.compile(r"^pred\[\]\S* compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")


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
class CompiledLoop:
    """A while loop. trips: None where the program decides when to end. name: what traced it."""

    condition: str
    body: str
    trips: int | None
    name: str


@dataclass
class Computation:
    """What a computation holds, what it calls other than through a loop, of which branches it takes one, the operations
    of its own products, and what counts the trips of a loop it is body or condition of: constants, elements of its
    argument, sums, and the comparison it ends with."""

    collectives: list[Collective] = field(default_factory=list)
    loops: list[CompiledLoop] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    branches: list[list[str]] = field(default_factory=list)
    flops: float = 0.0
    constants: dict[str, int] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    sums: list[tuple[str, str]] = field(default_factory=list)
    less: tuple[str, str] | None = None


@dataclass(frozen=True)
class CompiledProgram:
    """The computations of a compiled module."""

    computations: dict[str, Computation]
    entry: str

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

    def flops(self, unknown: int) -> float:
        """Multiplications and additions of all dots and convolutions on one device, each as often as it runs, `unknown`
        being the trips of a loop that ends when it pleases. Of branches the largest counts; kernels do not."""
        return self._flops(self.entry, unknown)

    def _flops(self, name: str, unknown: int) -> float:
        here = self.computations[name]
        total = here.flops + sum(self._flops(called, unknown) for called in here.called)
        total += sum(max(self._flops(one, unknown) for one in branches) for branches in here.branches)
        for loop in here.loops:
            total += (unknown if loop.trips is None else loop.trips) * self._flops(loop.body, unknown)
        return total

    def _walk(self, name: str, loops: tuple[int | None, ...]) -> Iterator[Collective]:
        computation = self.computations[name]
        for one in computation.collectives:
            yield replace(one, loops=loops)
        for called in chain(computation.called, *computation.branches):
            yield from self._walk(called, loops)
        for loop in computation.loops:
            for part in (loop.body, loop.condition):
                yield from self._walk(part, (*loops, loop.trips))


def read_program(text: str) -> CompiledProgram:
    """The program of `as_text()`."""
    computations: dict[str, Computation] = {}
    entry, here, shapes = "", Computation(), dict[str, Sizes]()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            here = computations[head[2]] = Computation()
            shapes = {}
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            _note_counter(here, found[1], found[2], last=line.lstrip().startswith("ROOT "))
            _note_calls(here, found[2])
            if shape := _SHAPE.match(found[2]):
                shapes[found[1]] = _sizes(shape[1])
            if product := _PRODUCT.match(found[2]):
                out, kind, left, right = product.groups()
                rest = found[2][product.end() :]
                if kind == "dot":
                    here.flops += 2.0 * math.prod(_sizes(out)) * math.prod(_contracted(shapes[left], rest))
                else:
                    here.flops += _convolution(_sizes(out), shapes[left], shapes[right], rest)
    for one in computations.values():
        one.called = [name for name in one.called if name in computations]
        one.branches = [[name for name in names if name in computations] for names in one.branches]
        one.loops = [replace(loop, trips=loop.trips or _trips(computations, loop)) for loop in one.loops]
    return CompiledProgram(computations, entry)


def _note_counter(here: Computation, name: str, instruction: str, *, last: bool) -> None:
    if constant := _CONSTANT.match(instruction):
        here.constants[name] = int(constant[1])
    elif element := _ELEMENT.match(instruction):
        here.elements[name] = int(element[1])
    elif (copy := _COPY.match(instruction)) and copy[1] in here.elements:
        here.elements[name] = here.elements[copy[1]]
    elif add := _ADD.match(instruction):
        here.sums.append((add[1], add[2]))
    elif last and (less := _LESS.match(instruction)):
        here.less = (less[1], less[2])


def _trips(computations: dict[str, Computation], loop: CompiledLoop) -> int | None:
    """N / stride of a loop that runs while element i of its state, from 0, is less than N, and nothing else."""
    condition, body = computations[loop.condition], computations[loop.body]
    if condition.less is None:
        return None
    what, than = condition.less
    counter, bound = condition.elements.get(what), condition.constants.get(than)
    if counter is None or bound is None:
        return None
    steps = [
        body.constants[by]
        for pair in body.sums
        for what, by in (pair, pair[::-1])
        if body.elements.get(what) == counter and by in body.constants
    ]
    return math.ceil(bound / max(steps, default=1))  # a body made of two trips has +1 and +2


def _note_calls(here: Computation, instruction: str) -> None:
    traced = _OP_NAME.search(instruction)
    name = traced[1] if traced else ""
    if found := _COLLECTIVE.search(instruction.partition(", metadata=")[0]):
        arrays = _result(instruction[: found.start()], started=bool(found[2]) and found[1] != "all-reduce")
        dtypes, shapes = zip(*arrays, strict=True) if arrays else ((), ())
        here.collectives.append(Collective(found[1], tuple(dtypes), tuple(shapes), (), name))
    if loop := _WHILE.search(instruction):
        trips = _TRIPS.search(instruction)
        here.loops.append(CompiledLoop(loop[1], loop[2], int(trips[1]) if trips else None, name))
        return
    here.called += _CALLED.findall(instruction)
    for group in _CALLED_MANY.findall(instruction):
        here.called += _names(group)
    branches = _BRANCH.findall(instruction)
    for group in _BRANCHES.findall(instruction):
        branches += _names(group)
    if branches:
        here.branches.append(branches)


def _names(group: str) -> list[str]:
    return [one.strip().lstrip("%") for one in group.split(",") if one.strip()]


def _sizes(text: str) -> Sizes:
    return tuple(int(n) for n in text.split(",") if n)


def _contracted(left: Sizes, rest: str) -> list[int]:
    """Sizes of the axes of its left operand that a dot adds up over."""
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    return [left[i] for i in _sizes(axes[1])] if axes else []


def _convolution(out: Sizes, left: Sizes, right: Sizes, rest: str) -> float:
    """Operations of a convolution; on TPUs every product is one. Windows over padding and between dilated values are
    not counted, as in XLA's own analysis."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    assert labels is not None, rest
    of_left, of_right, of_out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", rest)
    axes = [axis for axis in of_out if axis.isdigit()]
    given = dict(part.split("=") for part in window[1].split()) if window else {}

    def values(name: str, default: str) -> list[str]:
        return given.get(name, "x".join([default] * len(axes))).split("x") if axes else []

    def integers(name: str) -> list[int]:
        return [int(n) for n in values(name, "1")]

    pads = [tuple(int(n) for n in pad.split("_")) for pad in values("pad", "0_0")]
    total = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    for axis, size, stride, pad, apart, spread in zip(
        axes, integers("size"), integers("stride"), pads, integers("lhs_dilate"), integers("rhs_dilate"), strict=True
    ):
        at = np.arange(out[of_out.index(axis)])[:, None] * stride + np.arange(size)[None] * spread - pad[0]
        inside = (at >= 0) & (at <= (left[of_left.index(axis)] - 1) * apart) & (at % apart == 0)
        total *= int(inside.sum())
    groups = re.search(r"batch_group_count=(\d+)", rest)
    return total / (int(groups[1]) if groups else 1)


def _result(type_: str, *, started: bool) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of the arrays of a result type; of (operands, results, ...) as a started collective has it, the
    results."""
    parts = _split(type_.strip()) if started else [type_]
    wanted = parts[1] if len(parts) > 1 else type_
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
