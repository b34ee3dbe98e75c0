"""What a compiled program reads and writes in a chip's main memory: kernel by kernel, and of which of its arguments.

A kernel is an instruction that runs by itself: a fusion, a product, a copy, a call of a library, a collective. It reads
its operands and writes its results; of an operand that it only takes a slice of, or an array that it updates in place,
that slice counts. What lies in another memory (a TPU's, on the chip) counts when it is fetched. No cache is taken to
serve a second reading, and padding of arrays is not counted. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from jvr1.plan.hlo import Buffer, CompiledProgram, Computation, Instruction
from jvr1.plan.products import call_target, is_cublas

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id",
    "replica-id", "add-dependency", "domain",
}  # fmt: skip
_NO_KERNELS = ("AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
_SLICES = {"dynamic-slice", "slice", "gather", "dynamic-slice-start", "slice-start"}
_RESHAPES = {"bitcast", "reshape", "copy", "transpose", "convert"}
_MOVES = _RESHAPES | {
    "slice", "dynamic-slice", "concatenate", "pad", "copy-start", "copy-done", "slice-start", "slice-done",
    "all-gather", "all-gather-start", "all-gather-done", "collective-permute", "collective-permute-start",
    "collective-permute-done", "dynamic-update-slice",
}  # fmt: skip
_RUNS = {"call", "async-start"}
_ASYNC = {"async-done", "async-update"}


@dataclass
class Traffic:
    """Of some kernels. read: bytes by the argument they come from, whether from it or from a copy of it ('': none).
    copied: bytes written that are an argument's, only elsewhere, cut, turned or in another dtype. written: all other
    bytes. calls: custom calls other than products, by target."""

    kernels: int = 0
    read: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    written: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def bytes(self) -> int:
        return self.read.total() + self.copied.total() + self.written

    def add(self, other: Traffic, times: int = 1) -> None:
        """Adds what happens `times` over."""
        self.kernels += times * other.kernels
        self.written += times * other.written
        for mine, its in ((self.read, other.read), (self.copied, other.copied), (self.calls, other.calls)):
            for name, count in its.items():
                mine[name] += times * count


@dataclass(frozen=True)
class CalledComputation:
    """A computation as the instruction `by` of the frame around it runs it; the entry, by none."""

    program: CompiledProgram
    here: Computation
    outer: CalledComputation | None = None
    by: Instruction | None = None
    seen: dict[tuple[str, int | None], str] = field(default_factory=dict)

    def inner(self, by: Instruction, here: Computation) -> CalledComputation:
        return CalledComputation(self.program, here, self, by)

    def source(self, name: str, index: int | None = None) -> str:
        """The program's argument that a value is, or is a part or a copy of, of several joined the first; '' where it
        was computed. index: of a tuple's element."""
        key = (name, index)
        if key not in self.seen:
            self.seen[key] = ""  # of what depends on itself
            self.seen[key] = self._source(self.here.instructions[name], index)
        return self.seen[key]

    def _source(self, one: Instruction, index: int | None) -> str:
        if one.opcode == "parameter":
            return self._argument(one, index)
        if one.opcode == "get-tuple-element":
            return self.source(one.operands[0], int(one.attribute(r"index=(\d+)")))
        if one.opcode == "tuple" and index is not None:
            return self.source(one.operands[index])
        if one.opcode in ("while", "opt-barrier"):
            return self.source(one.operands[0], index)
        if one.opcode in _ASYNC:
            return self.source(one.operands[0], index)
        if one.opcode in ("fusion", *_RUNS):
            (called,) = self.program.called(one) or (None,)
            return "" if called is None else self.inner(one, called).source(called.root.name, index)
        return self.source(one.operands[0]) if one.opcode in _MOVES else ""

    def _argument(self, one: Instruction, index: int | None) -> str:
        if self.outer is None or self.by is None:
            return one.op_name or one.name
        number = int(one.operands[0])
        if self.by.opcode == "conditional":
            number = self.by.branches.index(self.here.name) + 1
        # what a loop carries is named by what it began with: weights as they are, a cache with what was written to it
        return self.outer.source(self.by.operands[number], index)


def frames(program: CompiledProgram) -> Iterator[CalledComputation]:
    """The entry, and every computation in which kernels stand, as often as it is run from a place of its own."""
    waiting = [CalledComputation(program, program.computations[program.entry])]
    while waiting:
        frame = waiting.pop()
        yield frame
        for one in frame.here.instructions.values():
            waiting += [frame.inner(one, called) for called in chain(_run_once(frame, one), program.branches(one))]
        for loop in frame.here.loops:
            by = frame.here.instructions[loop.instruction]
            waiting += [frame.inner(by, program.computations[part]) for part in (loop.body, loop.condition)]


