"""Reading a model's answer: the tagged text, option letters, words of any script (numbers: `problems.quantities`)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from jvr1.problems.quantities import unwrapped
from jvr1.problems.units import UNSPACED

_PAIR = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def first_answer(text: str) -> str:
    """What the first `<answer>` encloses, stripped; '' without a pair (Video-R1 `extract_answer`).

    Plain searches: the reference's expression takes cubic time on an open tag followed by blanks.
    """
    _, opened, rest = text.partition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if opened and closed else ""


def final_answer(text: str) -> str:
    """What the last pair of answer tags encloses, those after the thinking first; '' without a pair."""
    after = text.partition("</think>")[2]
    pairs = _PAIR.findall(after) or _PAIR.findall(text)
    return pairs[-1].strip() if pairs else ""


def tidy(text: str) -> str:
    """One way to write a text: full-width forms, fractions, powers, minus signs, LaTeX wrappers and blanks."""
    out, raised = [], False
    for char in text:
        kind = unicodedata.decomposition(char).partition(">")[0]
        # compatibility forms would glue: 1½ to 11/2, 10² to 102
        mark = {"<fraction": " ", "<super": "" if raised else "^"}.get(kind, "")
        raised = kind == "<super"
        out.append(mark + char)
    text = unicodedata.normalize("NFKC", "".join(out)).translate(_SAME)
    text = unwrapped(re.sub(r"\\[dtc]?frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2", text))
    return " ".join(text.replace("\\%", "%").split())


def plain(text: str) -> str:
    """A text to compare as such: neither case nor outer marks count."""
    return tidy(text).casefold().strip(" .!?,;:*_`'\"")


_SAME = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
)


# --- option letters ---------------------------------------------------------------------------------------------------

_BRACKETS = str.maketrans(dict.fromkeys("【〔「『［", "(") | dict.fromkeys("】〕」』］", ")"))
_OPENING = re.compile(
    r"(?:the )?(?:(?:final|correct|best|right) )?(?:answer|option|choice)(?: is\b)? ?[:=]?(?: ?(?:option|choice)\b)? ?",
    re.I,
)
# "I think the answer is A", 答案：A, 选A; what is said last counts
_STATED = re.compile(
    r"(?<![\w'])(?:answer|ans)\b(?: (?:must|should|would|will) be| is| was)?\.? ?[:=]? ?(?:(?:option|choice)\b ?)?"
    r"|(?:答案|选项)(?:应该|应)?(?:是|为)?[:=]? ?|(?<!不)(?<!挑)(?:应选|故选|选择|选)[:=]? ?",
    re.I,
)
_LETTER = re.compile(r"[(\[]{0,2}([A-Za-z])[)\]]{0,2}[.:]?")
_BETWEEN = re.compile(r"(?:\s|[,;/&|+、；，]|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|[和或及与])+", re.I)
_LABEL = re.compile(r"(?:[(\[]([A-Za-z])[)\]][.:]?|([A-Za-z])(?:[)\].:,、]| [-\u2014]+ |\s*\n))")
_FURTHER = re.compile(r"(?:(?<=\n)|(?<=\s))(?:\(([A-Z])\)|([A-Z])[.):])(?=\s)")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_VERDICT = re.compile(r"\s*(?:is|isn't|was|wasn't|are|can't|cannot|can|seems|would|and|or|but|not|nor)\b", re.I)
_STANDS_ALONE = re.compile(r"\s*(?:[.,;!)。，；]|\n|$|(?:because|since|as)\b)", re.I)
_CLEAR = " \n*_`'\"$"


def option_letters(text: str) -> frozenset[str]:
    """The options an answer names, upper case: 'A', 'a.', '(A)', 'A. text', 'Option A' name A; 'A or B' names both.

    Where an answer is stated ('the answer is A', 答案：A) the last statement counts. Empty where none is named or it is
    doubtful which; a list of labels names all of them.
    """
    text = _lines(text)
    *_, stated = [None, *_STATED.finditer(text)]
    if stated and (tail := text[stated.end() :].lstrip(_CLEAR)):
        named = _named(tail, alone=True)
        if named or re.search(r"\bnot\b|n't\b|不", tail):
            return named
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    return _named(text.strip(_CLEAR), alone=False)


def _named(text: str, *, alone: bool) -> frozenset[str]:
    """The letters at the beginning of a text. alone: a bare letter may be followed by a clause."""
    first = text.partition("\n")[0] if alone else text
    if letters := _letters(first.strip(_CLEAR + ".。!")):
        return letters
    label = _LABEL.match(text)
    if label:
        letter, tail = label[1] or label[2], text[label.end() :]
    elif alone and (bare := re.match(r"([A-Z])(?![\w'])", text)) and _STANDS_ALONE.match(text, bare.end()):
        letter, tail = bare[1], text[bare.end() :]
    else:
        return frozenset()
    if _VERDICT.match(tail):
        return frozenset()
    named = {letter.upper()} | {m[1] for m in _BRACKETED.finditer(tail)}
    further = {m[1] or m[2] for m in _FURTHER.finditer(tail)}
    if chr(ord(letter.upper()) + 1) in further:  # a list of options, not the W. of a name
        named |= further
    return frozenset(named)


def _letters(text: str) -> frozenset[str]:
    """The letters of a text that holds nothing else: 'A', '(a)', 'A, C', 'A and C', 'AC'."""
    if re.fullmatch(r"[A-J]{2,5}", text) and list(text) == sorted(set(text)):
        return frozenset(text)
    parts = [part for part in _BETWEEN.split(text) if part]
    found = [_LETTER.fullmatch(part) for part in parts]
    return frozenset(m[1].upper() for m in found if m) if all(found) else frozenset()


def _lines(text: str) -> str:
    """A text without mark-up, its lines kept."""
    text = unwrapped(re.sub(r"\\[()\[\]]", " ", text.replace("\\left", "").replace("\\right", "")))
    text = unicodedata.normalize("NFKC", text.translate(_BRACKETS)).translate(_SAME)
    text = re.sub(r"[*_`$]+", "", text).replace("{", "(").replace("}", ")")
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines() if line.strip())


# --- options by their texts -------------------------------------------------------------------------------------------

_OWN_LABEL = re.compile(r"\s*\(?([A-Z])(?:[).:]|(?=\n))\s*(?=\S)")
# how TempCompass names captions: "Caption A: ..", "Option 2: .."
_CAPTION = re.compile(r"((?:caption|description|option|sentence) (?:[a-z]|(\d))): (\S.*)", re.I | re.S)
_YES_OR_NO = re.compile(r"(yes|no)(?=$|[.,;:!\n]|\s+(?:it|he|she|they|the|there|this|that)\b)", re.I)


def chosen_options(answer: str, options: Sequence[str]) -> frozenset[str]:
    """The letters of the options an answer names, as `option_letters`, and by their texts: an option as it stands, its
    text alone or after 'the answer is', a caption's name or sentence, a leading yes or no where these are the options.

    A text that two options have names both. Without options: `option_letters`.
    """
    named, texts = option_letters(answer), _option_texts(options)
    sayings = (answer, _after_statement(answer)) if texts else ()
    for said in sayings:
        own = _OWN_LABEL.match(said)
        if own and plain(said[own.end() :]) == plain(texts.get(own[1], "")) != "":
            return frozenset(own[1])
    lone = len(named) == 1 and named <= texts.keys()
    names = {letter: names_of(text) for letter, text in texts.items()}
    yes_or_no = set(names.values()) == {frozenset({"yes"}), frozenset({"no"})}
    for said in sayings:
        word = _YES_OR_NO.match(said.strip()) if yes_or_no else None
        called = plain(word[1] if word else said)
        found = frozenset(letter for letter, own in names.items() if called in own)
        if found and (len(called) > 1 or not lone):  # 'E. coli' is no E, but E is no text before a letter
            return found
    return named


def _after_statement(text: str) -> str:
    """What is said last to be the answer; '' where nothing is."""
    text = _lines(text)
    *_, stated = [_OPENING.match(text), *_STATED.finditer(text)]
    return text[stated.end() :] if stated else ""


def names_of(text: str) -> frozenset[str]:
    """What an option may be called but by its letter, in the form of `plain`."""
    caption = _CAPTION.fullmatch(text.strip())
    return frozenset(plain(name) for name in (text, *(caption.groups("") if caption else ()))) - {""}


def _option_texts(options: Sequence[str]) -> dict[str, str]:
    """Texts by letter: the options' own letters where these follow each other, else those of their places."""
    labels = [label for option in options if (label := _OWN_LABEL.match(option))]
    own = "".join(label[1] for label in labels)
    if len(own) == len(options) > 1 and own in string.ascii_uppercase:
        return {label[1]: label.string[label.end() :] for label in labels}
    return dict(zip(string.ascii_uppercase, options, strict=False))


# --- words ------------------------------------------------------------------------------------------------------------

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_CHARACTER = re.compile(rf"([{UNSPACED}])")


def words(text: str) -> list[str]:
    """Lower-case words of any script without punctuation; each character of an unspaced script is a word."""
    return _WORD.findall(tidy(text).casefold())


def transcript(text: str) -> list[str]:
    """Words as they stand, case and punctuation kept, for a word error rate; unspaced scripts by character."""
    return _CHARACTER.sub(r" \1 ", tidy(text)).split()
