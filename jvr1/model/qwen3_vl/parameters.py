"""What is known of the tower's parameters, and of the decoder's norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping

from jvr1.model.parameters import MERGER, MERGER_SIDES, PATCH_EMBEDDING, VISION_ATTENTION_SIDES, Parameter, table_of

_BLOCK = {**VISION_ATTENTION_SIDES, "mlp/up": (("width",), ("mlp",)), "mlp/down": (("mlp",), ("width",))}
_WIDE = (
    "visual/merge_norm/bias",
    *(f"visual/blocks/norm{i}/{part}" for i in (1, 2) for part in ("scale", "bias")),
)
_OTHERS: Mapping[str, Parameter] = {
    "visual/patch_embed/bias": Parameter(("features",)),
    "visual/positions": Parameter(("places", "width"), decays=True),
    "visual/deepstack/merge_norm/scale": Parameter(("merged",)),
    "visual/deepstack/merge_norm/bias": Parameter(("merged",)),
    "text/layers/q_norm/scale": Parameter(("head_size",)),
    "text/layers/k_norm/scale": Parameter(("head_size",)),
}
PARAMETERS: Mapping[str, Parameter] = table_of(
    {
        **{f"visual/blocks/{name}": sides for name, sides in _BLOCK.items()},
        **{f"visual/deepstack/{name}": sides for name, sides in MERGER_SIDES.items()},
    },
    {**PATCH_EMBEDDING, **MERGER, **{name: Parameter(("width",)) for name in _WIDE}, **_OTHERS},
)
