"""Writes random weights of a published size as an HF folder of several shards: to measure speed and memory with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from etils import epath
from jax import numpy as jnp

from jvr1.errors import run_main
from jvr1.model import hf, vision_language
from jvr1.model.config import ModelConfig
from jvr1.model.families import published, published_sizes, to_hf
from jvr1.model.safetensors import write_shard
from jvr1.model.weights import Tensor, hf_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", metavar="SIZE", help=", ".join(published_sizes()))
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--layers", type=int, help="fewer decoder layers than the published model")
    parser.add_argument("--shard-gb", type=float, default=2.0)
    args = parser.parse_args()
    config = published(args.size)
    if args.layers:
        config = replace(config, text=replace(config.text, layers=args.layers))
    out = epath.Path(args.out)
    hf.claim_folder(out)
    _, shapes = vision_language.abstract(config)
    shards = hf.split_shards(list(hf_tensors(config, shapes)), 2, int(args.shard_gb * 1e9))
    for number, shard in enumerate(shards, 1):
        name = hf.shard_name(number, len(shards))
        write_shard(out / name, [(t.name, t.shape) for t in shard], "bfloat16", random_values(config, shard))
        print(name, flush=True)
    hf.write_index(out, shards, "bfloat16")
    (out / hf.CONFIG).write_text(json.dumps(to_hf(config, "bfloat16"), indent=2) + "\n")


def random_values(config: ModelConfig, tensors: list[Tensor]) -> Iterator[np.ndarray]:
    """Ones for norms, else a normal sample repeated through the tensor: drawing 3.7 billion numbers takes minutes."""
    rng = np.random.default_rng(0)
    for tensor in tensors:
        if "norm" in tensor.name or "ln_q" in tensor.name:
            yield np.ones(tensor.shape, jnp.bfloat16)
        else:
            sample = rng.normal(0, config.initializer_range, 1_000_003).astype(jnp.bfloat16)
            yield np.resize(sample, tensor.shape)


if __name__ == "__main__":
    run_main(main)
