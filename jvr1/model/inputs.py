"""What a model is given, on the host as numpy and on the device alike, and the shape of a medium in it. No JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int16, Int32, UInt8

if TYPE_CHECKING:  # it imports JAX, which the processes that read media do without
    from jaxtyping import Array


class Prompt(NamedTuple):
    """B tokenised prompts of one static length, padded on either side; on GPUs, as the pipeline does, on the right.

    positions: M-RoPE (time, row, column).
    mask: true at real tokens.
    visual_index: for a visual token, which of the prompt's F*W*U merged tokens it is; -1 for text.
    next_position: position, on all three axes, of the first completion token.
    """

    ids: Int[Array, "B P"]
    positions: Int[Array, "B 3 P"]
    mask: Bool[Array, "B P"]
    visual_index: Int[Array, "B P"]
    next_position: Int[Array, " B"]


class Visual(NamedTuple):
    """Visual inputs of B prompts. W windows of L slots a frame, v values a patch, U = L / merge^2 tokens a window.

    frames: pixel values of the patches of N frame slots.
    pair: the two frames of each of F temporal steps; the shuffled twin differs in nothing else.
    hw: row and column of each slot's patch in its frame, (-1, -1) for a slot without a patch.
    """

    frames: UInt8[Array, "B N W L v"]
    pair: Int[Array, "B F 2"]
    hw: Int[Array, "B F W L 2"]


class Grid(NamedTuple):
    """One image or video in a prompt: temporal steps, rows and columns of PATCHES, seconds from step to step.

    times: when each step of a video is shown, in seconds from its start, the mean of its two frames' times, by their
    numbers at the video's mean rate.
    """

    steps: int
    height: int
    width: int
    seconds_per_step: float = 0.0
    times: tuple[float, ...] = ()

    def tokens(self, merge: int) -> int:
        """Visual tokens, of merge x merge patches of a step."""
        return self.steps * (self.height // merge) * (self.width // merge)


class Layout(NamedTuple):
    """Where the patches of one frame go. W windows of L slots, U = L / merge^2 merged tokens.

    hw: row and column of the patch in each slot; -1 for a slot without one. The merge^2 patches of a token are
    neighbours.
    unit: for each merged token in row-major order, the number of its unit in [0, W*U).
    """

    hw: Int16[np.ndarray, "W L 2"]
    unit: Int32[np.ndarray, " tokens"]
