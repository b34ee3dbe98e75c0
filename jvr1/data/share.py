"""Which rows of a batch a process feeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jvr1.errors import UserError


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a process feeds. The batch is cut into `ways` equal parts; `parts` are the numbers of its
    own.

    Where the mesh's tensor axis spans processes, several of them hold and feed the same parts. shared: whether this is
    so here. owner: whether this process is the first of those with its parts; only the owner counts and writes rows,
    so that none counts twice.
    """

    parts: tuple[int, ...] = (0,)
    ways: int = 1
    owner: bool = True
    shared: bool = False

    def places(self, batch: int) -> list[int]:
        """The numbers of this process's rows in a batch of `batch` rows, in order.

        Raises UserError when the batch cannot be cut into `ways` equal parts.
        """
        if batch % self.ways:
            raise UserError(f"{batch} rows a microbatch cannot be split {self.ways} ways; use a multiple")
        size = batch // self.ways
        return [part * size + i for part in self.parts for i in range(size)]


ALONE = Share()
"""All rows: one process, one part."""


def share_among(processes: Sequence[Sequence[int]], process: int) -> Share:
    """The share of `process`. processes: for each part of a batch, the processes whose devices hold it. Raises
    UserError."""
    holders = [sorted(set(row)) for row in processes]
    parts = tuple(i for i, holding in enumerate(holders) if process in holding)
    with_them = [holders[i] for i in parts]
    if any(holding != with_them[0] for holding in with_them) and any(len(holding) > 1 for holding in with_them):
        raise UserError(
            "the mesh's tensor axis crosses processes unevenly; use a size that divides, or is a multiple of, the "
            "devices of a process"
        )
    owner = all(holding[0] == process for holding in with_them)
    return Share(parts, len(holders), owner, any(len(holding) > 1 for holding in with_them))
