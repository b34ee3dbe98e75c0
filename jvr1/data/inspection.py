"""What is wrong or doubtful in question files: each finding by record and field, with its fix. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jvr1.data.batch import MISFIT
from jvr1.data.index_file import IndexEntry
from jvr1.data.records import DATA_TYPES, Fault, Record
from jvr1.model.media import Probe
from jvr1.problems.answers import final_answer, first_answer
from jvr1.problems.grounding import time_spans
from jvr1.problems.kinds import kind_of

GUIDE = "the page on your own data"
NAMED = 8
"""Records that a line of counts names at most."""


@dataclass(frozen=True)
class Finding:
    """Something of a record: its place in the file, its id, the field, what is wrong of it in words that follow the
    field's name, and further words that belong to this record alone."""

    row: int
    problem_id: int | str | None
    field: str
    what: str
    detail: str = ""

    @property
    def cause(self) -> str:
        """What it is counted by beside `what`: why a medium cannot be used, which side of the buckets is too small."""
        return self.detail.partition(":")[0] if self.what in (UNREADABLE, TOO_LONG) else ""

    @property
    def fix(self) -> str:
        """What to do about it."""
        own = LENGTH_FIXES if self.what == TOO_LONG else MEDIA_FIXES
        known = own.get(self.cause) or FIXES.get(self.what) or FIELD_FIXES.get(self.field)
        return known or f"write it as {GUIDE} shows"

    @property
    def counted(self) -> bool:
        """Whether a run would learn from it what it should not, or nothing: `data.max_doubtful` bounds these."""
        return self.what not in _HARMLESS and not self.unusable

    @property
    def unusable(self) -> bool:
        """Whether the record is left out, or its file refused, so that nothing is learned from it."""
        return self.what.startswith(_UNUSABLE)

    def __str__(self) -> str:
        named = "" if self.problem_id is None else f" (problem_id {self.problem_id})"
        detail = f": {self.detail}" if self.detail else ""
        return f"record {self.row}{named}, {self.field}: {self.what}{detail}"

    def as_json(self) -> dict[str, object]:
        names = ("row", "problem_id", "field", "what", "detail", "fix", "counted", "unusable")
        return {name: getattr(self, name) for name in names}


NO_TAGS, NO_END = "stands without <answer> tags", "has no </answer>"
EMPTY, NO_VALUE = "has an empty answer", "is no value"
NO_LETTERS, MIXED_LETTERS = "have no letters", "have letters out of order"
NO_OPTIONS, SAME_OPTIONS = "are none, and the question lists none", "say the same twice"
NO_THOUGHT, ANSWERED_THOUGHT = "stands without <think> tags", "holds an answer"
SAME_ID, NO_PROCESS = "is that of an earlier record", "is absent, where other records have one"
BEYOND, AFTER, NO_FRAME = "lies beyond the clip", "is after the video's end", "leaves no frame of the video"
REFUSED, UNREADABLE, TOO_LONG = "cannot be read", "cannot be used", "fits no bucket"
_UNUSABLE = (REFUSED, UNREADABLE, TOO_LONG, NO_FRAME)
_HARMLESS = frozenset((SAME_ID, NO_PROCESS, AFTER))

