"""Which questions are asked in which shape: suites indexed, put into buckets; those that cannot be, and why."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jvr1.data.batch import Bucket, Need, choose_bucket
from jvr1.data.encode import Encoder
from jvr1.data.fitting import fit_buckets, need_of
from jvr1.data.index import with_seconds
from jvr1.data.index_file import IndexEntry
from jvr1.data.records import Record
from jvr1.errors import UserError
from jvr1.eval.report import AskedSuite
from jvr1.eval.suites import Suite
from jvr1.questions.replies import Question


@dataclass(frozen=True)
class EvaluationPlan:
    """records: of all suites in one sequence, `places` where each stands (suite, index in its file). rows: numbers of
    those asked, by bucket, the largest first. dropped: the others by number, with their reason."""

    suites: tuple[Suite, ...]
    encoder: Encoder
    records: list[Record]
    places: list[tuple[int, int]]
    rows: dict[Bucket, list[int]]
    dropped: dict[int, Question]

    def asked(self, found: Mapping[int, Question]) -> list[AskedSuite]:
        """Questions with what was found of each, by suite and in the order of its file."""
        questions: list[dict[int, Question]] = [{} for _ in self.suites]
        for number, (suite, index) in enumerate(self.places):
            questions[suite][index] = found[number]
        return [AskedSuite(suite, own) for suite, own in zip(self.suites, questions, strict=True)]


Index = Callable[[str, Sequence[Record], Mapping[str, Any]], list[IndexEntry]]
"""(file, its records, the stamp of what they were read from) -> one measured entry a record."""


def plan_evaluation(suites: Sequence[Suite], encoder: Encoder, index_of: Index, *, fitted: bool) -> EvaluationPlan:
    """Measures questions and puts them into buckets. fitted: buckets are made for them, else they are the encoder's.
    Raises UserError when no question can be asked."""
    records: list[Record] = []
    places: list[tuple[int, int]] = []
    needs: dict[int, Need] = {}
    reasons: dict[int, str] = {}
    for at, suite in enumerate(suites):
        own = list(suite.records.values())
        entries = index_of(suite.file, own, suite.stamp) if own else []
        for index, record, entry in zip(suite.records, with_seconds(own, entries), entries, strict=True):
            number = len(records)
            records.append(record)
            places.append((at, index))
            need = need_of(entry)
            if need is None:
                reasons[number] = entry.error or "unknown"
            else:
                needs[number] = need
    if fitted and needs:
        completion = encoder.buckets[0].completion
        buckets = fit_buckets(list(needs.values()), completion, encoder.model.vision.units)
        encoder = dataclasses.replace(encoder, buckets=buckets)
    rows: dict[Bucket, list[int]] = defaultdict(list)
    for number, need in needs.items():
        bucket, reason = choose_bucket(need, encoder.buckets, encoder.model)
        if bucket is None:
            reasons[number] = reason or "no bucket"
        else:
            rows[bucket].append(number)
    if not rows:
        causes = Counter(reason.partition(":")[0] for reason in reasons.values()).most_common()
        counted = ", ".join(f"{n} {cause}" for cause, n in causes)
        example = next(iter(reasons.values()))
        raise UserError(f"no question of {suites[0].file} can be asked ({counted}), the first: {example}")
    ordered = {bucket: rows[bucket] for bucket in encoder.buckets if bucket in rows}
    dropped = {n: Question(records[n], reason, number=n) for n, reason in reasons.items()}
    return EvaluationPlan(tuple(suites), encoder, records, places, ordered, dropped)
