"""What is known of a parameter: logical axes, stacked or not, what its product contracts, whether it decays.

For sharding, weight decay, LoRA and optimizers; which mesh axis splits a logical axis is said once, too. Here is the
decoder's table, which families share; a tower's is its family's, `families.known` looks into all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

A, B = "lora_a", "lora_b"
STACKS = ("text/layers/", "visual/blocks/", "visual/deepstack/")
"""Modules whose parameters have a leading axis that counts layers, in every family that has them."""
MESH_AXES: Mapping[str, str] = {
    "width": "fsdp",
    "merged": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
"""Logical axis -> the mesh axis that splits it; others stay whole, but where `sharding.partition_spec` splits one."""
_SEPARATE = ("layers", "qkv")
"""Axes along which lie matrices of their own."""


class Matrix(NamedTuple):
    """The axes of an array by what they are: y[outputs] = x[inputs] . w, a matrix for each place along `batch`."""

    batch: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(inputs, outputs) of one matrix of an array of that shape."""
        return math.prod(shape[i] for i in self.inputs), math.prod(shape[i] for i in self.outputs)

    def of_a_layer(self) -> Matrix:
        """Of stacked ones: the axes of one layer's array."""
        return Matrix(*(tuple(i - 1 for i in axes if i) for axes in self))


@dataclass(frozen=True)
class Parameter:
    """axes: logical names, one a dimension. contracted: how many of them its product sums over, the first but for
    'layers'; 0: it is in no product. hidden: of a linear map inside the model, neither embedding nor head; those can
    have adapters, and Muon is for them. decays: under `optimizer.weight_decay`."""

    axes: tuple[str, ...]
    contracted: int = 0
    hidden: bool = False
    decays: bool = False

    @property
    def stacked(self) -> bool:
        return self.axes[:1] == ("layers",)

    @property
    def matrix(self) -> Matrix | None:
        """None: it is in no product."""
        if not self.contracted:
            return None
        first = int(self.stacked)
        inputs = tuple(range(first, first + self.contracted))
        batch = tuple(i for i, axis in enumerate(self.axes) if axis in _SEPARATE)
        outputs = tuple(i for i in range(len(self.axes)) if i not in inputs + batch)
        return Matrix(batch, inputs, outputs)


Sides = tuple[tuple[str, ...], tuple[str, ...]]
"""Logical axes of a linear map's inputs and outputs, in one layer."""
GATED_MLP_SIDES: Mapping[str, Sides] = {
    "mlp/gate": (("width",), ("mlp",)),
    "mlp/up": (("width",), ("mlp",)),
    "mlp/down": (("mlp",), ("width",)),
}


VISION_ATTENTION_SIDES: Mapping[str, Sides] = {
    "qkv": (("width",), ("qkv", "heads", "head_size")),
    "proj": (("heads", "head_size"), ("width",)),
}
MERGER_SIDES: Mapping[str, Sides] = {
    "merge_in": (("merged",), ("mlp",)),
    "merge_out": (("mlp",), ("width",)),
}


def is_stacked(path: str) -> bool:
    """Whether the parameter's leading axis counts layers."""
    return path.startswith(STACKS)


def table_of(linear: Mapping[str, Sides], others: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """By path: the kernels, biases and adapters of linear maps inside the model, by the maps' paths, and others as they
    are but for 'layers', which stacked ones get."""
    table: dict[str, Parameter] = {}
    for name, (inputs, outputs) in linear.items():
        product = Parameter((), len(inputs), hidden=True, decays=True)
        table |= {
            f"{name}/kernel": replace(product, axes=(*inputs, *outputs)),
            f"{name}/{A}": replace(product, axes=(*inputs, "rank")),
            f"{name}/{B}": replace(product, axes=("rank", *outputs), contracted=1),
            f"{name}/bias": Parameter(outputs),
        }
    return {
        path: replace(known, axes=("layers", *known.axes)) if is_stacked(path) else known
        for path, known in (table | dict(others)).items()
    }


_LAYER: Mapping[str, Sides] = {
    "q": (("width",), ("heads", "head_size")),
    "k": (("width",), ("kv_heads", "head_size")),
    "v": (("width",), ("kv_heads", "head_size")),
    "o": (("heads", "head_size"), ("width",)),
    **GATED_MLP_SIDES,
}
DECODER_PARAMETERS: Mapping[str, Parameter] = table_of(
    {f"text/layers/{name}": sides for name, sides in _LAYER.items()},
    {
        "text/embedding": Parameter(("vocab", "width"), decays=True),
        "text/head/kernel": Parameter(("width", "vocab"), 1, decays=True),
        "text/norm/scale": Parameter(("width",)),
        "text/layers/norm1/scale": Parameter(("width",)),
        "text/layers/norm2/scale": Parameter(("width",)),
    },
)
"""Of the decoder; a model has some of them."""
PATCH_EMBEDDING: Mapping[str, Parameter] = {
    "visual/patch_embed/kernel": Parameter(("pair", "patch", "features"), 2, decays=True),
}
MERGER: Mapping[str, Parameter] = table_of(
    {f"visual/{name}": sides for name, sides in MERGER_SIDES.items()},
    {
        "visual/merge_norm/scale": Parameter(("width",)),
        "visual/merge_in/bias": Parameter(("features",)),  # over fsdp, as it always was
    },
)
"""What makes tokens of patches, by the names that it has in towers with one."""
