"""Names of tensors, which are the same in published files and in the memory of transformers."""

from __future__ import annotations

from jvr1.model.weights import DECODER_NAMES, Rule, block_rules

_BLOCK = {
    "attn.qkv": ("qkv", 1),
    "attn.proj": ("proj", 2),
    "mlp.linear_fc1": ("mlp/up", 1),
    "mlp.linear_fc2": ("mlp/down", 1),
}
_MERGER = {"linear_fc1": ("merge_in", 1), "linear_fc2": ("merge_out", 1)}


def _merger(hf: str, path: str) -> tuple[Rule, ...]:
    return block_rules(hf, path, _MERGER, {"norm": "merge_norm"}, list(_MERGER), norm_biases=True)


TABLE: tuple[Rule, ...] = (
    Rule("model.visual.patch_embed.proj.weight", "visual/patch_embed/kernel", 2, patches=True),
    Rule("model.visual.patch_embed.proj.bias", "visual/patch_embed/bias"),
    Rule("model.visual.pos_embed.weight", "visual/positions"),
    *block_rules(
        "model.visual.blocks.{}",
        "visual/blocks",
        _BLOCK,
        {"norm1": "norm1", "norm2": "norm2"},
        list(_BLOCK),
        norm_biases=True,
    ),
    *_merger("model.visual.merger", "visual"),
    *_merger("model.visual.deepstack_merger_list.{}", "visual/deepstack"),
    *(rule._replace(hf=rule.hf.replace("model.", "model.language_model.", 1)) for rule in DECODER_NAMES),
    *(
        Rule(f"model.language_model.layers.{{}}.self_attn.{name}.weight", f"text/layers/{name}/scale")
        for name in ("q_norm", "k_norm")
    ),
)


def same_name(name: str) -> str:
    """Of a tensor, in any scheme."""
    return name
