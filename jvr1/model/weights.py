"""A family's table of weights: HF tensor name <-> parameter path <-> layout. Pure; `jvr1.model.hf` reads and writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jvr1.model.config import ModelConfig


class Rule(NamedTuple):
    """One line of the table; `{}` in a name is a layer. `inputs` counts the contracted axes of a kernel; 0: not a
    kernel, shape kept or flat. patches: a convolution over patches, whose kernel is [time, channel x row x column, D].
    """

    hf: str
    path: str
    inputs: int = 0
    patches: bool = False


def block_rules(
    hf: str,
    path: str,
    kernels: Mapping[str, tuple[str, int]],
    norms: Mapping[str, str],
    biased: Sequence[str],
    *,
    norm_biases: bool = False,
) -> tuple[Rule, ...]:
    """Of a layer. kernels: their names below `hf` -> the map's below `path` and its contracted axes; biased: those of
    them that have a bias; norm_biases: whether norms have."""
    rules = []
    for a, b in norms.items():
        rules.append(Rule(f"{hf}.{a}.weight", f"{path}/{b}/scale"))
        if norm_biases:
            rules.append(Rule(f"{hf}.{a}.bias", f"{path}/{b}/bias"))
    for a, (b, inputs) in kernels.items():
        rules.append(Rule(f"{hf}.{a}.weight", f"{path}/{b}/kernel", inputs))
        if a in biased:
            rules.append(Rule(f"{hf}.{a}.bias", f"{path}/{b}/bias"))
    return tuple(rules)


GATED_MLP_NAMES: Mapping[str, tuple[str, int]] = {
    f"mlp.{name}_proj": (f"mlp/{name}", 1) for name in ("gate", "up", "down")
}
_LAYER = {f"self_attn.{name}_proj": (name, 1) for name in "qkv"} | {"self_attn.o_proj": ("o", 2), **GATED_MLP_NAMES}
DECODER_NAMES: tuple[Rule, ...] = (
    Rule("model.embed_tokens.weight", "text/embedding"),
    *block_rules(
        "model.layers.{}",
        "text/layers",
        _LAYER,
        {"input_layernorm": "norm1", "post_attention_layernorm": "norm2"},
        [f"self_attn.{name}_proj" for name in "qkv"],
    ),
    Rule("model.norm.weight", "text/norm/scale"),
    Rule("lm_head.weight", "text/head/kernel", 1),
)
"""The decoder by the names that Qwen2's published models have."""


class Tensor(NamedTuple):
    """One HF tensor of a model: its rule, its layer (None outside the stacks), its shape as HF keeps it."""

    name: str
    rule: Rule
    layer: int | None
    shape: tuple[int, ...]


def hf_tensors(config: ModelConfig, params: dict) -> Iterator[Tensor]:
    """All tensors of a model in the published order, from its parameters or their shapes."""
    for rule in config.family.weights:
        leaf = get(params, rule.path)
        if leaf is None:
            continue
        if "{}" in rule.hf:
            for layer in range(leaf.shape[0]):
                yield Tensor(rule.hf.format(layer), rule, layer, _hf_shape(rule, leaf.shape[1:]))
        else:
            yield Tensor(rule.hf, rule, None, _hf_shape(rule, leaf.shape))


def get(params: dict, path: str) -> Any:
    """A leaf or a part of a tree by its path; None where there is none."""
    node: Any = params
    for key in path.split("/"):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _hf_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    if rule.patches:
        time, values, size = shape
        side = math.isqrt(values // 3)
        return (size, 3, time, side, side)
    if rule.inputs:
        return (math.prod(shape[rule.inputs :]), math.prod(shape[: rule.inputs]))
    return (math.prod(shape),) if rule.path.endswith("bias") else shape


def to_ours(tensor: Tensor, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An HF tensor in the layout of our parameter of that shape; a view wherever one is possible."""
    if tensor.rule.patches:  # D c t h w -> t (c h w) D
        return x.transpose(2, 1, 3, 4, 0).reshape(shape)
    return (x.T if tensor.rule.inputs else x).reshape(shape)


def to_theirs(tensor: Tensor, x: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    if tensor.rule.patches:
        d, c, t, h, w = tensor.shape
        return x.reshape(t, c, h, w, d).transpose(4, 1, 0, 2, 3)
    return x.reshape(tensor.shape[::-1]).T if tensor.rule.inputs else x.reshape(tensor.shape)
