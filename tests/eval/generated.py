"""Answers in many dresses to questions like those of the six benchmarks, the same for a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

LETTERS = "ABCDEFGHIJ"


class Answered(NamedTuple):
    """dress: what kind of wording the answer has. gold: a letter of `options`, else, without options, a number. named:
    the one option that a reader takes the answer for, '' where there is none."""

    dress: str
    answer: str
    gold: str
    options: tuple[str, ...]
    named: str = ""


CHOICES: Mapping[str, Sequence[Sequence[str]]] = {
    "MVBench": [
        ("Not sure", "Scattering something down", "Piling something up"),
        ("Opened the bag.", "Closed the closet/cabinet.", "Opened the laptop.", "Ate the sandwich."),
        ("joining", "sliding", "repairing", "operating"),
        ("Under the first object from the left.", "Under the third object.", "Under the second object."),
        ("3", "4", "0", "2"),
    ],
    "TempCompass": [
        ("dunking a basketball", "dribbling a basketball", "passing a basketball", "shooting a basketball"),
        ("from left to right", "from right to left", "away from the camera", "towards the camera"),
        ("normal speed", "slow motion", "fast forward", "reverse"),
    ],
    "VideoMMMU": [
        ("aldose", "ketose", "glucose", "fructose", "ribose", "xylose", "arabinose", "mannose", "galactose", "sucrose"),
        ("C", "B", "D", "E", "A", "F", "G", "H", "I", "J"),
        ("3/8", "5/8", "1/4", "1/2", "3/4", "1/8", "7/8", "2/3", "1/3", "1/5"),
        ("1 and 5", "1 and 3", "2 and 4", "6 and 7", "7 and 8", "3 and 6", "4 and 5", "2 and 7", "5 and 9", "1 and 8"),
        ("Gas does positive work and absorbs heat", "Gas does negative work", "Gas does no work", "None of the above"),
    ],
    "MMVU": [
        ("Isothermal compression", "Adiabatic compression", "Isobaric compression", "Adiabatic expansion", "Cooling"),
        ("Bubble Sort", "Merge Sort", "Insertion Sort", "Selection Sort", "Heap Sort"),
        ("Larger", "Smaller, then larger", "Smaller", "Keep same", "Larger, then smaller"),
        ("10.0", "5.0", "12.0", "15.0", "20.0"),
    ],
    "Video-MME": [
        ("Apples.", "Candles.", "Berries.", "The three kinds are of the same number."),
        ("1.", "4.", "2.", "3."),
        ("It is a news report.", "It is a documentary.", "It is a travel vlog.", "It is a tutorial."),
        ("Because it was near a new railway.", "Because of a treasure.", "Highway realignment.", "Militarism."),
    ],
}  # fmt: skip

DRESSES: Mapping[str, str] = {
    "the letter": "{x}",
    "lower case": "{low}",
    "letter and point": "{x}.",
    "in brackets": "({x})",
    "one bracket": "{x})",
    "in bold": "**{x}**",
    "in a box": "\\boxed{{{x}}}",
    "letter, text": "{x}. {text}",
    "bracketed letter, text": "({x}) {text}",
    "letter: text": "{x}: {text}",
    "letter, line, text": "{x}\n{text}",
    "Option X": "Option {x}",
    "Answer: X": "Answer: {x}",
    "the answer is X": "The answer is {x}.",
    "the correct answer is (X)": "The correct answer is ({x}).",
    "best option": "Best option: {x}",
    "a reason before": "Because At last Both of them stop, the answer is {x}.",
    "a reason after": "{x}, because a dog and a boat come first",
    "the text": "{text}",
    "the text in lower case": "{lower}",
    "the answer is the text": "The answer is {lower}.",
    "the answer is X, text": "The correct answer is {x}. {text}",
    "the text in a sentence": "I think that what the video shows there is {lower}",
    "another first": "Not {y}. The answer is {x}.",
    "another named": "Considering ({y}), the final answer is ({x}).",
    "two letters": "{x}, {y}",
    "one or the other": "{y} or {x}",
    "all options": "{all}",
    "no answer": "I cannot tell from this video",
    "another word": "Definitely",
    "a number": "7",
    "nothing": "",
}
YES_NO: Mapping[str, str] = {
    "the word": "{lower}",
    "capital": "{text}",
    "upper case": "{upper}",
    "word and point": "{text}.",
    "word, sentence": "{text}, the man moves so.",
    "sentence after": "{text}. He moves to the left.",
    "word, clause": "{text} it does",
    "letter": "{x}",
    "letter, text": "{x}. {lower}",
    "the answer is": "The answer is {lower}.",
    "not sure": "Not sure",
    "nothing like it": "nothing like it happens",
    "both words": "Yes or no",
    "no answer": "I cannot tell",
    "nothing": "",
}
CAPTIONS = [
    ("Caption A: The man is dribbling.", "Caption B: A man is dunking a basketball."),
    ("Option 1: The man moves from left to right.", "Option 2: The man moves from right to left."),
    ("Sentence A: The video is in slow motion.", "Sentence B: The video plays at normal speed."),
]
CAPTION: Mapping[str, str] = {
    "the caption": "{text}",
    "its name": "{name}",
    "its name and point": "{name}.",
    "its sentence": "{sentence}",
    "letter": "{x}",
    "letter, caption": "{x}. {text}",
    "bracketed letter, sentence": "({x}) {sentence}",
    "the answer is its name": "The answer is {name}.",
    "lower case": "{lower}",
    "no answer": "Both are possible",
    "nothing": "",
}
UNCLEAR = {
    "the text in a sentence", "two letters", "one or the other", "all options", "no answer", "another word", "a number",
    "nothing", "not sure", "nothing like it", "both words",
}  # fmt: skip
OPEN: Mapping[str, str] = {
    "the number": "{n}",
    "with zeros": "{n}00",
    "a unit": "{n} kg",
    "an equation": "m = {n}",
    "a sentence": "The mass is {n} kg.",
    "therefore": "Therefore 3 of 5 remain\nThe result is {n}",
    "rounded": "{rounded}",
    "two numbers": "between {n} and {other}",
    "another": "{other}",
    "in words": "twelve",
    "about": "approximately {n}",
    "in dollars": "${n}",
    "in LaTeX": "\\boxed{{{n}}}",
    "no answer": "it cannot be determined",
    "nothing": "",
}


def choices(suite: str, count: int, seed: int = 0) -> Iterator[Answered]:
    """Questions of a benchmark's kind, lettered, answered rightly in three of five."""
    rng = random.Random(f"{suite} {seed}")
    for i in range(count):
        texts = rng.choice(CHOICES[suite])
        options = tuple(f"{x}. {text}" for x, text in zip(LETTERS, texts, strict=False))
        gold = rng.randrange(len(texts))
        yield _dressed(rng, i, DRESSES, options, gold, all="\n".join(options))


