"""Completions scored against their records: what becomes T-GRPO's rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ml_collections import ConfigDict

from jvr1.data.batch import Microbatch
from jvr1.data.share import Share
from jvr1.processes.peers import from_owner
from jvr1.rl.rewards import Score, score
from jvr1.rl.tgrpo import RolloutScores
from jvr1.rl.user_reward import UserReward
from jvr1.rollout.tasks import Sampled


@dataclass(frozen=True)
class Judged:
    """Scores of a microbatch: per row for the record, as the arrays T-GRPO takes, and what a user's own reward gave
    the ordered rows [B,G] (None: there is none)."""

    rows: list[list[Score]]
    rollout: RolloutScores
    user: np.ndarray | None = None


@dataclass(frozen=True)
class Judge:
    """Scores texts against records: accuracy in a mode of `rl.rewards`, format, and a user's own reward.

    reward = accuracy + format_weight * format + user_weight * user.
    """

    mode: str
    format_weight: float = 1.0
    user: UserReward | None = None
    user_weight: float = 1.0

    def __call__(
        self, micro: Microbatch, texts: Sequence[Sequence[str]], sampled: Sampled, rows: Sequence[int]
    ) -> Judged:
        scores: list[list[Score]] = []
        total, own = np.zeros(sampled.length.shape, np.float32), np.zeros(sampled.length.shape, np.float32)
        for b, (row, completions) in enumerate(zip(micro.rows, texts, strict=True)):
            if row.record is None or row.error is not None:
                scores.append([Score(0.0, 0.0, None)] * len(completions))
                continue
            gold, kind, options = row.record.solution, row.record.problem_type, row.record.options
            scores.append([score(text, gold, kind, self.mode, options) for text in completions])
            for r, (text, one) in enumerate(zip(completions, scores[-1], strict=True)):
                total[b, r] = one.accuracy + self.format_weight * one.format
                if self.user is not None and r < rows[0]:
                    own[b, r] = self.user(text, gold, kind)
        total += self.user_weight * own
        accuracy = np.asarray([[s.accuracy for s in row] for row in scores], np.float32)
        g, valid = rows[0], np.asarray(micro.arrays.valid)
        shuffled = accuracy[:, g:]
        return Judged(
            scores,
            RolloutScores(
                accuracy=accuracy[:, :g],
                reward=total[:, :g],
                length=sampled.length[:, :g].astype(np.int32),
                shuffled_accuracy=shuffled,
                shuffled_valid=np.broadcast_to(valid[:, None], shuffled.shape).copy(),
                valid=valid,
                is_video=np.full(len(valid), micro.bucket.kind == "video"),
                distinct_frames=np.asarray(micro.arrays.distinct, np.int32),
            ),
            own[:, :g] if self.user is not None else None,
        )


def make_judge(config: ConfigDict) -> Judge:
    """The reward of a run's config."""
    reward = config.reward
    user = UserReward(reward.user, timeout=reward.user_timeout, on_failure=reward.user_failure) if reward.user else None
    return Judge(reward.mode, config.rl.format_weight, user, reward.user_weight)


def shared_scores(judged: Judged, share: Share) -> Judged:
    """Scores that are the same on all processes that hold these rows: a user's reward may time out on one of them."""
    if not share.shared:
        return judged
    arrays = {name: x.tolist() for name, x in judged.rollout._asdict().items()}
    arrays = from_owner(arrays, share)
    same = {name: np.asarray(arrays[name], x.dtype) for name, x in judged.rollout._asdict().items()}
    return replace(judged, rollout=RolloutScores(**same))
