"""What is known of each parameter: logical axes, stacked or not, what its product contracts, whether it decays.

One table for sharding, weight decay, LoRA and optimizers; which mesh axis splits a logical axis is said once, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

A, B = "lora_a", "lora_b"
STACKS = ("text/layers/", "visual/blocks/")
"""Modules whose parameters have a leading axis that counts layers."""
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


_MLP = {
    "mlp/gate": (("width",), ("mlp",)),
    "mlp/up": (("width",), ("mlp",)),
    "mlp/down": (("mlp",), ("width",)),
}
_TEXT = {
    "q": (("width",), ("heads", "head_size")),
    "k": (("width",), ("kv_heads", "head_size")),
    "v": (("width",), ("kv_heads", "head_size")),
    "o": (("heads", "head_size"), ("width",)),
    **_MLP,
}
_VISION = {
    "qkv": (("width",), ("qkv", "heads", "head_size")),
    "proj": (("heads", "head_size"), ("width",)),
    **_MLP,
}
LINEAR = {
    **{f"text/layers/{name}": axes for name, axes in _TEXT.items()},
    **{f"visual/blocks/{name}": axes for name, axes in _VISION.items()},
    "visual/merge_in": (("merged",), ("mlp",)),
    "visual/merge_out": (("mlp",), ("width",)),
}
"""Linear maps inside the model: (inputs, outputs) of one layer's."""


def is_stacked(path: str) -> bool:
    """Whether the parameter's leading axis counts layers."""
    return path.startswith(STACKS)


def _table() -> dict[str, Parameter]:
    table = {
        "text/embedding": Parameter(("vocab", "width"), decays=True),
        "text/head/kernel": Parameter(("width", "vocab"), 1, decays=True),
        "text/norm/scale": Parameter(("width",)),
        "visual/merge_norm/scale": Parameter(("width",)),
        "visual/patch_embed/kernel": Parameter(("pair", "patch", "features"), 2, decays=True),
    }
    table |= {f"{stack}{norm}/scale": Parameter(("width",)) for stack in STACKS for norm in ("norm1", "norm2")}
    for name, (inputs, outputs) in LINEAR.items():
        product = Parameter((), len(inputs), hidden=True, decays=True)
        table |= {
            f"{name}/kernel": replace(product, axes=(*inputs, *outputs)),
            f"{name}/{A}": replace(product, axes=(*inputs, "rank")),
            f"{name}/{B}": replace(product, axes=("rank", *outputs), contracted=1),
            f"{name}/bias": Parameter(outputs),
        }
    table["visual/merge_in/bias"] = Parameter(("features",))  # over fsdp, as it always was
    return {
        path: replace(known, axes=("layers", *known.axes)) if is_stacked(path) else known
        for path, known in table.items()
    }


PARAMETERS: Mapping[str, Parameter] = _table()
"""By path, adapters too; a model has some of them."""


def known(path: str) -> Parameter:
    """Of a path that is not in the table nothing is known: no axis has a name, and it does not decay."""
    return PARAMETERS.get(path, Parameter(("layers",) if is_stacked(path) else ()))
