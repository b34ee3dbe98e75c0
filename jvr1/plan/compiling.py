"""The phases of a step compiled for chips that are not there, and what the compiled programs say of themselves.

Serves tools/compile_tpu.py, tools/compile_gpu.py and jvr1 plan --compile.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jvr1 import config as settings
from jvr1.chips import GIB
from jvr1.data.batch import Bucket
from jvr1.errors import UserError
from jvr1.model.families import published_sizes
from jvr1.plan.hlo import Collective, read_program, totals
from jvr1.plan.planning import largest_bucket, named_model
from jvr1.plan.products import product_flops
from jvr1.plan.programs import PHASES, Shapes, loop_trips, lower_phase, resident, step_shapes
from jvr1.plan.topologies import compiler_options, lowering, topology_devices
from jvr1.plan.traffic import Traffic, program_traffic
from jvr1.sharding import make_mesh


@dataclass(frozen=True)
class Measured:
    """What the compiler says of a phase, in bytes on one chip; of its largest program where it runs several.

    seconds, processor: how long compiling took, and its processor time. beside: what lives on the chip while the phase
    runs without being its argument. Of all its programs, each as often as it runs, loops and all: products: operations
    of matrix products, but for kernels of attention; kernels: how many start; moved: bytes of the main memory that they
    read and write; calls: custom calls that are no products, by name; collectives.
    """

    phase: str
    seconds: float
    processor: float
    arguments: int
    outputs: int
    temporary: int
    beside: int
    products: float
    kernels: int
    moved: int
    calls: dict[str, int]
    collectives: tuple[Collective, ...]

    @property
    def peak(self) -> int:
        """Bytes a chip holds at most. The weights' arguments and outputs are counted in `beside`."""
        return self.beside + self.temporary + (0 if self.phase == "weights" else self.arguments + self.outputs)


def compile_lowered(lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """For the chips of the mesh. Raises the compiler's error when the program does not fit."""
    return lowered.compile(compiler_options(mesh.devices.flat[0]))


def compile_phase(
    step: Shapes,
    phase: str,
    bucket: Bucket,
    keep: Callable[[str], object] | None = None,
    tokens: float | int | None = None,
) -> Measured:
    """Compiles a phase; `keep` gets the text of each program. tokens: mean length of a completion, of what depends on
    it; None: the longest. Raises the compiler's error when a program does not fit."""
    seconds, processor, products, sizes, collectives = 0.0, 0.0, 0.0, [], []
    moved = Traffic()
    for program in lower_phase(step, phase, bucket, tokens):
        start, used = time.perf_counter(), time.process_time()
        compiled = compile_lowered(program.lowered, step.mesh)
        seconds += time.perf_counter() - start
        processor += time.process_time() - used
        memory, text = compiled.memory_analysis(), compiled.as_text()
        assert memory is not None  # the compilers for CPU, TPU and GPU say
        assert text is not None
        if keep is not None:
            keep(text)
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        sizes.append((memory.argument_size_in_bytes, outputs, memory.temp_size_in_bytes))
        found = read_program(text)
        collectives += found.collectives() * program.times
        products += product_flops(found, loop_trips(step, bucket)) * program.times
        moved.add(program_traffic(found, loop_trips(step, bucket)), program.times)
    largest = max(sizes, key=lambda size: size[2] if phase == "weights" else sum(size), default=(0, 0, 0))
    arguments, outputs, temporary = largest
    return Measured(
        phase, seconds, processor, arguments, outputs, temporary, resident(step, phase, bucket), products,
        moved.kernels, moved.bytes, dict(sorted(moved.calls.items())), tuple(collectives),
    )  # fmt: skip


def compile_all(
    step: Shapes,
    bucket: Bucket,
    phases: Sequence[str] | None = None,
    texts: Path | None = None,
    tokens: float | int | None = None,
) -> Iterator[Measured]:
    """Each phase as its compilation ends, those of the step's stage where none are named; `texts`: a folder for the
    compiled programs. tokens: see `compile_phase`."""
    for phase in step.phases if phases is None else phases:
        with lowering(step.mesh.devices.flat[0]):
            if texts is None:
                yield compile_phase(step, phase, bucket, tokens=tokens)
                continue
            texts.mkdir(parents=True, exist_ok=True)
            with (texts / f"{phase}.txt").open("w") as file:
                yield compile_phase(step, phase, bucket, file.write, tokens)


def figures(one: Measured, step: Shapes, bucket: Bucket) -> dict[str, Any]:
    """What is kept of a phase: docs/compiled holds such files, jvr1 plan --against reads them."""
    sizes = ("seconds", "processor", "peak", "arguments", "outputs", "temporary", "beside", "products")
    return {name: round(getattr(one, name)) for name in (*sizes, "kernels", "moved")} | {
        "calls": one.calls,
        "collectives": totals(one.collectives, loop_trips(step, bucket)),
    }


def report(one: Measured, step: Shapes, bucket: Bucket) -> str:
    """Memory per chip, what runs and how often, and how many collectives of which size."""
    parts = {"arguments": one.arguments, "outputs": one.outputs, "temporary": one.temporary, "beside": one.beside}
    lines = [
        f"{one.phase}: compiled in {one.seconds:.0f} s, {one.processor:.0f} s of processor time",
        f"  memory a chip, GiB: peak {one.peak / GIB:.2f} ("
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        + ")",
        f"  {one.kernels} kernels, {one.moved / 1e9:.1f} GB read and written, products of "
        f"{one.products / 1e12:.3f} TFLOP",
    ]
    lines += [f"  {name}: called {count} times" for name, count in one.calls.items()]
    for kind, (count, runs, size) in totals(one.collectives, loop_trips(step, bucket)).items():
        lines.append(f"  {kind}: {count} in the program, run {runs} times, {size / 1e9:.3f} GB a chip")
    return "\n".join(lines)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The options that say what is compiled."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--model", help=f"{', '.join(published_sizes())} or a folder; default: what model.source names")
    parser.add_argument("--bucket", type=int, help="number of the config's bucket; default: the one with most tokens")


