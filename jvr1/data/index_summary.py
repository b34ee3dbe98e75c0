"""What an index came to: how many of its records are kept, what was dropped and why, what padding costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jvr1.data.batch import BUCKET_AXES, MAX_BUCKETS, Bucket
from jvr1.data.fitting import Misfit, misfits, round_prompt
from jvr1.data.index_file import IndexEntry


@dataclass(frozen=True)
class BucketUse:
    """How a bucket is used: records in it, their prompt tokens in all, its prompt length (None: not known)."""

    records: int
    tokens: int
    length: int | None

    @property
    def padding(self) -> float | None:
        """Expected share of padding among the bucket's prompt tokens."""
        return None if self.length is None else 1 - self.tokens / (self.records * self.length)


@dataclass(frozen=True)
class Example:
    """A record that was dropped: its row and what was wrong with it, '' where the cause says all."""

    row: int
    message: str

    def __str__(self) -> str:
        told = self.message if len(self.message) <= _SHOWN else f"{self.message[: _SHOWN - 60]} .. {self.message[-56:]}"
        return f"such as record {self.row}{': ' if told else ''}{told}"


_SHOWN = 240


@dataclass(frozen=True)
class IndexSummary:
    """Of an index: records, why some are dropped (cause -> number, an example of each), use of the buckets."""

    records: int
    dropped: Mapping[str, int]
    examples: Mapping[str, Example]
    buckets: Mapping[str, BucketUse] = field(default_factory=dict)
    misfits: Mapping[str, Sequence[Misfit]] = field(default_factory=dict)

    @property
    def padding(self) -> float | None:
        """Expected share of padding among all prompt tokens."""
        used = self.buckets.values()
        if not used or any(use.length is None for use in used):
            return None
        return 1 - sum(use.tokens for use in used) / sum(use.records * (use.length or 0) for use in used)

    def __str__(self) -> str:
        return self.told("kept")

    def told(self, kept_as: str, *, buckets: bool = True) -> str:
        """kept_as: what became of those not dropped; an evaluation that has only measured them keeps none yet. buckets:
        whether these are listed too."""
        kept = self.records - sum(self.dropped.values())
        lines = [f"{self.records} records, {kept} {kept_as}, {self.records - kept} dropped"]
        for cause, count in sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"  dropped {count:>8}  {cause} ({self.examples[cause]})")
            for one in self.misfits.get(cause, ()):
                needed = f"{one.least} to {one.most}" if one.least < one.most else f"{one.most}"
                lines.append(f"{'':18}  {one.records} of kind {one.kind} need {needed}, {one.allowed} are allowed")
        for name, use in sorted(self.buckets.items()) if buckets else ():
            share = f", {use.padding:.1%} padding of {use.length}" if use.padding is not None else ""
            mean = use.tokens / use.records
            lines.append(f"  bucket  {use.records:>8}  {name}: {mean:.0f} prompt tokens on average{share}")
        if self.padding is not None and buckets:
            lines.append(f"expected padding of prompts: {self.padding:.1%}")
        return "\n".join(lines)


def summarise_index(entries: Sequence[IndexEntry], prompt_lengths: Mapping[str, int] | None = None) -> IndexSummary:
    """What was dropped and why, how the data falls into buckets, and with their prompt lengths the expected padding."""
    dropped = [(entry.cause or "no-bucket", entry) for entry in entries if entry.bucket is None]
    rows = Counter(entry.bucket for entry in entries if entry.bucket is not None)
    tokens: Counter[str] = Counter()
    for entry in entries:
        if entry.bucket is not None:
            tokens[entry.bucket] += entry.prompt_tokens
    lengths = prompt_lengths or {}
    return IndexSummary(
        len(entries),
        Counter(cause for cause, _ in dropped),
        {cause: Example(e.row, (e.error or "").partition(": ")[2]) for cause, e in reversed(dropped)},
        {name: BucketUse(rows[name], tokens[name], lengths.get(name)) for name in rows},
        misfits(entries),
    )


def keeps_them(
    summary: IndexSummary,
    buckets: Sequence[Bucket],
    most_prompt: int,
    most_completion: int,
    *,
    drawn: Collection[str],
    fitted: bool,
    trained: bool,
) -> Iterator[str]:
    """Which override would keep what fits no bucket, a line each. most_prompt, most_completion: what buckets that are
    fitted may have. drawn: kinds that a run asks for. fitted: whether the buckets were fitted, so that nothing but
    these bounds is to be raised. trained: whether answers are learned; else completions stay as long as they may be
    now."""
    needs = [one.held_by for found in summary.misfits.values() for one in found if one.kind in drawn]
    lacking = {cause.split()[1] for cause in summary.dropped if re.fullmatch(r"no \w+ bucket", cause)}
    kinds = {need.kind for need in needs} | {kind for kind in lacking if kind in drawn}
    longest = max((b.completion for b in buckets), default=most_completion)
    for kind in sorted({need.kind for need in needs}) if len(buckets) < MAX_BUCKETS and not fitted else ():
        own = [need for need in needs if need.kind == kind]
        steps, windows, prompt, completion = (max(getattr(n, side) for n in own) for side in BUCKET_AXES)
        completion = max(completion, *(b.completion for b in buckets if b.kind == kind))
        row = (kind, steps, windows, round_prompt(prompt), completion)
        yield f"  one bucket more would hold those of kind {kind}: {row}"
    if not kinds:
        return
    overrides = [] if fitted else ["--config.data.buckets=auto"]
    if (prompt := max((n.prompt for n in needs), default=0)) > most_prompt:
        overrides.append(f"--config.data.auto.prompt={prompt}")
    if trained and (completion := max((n.completion for n in needs), default=0)) > most_completion:
        overrides.append(f"--config.data.auto.completion={completion}")
    elif not trained and not fitted and longest != most_completion:
        overrides.append(f"--config.data.auto.completion={longest}")
    if overrides:
        yield f"  {' '.join(overrides)} keeps all of kind {', '.join(sorted(kinds))}"