FIXES: Mapping[str, str] = {
    NO_TAGS: 'write it as "<answer>B</answer>"',
    NO_END: 'write it as "<answer>B</answer>"',
    EMPTY: "write what is right between <answer> and </answer>, or leave the record out",
    NO_VALUE: "write the right answer, or leave the record out",
    "names no option": "name one of `options` by its letter, as in <answer>B</answer>",
    "names several options": 'name one, or make it "multiple choice, several answers"',
    "names a letter that is no option": "name a letter that `options` have, or add the option that is missing",
    "is not one number": 'write one number in digits ("12", not "twelve" or "5-7"), or make it free-form',
    "is no interval": 'write a start before its end, "[12.5, 17.0]", in the unit that `time_unit` says',
    "is no box": 'write left, top, right, bottom, "[10, 20, 110, 220]", in the unit that `box_unit` says',
    "has a box beyond 1000": 'write it in thousandths of the picture, or set "box_unit": "pixels"',
    NO_LETTERS: 'write them as ["A. red", "B. blue"]: the prompt asks for a letter',
    MIXED_LETTERS: "letter them A, B, C, ... in their order, each once",
    NO_OPTIONS: "give `options`, or another problem_type, such as free-form",
    SAME_OPTIONS: "keep one of the two",
    NO_THOUGHT: 'write it as "<think> ... </think>", both tags once',
    ANSWERED_THOUGHT: "leave <answer> tags to `solution`, which is learned after it",
    SAME_ID: "number the records anew: rollouts and reports name them by it",
    NO_PROCESS: "give it one (jvr1 annotate writes chains of thought), or train the rest apart",
    BEYOND: "seconds count from the clip's start (of a record with `start`, from there); correct them",
    AFTER: "set `end` to the video's length or leave it out",
    TOO_LONG: "data.buckets=auto, or a larger bucket; or fewer frames or pixels (data.video, data.video_pixels)",
    REFUSED: f"write the field as {GUIDE} shows; where the file has another name for it, say so by data.fields",
    NO_FRAME: "`start` and `end` are seconds of the video, `start` before its end; correct them",
}
"""What is wrong -> what to do."""
FIELD_FIXES: Mapping[str, str] = {
    "path": "mend the file, or leave the record out",
}
"""The same where the field alone says it."""
LENGTH_FIXES: Mapping[str, str] = {
    "too many completion tokens": "a bucket with a longer completion, or data.buckets=auto with a higher "
    "data.auto.completion; or shorten its `process`",
    **{f"no {kind} bucket": "add a bucket of this kind, or data.buckets=auto" for kind in DATA_TYPES},
}
"""What the buckets lack -> what to do, where more is to be said than for all of them."""
MEDIA_FIXES: Mapping[str, str] = {
    "missing": "put the file there, or correct the path, which starts from the media root",
    "not-an-image": "set data_type to what the file is",
    "not-a-video": "set data_type to what the file is",
    "no-video-stream": "it has sound alone; leave the record out",
    "truncated": "copy the file again: it ends too early",
    "empty": "copy the file again: it has no bytes",
    "timeout": "raise data.timeout (then jvr1 index --again), or convert the file to MP4",
    "too-large": "raise data.max_decoded_mb, or make the file smaller",
    "aspect-ratio": "crop it: one side is more than 200 times the other",
    "visual placeholder": "take <|image_pad|> and <|video_pad|> out of its texts",
}
"""Cause by which a medium is dropped -> what to do."""

# --- solutions --------------------------------------------------------------------------------------------------------

_NO_VALUE = re.compile(r"[-+]?(?:nan|inf(?:inity)?|none|null|n/a)", re.I)


def gold_doubt(record: Record) -> str | None:
    """What is wrong with a record's solution; None where nothing is."""
    if not first_answer(record.solution):
        _, opened, rest = record.solution.partition("<answer>")
        return NO_TAGS if not opened else EMPTY if "</answer>" in rest else NO_END
    gold = final_answer(record.solution)
    if _NO_VALUE.fullmatch(gold):
        return NO_VALUE
    kind = kind_of(record.problem_type)
    return kind.doubt(gold, kind.given(record.options, record.further if kind.by_facts else {}))


# --- options and thoughts ---------------------------------------------------------------------------------------------

_LETTERED = re.compile(r"\s*\(?([A-Z])(?:[).:]|\s*$)")
_NAMED_CAPTION = re.compile(r"(?:caption|description|option|sentence) (?:[a-z]|\d)\b", re.I)
_LISTED = re.compile(r"(?:^|[\s(])A[).:].*[\s(]B[).:]", re.S)


def options_doubt(record: Record) -> str | None:
    """What is wrong with the options of a kind that lists them."""
    options = record.options
    if not kind_of(record.problem_type).lists_options:
        return None
    if not options:
        return None if _LISTED.search(record.problem) else NO_OPTIONS
    found = [_LETTERED.match(option) for option in options]
    if not all(found):
        return None if all(map(_NAMED_CAPTION.match, options)) else NO_LETTERS
    letters = [ord(one[1]) for one in found if one]
    if letters != list(range(letters[0], letters[0] + len(letters))):
        return MIXED_LETTERS
    texts = [option[one.end() :].strip() for option, one in zip(options, found, strict=True) if one]
    return SAME_OPTIONS if len({*filter(None, texts)}) < len([*filter(None, texts)]) else None


def process_doubt(record: Record) -> str | None:
    """What is wrong with the chain of thought."""
    if record.process is None:
        return None
    text = record.process.strip()
    if "<answer>" in text:
        return ANSWERED_THOUGHT
    whole = text.startswith("<think>") and text.endswith("</think>")
    return None if whole and text.count("<think>") == text.count("</think>") == 1 else NO_THOUGHT


