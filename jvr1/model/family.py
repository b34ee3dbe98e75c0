"""What a family of models is: all that one kind of config.json has of its own. Everything else asks `config.family`.

What families share stands once, beside this file: the decoder and its attention, LoRA, reading and writing of tensors.
A family's own lies in its folder, or file. What is used before and beside the device (config, frames, layout, prompt,
positions, counts) imports no JAX, for it runs in processes that only read media; `model` imports its modules when it
is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from jvr1.model.config import ModelConfig, TextConfig
from jvr1.model.fields import Fields
from jvr1.model.flops import Walk
from jvr1.model.inputs import Grid, Layout
from jvr1.model.media import FrameRules, PixelLimits, VideoSampling
from jvr1.model.parameters import Parameter
from jvr1.model.weights import Rule


class TowerScores(NamedTuple):
    """Attention scores of one temporal step, all heads, in a layer that has most; how many such layers there are."""

    largest: int
    layers: int


class TowerKept(NamedTuple):
    """What the tower's forward pass keeps for its backward pass: values a patch slot, of all layers together on one of
    the devices that split them, and times its largest attention scores."""

    values: int
    scores: float


@dataclass(frozen=True)
class ProcessorForm:
    """Files from which `transformers` and vLLM prepare media: the types of the two processors, the fields of both, by
    the tower's config, and of each, as the training read images and videos."""

    image_type: str
    video_type: str
    base: Callable[[Any], dict[str, Any]]
    image: Callable[[PixelLimits], dict[str, Any]]
    video: Callable[[VideoSampling, PixelLimits, int], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A kind of model. Where a function has a `vision`, it is the family's own dataclass, a `config.Vision`.

    model_type: as config.json says it; title: as people do.

    read(fields of config.json): its ModelConfig; raises UserError. write(config, dtype): the published config.json of a
    model whose tensors have that dtype. published: the models that can be had, by size; a name means one model in all
    families.

    weights: its tensors by their published names. published_name(name): from whatever scheme a file has. memory_name(
    published name): what transformers 5 calls it, which adapters name. parameters: what is known of the tower's, beside
    `parameters.DECODER`; linear maps with `hidden` can have adapters. A path means the same in all families.

    model(config, rngs=, dtype=, param_dtype=, remat=, attention=): a `vision_language.VisionLanguageModel`. rope_axes(
    text): which position axis (time, row, column) each of a head's frequencies follows.

    frames(pixels on a side of a token): which frames are read and their sizes. windows(height, width, vision): windows
    that a frame of so many PATCHES takes; layout(height, width, vision): where its patches go in them. positions(ids,
    grids, config): position ids of a prompt and the position after it; raises ValueError. placeholders(ids, grids,
    config, tokenizer): ids of a chat with one placeholder a medium -> those of the prompt. ends: tokens that end an
    answer, the chat template's first. forms: where prompts may be written in several ways, these by name
    (`data.prompt_form`), `placeholders` among them.

    tower_flops(walk, vision, steps, windows): walks through the tower; returns whether tokens are live. tower_scores(
    vision, windows); tower_kept(vision, remat, ways it is split, windows).

    processor: of the export's files. companions(): other files that go with it. advice: what is said of it, `{out}` the
    folder; empty: nothing.

    marked: whether an index says what family it is for. Those made before there were several are of one, and do not.
    clocked: whether positions follow `Grid.seconds_per_step` (`data.real_seconds`).
    """

    model_type: str
    title: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig, str], dict[str, Any]]
    published: Mapping[str, ModelConfig]
    weights: tuple[Rule, ...]
    published_name: Callable[[str], str]
    memory_name: Callable[[str], str]
    parameters: Mapping[str, Parameter]
    model: Callable[..., Any]
    rope_axes: Callable[[TextConfig], Int[np.ndarray, " h"]]
    frames: Callable[[int], FrameRules]
    windows: Callable[[int, int, Any], int]
    layout: Callable[[int, int, Any], Layout]
    positions: Callable[[Int[np.ndarray, " T"], Sequence[Grid], ModelConfig], tuple[Int[np.ndarray, "3 T"], int]]
    placeholders: Callable[[Int32[np.ndarray, " t"], Sequence[Grid], ModelConfig, Any], Int32[np.ndarray, " T"]]
    ends: tuple[str, ...]
    tower_flops: Callable[[Walk, Any, int, int], bool]
    tower_scores: Callable[[Any, int], TowerScores]
    tower_kept: Callable[[Any, str, int, int], TowerKept]
    processor: ProcessorForm
    companions: Callable[[], dict[str, bytes]]
    advice: str
    marked: bool = True
    forms: Mapping[str, Callable[..., Int32[np.ndarray, " T"]]] = field(default_factory=dict)
    clocked: bool = True
