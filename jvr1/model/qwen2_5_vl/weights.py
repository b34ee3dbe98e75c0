"""Names of tensors: in published files, in the memory of transformers 5, and where they go here."""

from __future__ import annotations

import re

from jvr1.model.weights import DECODER_NAMES, GATED_MLP_NAMES, Rule, block_rules

_BLOCK = {"attn.qkv": ("qkv", 1), "attn.proj": ("proj", 2), **GATED_MLP_NAMES}
TABLE: tuple[Rule, ...] = (
    Rule("visual.patch_embed.proj.weight", "visual/patch_embed/kernel", 2, patches=True),
    *block_rules("visual.blocks.{}", "visual/blocks", _BLOCK, {"norm1": "norm1", "norm2": "norm2"}, list(_BLOCK)),
    Rule("visual.merger.ln_q.weight", "visual/merge_norm/scale"),
    Rule("visual.merger.mlp.0.weight", "visual/merge_in/kernel", 1),
    Rule("visual.merger.mlp.0.bias", "visual/merge_in/bias"),
    Rule("visual.merger.mlp.2.weight", "visual/merge_out/kernel", 1),
    Rule("visual.merger.mlp.2.bias", "visual/merge_out/bias"),
    *DECODER_NAMES,
)
"""Published names."""


def published_name(name: str) -> str:
    """The published name of a tensor, from either scheme."""
    name = name.replace("model.language_model.lm_head", "lm_head")
    return re.sub(r"^model\.visual\.", "visual.", re.sub(r"^model\.language_model\.", "model.", name))


def memory_name(name: str) -> str:
    """What transformers 5 calls the tensor of a published name once it is loaded."""
    return re.sub(r"^visual\.", "model.visual.", re.sub(r"^model\.", "model.language_model.", name))
