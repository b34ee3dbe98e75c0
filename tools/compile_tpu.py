"""Compiles a published model's forward and gradient with the real TPU compiler, on a machine without a TPU.

From shapes alone: nothing is allocated, nothing runs. Needs libtpu (`pip install -e .[tpu]`). One prompt a chip with G
completions, token log-probabilities in chunks, parameters and gradients split as in training.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import Counter
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # read by libtpu when it is loaded

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from jvr1.errors import UserError, run_main
from jvr1.model import qwen2_5_vl
from jvr1.model.config import ModelConfig, published
from jvr1.model.qwen2_5_vl import Prompt
from jvr1.model.vision import Visual
from jvr1.sharding import batch_sharding, check_mesh, make_mesh, param_shardings
from jvr1.train.losses import token_scores


class Bucket(NamedTuple):
    """A static shape: F temporal steps of W windows, P prompt tokens, G completions of C tokens."""

    steps: int
    windows: int
    prompt: int
    group: int
    completion: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", metavar="SIZE", help="3b, 7b, 32b or 72b")
    parser.add_argument("--topology", default="v5p:2x2x2")
    parser.add_argument("--mesh", default="fsdp=-1", help="such as data=2,fsdp=4,tensor=1")
    parser.add_argument("--remat", choices=("none", "dots", "full"), default="full")
    for name, default in zip(Bucket._fields, (8, 12, 1280, 8, 768), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forward", action="store_true", help="the forward alone, no gradient")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    config = published(args.size)
    mesh = make_mesh(read_mesh(args.mesh), topology_devices(args.topology))
    check_mesh(mesh, config)
    bucket = Bucket(*(getattr(args, name) for name in Bucket._fields))
    compiled, seconds = compile_step(config, mesh, bucket, remat=args.remat, gradient=not args.forward)
    what = "forward" if args.forward else "forward and gradient"
    print(f"{args.size} {what} for {args.topology}, mesh {args.mesh}, remat {args.remat}: compiled in {seconds:.0f} s")
    print(f"one prompt a chip: {', '.join(f'{k} {v}' for k, v in bucket._asdict().items())}")
    print(report(compiled))


def read_mesh(text: str) -> dict[str, int]:
    """'data=2,fsdp=4' -> sizes. Raises UserError."""
    try:
        return {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise UserError(f"--mesh {text!r} cannot be read; write for example data=2,fsdp=4,tensor=1") from None


def topology_devices(name: str) -> list[jax.Device]:
    """The chips of a topology as the TPU compiler knows them. Raises UserError for an unknown one."""
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # whatever libtpu raises
        raise UserError(f"topology {name} does not answer: {str(error).splitlines()[0][:200]}") from None


def compile_step(
    config: ModelConfig, mesh: Mesh, bucket: Bucket, *, remat: str = "full", gradient: bool = True
) -> tuple[jax.stages.Compiled, float]:
    """The compiled program and the seconds the compiler took. Raises the compiler's error when it does not fit."""
    graphdef, shapes = qwen2_5_vl.abstract(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat=remat)
    shardings = param_shardings(shapes, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    def loss(params: dict, prompt: Prompt, visual: Visual, completions: jax.Array) -> jax.Array:
        model = qwen2_5_vl.merge(graphdef, params)
        hidden = model.complete(prompt, visual, completions)
        return -jnp.mean(token_scores(model.logits, hidden, completions, chunk=128).logprobs)

    run = jax.value_and_grad(loss) if gradient else loss
    with jax.set_mesh(mesh):
        step = jax.jit(run, out_shardings=(None, shardings) if gradient else None)
        lowered = step.lower(params, *batch_shapes(config, mesh, bucket))
        start = time.perf_counter()
        return lowered.compile(), time.perf_counter() - start


def batch_shapes(config: ModelConfig, mesh: Mesh, bucket: Bucket) -> tuple[Prompt, Visual, Any]:
    """Shapes of a batch with one prompt for each chip of the batch axes."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    vision, (steps, windows, length, group, completion) = config.vision, bucket

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=batch_sharding(mesh))

    prompt = Prompt(
        ids=shape(jnp.int32, length),
        positions=shape(jnp.int32, 3, length),
        mask=shape(jnp.bool_, length),
        visual_index=shape(jnp.int32, length),
        next_position=shape(jnp.int32),
    )
    visual = Visual(
        frames=shape(jnp.uint8, 2 * steps, windows, vision.slots, vision.patch_values),
        pair=shape(jnp.int32, steps, 2),
        hw=shape(jnp.int32, steps, windows, vision.slots, 2),
    )
    return prompt, visual, shape(jnp.int32, group, completion)


def report(compiled: jax.stages.Compiled) -> str:
    """Memory per chip in GB, and how many collectives the program holds."""
    memory = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    names = r"all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = Counter(re.findall(rf"= [^=]*? ({names})(?:-start)?\(", compiled.as_text()))
    return (
        f"memory a chip: {', '.join(f'{k} {v / 1e9:.2f}' for k, v in parts.items())}, "
        f"together {sum(parts.values()) / 1e9:.2f} GB\n"
        f"collectives in the program: {', '.join(f'{k} {v}' for k, v in sorted(found.items()))}"
    )


if __name__ == "__main__":
    run_main(main)