def compile_run(description: str | None, topology: str, known: str, arguments: Sequence[str] | None) -> None:
    """The command: compiles a run for a topology, by default this one, and prints each phase. Raises UserError."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_run(parser)
    parser.add_argument("--topology", default=topology, help=known)
    parser.add_argument(
        "--tokens", type=float, metavar="N", help="mean length of a completion in update and reference; default: C"
    )
    parser.add_argument("--phases", default=",".join(PHASES), help="those to compile, of %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--text", type=Path, metavar="DIR", help="write the compiled programs there")
    args, rest = parser.parse_known_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    phases = read_phases(args.phases)
    config = settings.from_file(args.config, rest)
    buckets = settings.buckets(config)
    bucket = largest_bucket(buckets) if args.bucket is None else buckets[args.bucket]
    model = named_model(args.model or config.model.source)
    mesh = make_mesh(settings.mesh_shape(config), topology_devices(args.topology))
    step = step_shapes(config, model, mesh)
    print(
        f"{args.config} for {args.topology}, mesh {dict(mesh.shape)}, bucket {bucket.name}, {config.batch.micro} rows"
    )
    said: dict[str, Any] = {
        "config": args.config, "settings": rest, "model": args.model or config.model.source,
        "topology": args.topology, "mesh": dict(mesh.shape), "bucket": bucket.name, "tokens": args.tokens, "phases": {},
    }  # fmt: skip
    for one in compile_all(step, bucket, phases, args.text, args.tokens):
        print(report(one, step, bucket), flush=True)
        said["phases"][one.phase] = figures(one, step, bucket)
        if args.json:
            args.json.write_text(json.dumps(said, indent=1) + "\n")


def read_phases(text: str) -> list[str]:
    """'generation,update' -> names. Raises UserError."""
    phases = text.split(",")
    for phase in phases:
        if phase not in PHASES:
            raise UserError(f"--phases: there is no phase {phase!r}; there are {', '.join(PHASES)}")
    return phases