def traffic(frame: CalledComputation, unknown: int) -> Traffic:
    """Of all kernels of a frame and of what it runs, each as often as it runs; `unknown`: trips of a loop that ends
    when it pleases. Of branches that with the most bytes counts."""
    total, program = Traffic(), frame.program
    for one in frame.here.instructions.values():
        inside = _run_once(frame, one)
        for called in inside:
            total.add(traffic(frame.inner(one, called), unknown))
        if branches := program.branches(one):
            total.add(max((traffic(frame.inner(one, b), unknown) for b in branches), key=lambda t: t.bytes))
        elif not inside and _is_kernel(one):
            total.add(_kernel(frame, one))
    for loop in frame.here.loops:
        by = frame.here.instructions[loop.instruction]
        for part in (loop.body, loop.condition):
            total.add(traffic(frame.inner(by, program.computations[part]), unknown), loop.times(unknown))
    return total


def program_traffic(program: CompiledProgram, unknown: int) -> Traffic:
    """Of a whole program."""
    return traffic(CalledComputation(program, program.computations[program.entry]), unknown)


def _run_once(frame: CalledComputation, one: Instruction) -> list[Computation]:
    """Computations of kernels that an instruction runs: not those of a fusion, which is a kernel."""
    return frame.program.called(one) if one.opcode in _RUNS else []


def _is_kernel(one: Instruction) -> bool:
    done = one.opcode.endswith(("-done", "-update"))
    return not (done or one.opcode in _FREE or one.opcode == "while" or call_target(one) in _NO_KERNELS)


def _kernel(frame: CalledComputation, one: Instruction) -> Traffic:
    found = Traffic(kernels=1)
    target = call_target(one)
    if target and not is_cublas(one):
        found.calls[target] += 1
    for number, name in enumerate(one.operands):
        operand = frame.here.instructions.get(name)
        if operand is None or operand.type.startswith("("):
            continue
        if size := _read(frame.program, frame.here, one, number, operand):
            found.read[frame.source(name)] += size
    for index, size, in_place in _results(frame.program, one, frame.here):
        # what is updated in place is the argument itself; what is computed from it has no source
        source = "" if in_place else frame.source(one.name, index)
        if source and size:
            found.copied[source] += size
        else:
            found.written += size
    return found


def _read(program: CompiledProgram, here: Computation, one: Instruction, number: int, operand: Instruction) -> int:
    """Bytes of the main memory that a kernel reads of an operand."""
    whole = _main(operand.buffers)
    if one.opcode == "fusion":
        (called,) = program.called(one)
        return min(whole, _used(program, called, called.parameters[number].name, in_place=True))
    if number == 0 and one.opcode in _SLICES:
        size = one.elements[1] if one.opcode.endswith("-start") else one.buffers
        return min(whole, sum(b.bytes for b in size))
    return 0 if number == 0 and one.opcode == "dynamic-update-slice" else whole


def _used(program: CompiledProgram, here: Computation, name: str, *, in_place: bool) -> int:
    """Bytes of a value inside a fusion that are used. in_place: an update of it needs none of the others."""
    one = here.instructions[name]
    whole, total = sum(b.bytes for b in one.buffers), 0
    if one is here.root:
        return whole
    for user in here.users[name]:
        first = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode in _SLICES and first:
            total += _values(user) * whole // max(_values(one), 1)
        elif user.opcode == "dynamic-update-slice" and first:
            total += 0 if in_place else whole
        elif user.opcode in _RESHAPES:
            used = _used(program, here, user.name, in_place=in_place and user.opcode == "bitcast")
            total += used * whole // max(sum(b.bytes for b in user.buffers), 1)
        elif user.opcode == "fusion":
            (called,) = program.called(user)
            places = [number for number, operand in enumerate(user.operands) if operand == name]
            total += sum(_used(program, called, called.parameters[n].name, in_place=in_place) for n in places)
        else:
            return whole
    return min(total, whole)


def _values(one: Instruction) -> int:
    return sum(math.prod(b.shape) for b in one.buffers)


def _results(program: CompiledProgram, one: Instruction, here: Computation) -> Iterator[tuple[int | None, int, bool]]:
    """Of each result: its place in a tuple, the bytes that are written to the main memory, and whether that is an
    update in place of a larger array."""
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":  # (operands, results, ...)
        yield None, _main(one.elements[0 if one.opcode == "copy-start" else 1]), False
        return
    if is_cublas(one):  # what follows the result is room to work in
        yield None, _main(one.buffers[:1]), False
        return
    several = one.type.startswith("(")
    for index, buffers in enumerate(one.elements):
        place = index if several else None
        update, size = _update(program, here, one, place), _main(buffers)
        yield place, size if update is None else min(size, update), update is not None


def _update(program: CompiledProgram, here: Computation, one: Instruction, index: int | None) -> int | None:
    """Bytes of the update in place that a result is; None where it is none."""
    if one.opcode == "fusion":
        (called,) = program.called(one)
        return _update(program, called, called.root, index)
    if one.opcode == "tuple" and index is not None:
        return _update(program, here, here.instructions[one.operands[index]], None)
    if one.opcode == "bitcast":
        return _update(program, here, here.instructions[one.operands[0]], None)
    if one.opcode != "dynamic-update-slice":
        return None
    return sum(b.bytes for b in here.instructions[one.operands[1]].buffers)


def _main(buffers: tuple[Buffer, ...]) -> int:
    """Bytes of those that lie in the main memory."""
    return sum(b.bytes for b in buffers if b.space == 0)
