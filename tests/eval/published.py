"""How the benchmarks' own code scores an answer, written anew from it: 1, 0, or None where it leaves the verdict to a
language model or the question out. `gold` is a letter, `options` the lettered options of a question.

Sources, by repository and file, as read in November 2026:
MVBench             OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb (check_ans)
MVBench, lmms-eval  EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/mvbench/utils.py (mcq_acc)
TempCompass         llyx97/TempCompass, eval_multi-choice.py, eval_yes_no.py, eval_caption_matching.py
VideoMMMU           EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/videommmu/utils.py and _task_utils/mmmu_mcq_utils.py
MMVU, lmms-eval     EvolvingLMMs-Lab/lmms-eval, lmms_eval/tasks/mmvu/utils.py (evaluate_with_rule_based)
Video-MME           BradyFU/Video-MME, evaluation/eval_your_results.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rule = Callable[[str, str, Sequence[str]], int | None]


def text_of(option: str) -> str:
    return option.split(". ", 1)[1]


def gold_option(gold: str, options: Sequence[str]) -> str:
    return next(option for option in options if option.startswith(f"{gold}. "))


def mvbench(answer: str, gold: str, options: Sequence[str]) -> int:
    """The model's turn is opened with '('; of its first line the first word counts, which must lie in '(c)' when its
    points are dropped, or hold it."""
    lines = answer.strip().split("\n")
    word = f"({lines[0]}".lower().split(" ")[0]
    label = f"({gold.lower()})"
    return int(word.replace(".", "") in label or label in word)


_PUNCTUATION = ';/[]"{}()=+\\_->' + "<@`,?!"


def mvbench_lmms(answer: str, gold: str, options: Sequence[str]) -> int:
    """'c. text' names C; of anything else the first lone letter a to e, of either case, once marks are blanks."""
    if labelled := re.match(r"([a-e])\.\s*.", answer.strip(), re.I):
        return int(labelled[1].upper() == gold)
    text = re.sub(r"[\n\t]", " ", answer).strip()
    given, joined = text, re.search(r"\d,\d", text)
    for mark in _PUNCTUATION:
        at_a_blank = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if at_a_blank or joined else " ")
    # they pass re.UNICODE for the count of replacements: 32 at most
    text = re.sub(r"\.(?!\d)", "", text, count=32)
    lone = re.search(r"\b[a-e]\b", text, re.I)
    return int(lone is not None and lone[0].upper() == gold)


def tempcompass_choice(answer: str, gold: str, options: Sequence[str]) -> int | None:
    """The option as it stands, its letter alone, or the letter with a point or bracket in the first place."""
    if answer == gold_option(gold, options):
        return 1
    if re.match(r"[A-D](?:$|[.)])", answer) and not answer.endswith("\n"):
        return int(answer[0] == gold)
    return None


def tempcompass_yes_no(answer: str, gold: str, options: Sequence[str]) -> int | None:
    """How the text begins, in either case; 'not' and 'none' begin with no."""
    given = next((word for word in ("yes", "no") if answer.lower().startswith(word)), None)
    return None if given is None else int(given == text_of(gold_option(gold, options)).lower())


def tempcompass_caption(answer: str, gold: str, options: Sequence[str]) -> int | None:
    """A caption as it stands ('Caption A: ..'), its sentence, also after ') ', or its name, with points or not."""
    right = gold_option(gold, options)
    tail = answer.split(") ")[1] if ") " in answer else answer
    for option in options:
        name, sentence = text_of(option).split(": ")[:2]
        if answer in (text_of(option), sentence, name) or tail == sentence or answer.replace(".", "") == name:
            return int(option == right)
    return None


def videommmu_choice(answer: str, gold: str, options: Sequence[str]) -> int:
    """Letters with a point or colon, else in brackets, else before a blank, else, in more than five words, the texts
    of options, taken without letters; of several the one that stands last."""
    if not answer:
        return 0
    for mark in ",.!?;:'":
        answer = answer.strip(mark)
    text, letters = f" {answer} ", [option[0] for option in options]
    pointed = [x for x in letters if f"{x}." in text]
    found = pointed + [x for x in letters if f"{x}:" in text]
    form = "{}." if pointed else "{}:"
    if not found:
        form, found = "({})", [x for x in letters if f"({x})" in text]
    if not found:
        form, found = " {} ", [x for x in letters if f"{x} " in text]
    if not found and len(text.split()) > 5:
        places = {option[0]: text.lower().rfind(text_of(option).lower()) for option in options}
        found = [max(places, key=lambda x: places[x])] if max(places.values()) >= 0 else []
    if len(found) < 2:
        return int(found == [gold])
    return int(max(found, key=lambda x: text.rfind(form.format(x))) == gold)


_KEYS = tuple(
    f"{key} "
    for key in (
        "could be", "so", "is", "thus", "therefore", "final", "answer", "result", "are", "in total", "total",
        "identify", "recognize", "calculated as", "counted as", "measured as", "observed as", "concluded as",
        "found to be", "equals", "determined to be", "number of", "value is", "adds up to", "have", "has",
    )
)  # fmt: skip
_NUMBER = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def videommmu_open(answer: str, gold: str, options: Sequence[str] = ()) -> int:
    """Any number, to two decimals, in what follows the last key word of a line; a gold text within it."""
    if not answer:
        return 0
    lines, parts = answer.strip().strip(".").lower().split("\n"), []
    for i, line in enumerate(lines):
        keys = (*_KEYS, "=") if i == len(lines) - 1 else _KEYS
        tails = [line.split(key)[-1].strip() for key in keys if key in line]
        if tail := min((t for t in tails if t), key=len, default=""):
            parts += [tail] if tail not in list(":,.!?;'") else []
    parts = parts or [answer.strip().strip(".").lower()]
    wanted = _two_decimals(gold)
    found = [number for part in parts for form in _NUMBER for number in re.findall(form, part)]
    if wanted is not None:
        return int(wanted in [_two_decimals(text) for text in (*parts, *found)])
    return int(any(gold.strip().lower() in part for part in parts if _two_decimals(part) is None))


def _two_decimals(text: str) -> float | None:
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


def mmvu_lmms(answer: str, gold: str, options: Sequence[str]) -> int:
    """The letter anywhere as a word of its own, in either case; or the option's text anywhere; or the letter within
    any word, with one of the option's longer words anywhere."""
    if re.search(rf"\b{gold}\b", answer, re.I):
        return 1
    text, given = text_of(gold_option(gold, options)).strip().lower(), answer.strip().lower()
    longer = [word for word in (w.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") for w in text.split()) if len(word) > 2]
    return int(text in given or (gold.lower() in given and any(word in given for word in longer)))


_OPENINGS = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option isThe correct option is", "Best answer:Best option:",
)  # fmt: skip


def videomme(answer: str, gold: str, options: Sequence[str]) -> int | None:
    """The first capital A to D once certain openings are gone, within a word, too. Without one the question is left
    out of the mean. (Two commas are missing in the list: two pairs of openings are one each.)"""
    for opening in _OPENINGS:
        answer = answer.replace(opening, "")
    letter = re.search("[ABCD]", answer)
    return None if letter is None else int(letter[0] == gold)
