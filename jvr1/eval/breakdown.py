"""How the benchmarks break their scores down, and where Video-R1's files say what a question belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from jvr1.data.records import Record


class Breakdown(NamedTuple):
    """by: what the groups are. groups: in the benchmark's order. group: a record's; '' where nothing says; several
    where it counts in each."""

    by: str
    groups: tuple[str, ...]
    group: Callable[[Record], str | tuple[str, ...]]


def _named(*texts: str) -> str:
    """The first text that is one, as the benchmarks write it: 'Attribute change' is attribute_change."""
    return next((re.sub(r"[\s-]+", "_", text.strip().casefold()) for text in texts if text.strip()), "")


def by_aspect(by: str, *groups: str) -> Breakdown:
    """By a record's `aspect`, where it is one of the groups."""

    def group(record: Record) -> str:
        name = _named(record.aspect)
        return name if name in groups else ""

    return Breakdown(by, groups, group)


DURATION = by_aspect("duration", "short", "medium", "long")
DURATION_GROUP = by_aspect("duration group", "15", "60", "600", "3600")
"""LongVideoBench's, in seconds: 8 to 15, 15 to 60, 180 to 600, 900 to 3,600."""


def _holmes_type(record: Record) -> str:
    return record.aspect if record.aspect in HOLMES_TYPES else ""


HOLMES_TYPES = ("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")
HOLMES_TYPE = Breakdown("question type", HOLMES_TYPES, _holmes_type)
"""Video-Holmes's seven, arXiv 2505.21374."""


def _lvbench_types(record: Record) -> tuple[str, ...]:
    said = record.further.get("question_types")
    return tuple(name for name in LVBENCH_TYPES if isinstance(said, list) and name in said)


LVBENCH_TYPES = (
    "entity recognition", "event understanding", "key information retrieval", "temporal grounding", "reasoning",
    "summarization",
)  # fmt: skip
LVBENCH_TYPE = Breakdown("question type", LVBENCH_TYPES, _lvbench_types)
"""LVBench's six; a question counts in each that it has, as in its own lvbench/metrics."""


def _dimension(record: Record) -> str:
    name = _named(record.aspect)
    name = "order" if name == "event_order" else name
    return name if name in DIMENSIONS else ""


DIMENSIONS = ("action", "direction", "speed", "order", "attribute_change")


def _track(record: Record) -> str:
    """What the file names, else by its numbering: Video-R1's 900 questions are 300 of each, in the order of the tracks
    below, and their videos are called '<split>_<Subject>_<number>'."""
    for name in (_named(record.aspect), _named(record.task)):
        if name in TRACKS:
            return name
    published = _VIDEO_OF_MMMU.search(_path(record)) is not None
    return _place(record, _PUBLISHED_TRACKS, 300) if published else ""


TRACKS = ("perception", "comprehension", "adaptation")
_PUBLISHED_TRACKS = ("adaptation", "comprehension", "perception")
_VIDEO_OF_MMMU = re.compile(r"(?:^|/)(?:dev|test|validation|new)_[A-Z]\w*_\d+\.\w+$")


def _mvbench_task(record: Record) -> str:
    """What the file names, else by its numbering: 4,000 questions, 200 of each task in alphabetical order. A number
    whose video does not lie in the task's folder says nothing."""
    if (name := _named(record.task)) in MVBENCH_FOLDERS:
        return name
    name = _place(record, MVBENCH_TASKS, 200)
    return name if name and f"/{MVBENCH_FOLDERS[name]}/" in f"/{_path(record)}" else ""


MVBENCH_FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception",
    "action_localization": "sta",
    "action_prediction": "star",
    "action_sequence": "star",
    "character_order": "perception",
    "counterfactual_inference": "clevrer",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa",
    "fine_grained_action": "Moments_in_Time_Raw",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer",
    "moving_count": "clevrer",
    "moving_direction": "clevrer",
    "object_existence": "clevrer",
    "object_interaction": "star",
    "object_shuffle": "perception",
    "scene_transition": "scene_qa",
    "state_change": "perception",
    "unexpected_action": "FunQA_test",
}
"""MVBench's tasks and the folder in which its videos of each lie."""
MVBENCH_TASKS = tuple(MVBENCH_FOLDERS)


def _discipline(record: Record) -> str:
    """By the subject, in whose folder the video lies: videos/Chemistry/0.mp4."""
    folder = _path(record).rpartition("/")[0].rpartition("/")[2]
    return next((name for name, subjects in DISCIPLINES.items() if folder in subjects), "")


DISCIPLINES = {
    "Science": {
        "Astronomy", "Biology", "Chemistry", "Electromagnetism", "Geography", "Materials_Science", "Mechanics",
        "Modern_Physics", "Neurobiology", "Thermodynamics",
    },
    "Healthcare": {"Basic_Medicine", "Clinical_Medicine", "Dentistry", "Pharmacy", "Preventive_Medicine"},
    "Humanities & Social Sciences": {"Art", "Economics", "History", "Law", "Literature", "Management"},
    "Engineering": {
        "Biomedical_Engineering", "Civil_Engineering", "Computer_Science", "Electrical_Engineering",
        "Electronics_and_Communication", "Mechanical_Engineering",
    },
}  # fmt: skip
"""MMVU's four disciplines and their subjects."""


def _path(record: Record) -> str:
    return record.path if isinstance(record.path, str) else ""


def _place(record: Record, groups: tuple[str, ...], size: int) -> str:
    """The group of a number that counts from 1, where each group has `size` questions."""
    number = record.problem_id
    return groups[(number - 1) // size] if isinstance(number, int) and 0 < number <= size * len(groups) else ""


DIMENSION = Breakdown("dimension", DIMENSIONS, _dimension)
TRACK = Breakdown("track", TRACKS, _track)
MVBENCH_TASK = Breakdown("task", MVBENCH_TASKS, _mvbench_task)
DISCIPLINE = Breakdown("discipline", tuple(DISCIPLINES), _discipline)
