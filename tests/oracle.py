"""Tiny models of transformers + torch, and inputs in its form: the judge of our outputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from jvr1.data.vision import frame_pairs, window_patches
from jvr1.model import vision_language
from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid, Prompt, Visual
from jvr1.model.qwen2_5_vl.frames import IMAGE_MEAN, IMAGE_STD

IMAGE, VIDEO, START, END = 90, 91, 92, 93


def raw_config(**changes) -> dict:
    """A published-form config.json of a tiny model; `vision_*` changes go to the tower."""
    vision = dict(
        depth=3, hidden_size=32, intermediate_size=44, num_heads=2, out_hidden_size=48, patch_size=14,
        spatial_merge_size=2, window_size=112, fullatt_block_indexes=[1], tokens_per_second=2, in_chans=3,
    )  # fmt: skip
    vision |= {k[7:]: changes.pop(k) for k in list(changes) if k.startswith("vision_") and k[7:] in vision}
    text = dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", hidden_size=48,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80, vocab_size=96,
        rms_norm_eps=1e-6, rope_theta=10000.0, hidden_act="silu", max_position_embeddings=4096,
        rope_scaling={"type": "mrope", "mrope_section": [1, 2, 3]}, tie_word_embeddings=False,
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.02,
    )  # fmt: skip
    return text | changes | {"vision_config": vision}


def torch_model(raw: dict, seed: int = 0, scale: float = 0.15) -> PreTrainedModel:
    """Of the family that `raw` names. Random weights large enough that every part matters; norms around 1."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**raw)
    config._attn_implementation = "eager"
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan = p[0].numel() if p.ndim > 1 else 1
            if "norm" in name or "ln_q" in name:
                p.copy_(1 + 0.2 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (scale if p.ndim == 1 or "embed_tokens" in name else 1.2 * fan**-0.5))
    return model


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.15, **kw) -> tuple[nnx.GraphDef, dict]:
    """Our model with random parameters drawn by numpy (nothing to compile): norms around 1, all else around 0."""
    graphdef, shapes = vision_language.abstract(config, **kw)
    rng = np.random.default_rng(seed)

    def draw(path, x) -> jax.Array:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, scale, x.shape), x.dtype)

    return graphdef, jax.tree_util.tree_map_with_path(draw, shapes)


class Item:
    """One image or video of random pixels: `frames` [N,h,w,3], the grid in patches."""

    patch, mean, std = 14, IMAGE_MEAN, IMAGE_STD

    def __init__(self, rng: np.random.Generator, frames: int, height: int, width: int, seconds: float = 0.0):
        self.video = frames > 1
        self.frames = rng.integers(0, 256, (frames, height * self.patch, width * self.patch, 3), np.uint8)
        self.grid = Grid((frames + 1) // 2, height, width, seconds)

    def pixel_values(self) -> np.ndarray:
        """[patches, 6 patch^2] as the HF processors make them (their `_preprocess`)."""
        p = self.patch
        x = self.frames if len(self.frames) % 2 == 0 else np.concatenate([self.frames, self.frames[-1:]])
        x = (x.astype(np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)
        t, h, w, *_ = self.grid
        x = x.reshape(t, 2, h // 2, 2, p, w // 2, 2, p, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return x.reshape(t * h * w, -1)

    @property
    def ids(self) -> list[int]:
        count = self.grid.steps * self.grid.height * self.grid.width // 4
        return [START, *[VIDEO if self.video else IMAGE] * count, END]


def tokens(rng: np.random.Generator, *parts: Item | int) -> np.ndarray:
    """A sequence of random text (an int: that many tokens) and items."""
    return np.concatenate(
        [p.ids if isinstance(p, Item) else rng.integers(3, 90, p) for p in parts] or [np.zeros(0)]
    ).astype(np.int64)


def visual_inputs(
    items: list[Item], config: ModelConfig, windows: int = 0, steps: int = 0, slots: int = 0
) -> tuple[Visual, np.ndarray]:
    """Our form of one prompt's media (no batch axis) in at least so many windows, steps and frames; the index of each
    visual token in order."""
    layouts = [config.family.layout(i.grid.height, i.grid.width, config.vision) for i in items]
    w = max(windows, *(len(layout.hw) for layout in layouts))
    f = max(steps, sum(i.grid.steps for i in items))
    n = sum(len(i.frames) for i in items)
    patches, units = config.vision.slots, config.vision.units
    n = max(slots, n + f - sum(i.grid.steps for i in items))
    frames = np.zeros((n, w, patches, config.vision.patch_values), np.uint8)
    hw, pair, index = np.full((f, w, patches, 2), -1, np.int16), np.zeros((f, 2), np.int32), []
    at_frame = at_step = 0
    for item, layout in zip(items, layouts, strict=True):
        own = len(layout.hw)
        frames[at_frame : at_frame + len(item.frames), :own] = window_patches(item.frames, layout, item.patch)
        hw[at_step : at_step + item.grid.steps, :own] = layout.hw
        pair[at_step : at_step + item.grid.steps] = frame_pairs(len(item.frames)) + at_frame
        index += [layout.unit + (at_step + s) * w * units for s in range(item.grid.steps)]
        at_frame, at_step = at_frame + len(item.frames), at_step + item.grid.steps
    return Visual(frames, pair, hw.astype(np.int32)), np.concatenate(index)


def our_inputs(
    ids: np.ndarray,
    items: list[Item],
    config: ModelConfig,
    length: int = 0,
    left: bool = False,
    windows: int = 0,
    steps: int = 0,
    slots: int = 0,
) -> tuple[Prompt, Visual | None]:
    """Our form of one sequence, with a batch axis of 1, padded to `length`."""
    positions, following = config.family.positions(ids, [i.grid for i in items], config)
    length = max(length, len(ids))
    at = slice(length - len(ids), length) if left else slice(0, len(ids))
    mask, padded = np.zeros(length, bool), np.zeros(length, np.int32)
    position, index = np.zeros((3, length), np.int32), np.full(length, -1, np.int32)
    mask[at], padded[at], position[:, at] = True, ids, positions
    visual = None
    if items:
        visual, order = visual_inputs(items, config, windows, steps, slots)
        index[np.flatnonzero(np.isin(padded, (IMAGE, VIDEO)) & mask)] = order
        visual = Visual(*(x[None] for x in visual))
    prompt = Prompt(padded[None], position[None], mask[None], index[None], np.int32([following]))
    return jax.tree.map(jnp.asarray, (prompt, visual))


def torch_inputs(ids: np.ndarray, items: list[Item], config: ModelConfig) -> dict:
    """Keyword arguments of the torch model for one unpadded sequence, with explicit positions (the 4.x rule)."""
    positions, _ = config.family.positions(ids, [i.grid for i in items], config)
    out = {"input_ids": torch.tensor(ids)[None], "position_ids": torch.tensor(positions).long()[:, None]}
    for name, group in (("image", [i for i in items if not i.video]), ("video", [i for i in items if i.video])):
        if group:
            key = "pixel_values" if name == "image" else "pixel_values_videos"
            out[key] = torch.tensor(np.concatenate([i.pixel_values() for i in group]))
            out[f"{name}_grid_thw"] = torch.tensor([i.grid[:3] for i in group])
    return out
