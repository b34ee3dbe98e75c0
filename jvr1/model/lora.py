"""LoRA (Hu et al., arXiv 2106.09685): low-rank adapters beside frozen linear maps, chosen by patterns over their paths.

An adapter is two more parameters of a `Linear`: lora_a, drawn as PEFT draws it, and lora_b, which starts at zero, so
that a model begins as its base. Stacked layers have stacked adapters, a leading layer axis on both.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jvr1.errors import UserError
from jvr1.model.families import adaptable
from jvr1.model.layers import Linear
from jvr1.model.parameters import A, B, is_stacked
from jvr1.setting import check_section, no_pattern, setting

ADAPTERS = rf".*/({A}|{B})"
"""Matches the paths of adapters, and of nothing else."""
LANGUAGE = ("text/layers/.*",)
"""All linear maps of the decoder's layers."""


@dataclass(frozen=True)
class LoRASettings:
    """Adapters as a run's config names them; with rank 0 there are none."""

    rank: int = setting(
        0,
        "Rank of the adapters; 0: none, all parameters are trained. With adapters nothing else is trained, and the "
        "weights beside them are kept in model.dtype",
        least=0,
    )
    alpha: float = setting(32.0, "An adapter's product is multiplied by alpha / rank", above=0, finite=True)
    patterns: tuple[str, ...] = setting(
        LANGUAGE,
        "Linear maps that get one: patterns that match their whole path; as it stands, all of the decoder",
        wrong=no_pattern,
    )


@dataclass(frozen=True)
class LoRAConfig(LoRASettings):
    """y = x W + (x A) B alpha / rank in the linear maps whose whole path a pattern matches (`families.adaptable`).

    patterns: regular expressions, such as 'text/layers/(q|v)'. dtype: of the adapters as kept; products are in the
    dtype of the activations. Errors: UserError for a value that is not possible, a pattern that matches nothing.
    """

    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_section(self, "lora.")
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; an adapter's rank must be at least 1")
        if not self.patterns:
            raise UserError(f"lora.patterns is empty; name linear maps, such as {LANGUAGE[0]!r}")
        for pattern in self.patterns:
            if not any(re.fullmatch(pattern, name) for name in adaptable()):
                raise UserError(f"lora.patterns: {pattern!r} matches no linear map; they are {', '.join(adaptable())}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def matches(self, name: str) -> bool:
        """Whether the linear map of that path has an adapter."""
        return name in adaptable() and any(re.fullmatch(pattern, name) for pattern in self.patterns)


def linear_maps(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """Path and module of every linear map; stacked layers are one module."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            yield "/".join(map(str, path)), module


def with_adapters(graphdef: nnx.GraphDef, params: dict, config: LoRAConfig) -> tuple[nnx.GraphDef, dict]:
    """The graph with adapters, and the parameters (arrays or shapes) with the adapters as shapes; `draw` draws them.
    Raises UserError for a pattern that matches linear maps of other families only."""
    model = nnx.merge(graphdef, params)
    maps = dict(linear_maps(model))
    own = [name for name in maps if name in adaptable()]
    for pattern in config.patterns:
        if not any(re.fullmatch(pattern, name) for name in own):
            raise UserError(
                f"lora.patterns: {pattern!r} matches no linear map of this model; they are {', '.join(own)}"
            )
    for name, linear in maps.items():
        if not config.matches(name):
            continue
        shape, inputs = linear.kernel.get_value().shape, linear.contracted
        layers = int(is_stacked(name))
        a = (*shape[: layers + inputs], config.rank)
        b = (*shape[:layers], config.rank, *shape[layers + inputs :])
        linear.lora_a = nnx.Param(jax.ShapeDtypeStruct(a, jnp.dtype(config.dtype)))
        linear.lora_b = nnx.Param(jax.ShapeDtypeStruct(b, jnp.dtype(config.dtype)))
        linear.lora_scale = config.scale
    return _split(model)


def without_adapters(graphdef: nnx.GraphDef, params: dict) -> tuple[nnx.GraphDef, dict]:
    """The base: its graph, and its parameters as they are, the same arrays."""
    model = nnx.merge(graphdef, params)
    for _, linear in linear_maps(model):
        linear.lora_a, linear.lora_b, linear.lora_scale = nnx.data(None), nnx.data(None), 0.0
    return _split(model)


def merge_adapters(graphdef: nnx.GraphDef, params: dict) -> tuple[nnx.GraphDef, dict]:
    """The plain model with W + A B alpha / rank in place of W; consumes the kernels that have an adapter."""
    model = nnx.merge(graphdef, params)
    for _, linear in linear_maps(model):
        if linear.lora_a is None or linear.lora_b is None:
            continue
        kernel, a, b = (x.get_value() for x in (linear.kernel, linear.lora_a, linear.lora_b))
        stacked = a.ndim - linear.contracted == 2
        add = jax.jit(
            partial(_add_product, scale=linear.lora_scale, stacked=stacked),
            donate_argnums=0,
            out_shardings=kernel.sharding,
        )
        linear.kernel.set_value(add(kernel, a, b))
    return without_adapters(*_split(model))


def _add_product(kernel: Array, a: Array, b: Array, *, scale: float, stacked: bool) -> Array:
    """W + A B scale, added in fp32; a stack layer by layer, so that one layer's product is in memory at a time."""

    def add(one: tuple[Array, Array, Array]) -> Array:
        kernel, a, b = one
        product = jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), axes=1, precision="highest")
        return (kernel.astype(jnp.float32) + product * scale).astype(kernel.dtype)

    return jax.lax.map(add, (kernel, a, b)) if stacked else add((kernel, a, b))


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
    graphdef, params = nnx.split(model)
    return graphdef, nnx.to_pure_dict(params)


def draw(params: dict, seed: int, shardings: Any = None) -> dict:
    """The parameters with the adapters drawn that `with_adapters` left as shapes; each where its sharding says.

    The same numbers on any mesh: an adapter follows from the seed and its path. One is in host memory at a time.
    """

    def fill(path: tuple[Any, ...], x: Any, sharding: Any = None) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        whole = initial(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, seed).astype(x.dtype)
        if sharding is None:
            return jnp.asarray(whole)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: whole[index])

    return jax.tree_util.tree_map_with_path(fill, params, *([] if shardings is None else [shardings]))


def initial(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An adapter before training: lora_b zero; lora_a uniform in +-1/sqrt(inputs) (PEFT, `kaiming_uniform_(a=sqrt(5))`,
    whose bound is sqrt(6 / ((1 + 5) inputs)))."""
    if path.endswith(f"/{B}"):
        return np.zeros(shape, np.float32)
    layers = shape[0] if is_stacked(path) else 1
    bound = np.float32((math.prod(shape[:-1]) // layers) ** -0.5)
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return (2 * rng.random(shape, np.float32) - 1) * bound
