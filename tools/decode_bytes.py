"""Bytes of a chip's memory that the compiled decode step reads and writes for a token, beside the least possible.

From shapes alone, on any machine, as tools/compile_tpu.py and tools/compile_gpu.py compile. A token is one of all rows
that the chip decodes at a time, the mean over completions of full length. The least: the chip's part of the decoder's
weights once, and the keys and values in use once. Markdown: a row for each number of prompts and way of splitting, then
what is copied within the loops.

python tools/decode_bytes.py --config configs/tgrpo_7b.py --topology h100-80:8 --prompts 8,32,64 --decode_tensor 1,4
    [--bucket N] [--model 7b] [--text DIR] [--config.section.name=value ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from jvr1 import config as settings
from jvr1.data.batch import Bucket
from jvr1.errors import UserError, run_main
from jvr1.plan.compiling import add_run, compile_lowered
from jvr1.plan.decoding import TokenBytes, decode_program, least_bytes, token_bytes
from jvr1.plan.hlo import read_program
from jvr1.plan.planning import changed, largest_bucket, named_model
from jvr1.plan.programs import Shapes, row_counts, slots_of, step_shapes
from jvr1.plan.topologies import lowering, topology_devices
from jvr1.sharding import make_mesh

GB = 1e9
HEAD = (
    "topology", "decode_tensor", "rows a chip", "weights GB", "of it least", "keys and values GB", "of it least",
    "copies GB", "other GB", "all GB", "times the least", "kernels",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_run(parser)
    parser.add_argument("--topology", default="h100-80:8", help="such as v5p:2x2x2, h100-80:8")
    parser.add_argument("--prompts", default="", metavar="N,N", help="under way on all chips; default: batch.micro")
    parser.add_argument("--decode_tensor", default="", metavar="N,N", help="default: mesh.decode_tensor")
    parser.add_argument("--text", type=Path, metavar="DIR", help="write the compiled programs there")
    args, rest = parser.parse_known_args(arguments)
    tensors, counts = numbers("--decode_tensor", args.decode_tensor), numbers("--prompts", args.prompts)
    jax.config.update("jax_platforms", "cpu")
    config = settings.from_file(args.config, rest)
    buckets = settings.buckets(config)
    bucket = largest_bucket(buckets) if args.bucket is None else buckets[args.bucket]
    model = named_model(args.model or config.model.source)
    mesh = make_mesh(settings.mesh_shape(config), topology_devices(args.topology))
    print(f"{args.config}, bucket {bucket.name}\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    copied = []
    for tensor in tensors or [config.mesh.decode_tensor]:
        for prompts in counts or [config.rl.slots]:
            step = step_shapes(changed(config, {"mesh.decode_tensor": tensor, "rl.slots": prompts}), model, mesh)
            with lowering(mesh.devices.flat[0]):
                text = compile_lowered(decode_program(step, bucket), mesh).as_text()
            if args.text is not None:
                args.text.mkdir(parents=True, exist_ok=True)
                (args.text / f"decode-{slots_of(step)}-{tensor}.txt").write_text(text)
            found = token_bytes(read_program(text), bucket, step.attention)
            print(row(args.topology, step, bucket, found), flush=True)
            copied.append((step, found))
    print("\n".join(line for step, found in copied for line in copies(step, bucket, found)))


def numbers(name: str, text: str) -> list[int]:
    """'8,32' -> [8, 32]; '' -> none. Raises UserError."""
    try:
        return [int(n) for n in text.split(",") if n]
    except ValueError:
        raise UserError(f"{name}: {text!r} is no list of numbers, such as 8,32") from None


def rows_a_chip(step: Shapes, bucket: Bucket) -> str:
    return f"{slots_of(step) * sum(row_counts(step.config, bucket)) / step.mesh.size:g}"


def row(topology: str, step: Shapes, bucket: Bucket, found: TokenBytes) -> str:
    weights, caches = least_bytes(step, bucket)
    values = (found.weights, weights, found.caches, caches, sum(found.copied.values()), found.other, found.all)
    return (
        f"| {topology} | {step.generation_mesh.shape['tensor']} | {rows_a_chip(step, bucket)} | "
        + " | ".join(f"{value / GB:.2f}" for value in values)
        + f" | {found.all / (weights + caches):.2f} | {found.kernels:.0f} |"
    )


def copies(step: Shapes, bucket: Bucket, found: TokenBytes) -> Iterator[str]:
    """What is copied for each token, the largest first."""
    tensor, rows = step.generation_mesh.shape["tensor"], rows_a_chip(step, bucket)
    yield f"\ndecode_tensor {tensor}, {rows} rows a chip, copied for each token, GB:"
    for name, size in sorted(found.copied.items(), key=lambda pair: -pair[1]):
        yield f"  {name}: {size / GB:.3f}"


if __name__ == "__main__":
    run_main(main)
