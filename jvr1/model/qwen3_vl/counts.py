"""What the tower computes and what its backward pass keeps, counted from shapes."""

from __future__ import annotations

from jvr1.model.family import TowerKept, TowerScores
from jvr1.model.flops import Walk, merger_flops
from jvr1.model.qwen3_vl.config import DeepVision


def tower_flops(walk: Walk, v: DeepVision, steps: int, windows: int) -> bool:
    """Walks through the tower over `steps` temporal steps of `windows` windows; returns whether tokens are live."""
    slots, at = steps * windows * v.slots, "visual/blocks"
    live = walk.linear("visual/patch_embed", slots, 2 * v.patch_values, v.hidden, False)
    learned = walk.trained.has("visual/positions")
    live |= walk.product(2.0 * slots * v.positions * v.hidden, live=False, trained=learned)
    tokens = False
    for number in range(v.depth):
        before = walk.sums.forward
        mixed = walk.linear(f"{at}/qkv", slots, v.hidden, 3 * v.hidden, walk.norm(f"{at}/norm1", live))
        mixed = walk.attention(4.0 * slots * windows * v.slots * v.hidden, mixed, mixed, mixed)
        live |= walk.linear(f"{at}/proj", slots, v.hidden, v.hidden, mixed)
        up = walk.linear(f"{at}/mlp/up", slots, v.hidden, v.intermediate, walk.norm(f"{at}/norm2", live))
        live |= walk.linear(f"{at}/mlp/down", slots, v.intermediate, v.hidden, up)
        live = walk.layer_end(before, 2.0 * slots * v.hidden * v.intermediate, live)
        if number in v.deep_blocks:
            tokens |= merger_flops(walk, slots, v.hidden, v.merge, v.out_hidden, live, "visual/deepstack")
    return merger_flops(walk, slots, v.hidden, v.merge, v.out_hidden, live) or tokens


def tower_scores(v: DeepVision, windows: int) -> TowerScores:
    """[heads, W*L, W*L] in every layer."""
    return TowerScores((windows * v.slots) ** 2 * v.heads, v.depth)


def tower_kept(v: DeepVision, remat: str, tensor: int, windows: int) -> TowerKept:
    """Read off jax.vjp's residuals, in values of the compute dtype."""
    whole, heads, inner = {"full": (1, 0, 0), "dots": (2, 3, 1), "none": (14, 4, 6)}[remat]
    layer = whole * v.hidden + (heads * v.hidden + inner * v.intermediate) // tensor
    merger = 11 * v.hidden
    deep = len(v.deep_blocks) * {"full": 1, "dots": 2, "none": 11}[remat] * v.hidden
    return TowerKept(v.depth * layer + merger + deep, 1.5 * v.depth if remat == "none" else 0.0)
