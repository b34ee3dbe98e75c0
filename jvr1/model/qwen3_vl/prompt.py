"""Visual placeholders in a prompt's ids: a video is its steps, each after its time as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid


def release(
    ids: Int32[np.ndarray, " t"], grids: Sequence[Grid], config: ModelConfig, tokenizer: Any
) -> Int32[np.ndarray, " T"]:
    """The steps of a video where the template's pair of marks stood, as the processors of the model's release and of
    transformers up to 5.9 write it."""
    return _placeholders(ids, grids, config, tokenizer, outer=False)


def nested(
    ids: Int32[np.ndarray, " t"], grids: Sequence[Grid], config: ModelConfig, tokenizer: Any
) -> Int32[np.ndarray, " T"]:
    """The template's pair of marks around all steps, each with its own, as transformers writes it from 5.10 on."""
    return _placeholders(ids, grids, config, tokenizer, outer=True)


PROMPT_FORMS: Mapping[str, Callable[..., Int32[np.ndarray, " T"]]] = {"release": release, "nested": nested}


def _placeholders(
    ids: Int32[np.ndarray, " t"], grids: Sequence[Grid], config: ModelConfig, tokenizer: Any, *, outer: bool
) -> Int32[np.ndarray, " T"]:
    """The placeholder of an image as often as it has tokens; of a video each step between marks, after its time."""
    start, end, merge = config.vision_start_token, config.vision_end_token, config.vision.merge
    out: list[int] = []
    rest, media = ids.tolist(), iter(grids)
    while rest:
        token = rest.pop(0)
        if token not in config.visual_tokens:
            out.append(token)
            continue
        grid = next(media)
        if token == config.image_token:
            out += [token] * grid.tokens(merge)
            continue
        if not outer and out[-1:] == [start] and rest[:1] == [end]:
            del out[-1], rest[0]
        step = [start, *[token] * grid._replace(steps=1).tokens(merge), end]
        for seconds in grid.times:
            out += tokenizer(f"<{seconds:.1f} seconds>", add_special_tokens=False)["input_ids"] + step
    return np.asarray(out, np.int32)
