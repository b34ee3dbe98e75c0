"""A tiny Qwen3-VL for the oracle, and its media: heads of 72 values in the tower, of their own size in the decoder."""

from __future__ import annotations

from typing import Any

from oracle import END, IMAGE, START, VIDEO, Item

MEAN = (0.5, 0.5, 0.5)
ROPE = {"rope_theta": 5e6, "rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}


def raw_config(**changes: Any) -> dict[str, Any]:
    """Its config.json in the newer form; `vision_*` changes go to the tower, `tie_word_embeddings` to the top."""
    vision = dict(
        model_type="qwen3_vl", depth=4, hidden_size=144, intermediate_size=52, num_heads=2, out_hidden_size=48,
        patch_size=16, spatial_merge_size=2, temporal_patch_size=2, in_channels=3, num_position_embeddings=25,
        deepstack_visual_indexes=[0, 3], hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    vision |= {k[7:]: changes.pop(k) for k in list(changes) if k.startswith("vision_")}
    text = dict(
        model_type="qwen3_vl_text", hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=80, vocab_size=96, rms_norm_eps=1e-6, hidden_act="silu", rope_parameters=ROPE,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.02,
    )  # fmt: skip
    top = dict(
        architectures=["Qwen3VLForConditionalGeneration"], model_type="qwen3_vl", image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        tie_word_embeddings=changes.pop("tie_word_embeddings", False),
    )  # fmt: skip
    return top | {"text_config": text | changes, "vision_config": vision}


class DeepItem(Item):
    """Each step of a video between marks of its own, after two tokens of text where its time would stand."""

    patch, mean, std = 16, MEAN, MEAN

    @property
    def ids(self) -> list[int]:
        steps, height, width, *_ = self.grid
        step = [START, *[VIDEO if self.video else IMAGE] * (height * width // 4), END]
        return [token for i in range(steps) for token in ([7 + i, 8, *step] if self.video else step)]
