"""The user's own rewards of a run together: their names and weights, which is an accuracy, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from jvr1.data.records import Record
from jvr1.data.store import RecordStore
from jvr1.errors import UserError, shown
from jvr1.problems.answers import final_answer
from jvr1.problems.kinds import KINDS
from jvr1.rl.reward_rows import CAUSES, RewardRow
from jvr1.rl.rewards import Score, score
from jvr1.rl.user_reward import Outcome, UserReward

ENOUGH = 64
"""Rows of which a share of failures says something."""


@dataclass
class Failures:
    """Rows that were asked about and those that failed, by cause: in all, and since they were last taken down."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    kinds: set[tuple[str, str, str]] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def note(self, spec: str, outcomes: Iterable[Outcome], then: str) -> None:
        """then: what becomes of a row that failed, for the first failure of a kind."""
        for one in outcomes:
            self.rows += 1
            if not one.cause:
                continue
            self.counts[one.cause] += 1
            kind = (spec, one.cause, one.error.partition(":")[0] if one.cause == "exception" else "")
            if kind not in self.kinds:
                self.kinds.add(kind)
                self.told.append(f"reward.user {spec} failed ({one.cause}): {' '.join(one.error.split())}; {then}")

    def take(self) -> dict[str, int]:
        """Failures since this was last asked, by every cause."""
        new = {cause: self.counts[cause] - self.taken[cause] for cause in CAUSES}
        self.taken = self.counts.copy()
        return new

    def take_told(self) -> list[str]:
        """A line for each kind of failure that was not seen before."""
        new, self.told = self.told, []
        return new

    def excess(self, most: float | int) -> str | None:
        """Why the run must end, where a larger share than `most` failed."""
        failed = sum(self.counts.values())
        if self.rows < ENOUGH or failed <= most * self.rows:
            return None
        causes = ", ".join(f"{count} {cause}" for cause, count in self.counts.most_common())
        return f"reward.user failed for {failed} of {self.rows} rows ({causes}); reward.max_failed allows {most:.1%}"


