"""Question files as other benchmarks publish them, read as they are: a form of PUBLISHED_FORMS each.

Where a form was read: Video-Holmes github.com/TencentARC/Video-Holmes (evaluate.py), LVBench github.com/THUDM/LVBench
(lvbench/metrics), LongVideoBench github.com/longvideobench/LongVideoBench (longvideobench_dataset.py), MLVU
github.com/JUNJIE99/MLVU and huggingface.co/datasets/MLVU/MVLU, VideoMathQA lmms-eval (tasks/videomathqa) and
huggingface.co/datasets/MBZUAI/VideoMathQA, Charades-STA Gao et al. (TALL), arXiv 1705.02101, and lmms-eval
(tasks/charades_sta), TVBench github.com/daniel-cores/tvbench (infer.ipynb, vqa_dataset.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from etils import epath

from jvr1.data.records import Fault, Record, parse_record
from jvr1.data.rows import raw_rows
from jvr1.errors import UserError, shown

OPTION_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class AskedItem(NamedTuple):
    """A question of a benchmark. video: its file, below the folder of videos, with or without what it ends in. answer:
    a letter, where there are options. more: further fields of our record."""

    number: Any
    question: str
    video: str
    answer: str
    options: Sequence[str] = ()
    task: str = ""
    aspect: str = ""
    more: Mapping[str, Any] = {}


Reading: TypeAlias = Callable[[Any, str], Iterator[AskedItem]]
"""(item of a question file, the file's name without what it ends in) -> its questions; raises where it is none."""


@dataclass(frozen=True)
class Form:
    """files: of questions, all of them. folders: below the root, in one of which they lie. media: folders in there with
    the videos, of which the first that exists counts."""

    files: tuple[str, ...]
    folders: tuple[str, ...]
    media: tuple[str, ...]
    reading: Reading
    problem_type: str = "multiple choice"


# --- one function a form ----------------------------------------------------------------------------------------------


def _video_holmes(item: Any, stem: str) -> Iterator[AskedItem]:
    options = [f"{letter}. {text}" for letter, text in item["Options"].items()]
    number, kind = f"{item['video ID']}-{item['Question ID']}", item["Question Type"]
    yield AskedItem(number, item["Question"], item["video ID"], item["Answer"], options, kind, kind)


_INLINE = re.compile(r"\n\(?([A-Z])\)\s*")


def _lvbench(item: Any, stem: str) -> Iterator[AskedItem]:
    """A line is a video with its questions, whose options stand in the text as '(A) ..'; a question has several types,
    and counts in each."""
    for one in item["qa"]:
        text, *options = _INLINE.split(one["question"])
        lettered = [f"{letter}. {option}" for letter, option in zip(options[::2], options[1::2], strict=True)]
        kinds = list(one["question_type"])
        more = {"question_types": kinds}
        yield AskedItem(one["uid"], text, item["key"], one["answer"], lettered, kinds[0] if kinds else "", more=more)


def _long_video_bench(item: Any, stem: str) -> Iterator[AskedItem]:
    """Without subtitles. The test set's answers are not published."""
    answer, group = OPTION_LETTERS[item["correct_choice"]], str(item["duration_group"])
    options = _lettered(item["candidates"])
    yield AskedItem(item["id"], item["question"], item["video_path"], answer, options, item["question_category"], group)


def _mlvu(item: Any, stem: str) -> Iterator[AskedItem]:
    """The multiple-choice tasks of its dev set, a file and a folder of videos each."""
    options = item["candidates"]
    answer = OPTION_LETTERS[options.index(item["answer"])]
    number = f"{stem}/{item['video']}: {item['question']}"
    yield AskedItem(number, item["question"], f"{stem}/{item['video']}", answer, _lettered(options), stem[2:])


def _tvbench(item: Any, stem: str) -> Iterator[AskedItem]:
    """Two of its ten tasks are about a part of their video, from `start` to `end`."""
    options = [str(option) for option in item["candidates"]]
    answer = OPTION_LETTERS[options.index(str(item["answer"]))]
    number, more = f"{stem}/{item['video']}: {item['question']}", _part(item) if stem in TVBENCH_PARTS else {}
    video = f"{stem}/{item['video']}"
    yield AskedItem(number, item["question"], video, answer, _lettered(options), stem, more=more)


def _part(item: Any) -> dict[str, float]:
    return {"start": float(item["start"]), "end": float(item["end"])}


def _video_math_qa(item: Any, stem: str) -> Iterator[AskedItem]:
    kind, options = item["category"], _lettered(item["options"])
    yield AskedItem(
        item["question_id"], item["question"], item["videoID"], item["answer"], options, kind, item["length"]
    )


def _charades_sta(item: Any, stem: str) -> Iterator[AskedItem]:
    """A line is 'VIDEO START END##a sentence.', in seconds."""
    where, _, sentence = item.partition("##")
    video, start, end = where.split()
    question = f"When does the following happen in the video: {sentence.strip()}"
    yield AskedItem(f"{video} {start} {end}: {sentence.strip()}", question, video, f"[{float(start)}, {float(end)}]")


def _lettered(options: Sequence[Any]) -> list[str]:
    """'A. text' of each; a letter that an option has already stays."""
    texts = [str(option).strip() for option in options]
    if all(re.match(rf"\(?{letter}[.):]", text) for letter, text in zip(OPTION_LETTERS, texts, strict=False)):
        return texts
    return [f"{letter}. {text}" for letter, text in zip(OPTION_LETTERS, texts, strict=False)]


# --- the table --------------------------------------------------------------------------------------------------------

MLVU_TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
TVBENCH_TASKS = (
    "action_antonym", "action_count", "action_localization", "action_sequence", "egocentric_sequence",
    "moving_direction", "object_count", "object_shuffle", "scene_transition", "unexpected_action",
)  # fmt: skip
TVBENCH_PARTS = ("action_localization", "action_sequence")
PUBLISHED_FORMS = {
    "videoholmes": Form(
        ("test_Video-Holmes.json",), ("", "Benchmark", "Video-Holmes", "Video-Holmes/Benchmark"),
        ("videos", "videos_cropped", "video"), _video_holmes,
    ),
    "lvbench": Form(
        ("video_info.meta.jsonl",), ("", "LVBench", "LVBench/data", "data"), ("videos", "all_videos"), _lvbench
    ),
    "longvideobench": Form(("lvb_val.json",), ("", "LongVideoBench"), ("videos",), _long_video_bench),
    "mlvu": Form(tuple(f"json/{task}.json" for task in MLVU_TASKS), ("", "MLVU", "MLVU/MLVU"), ("video",), _mlvu),
    "videomathqa": Form(("videomathqa_mcq_test.parquet",), ("", "VideoMathQA"), ("videos",), _video_math_qa),
    "charades": Form(
        ("charades_sta_test.txt",), ("", "Charades-STA", "Charades", "charades_sta"),
        ("Charades_v1_480", "Charades_v1", "videos"), _charades_sta, "temporal grounding",
    ),
    "tvbench": Form(tuple(f"json/{task}.json" for task in TVBENCH_TASKS), ("", "TVBench"), ("video",), _tvbench),
}  # fmt: skip


# --- reading ----------------------------------------------------------------------------------------------------------


class ReadForm(NamedTuple):
    """files: paths of the question files, relative to the root. The rest as of `data.records.read_records`."""

    files: tuple[str, ...]
    records: dict[int, Record]
    faults: list[Fault]


def read_form(name: str, title: str, root: str) -> ReadForm:
    """A benchmark's questions, read below the root. Raises UserError; a faulty question is no error."""
    form = PUBLISHED_FORMS[name]
    folder, files = _find(form, title, root)
    videos = _Videos(root, folder, form.media)
    records: dict[int, Record] = {}
    faults: list[Fault] = []
    for file in files:
        for raw in _questions(form, title, root, file, videos):
            place = len(records) + len(faults)
            try:
                if isinstance(raw, UserError):
                    raise raw
                records[place] = parse_record(raw)
            except UserError as error:
                number = raw.get("problem_id") if isinstance(raw, dict) else None
                faults.append(Fault(place, number if isinstance(number, int | str) else None, str(error)))
    return ReadForm(files, records, faults)


def _find(form: Form, title: str, root: str) -> tuple[str, tuple[str, ...]]:
    """The first of the form's folders that has any of its files, and all of them."""
    for folder in form.folders:
        found = [_alternative(root, f"{folder}/{file}" if folder else file) for file in form.files]
        if any(found):
            if missing := [file for file, one in zip(form.files, found, strict=True) if not one]:
                raise UserError(f"{epath.Path(root) / folder} has no {missing[0]}, which is part of {title}")
            return folder, tuple(one for one in found if one)
    looked = ", ".join(str(epath.Path(root) / folder) for folder in form.folders)
    raise UserError(f"{title}: there is no {form.files[0]} in any of {looked}; unpack it there as it is published")


def _alternative(root: str, file: str) -> str | None:
    """The file, or one of its name with its rows as JSON."""
    stem = file.rpartition(".")[0]
    return next((one for one in (file, f"{stem}.json", f"{stem}.jsonl") if (epath.Path(root) / one).exists()), None)


class _Videos:
    """Paths of videos relative to the root. A folder is listed once."""

    def __init__(self, root: str, folder: str, media: Sequence[str]) -> None:
        names = [f"{folder}/{name}".strip("/") for name in media]
        self.root = epath.Path(root)
        self.folder = next((name for name in names if (self.root / name).is_dir()), names[0])
        self.listed: dict[str, dict[str, str]] = {}

    def path(self, video: str) -> str:
        """Of a name with or without what it ends in; where there is no such file, of an mp4."""
        below, _, name = f"{self.folder}/{video}".rpartition("/")
        if below not in self.listed:
            folder = self.root / below
            files = [one.name for one in folder.iterdir()] if folder.is_dir() else []
            self.listed[below] = {one.rpartition(".")[0]: one for one in files} | {one: one for one in files}
        ends = "" if re.search(r"\.(mp4|mkv|avi|webm|mov)$", name, re.IGNORECASE) else ".mp4"
        return f"{below}/{self.listed[below].get(name, name + ends)}"


def _questions(form: Form, title: str, root: str, file: str, videos: _Videos) -> Iterator[dict[str, Any] | UserError]:
    """A record's fields for each question, or what is wrong with it."""
    stem = epath.Path(file).stem
    for item in _items(epath.Path(root) / file, title):
        try:
            for asked in form.reading(item, stem):
                yield _fields(asked, form, title, videos)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            yield UserError(f"is not of {title}'s published form: {type(error).__name__} {shown(str(error))}")


def _fields(asked: AskedItem, form: Form, title: str, videos: _Videos) -> dict[str, Any]:
    return {
        "problem_id": asked.number,
        "problem": f"{asked.question}\n",
        "data_type": "video",
        "problem_type": form.problem_type,
        "options": list(asked.options),
        "solution": f"<answer>{asked.answer}</answer>",
        "path": videos.path(asked.video),
        "data_source": title,
        **({"task": asked.task} if asked.task else {}),
        **({"aspect": asked.aspect} if asked.aspect else {}),
        **asked.more,
    }


def _items(file: epath.Path, title: str) -> list[Any]:
    """Of a JSON array, of JSON or other lines, or of a parquet table. Raises UserError."""
    if file.suffix == ".parquet":
        return list(raw_rows(str(file)))
    try:
        text = file.read_text(encoding="utf-8-sig")
        # splitlines() breaks at U+2028 and others, which a text may hold
        lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
        if file.suffix == ".txt":
            return lines
        found = [json.loads(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, list):
        raise UserError(f"{file} is not the list of questions that {title} publishes")
    return found
