"""Standard deviations of rewards beyond the group: of a whole step, and by problem type over steps. numpy, fp64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

RewardSums = dict[str, list[float]]
"""By problem type: how many rewards, their sum, the sum of their squares."""
Moments = dict[str, list[float]]
"""By problem type: moving averages of the first two moments of rewards, and how many steps they had."""


def reward_sums(rewards: Iterable[tuple[str, Float[np.ndarray, " G"]]]) -> RewardSums:
    """Of groups, each with its problem type."""
    found: RewardSums = {}
    for kind, row in rewards:
        values = np.asarray(row, np.float64)
        before = found.get(kind, [0.0, 0.0, 0.0])
        found[kind] = [before[0] + values.size, before[1] + values.sum(), before[2] + np.square(values).sum()]
    return found


def joined(parts: Sequence[Mapping[str, Sequence[float]]]) -> RewardSums:
    """The sums of several processes as one."""
    kinds = dict.fromkeys(kind for part in parts for kind in part)
    return {kind: np.sum([part[kind] for part in parts if kind in part], axis=0).tolist() for kind in kinds}


def batch_std(sums: RewardSums, *, unbiased: bool) -> float:
    """Standard deviation of all rewards of a step, whatever their group (TRL's scale_rewards="batch")."""
    count, total, squares = np.sum(list(sums.values()), axis=0).tolist() if sums else (0.0, 0.0, 0.0)
    freedom = max(count - 1, 1) if unbiased else max(count, 1)
    return math.sqrt(max(squares - total**2 / max(count, 1), 0.0) / freedom)


def moved(moments: Moments, sums: RewardSums, decay: float) -> Moments:
    """m_k <- decay m_k + (1 - decay) mean r^k, k = 1 and 2, of the problem types that a step has."""
    found = dict(moments)
    for kind, (count, total, squares) in sums.items():
        first, second, steps = found.get(kind, [0.0, 0.0, 0.0])
        found[kind] = [
            decay * first + (1 - decay) * total / count,
            decay * second + (1 - decay) * squares / count,
            steps + 1,
        ]
    return found


def kind_std(moments: Moments, kind: str, decay: float) -> float:
    """sqrt(m_2 - m_1^2), each over 1 - decay^steps, as they began at 0: EMA-GRPO (OneThinker, arXiv 2512.03043)."""
    first, second, steps = moments[kind]
    whole = 1 - decay**steps
    return math.sqrt(max(second / whole - (first / whole) ** 2, 0.0))