class UserValues:
    """What several `UserReward`s give rows.

    weight: of each value; weights: of those of some names. accuracies: problem type -> the value that is its accuracy.
    on_failure: what a failed call scores; None: its row is not scored. Errors: UserError for what cannot be loaded.
    """

    def __init__(
        self,
        rewards: Sequence[UserReward],
        *,
        weight: float | int = 1.0,
        weights: Mapping[str, float] = MappingProxyType({}),
        accuracies: Mapping[str, str] = MappingProxyType({}),
        on_failure: float | int | None = None,
        max_failed: float | int = 1.0,
    ):
        self.rewards, self.accuracies, self.on_failure = tuple(rewards), dict(accuracies), on_failure
        self.weight, self.weights, self.max_failed = weight, dict(weights), max_failed
        self.failures = Failures()
        self._names: list[tuple[str, ...]] = [() for _ in rewards]
        for name in accuracies:
            if name not in KINDS:
                raise UserError(f"reward.user_accuracy names the problem type {name!r}; use one of {', '.join(KINDS)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all values, in the order of their columns; known once `try_out` was called."""
        return tuple(name for own in self._names for name in own)

    @property
    def weighing(self) -> Float[np.ndarray, " K"]:
        return np.asarray([self.weights.get(name, self.weight) for name in self.names], np.float32)

    def accuracy_column(self, problem_type: str) -> int | None:
        """Which value is the accuracy of a problem type; None: the run's own."""
        name = self.accuracies.get(problem_type)
        return None if name is None else self.names.index(name)

    def try_out(self, records: Sequence[Record] | RecordStore, mode: str) -> None:
        """Calls every reward on an invented completion, right and without an answer, of a record of each problem type.

        Its names are then known. Raises UserError for anything that goes wrong, and ends their processes.
        """
        try:
            self._try_out(records, mode)
        except UserError:
            self.close()
            raise

    def _try_out(self, records: Sequence[Record] | RecordStore, mode: str) -> None:
        rows = [invented(record, text, mode) for record in first_of_types(records) for text in completions_of(record)]
        for at, reward in enumerate(self.rewards):
            names: dict[str, None] = {}
            for row, one in zip(rows, reward(rows), strict=True):
                if one.cause:
                    raise UserError(
                        f"reward.user {reward.spec!r} failed on a first try, the {row.problem_type} record "
                        f"{row.problem_id!r} with the completion {shown(row.completion)} ({one.cause}): "
                        + " ".join(one.error.split())
                    )
                names |= dict.fromkeys(one.values)
            self._names[at] = tuple(names)
        for name in self.names:
            if self.names.count(name) > 1:
                raise UserError(f"two values of reward.user have the name {name!r}; rename one")
        for setting, wanted in (("user_weights", self.weights), ("user_accuracy", self.accuracies.values())):
            for name in wanted:
                if name not in self.names:
                    raise UserError(
                        f"reward.{setting} names {name!r}; on a first try the values of reward.user were "
                        f"{', '.join(self.names)}"
                    )

    def __call__(self, rows: Sequence[RewardRow]) -> tuple[Float[np.ndarray, "N K"], Bool[np.ndarray, " N"]]:
        """Values, nan where a reward has no opinion, and the rows that a failed call leaves unscored."""
        given: list[list[Outcome]] = []
        if rows:
            with ThreadPoolExecutor(len(self.rewards)) as pool:
                given = list(pool.map(lambda reward: reward(rows), self.rewards))
        columns, failed = [], np.zeros(len(rows), bool)
        then = "the row is not scored" if self.on_failure is None else f"the row scores {self.on_failure:g}"
        for reward, names, outcomes in zip(self.rewards, self._names, given, strict=False):
            checked = [self._checked(row, one, names) for row, one in zip(rows, outcomes, strict=True)]
            self.failures.note(reward.spec, checked, then)
            failed |= np.asarray([bool(one.cause) for one in checked])
            columns += [[self._value(one, name) for one in checked] for name in names]
        values = np.asarray(columns, np.float32).reshape(len(self.names), len(rows)).T
        return values, failed if self.on_failure is None else np.zeros_like(failed)

    def _value(self, one: Outcome, name: str) -> float | int:
        given = self.on_failure if one.cause else one.values.get(name)
        return float("nan") if given is None else given

    def _checked(self, row: RewardRow, one: Outcome, names: Sequence[str]) -> Outcome:
        """With what is wrong of a value by its name as a failure."""
        for name, value in one.values.items():
            if name not in names:
                told = f"it gave {name!r}, which it did not give when it was tried before the first step"
                return Outcome(cause="value", error=told)
            if value is not None and self.accuracies.get(row.problem_type) == name and not 0 <= value <= 1:
                told = f"it gave {value:g} as {name!r}, an accuracy, which must be from 0 to 1"
                return Outcome(cause="value", error=told)
        return one

    def close(self) -> None:
        for reward in self.rewards:
            reward.close()


def completions_of(record: Record) -> tuple[str, str]:
    """Invented: with the right answer, and without any."""
    right = final_answer(record.solution) or record.solution.strip()
    return f"<think>A first try.</think>\n<answer>{right}</answer>", "A first try."


def first_of_types(records: Sequence[Record] | RecordStore, most: int = 2048) -> list[Record]:
    """A record of each problem type among `most` of the records, spread over them."""
    found: dict[str, Record] = {}
    for number in range(0, len(records), max(1, len(records) // most)):
        found.setdefault(records[number].problem_type, records[number])
    return list(found.values())


def invented(record: Record, completion: str, mode: str) -> RewardRow:
    one = score_of(record, completion, mode)
    return row_of(record, completion, one, tokens=len(completion.split()), ended=True, frames="ordered", step=0)


def score_of(record: Record, completion: str, mode: str) -> Score:
    """The run's own score of a completion."""
    return score(completion, record.solution, record.problem_type, mode, record.options, facts=record.further)


def row_of(
    record: Record, completion: str, one: Score, *, tokens: int, ended: bool, frames: str, step: int
) -> RewardRow:
    """What a reward sees of a completion."""
    return RewardRow(
        completion=completion,
        answer=final_answer(completion) or None,
        gold=record.solution,
        gold_answer=final_answer(record.solution) or record.solution.strip(),
        accuracy=one.accuracy,
        format=one.format,
        tokens=tokens,
        ended=ended,
        frames=frames,
        step=step,
        problem_id=record.problem_id,
        problem=record.problem,
        problem_type=record.problem_type,
        data_type=record.data_type,
        data_source=record.data_source,
        options=record.options,
        path=record.path,
        duration=record.seconds,
        extra=record.further,
    )


def open_user_values(config: ConfigDict) -> UserValues | None:
    """Of a run's config; None where it names no reward of the user's."""
    reward = config.reward
    if not reward.user:
        return None
    specs = [spec.strip() for spec in reward.user.split(",") if spec.strip()]
    how = {"timeout": reward.user_timeout, "concurrency": reward.user_concurrency}
    return UserValues(
        [UserReward(spec, **how) for spec in specs],
        weight=reward.user_weight,
        weights={name: float(weight) for name, weight in map(named_setting, reward.user_weights)},
        accuracies=dict(map(named_setting, reward.user_accuracy)),
        on_failure=reward.user_failure,
        max_failed=reward.max_failed,
    )


def named_setting(text: str) -> tuple[str, str]:
    """'name=value' of a setting."""
    name, _, value = text.rpartition("=")
    return name.strip(), value.strip()