# --- whole files ------------------------------------------------------------------------------------------------------


def inspect_records(records: Mapping[int, Record], *, thoughts: bool = True) -> list[Finding]:
    """All that is doubtful of a file's records, by their places in it, without a look at media. thoughts: whether
    chains of thought are learned."""
    first: dict[int | str, int] = {}
    told = any(record.process is not None for record in records.values())
    found: list[Finding] = []
    for row, record in records.items():
        doubts = [("solution", gold_doubt(record), ""), ("options", options_doubt(record), "")]
        if thoughts:
            lacking = NO_PROCESS if told and record.process is None else None
            doubts.append(("process", lacking or process_doubt(record), ""))
        before = first.setdefault(record.problem_id, row)
        if before != row:
            doubts.append(("problem_id", SAME_ID, f"record {before}"))
        found += [Finding(row, record.problem_id, field, what, more) for field, what, more in doubts if what]
    return found


_FIELD = re.compile(r"field '(\w+)'")


def inspect_faults(faults: Iterable[Fault]) -> list[Finding]:
    """Records whose form is wrong."""

    def field(fault: Fault) -> str:
        named = _FIELD.search(fault.message)
        return named[1] if named else "record"

    return [Finding(fault.index, fault.problem_id, field(fault), REFUSED, fault.message) for fault in faults]


def inspect_entries(records: Sequence[Record], entries: Sequence[IndexEntry]) -> list[Finding]:
    """What the index says of records: media that cannot be used, what fits no bucket, seconds beyond the video."""
    found = []
    for record, entry in zip(records, entries, strict=True):
        if entry.error is not None:
            found.append(Finding(entry.row, record.problem_id, *_of_error(entry.error)))
        elif len(entry.media) == 1 and not entry.media[0].is_image:
            for field, what, more in _of_times(record, entry.media[0]):
                found.append(Finding(entry.row, record.problem_id, field, what, more))
    return found


_SIDES = {"prompt tokens": "problem", "completion tokens": "process"}


def _of_error(error: str) -> tuple[str, str, str]:
    """(field, what, detail) of why a record is dropped."""
    if told := MISFIT.fullmatch(error):
        return _SIDES.get(told[1], "path"), TOO_LONG, error
    if re.fullmatch(r"no \w+ bucket", error):
        return "data_type", TOO_LONG, error
    cause, _, message = error.partition(": ")
    if cause == "empty-interval":
        return "start", NO_FRAME, message
    return "problem" if cause == "visual placeholder" else "path", UNREADABLE, error


ROUNDED = 1.0
"""Seconds by which a solution may go beyond its clip: annotations are rounded up."""


def _of_times(record: Record, video: Probe) -> Iterator[tuple[str, str, str]]:
    """(field, what, detail) of seconds that are not in the video."""
    whole = video.frames / video.fps
    if record.end is not None and record.end > whole + ROUNDED:
        yield "end", AFTER, f"{record.end:g}, of {whole:.1f} s"
    if kind_of(record.problem_type).unit != "time_unit":
        return
    in_frames = record.further.get("time_unit") == "frames"
    spans = time_spans(final_answer(record.solution), frames=in_frames)
    there = min(whole, whole if record.end is None else record.end) - (record.start or 0.0)
    most = there * video.fps if in_frames else there
    last = max((end for _, end in spans), default=0.0)
    if last > most + (ROUNDED * video.fps if in_frames else ROUNDED):
        yield "solution", BEYOND, f"{last:g}, of {most:.1f} {'frames' if in_frames else 's'}"


# --- reports ----------------------------------------------------------------------------------------------------------


def doubtful_rows(findings: Iterable[Finding]) -> set[int]:
    """Records that `data.max_doubtful` counts."""
    return {one.row for one in findings if one.counted}


def counted_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each kind of finding, the most frequent first: how many, which records, and the fix."""
    kinds: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for one in findings:
        kinds[one.field, one.what, one.cause].append(one)
    for (field, what, cause), own in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        rows = ", ".join(str(one.row) for one in own[:NAMED]) + (", ..." if len(own) > NAMED else "")
        told = f"{what}, {cause}" if cause else what
        yield f"  {field:<10} {len(own):>7}  {told} (record {rows}); {own[0].fix}"
