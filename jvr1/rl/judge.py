"""Completions scored against their records: what becomes T-GRPO's rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from jvr1.data.batch import Microbatch
from jvr1.data.records import Record
from jvr1.data.share import ALONE, Share
from jvr1.data.store import RecordStore
from jvr1.processes.peers import from_owner
from jvr1.rl.rewards import Score
from jvr1.rl.tgrpo import RolloutScores
from jvr1.rl.user_values import UserValues, open_user_values, row_of, score_of
from jvr1.rollout.tasks import Sampled


@dataclass(frozen=True)
class Judged:
    """Scores of a microbatch: per row for the record, as the arrays T-GRPO takes, and what the user's own rewards gave
    the completions, their names along the last axis, nan for no opinion (None: there are none). weighing: of the names
    in each row's reward; 0 where a value is the accuracy."""

    rows: list[list[Score]]
    rollout: RolloutScores
    names: tuple[str, ...] = ()
    values: Float[np.ndarray, "B R K"] | None = None
    weighing: Float[np.ndarray, "B K"] | None = None

    @property
    def scored(self) -> Bool[np.ndarray, "B G"]:
        """The completions on ordered frames that have a reward."""
        valid = np.broadcast_to(np.asarray(self.rollout.valid)[:, None], np.shape(self.rollout.reward))
        return valid & (True if self.rollout.scored is None else np.asarray(self.rollout.scored))


@dataclass(frozen=True)
class Judge:
    """Scores texts against records: accuracy in a mode of `rl.rewards`, format, and the user's own rewards.

    reward = accuracy + format_weight * format + sum of weight * value over the user's values. One without an opinion
    is no term of its row's sum. A value that is the accuracy of a problem type (`reward.user_accuracy`) takes its place
    and is no other term; without it a completion has no reward. Own rewards are asked of completions on ordered frames,
    and of others where they are the accuracy.
    """

    mode: str
    format_weight: float = 1.0
    user: UserValues | None = None

    def __call__(
        self,
        micro: Microbatch,
        texts: Sequence[Sequence[str]],
        sampled: Sampled,
        rows: Sequence[int],
        *,
        step: int = 0,
        share: Share = ALONE,
    ) -> Judged:
        """The same on all processes that hold these rows: their owner alone asks the user's rewards."""
        scores = [
            [Score(0.0, 0.0, None)] * len(completions)
            if (record := _record(micro, b)) is None
            else [score_of(record, text, self.mode) for text in completions]
            for b, completions in enumerate(texts)
        ]
        if self.user is None:
            return self._judged(micro, scores, sampled, rows[0], None, None)
        asked = from_owner(self._ask(micro, texts, scores, sampled, rows, step) if share.owner else None, share)
        values = np.full((*sampled.length.shape, len(self.user.names)), np.nan, np.float32)
        failed = np.zeros(sampled.length.shape, bool)
        for b, r, given, lost in asked:
            values[b, r], failed[b, r] = given, lost
        return self._judged(micro, scores, sampled, rows[0], values, failed)

    def _ask(
        self,
        micro: Microbatch,
        texts: Sequence[Sequence[str]],
        scores: list[list[Score]],
        sampled: Sampled,
        rows: Sequence[int],
        step: int,
    ) -> list[tuple[int, int, list[float], bool]]:
        """Of each completion asked about: its place, its values, whether a call of it failed."""
        assert self.user is not None
        places, seen = [], []
        for b, completions in enumerate(texts):
            if (record := _record(micro, b)) is None:
                continue
            most = len(completions) if record.problem_type in self.user.accuracies else rows[0]
            for r in range(most):
                places.append((b, r))
                seen.append(
                    row_of(
                        record, completions[r], scores[b][r], tokens=int(sampled.length[b, r]),
                        ended=bool(sampled.ended[b, r]), frames="ordered" if r < rows[0] else "shuffled", step=step,
                    )
                )  # fmt: skip
        values, failed = self.user(seen)
        return [(*at, v, f) for at, v, f in zip(places, values.tolist(), failed.tolist(), strict=True)]

    def _judged(
        self,
        micro: Microbatch,
        scores: list[list[Score]],
        sampled: Sampled,
        g: int,
        values: np.ndarray | None,
        failed: np.ndarray | None,
    ) -> Judged:
        own, scored, weighing = self._own_terms(micro, scores, values, failed)
        exact, form = (np.asarray([[s[i] for s in row] for row in scores]) for i in (0, 1))
        total = (exact + self.format_weight * form).astype(np.float32) + own
        accuracy = exact.astype(np.float32)
        valid = np.asarray(micro.arrays.valid)
        return Judged(
            scores,
            RolloutScores(
                accuracy=accuracy[:, :g],
                reward=total[:, :g],
                length=sampled.length[:, :g].astype(np.int32),
                shuffled_accuracy=accuracy[:, g:],
                shuffled_valid=valid[:, None] & scored[:, g:],
                valid=valid,
                is_video=np.full(len(valid), micro.bucket.kind == "video"),
                distinct_frames=np.asarray(micro.arrays.distinct, np.int32),
                scored=None if self.user is None else scored[:, :g],
            ),
            () if self.user is None else self.user.names,
            values,
            weighing,
        )

    def _own_terms(
        self,
        micro: Microbatch,
        scores: list[list[Score]],
        values: np.ndarray | None,
        failed: np.ndarray | None,
    ) -> tuple[Float[np.ndarray, "B R"], Bool[np.ndarray, "B R"], Float[np.ndarray, "B K"] | None]:
        """What the user's values add to rewards, which completions have a reward, and the values' weights; accuracies
        are put into `scores`."""
        shape = (len(scores), len(scores[0]))
        if self.user is None or values is None or failed is None:
            return np.zeros(shape, np.float32), np.ones(shape, bool), None
        weighing = np.tile(self.user.weighing, (shape[0], 1))
        scored = ~failed
        for b in range(shape[0]):
            record = _record(micro, b)
            column = None if record is None else self.user.accuracy_column(record.problem_type)
            if column is None:
                continue
            weighing[b, column] = 0.0
            given = values[b, :, column]
            scored[b] &= np.isfinite(given)
            found = np.where(scored[b], np.clip(given, 0.0, 1.0), 0.0)
            scores[b] = [s._replace(accuracy=float(a)) for s, a in zip(scores[b], found, strict=True)]
        terms = np.where(np.isnan(values), 0.0, values) * weighing[:, None]
        return np.where(scored, terms.sum(-1), 0.0).astype(np.float32), scored, weighing

    def excess(self) -> str | None:
        """Why the run must end, where too many calls of the user's rewards failed."""
        return None if self.user is None else self.user.failures.excess(self.user.max_failed)


def _record(micro: Microbatch, b: int) -> Record | None:
    """Of a row that was read."""
    row = micro.rows[b]
    return None if row.error is not None else row.record


def make_judge(config: ConfigDict, records: Sequence[Record] | RecordStore, user: UserValues | None = None) -> Judge:
    """The reward of a run's config, the user's own, opened before or now, tried on some of the records. Raises
    UserError."""
    user = user or open_user_values(config)
    if user is not None:
        user.try_out(records, config.reward.mode)
    return Judge(config.reward.mode, config.rl.format_weight, user)
