"""Compiles the real T-GRPO step of a config with the real TPU compiler, on a machine without a TPU.

From shapes alone: nothing is allocated, nothing runs. Needs libtpu (`pip install -e .[tpu]`). Weights laid out for
generation, generation, scoring by the reference, gradients, update: the programs that jvr1.train_rl jits, for the
bucket with the most tokens. Prints memory per chip, what the compiler counts, and the collectives.

python tools/compile_tpu.py --config configs/tgrpo_7b.py --topology v5p:2x2x2 [--config.section.name=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# read by libtpu when it is loaded: there is no TPU to ask, so none to share
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
from jax.experimental import topologies

from jvr1 import config as settings
from jvr1.data.batch import Bucket
from jvr1.errors import UserError, run_main
from jvr1.plan.hlo import totals
from jvr1.plan.planning import largest_bucket, named_model
from jvr1.plan.programs import PHASES, Measured, Shapes, compile_phase, loop_trips, step_shapes
from jvr1.sharding import make_mesh

GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]")
    parser.add_argument("--model", help="3b, 7b, 32b, 72b or a model's folder; default: what model.source names")
    parser.add_argument("--topology", default="v5p:2x2x2", help="such as v5e:4x4, v5p:2x2x2, v6e:4x8, tpu7x:2x2x1")
    parser.add_argument("--bucket", type=int, help="number of the config's bucket; default: the one with most tokens")
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
        "topology": args.topology, "mesh": dict(mesh.shape), "bucket": bucket.name, "phases": {},
    }  # fmt: skip
    for one in compile_all(step, bucket, phases, args.text):
        print(report(one, bucket), flush=True)
        said["phases"][one.phase] = figures(one, bucket)
        if args.json:
            args.json.write_text(json.dumps(said, indent=1) + "\n")


def compile_all(
    step: Shapes, bucket: Bucket, phases: Sequence[str] = PHASES, texts: Path | None = None
) -> Iterator[Measured]:
    """Each phase as its compilation ends; `texts`: a folder for the compiled programs."""
    for phase in phases:
        if texts is None:
            yield compile_phase(step, phase, bucket)
            continue
        texts.mkdir(parents=True, exist_ok=True)
        with (texts / f"{phase}.txt").open("w") as file:
            yield compile_phase(step, phase, bucket, file.write)


def read_phases(text: str) -> list[str]:
    """'generation,update' -> names. Raises UserError."""
    phases = text.split(",")
    for phase in phases:
        if phase not in PHASES:
            raise UserError(f"--phases: there is no phase {phase!r}; there are {', '.join(PHASES)}")
    return phases


def topology_devices(name: str) -> list[jax.Device]:
    """The chips of a topology as the TPU compiler knows them. Raises UserError for an unknown one."""
    # as JAX runs a v4 chip: its two cores as one device
    how = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices)
    except Exception as error:  # whatever libtpu raises
        raise UserError(f"topology {name} does not answer: {str(error).splitlines()[0][:200]}") from None


def figures(one: Measured, bucket: Bucket) -> dict[str, Any]:
    """What is kept of a phase: docs/compiled holds such files, tools/plan.py --against reads them."""
    sizes = ("seconds", "processor", "peak", "arguments", "outputs", "temporary", "beside", "flops", "accessed")
    return {name: round(getattr(one, name)) for name in (*sizes, "products")} | {
        "collectives": totals(one.collectives, loop_trips(bucket))
    }


def report(one: Measured, bucket: Bucket) -> str:
    """Memory per chip, the compiler's counts, and how many collectives of which size."""
    parts = {"arguments": one.arguments, "outputs": one.outputs, "temporary": one.temporary, "beside": one.beside}
    lines = [
        f"{one.phase}: compiled in {one.seconds:.0f} s, {one.processor:.0f} s of processor time",
        f"  memory a chip, GiB: peak {one.peak / GIB:.2f} ("
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        + ")",
        f"  each loop's body counted once: {one.flops / 1e12:.3f} TFLOP, {one.accessed / 1e9:.1f} GB read and written",
    ]
    for kind, (count, runs, size) in totals(one.collectives, loop_trips(bucket)).items():
        lines.append(f"  {kind}: {count} in the program, run {runs} times, {size / 1e9:.3f} GB a chip")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
