"""What is known of the tower's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from jvr1.model.parameters import GATED_MLP_SIDES, Parameter, Sides, table_of

BLOCK: Mapping[str, Sides] = {
    "qkv": (("width",), ("qkv", "heads", "head_size")),
    "proj": (("heads", "head_size"), ("width",)),
    **GATED_MLP_SIDES,
}
MERGER: Mapping[str, Sides] = {
    "visual/merge_in": (("merged",), ("mlp",)),
    "visual/merge_out": (("mlp",), ("width",)),
}
OTHERS: Mapping[str, Parameter] = {
    "visual/patch_embed/kernel": Parameter(("pair", "patch", "features"), 2, decays=True),
    "visual/merge_norm/scale": Parameter(("width",)),
    "visual/blocks/norm1/scale": Parameter(("width",)),
    "visual/blocks/norm2/scale": Parameter(("width",)),
    "visual/merge_in/bias": Parameter(("features",)),  # over fsdp, as it always was
}
TOWER: Mapping[str, Parameter] = table_of(
    {f"visual/blocks/{name}": sides for name, sides in BLOCK.items()} | dict(MERGER), OTHERS
)
