"""M-RoPE ids of text and visual blocks, which a family's rule of time completes. On the host, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, Int32

from jvr1.model.config import ModelConfig
from jvr1.model.inputs import Grid


def block_positions(
    ids: Int[np.ndarray, " T"],
    grids: Sequence[Grid],
    config: ModelConfig,
    time: Callable[[Grid], Int32[np.ndarray, " F"]],
) -> tuple[Int[np.ndarray, "3 T"], int]:
    """Position ids (time, row, column) of an unpadded sequence, and the position of the token after it.

    Text advances all three axes by one; a visual block starts at the next free position, its time axis advances as
    `time` says of its steps, and text goes on at one above the largest position used. `grids` are the blocks in order
    of appearance. Raises ValueError when `ids` holds other visual tokens than `grids` say.
    """
    visual, merge = np.isin(ids, config.visual_tokens), config.vision.merge
    positions = np.empty((3, len(ids)), np.int32)
    at = free = 0
    for grid in grids:
        rows, columns = grid.height // merge, grid.width // merge
        count = grid.tokens(merge)
        ahead = np.flatnonzero(visual[at:])
        if not len(ahead) or visual[at + ahead[0] : at + ahead[0] + count].sum() != count:
            raise ValueError(
                f"the sequence holds fewer visual tokens than {count}, which {grid.steps} steps of "
                f"{grid.height} x {grid.width} patches need"
            )
        text = int(ahead[0])
        positions[:, at : at + text] = free + np.arange(text)
        at, free = at + text, free + text
        step, row, column = np.indices((grid.steps, rows, columns)).reshape(3, -1)
        positions[:, at : at + count] = free + np.stack([time(grid)[step], row, column])
        at, free = at + count, int(positions[:, at : at + count].max()) + 1
    if visual[at:].any():
        raise ValueError(f"the sequence holds {int(visual[at:].sum())} more visual tokens than its media give")
    positions[:, at:] = free + np.arange(len(ids) - at)
    return positions, free + len(ids) - at
