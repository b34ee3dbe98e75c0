"""What is known of the tower's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from jvr1.model.parameters import (
    GATED_MLP_SIDES,
    MERGER,
    PATCH_EMBEDDING,
    VISION_ATTENTION_SIDES,
    Parameter,
    Sides,
    table_of,
)

BLOCK: Mapping[str, Sides] = {**VISION_ATTENTION_SIDES, **GATED_MLP_SIDES}
NORMS: Mapping[str, Parameter] = {f"visual/blocks/norm{i}/scale": Parameter(("width",)) for i in (1, 2)}
TOWER: Mapping[str, Parameter] = table_of(
    {f"visual/blocks/{name}": sides for name, sides in BLOCK.items()}, {**PATCH_EMBEDDING, **MERGER, **NORMS}
)
