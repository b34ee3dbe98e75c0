"""Writes a model as an HF folder that `transformers` and vLLM load: published names, sharded safetensors, tokenizer."""

from __future__ import annotations

import argparse
import json
import time

import jax
from etils import epath

from jvr1.errors import UserError, run_main
from jvr1.model import hf
from jvr1.sharding import make_mesh
from jvr1.train.models import CHECKPOINTS, open_model

HOST_DEVICES = 8
"""Parts in which parameters pass through host memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="SRC", help="workdir, checkpoint, converted folder, HF folder or hub id")
    parser.add_argument("out", metavar="OUT", help="a new folder (local or gs://)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the tensors written")
    parser.add_argument("--min-pixels", type=int, help="least pixels of an image in training, for the processor's file")
    parser.add_argument("--max-pixels", type=int, help="most pixels of an image in training, for the processor's file")
    args = parser.parse_args()
    pixels = read_pixels(args.min_pixels, args.max_pixels) or trained_pixels(epath.Path(args.source))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    start = time.perf_counter()
    hf.claim_folder(epath.Path(args.out))
    mesh = make_mesh({"fsdp": HOST_DEVICES})
    model = open_model(args.source, mesh, param_dtype=args.dtype)
    hf.save(model.params, model.config, args.out, carried=model.carried, dtype=args.dtype, pixels=pixels)
    written = [path.stat().length for path in epath.Path(args.out).glob("*.safetensors")]
    print(
        f"{args.source} -> {args.out}: {sum(x.size for x in jax.tree.leaves(model.params)):,} parameters, "
        f"{sum(written) / 1e9:.2f} GB in {args.dtype}, {len(written)} shards, {time.perf_counter() - start:.1f} s"
    )


def read_pixels(least: int | None, most: int | None) -> tuple[int, int] | None:
    """Both limits or neither; raises UserError otherwise, or when they are no range."""
    if least is None and most is None:
        return None
    if least is None or most is None or not 0 < least <= most:
        raise UserError(f"--min-pixels {least} and --max-pixels {most} must both be given, 0 < min <= max")
    return least, most


def trained_pixels(source: epath.Path) -> tuple[int, int] | None:
    """The image limits that the config.json of a workdir holds; None where the source is no workdir."""
    workdir = source.parent.parent if source.parent.name == CHECKPOINTS else source
    if not (workdir / CHECKPOINTS).is_dir() or not (workdir / "config.json").exists():
        return None
    limits = json.loads((workdir / "config.json").read_text())["data"]["image_pixels"]
    return limits["min_pixels"], limits["max_pixels"]


if __name__ == "__main__":
    run_main(main)
