"""Adapters as a folder that the `peft` library puts onto the model as transformers 5 holds it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jvr1.model import hf
from jvr1.model.config import ModelConfig
from jvr1.model.lora import LoRAConfig
from jvr1.model.safetensors import write_shard
from jvr1.model.weights import Tensor, get, hf_tensors

ADAPTER_CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapters(
    params: dict, config: ModelConfig, lora: LoRAConfig, out: epath.PathLike, *, dtype: str, base: str | None
) -> None:
    """Writes the adapters, and only them. base: the model they were trained on, as `peft` is to name it.

    On several hosts all must call; the first writes. Raises UserError when `out` is not empty or cannot be written.
    """
    out = epath.Path(out)
    first = jax.process_index() == 0
    if first:
        hf.claim_folder(out)
    names, values = [], []
    for name, value in adapters(params, config):
        names.append((name, value.shape))
        values.append(value.astype(jnp.dtype(dtype)))
    if first:
        write_shard(out / WEIGHTS, names, dtype, values)
        (out / ADAPTER_CONFIG).write_text(json.dumps(peft_config(params, config, lora, base), indent=2) + "\n")


def adapters(params: dict, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values as `peft` keeps them: lora_A.weight [rank, inputs], lora_B.weight [outputs, rank]."""
    for tensor in adapted(params, config):
        outputs, inputs = tensor.shape
        a, b = (hf.to_host(params, path, tensor.layer) for path in hf.adapter_paths(tensor))
        name = f"base_model.model.{module_name(tensor.name, config)}"
        yield f"{name}.lora_A.weight", a.reshape(inputs, -1).T
        yield f"{name}.lora_B.weight", b.reshape(-1, outputs).T


def adapted(params: dict, config: ModelConfig) -> Iterator[Tensor]:
    """The kernels that have an adapter."""
    for tensor in hf_tensors(config, params):
        if tensor.rule.inputs and get(params, hf.adapter_paths(tensor)[0]) is not None:
            yield tensor


def module_name(name: str, config: ModelConfig) -> str:
    """The module in memory that holds a tensor of that published name."""
    return config.family.memory_name(name).removesuffix(".weight")


def peft_config(params: dict, config: ModelConfig, lora: LoRAConfig, base: str | None) -> dict[str, object]:
    """The fields of peft's `LoraConfig`. Targets are one pattern of whole names: both halves of the model have an
    `mlp.gate_proj`."""
    modules = {re.escape(module_name(t.rule.hf, config)).replace(r"\{\}", r"\d+") for t in adapted(params, config)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": "|".join(sorted(modules)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
