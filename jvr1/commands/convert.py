"""A model in jvr1's own form, which many hosts open faster: jvr1 convert SRC OUT [--dtype bfloat16|float32]

Writes config.json, tokenizer files and orbax parameters.
Not needed to train: every command opens an HF folder or a hub id directly.
"""

from __future__ import annotations

import argparse
import time

import jax
from etils import epath

from jvr1.command_line import Parser
from jvr1.commands.export import HOST_DEVICES
from jvr1.errors import run_main
from jvr1.model import hf
from jvr1.opening.models import open_model, save_model
from jvr1.processes.guard import explaining
from jvr1.sharding import make_mesh


def main(arguments: list[str] | None = None) -> None:
    with explaining():
        convert(options().parse_args(arguments))


def options() -> Parser:
    parser = Parser(prog="jvr1 convert", description=__doc__)
    parser.add_argument("source", metavar="SRC", help="HF folder, hub id, workdir, checkpoint or converted folder")
    parser.add_argument("out", metavar="OUT", help="a new folder (local or gs://)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the parameters kept")
    return parser


def convert(args: argparse.Namespace) -> None:
    jax.config.update("jax_platforms", "cpu")  # an accelerator has no part in this, and its memory may be too small
    jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
    start = time.perf_counter()
    hf.claim_folder(epath.Path(args.out))
    mesh = make_mesh({"fsdp": HOST_DEVICES})
    model = open_model(args.source, mesh, param_dtype=args.dtype)
    save_model(args.out, model.params, model.config, model.carried, model.lora)
    leaves = jax.tree.leaves(model.params)
    print(
        f"{args.source} -> {args.out}: {sum(x.size for x in leaves):,} parameters, "
        f"{sum(x.nbytes for x in leaves) / 1e9:.2f} GB in {args.dtype}, {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    run_main(main)