def yes_no(count: int, seed: int = 0) -> Iterator[Answered]:
    rng = random.Random(f"yes or no {seed}")
    for i in range(count):
        yield _dressed(rng, i, YES_NO, ("A. Yes", "B. No"), rng.randrange(2))


def captions(count: int, seed: int = 0) -> Iterator[Answered]:
    rng = random.Random(f"captions {seed}")
    for i in range(count):
        options = tuple(f"{x}. {text}" for x, text in zip(LETTERS, rng.choice(CAPTIONS), strict=False))
        yield _dressed(rng, i, CAPTION, options, rng.randrange(2))


def open_numbers(count: int, seed: int = 0) -> Iterator[Answered]:
    rng = random.Random(f"open {seed}")
    for i in range(count):
        dress = list(OPEN)[i % len(OPEN)]
        gold = f"{rng.randrange(100, 99_999) / 100:.2f}" if rng.random() < 0.7 else str(rng.randrange(2, 900))
        near = f"{float(gold) + rng.choice([0.004, 0.3]):.3f}"
        number = gold if rng.random() < 0.6 else str(rng.randrange(2, 900))
        number += ".0" if dress == "with zeros" and "." not in number else ""
        text = OPEN[dress].format(n=number, rounded=near, other=rng.randrange(1000, 2000))
        yield Answered(dress, text, gold, ())


def _dressed(
    rng: random.Random, i: int, dresses: Mapping[str, str], options: tuple[str, ...], gold: int, **more: str
) -> Answered:
    """The i-th dress around the gold option, or around another."""
    dress = list(dresses)[i % len(dresses)]
    others = [k for k in range(len(options)) if k != gold]
    chosen = gold if rng.random() < 0.6 else rng.choice(others)
    other = rng.choice([k for k in range(len(options)) if k != chosen])
    text = options[chosen].split(". ", 1)[1]
    name, _, sentence = text.partition(": ")
    answer = dresses[dress].format(
        x=LETTERS[chosen], low=LETTERS[chosen].lower(), y=LETTERS[other], text=text, lower=text.lower(),
        upper=text.upper(), name=name, sentence=sentence, **more,
    )  # fmt: skip
    by_text = "the text" in dress and len(text) == 1 and text in LETTERS  # a text that reads as another's letter
    named = text if by_text else LETTERS[chosen]
    return Answered(dress, answer, LETTERS[gold], options, "" if dress in UNCLEAR else named)
