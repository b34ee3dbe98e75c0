"""Writes a model as an HF folder that `transformers` and vLLM load: published names, sharded safetensors, tokenizer.

Adapters (LoRA) are merged into the weights; --peft writes them alone, as a folder that `peft` loads onto the base.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from typing import Any

import jax
from etils import epath

from jvr1 import config as settings
from jvr1.errors import UserError, run_main
from jvr1.model import hf, peft
from jvr1.model.lora import ADAPTERS
from jvr1.sharding import make_mesh, path_name
from jvr1.train.guard import explaining
from jvr1.train.models import CHECKPOINTS, locate, open_model, read_lora
from jvr1.train.staging import appearing

HOST_DEVICES = 8
"""Parts in which parameters pass through host memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="SRC", help="workdir, checkpoint, converted folder, HF folder or hub id")
    parser.add_argument("out", metavar="OUT", help="a new folder (local or gs://)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of the tensors written; default: bfloat16, with --peft float32",
    )
    parser.add_argument("--peft", action="store_true", help="write the adapters of a LoRA run alone, for `peft`")
    parser.add_argument("--min-pixels", type=int, help="least pixels of an image in training, for the processor's file")
    parser.add_argument("--max-pixels", type=int, help="most pixels of an image in training, for the processor's file")
    args = parser.parse_args()
    # before anything asks for devices, as finding a checkpoint does
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    source = epath.Path(args.source)
    pixels = read_pixels(args.min_pixels, args.max_pixels) or trained_pixels(source)
    folder = locate(args.source).folder
    lora = read_lora(folder)
    if args.peft and lora is None:
        raise UserError(f"{args.source} has no adapters, so --peft has nothing to write; leave it out")
    start = time.perf_counter()
    hf.claim_folder(epath.Path(args.out))  # before the model is read
    mesh = make_mesh({"fsdp": HOST_DEVICES})
    dtype = args.dtype or ("float32" if args.peft else "bfloat16")
    # a sum with adapters is rounded once, at its end
    model = open_model(args.source, mesh, param_dtype=dtype if lora is None else kept_dtype(folder))
    with appearing(args.out) as out:
        if args.peft and lora is not None:
            peft.save(model.params, model.config, lora, out, dtype=dtype, base=trained_from(source))
        else:
            hf.save(model.params, model.config, out, carried=model.carried, dtype=dtype, pixels=pixels, lora=lora)
    written = [path.stat().length for path in epath.Path(args.out).glob("*.safetensors")]
    print(
        f"{args.source} -> {args.out}: {count(model.params, adapters=args.peft):,} parameters, "
        f"{sum(written) / 1e9:.2f} GB in {dtype}, {len(written)} shards, {time.perf_counter() - start:.1f} s"
    )


def kept_dtype(folder: epath.Path) -> str:
    """The dtype in which our own folder keeps its parameters."""
    return json.loads((folder / hf.CONFIG).read_text())["torch_dtype"]


def count(params: dict, *, adapters: bool) -> int:
    """Numbers in the adapters, or in all else."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(x.size for path, x in leaves if bool(re.fullmatch(ADAPTERS, path_name(path))) == adapters)


def read_pixels(least: int | None, most: int | None) -> tuple[int, int] | None:
    """Both limits or neither; raises UserError otherwise, or when they are no range."""
    if least is None and most is None:
        return None
    if least is None or most is None or not 0 < least <= most:
        raise UserError(f"--min-pixels {least} and --max-pixels {most} must both be given, 0 < min <= max")
    return least, most


def trained_pixels(source: epath.Path) -> tuple[int, int] | None:
    """The image limits that the run was made with; None where the source is no workdir."""
    trained = trained_config(source)
    if trained is None:
        return None
    limits = trained["data"]["image_pixels"]
    return limits["min_pixels"], limits["max_pixels"]


def trained_from(source: epath.Path) -> str | None:
    """The model the run began with; None where the source is no workdir."""
    trained = trained_config(source)
    return None if trained is None else trained["model"]["source"]


def trained_config(source: epath.Path) -> dict[str, Any] | None:
    """The config.json of the workdir that the source is or lies in; None where there is none."""
    workdir = source.parent.parent if source.parent.name == CHECKPOINTS else source
    if not (workdir / CHECKPOINTS).is_dir() or not (workdir / "config.json").exists():
        return None
    config = settings.from_json((workdir / "config.json").read_bytes().decode(errors="replace"), str(workdir))
    return json.loads(settings.to_json(config))


def command() -> None:
    with explaining():
        main()


if __name__ == "__main__":
    run_main(command)
