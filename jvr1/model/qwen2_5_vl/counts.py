"""What the tower computes and what its backward pass keeps, counted from shapes."""

from __future__ import annotations

from jvr1.model.family import TowerKept, TowerScores
from jvr1.model.flops import Walk, merger_flops
from jvr1.model.qwen2_5_vl.config import VisionConfig


def tower_flops(walk: Walk, v: VisionConfig, steps: int, windows: int) -> bool:
    """Walks through the tower over `steps` temporal steps of `windows` windows; returns whether tokens are live."""
    slots = steps * windows * v.slots
    live = walk.linear("visual/patch_embed", slots, 2 * v.patch_values, v.hidden, False)
    for number in range(v.depth):
        span = windows * v.slots if number in v.full_blocks else v.slots
        live = _block(walk, v, slots, span, live)
    return merger_flops(walk, slots, v.hidden, v.merge, v.out_hidden, live)


def _block(walk: Walk, v: VisionConfig, slots: int, span: int, live: bool) -> bool:
    at, before = "visual/blocks", walk.sums.forward
    mixed = walk.linear(f"{at}/qkv", slots, v.hidden, 3 * v.hidden, walk.norm(f"{at}/norm1", live))
    mixed = walk.attention(4.0 * slots * span * v.hidden, mixed, mixed, mixed)
    live |= walk.linear(f"{at}/proj", slots, v.hidden, v.hidden, mixed)
    live |= walk.mlp(f"{at}/mlp", slots, v.hidden, v.intermediate, walk.norm(f"{at}/norm2", live))
    return walk.layer_end(before, 2.0 * slots * v.hidden * v.intermediate, live)


def tower_scores(v: VisionConfig, windows: int) -> TowerScores:
    """[heads, W*L, W*L] in the layers of full attention."""
    return TowerScores((windows * v.slots) ** 2 * v.heads, len(v.full_blocks))


def tower_kept(v: VisionConfig, remat: str, tensor: int, windows: int) -> TowerKept:
    """Read off jax.vjp's residuals. Scores of windows are so many times fewer than those of a step."""
    hidden, gates = {"full": (1, 0), "dots": (2, 2), "none": (10, 6)}[remat]  # in units of D and of the MLP's width
    heads = 3 * v.hidden if gates else 0
    layer = hidden * v.hidden + (heads + gates * v.intermediate) // tensor
    merger = 3 * v.hidden
    full = len(v.full_blocks)
    scores = 2.5 * (full + (v.depth - full) / windows) if remat == "none" and windows else 0.0
    return TowerKept(v.depth * layer + merger, scores)
