"""The kinds of question: a clip or picture, a question on it, a chain of thought, an answer, a time-blind ceiling.

The ceiling is the best accuracy of an answerer that sees all frames of the clip but not their order. It holds
exactly because what is drawn gives every order that it counts over the same probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jvr1.demo import scenes
from jvr1.demo.scenes import FPS, FRAMES, PALETTE, Frames

COLOURS = tuple(PALETTE)
ORDINALS = ("first", "second", "third", "fourth")
DIRECTIONS = ("left", "right", "up", "down")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SHAPES = ("square", "circle", "cross")
LETTERS = "ABCD"
SECONDS = FRAMES // FPS


@dataclass(frozen=True)
class DemoQuestion:
    """`frames` [N,56,56,3] holds a clip, one frame for a picture, or None for text alone."""

    problem: str
    think: str
    answer: str
    options: tuple[str, ...] = ()
    frames: Frames | None = None

    @property
    def letter(self) -> str:
        """What to answer: the letter of the right option, or the answer itself where there are no options."""
        return LETTERS[self.options.index(self.answer)] if self.options else self.answer

    @property
    def thought(self) -> str:
        """What is written between the tags: `think`, and where there are options, the answer's, as in `blue=C`."""
        return f"{self.think}={self.letter}" if self.options else self.think


@dataclass(frozen=True)
class Draw:
    """What is balanced over a split: `kind` in [0, task.classes) names the answer, `letter` its option.

    cue: None for no border; true: a border in the colour of the answer; false: in that of another option.
    """

    kind: int
    letter: int
    cue: bool | None = None


@dataclass(frozen=True)
class DemoTask:
    """A kind of question. share: its part of a split; ceiling: of a time-blind answerer, in [0, 1]."""

    name: str
    problem_type: str
    temporal: bool
    ceiling: float
    classes: int
    share: float
    ask: Callable[[np.random.Generator, Draw], DemoQuestion]
    hard: bool = False


def among(rng: np.random.Generator, answer: str, others: list[str], letter: int) -> tuple[str, ...]:
    """Options in random order with the answer at `letter`."""
    options = [str(o) for o in rng.permutation(others)]
    options.insert(letter % (len(others) + 1), answer)
    return tuple(options)


def four_colours(rng: np.random.Generator, answer: str, position: int) -> list[str]:
    """Four different colours in random order with `answer` at a position."""
    others = [str(c) for c in rng.choice([c for c in COLOURS if c != answer], 3, replace=False)]
    return [*others[:position], answer, *others[position:]]


def story(colours: list[str]) -> str:
    return " then ".join(colours)


# --- need the order of frames -----------------------------------------------------------------------------


