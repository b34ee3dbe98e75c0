"""Visual placeholders in a prompt's ids, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid

ENDS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end an answer, the one the chat template writes first."""


def placeholders(
    ids: Int32[np.ndarray, " t"], grids: Sequence[Grid], config: ModelConfig, tokenizer: Any
) -> Int32[np.ndarray, " T"]:
    """The placeholder of each medium repeated as often as it has tokens, as the HF processor repeats it."""
    repeats = np.ones(len(ids), np.int64)
    repeats[np.isin(ids, config.visual_tokens)] = [grid.tokens(config.vision.merge) for grid in grids]
    return np.repeat(ids, repeats)