def order(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """The n-th of four colours: all 24 orders of the frames' colours are equally likely, so 25% time-blind."""
    position, answer = draw.kind % 4, COLOURS[draw.kind // 4]
    colours = four_colours(rng, answer, position)
    others = [c for c in colours if c != answer]
    border = None if draw.cue is None else answer if draw.cue else str(rng.choice(others))
    return DemoQuestion(
        problem=f"which colour came {ORDINALS[position]}?",
        think=f"{story(colours)} so {ORDINALS[position]} is {answer}",
        answer=answer,
        options=among(rng, answer, others, draw.letter),
        frames=scenes.squares_in_turn(rng, colours, border),
    )


def motion(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """Direction of motion: the frames give the axis away, so 50% time-blind."""
    way = DIRECTIONS[draw.kind]
    return DemoQuestion(
        problem="which way did it go?",
        think=f"{OPPOSITE[way]} then {way} so it went {way}",
        answer=way,
        options=among(rng, way, [d for d in DIRECTIONS if d != way], draw.letter),
        frames=scenes.moving_square(rng, str(rng.choice(COLOURS)), way),
    )


def patterns(lights: int) -> list[tuple[bool, ...]]:
    """All ways to light half of the frames in `lights` unbroken runs."""
    every = (tuple(i in lit for i in range(FRAMES)) for lit in combinations(range(FRAMES), FRAMES // 2))
    return [p for p in every if sum(on and not before for before, on in zip((False, *p), p, strict=False)) == lights]


def blinks(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """How often a square lit up, 1 to 4: four of eight frames are lit whatever the answer, so 25% time-blind."""
    count = draw.kind + 1
    ways = patterns(count)
    lit = ways[int(rng.integers(len(ways)))]
    return DemoQuestion(
        problem="how often did it light up?",
        think=" ".join("on" if on else "off" for on in lit) + f" so {count}",
        answer=str(count),
        frames=scenes.blinking_square(rng, str(rng.choice(COLOURS)), lit),
    )


def before(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """Whether one of four colours came before another: both orders are equally likely, so 50% time-blind."""
    answer = ("yes", "no")[draw.kind]
    colours = [str(c) for c in rng.choice(COLOURS, 4, replace=False)]
    first, second = sorted(rng.choice(4, 2, replace=False), reverse=answer == "no")
    return DemoQuestion(
        problem=f"did {colours[first]} come before {colours[second]}?",
        think=f"{story(colours)} so {answer}",
        answer=answer,
        options=among(rng, answer, ["no" if answer == "yes" else "yes"], draw.letter),
        frames=scenes.squares_in_turn(rng, colours, None),
    )


def after(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """Which colour came right after a named one: any of the three others, so one in three time-blind."""
    answer, position = COLOURS[draw.kind], 1 + int(rng.integers(3))
    colours = four_colours(rng, answer, position)
    named = colours[position - 1]
    return DemoQuestion(
        problem=f"which colour came right after {named}?",
        think=f"{story(colours)} so after {named} is {answer}",
        answer=answer,
        options=among(rng, answer, [c for c in colours if c != answer], draw.letter),
        frames=scenes.squares_in_turn(rng, colours, None),
    )


def grounding(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """From which second to which a square is blue: all ten spans of a clip of four seconds are equally likely, so the
    mean IoU of who sees how long it is blue, but not when, is 31/60 at best."""
    start, end = list(combinations(range(SECONDS + 1), 2))[draw.kind]
    other = str(rng.choice([c for c in COLOURS if c != "blue"]))
    colours = ["blue" if start <= second < end else other for second in range(SECONDS)]
    return DemoQuestion(
        problem="when is it blue?",
        think=" ".join(colours),
        answer=f"{start} to {end}",
        frames=scenes.changing_square(rng, colours),
    )


# --- one frame is enough ------------------------------------------------------------------------------------


def colour(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    answer = COLOURS[draw.kind]
    others = [str(c) for c in rng.choice([c for c in COLOURS if c != answer], 3, replace=False)]
    return DemoQuestion(
        problem="which colour is the square?",
        think=f"the square is {answer}",
        answer=answer,
        options=among(rng, answer, others, draw.letter),
        frames=scenes.shape(rng, answer, "square")[None],
    )


def squares(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    count = draw.kind + 1
    return DemoQuestion(
        problem="how many squares are there?",
        think=" ".join(str(i + 1) for i in range(count)) + f" so {count}",
        answer=str(count),
        frames=scenes.scattered_squares(rng, count)[None],
    )


def reading(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    glyphs = list(scenes.GLYPHS)
    text = glyphs[draw.kind] + "".join(str(g) for g in rng.choice(glyphs, 2))
    return DemoQuestion(
        problem="what does it say?",
        think="it says " + " ".join(text),
        answer=text,
        frames=scenes.writing(rng, text, str(rng.choice(COLOURS)))[None],
    )


def describe(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    kind, hue = SHAPES[draw.kind % 3], COLOURS[draw.kind // 3]
    return DemoQuestion(
        problem="what is shown?",
        think=f"{hue} and {kind}",
        answer=f"a {hue} {kind}",
        frames=scenes.shape(rng, hue, kind)[None],
    )


def bar_length(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    length = draw.kind + 1
    return DemoQuestion(
        problem="how long is the bar, from 1 to 9?",
        think=f"the bar is {length} long",
        answer=str(length),
        frames=scenes.bar(rng, str(rng.choice(COLOURS)), length)[None],
    )


# --- text alone: the look-up from a word to its letter, which pictures teach very slowly ------------------------


def lookup(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """A colour word in, its letter out. The thought spells two OTHER pairs: more look-ups a record, no help."""
    answer = COLOURS[draw.kind]
    others = [str(c) for c in rng.choice([c for c in COLOURS if c != answer], 3, replace=False)]
    options = among(rng, answer, others, draw.letter)
    pairs = [f"{word}={LETTERS[options.index(word)]}" for word in others[:2]]
    return DemoQuestion(
        problem=f"which letter is {answer}?",
        think=f"{' '.join(pairs)} so it is {answer}",
        answer=answer,
        options=options,
    )


def told_order(rng: np.random.Generator, draw: Draw) -> DemoQuestion:
    """`order` with the clip told in words; thought and answer have the very form of the real ones."""
    position, answer = draw.kind % 4, COLOURS[draw.kind // 4]
    colours = four_colours(rng, answer, position)
    return DemoQuestion(
        problem=f"{story(colours)}. which colour came {ORDINALS[position]}?",
        think=f"{story(colours)} so {ORDINALS[position]} is {answer}",
        answer=answer,
        options=among(rng, answer, [c for c in colours if c != answer], draw.letter),
    )


CHOICE = "multiple choice"
TASKS = (
    DemoTask("order", CHOICE, True, 1 / 4, 24, 0.70, order),
    DemoTask("motion", CHOICE, True, 1 / 2, 4, 0.07, motion),
    DemoTask("blinks", "numerical", True, 1 / 4, 4, 0.05, blinks),
    DemoTask("colour", CHOICE, False, 1.0, 6, 0.04, colour),
    DemoTask("squares", "numerical", False, 1.0, 5, 0.04, squares),
    DemoTask("read", "OCR", False, 1.0, 8, 0.03, reading),
    DemoTask("describe", "free-form", False, 1.0, 18, 0.04, describe),
    DemoTask("bar", "regression", False, 1.0, 9, 0.03, bar_length),
)
"""What the train, validation and test files hold."""
HARD = (
    DemoTask("before", CHOICE, True, 1 / 2, 2, 0.5, before, hard=True),
    DemoTask("after", CHOICE, True, 1 / 3, 6, 0.5, after, hard=True),
)
"""What the hard file holds: kinds never trained on."""
WARMUP = (
    DemoTask("lookup", CHOICE, False, 1.0, 6, 0.5, lookup),
    DemoTask("told_order", CHOICE, False, 1.0, 24, 0.5, told_order),
)
"""What the text-only warm-up holds."""
GROUNDING = (DemoTask("blue", "temporal grounding", True, 31 / 60, 10, 1.0, grounding),)
"""What the files of temporal grounding hold."""
