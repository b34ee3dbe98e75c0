"""The files of the demo: questions drawn from a seed; H.264, PNG and JPEG files; records in the published form."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Int
from PIL import Image
from tqdm import tqdm

from jvr1.demo import scenes
from jvr1.demo.questions import GROUNDING, HARD, LETTERS, TASKS, WARMUP, DemoQuestion, DemoTask, Draw
from jvr1.demo.scenes import FPS, FRAMES, Frames
from jvr1.errors import UserError
from jvr1.model.families import FAMILIES

SETTINGS_FILE, TASK_FILE = "settings.json", "tasks.json"
LEAST = 32
"""Questions of the smallest split: with fewer, kinds of question would be missing."""


@dataclass(frozen=True)
class Settings:
    """What the data set is made from.

    train: questions of the SFT file, and as many others for RL and for the warm-up. test: half as many are hard ones.
    shortcut: share of training clips of `order` whose border has the answer's colour, the rest having another
    option's; in validation and test one in four agrees, as by chance. None: no borders.
    temporal: questions of each kind whose frames' order matters, in a file of their own; 0: no such file.
    grounding: questions of temporal grounding for SFT, and as many for RL, an eighth for validation; 0: no such files.
    family: of the tiny model beside it.
    """

    train: int = 4096
    valid: int = 256
    test: int = 768
    seed: int = 0
    shortcut: float | None = None
    temporal: int = 0
    grounding: int = 0
    family: str = next(iter(FAMILIES))

    def __post_init__(self) -> None:
        for name in ("train", "valid", "test"):
            if getattr(self, name) < LEAST:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be {LEAST} or more")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; it must be 0 or more")
        if self.shortcut is not None and not 0 <= self.shortcut <= 1:
            raise UserError(f"--shortcut is {self.shortcut}; it must be a share from 0 to 1")
        for name in ("temporal", "grounding"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True)
class Split:
    """One file: how many questions of which kinds, with chains of thought or not, the share of agreeing borders."""

    name: str
    tasks: tuple[DemoTask, ...]
    size: int
    thoughts: bool = False
    shortcut: float | None = None


def splits(settings: Settings) -> tuple[Split, ...]:
    """The files of a data set, in the order of their problem ids."""
    chance = None if settings.shortcut is None else 1 / len(LETTERS)
    temporal = [task for task in (*TASKS, *HARD) if task.temporal]
    equal = tuple(replace(task, share=1 / len(temporal)) for task in temporal)
    files = (
        Split("warmup", WARMUP, settings.train, thoughts=True),
        Split("sft", TASKS, settings.train, thoughts=True, shortcut=settings.shortcut),
        Split("rl", TASKS, settings.train, shortcut=settings.shortcut),
        Split("valid", TASKS, settings.valid, shortcut=chance),
        Split("test", TASKS, settings.test, shortcut=chance),
        Split("hard", HARD, max(LEAST, settings.test // 2)),
        Split("temporal", equal, len(temporal) * settings.temporal, shortcut=chance),
        Split("grounding_sft", GROUNDING, settings.grounding, thoughts=True),
        Split("grounding_rl", GROUNDING, settings.grounding),
        Split("grounding_valid", GROUNDING, settings.grounding and max(LEAST, settings.grounding // 8)),
    )
    return tuple(split for split in files if split.size)


@dataclass(frozen=True)
class Item:
    """One question to be drawn: everything it depends on."""

    task: DemoTask
    draw: Draw
    entropy: tuple[int, ...]
    number: int

    def question(self) -> DemoQuestion:
        """Draws it; the frames without noise."""
        return self.task.ask(np.random.default_rng(self.entropy), self.draw)


def apportion(total: int, tasks: Sequence[DemoTask]) -> list[int]:
    """Questions of each task, in proportion to the shares and adding up (largest remainders)."""
    exact = np.array([task.share for task in tasks]) * total
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[i] += 1
    return counts.tolist()


def deck(rng: np.random.Generator, size: int, values: int) -> Int[np.ndarray, " size"]:
    """`size` numbers in [0, values) in random order, each as often as any other, give or take one."""
    return rng.permutation(np.arange(size) % values)


def items(split: Split, place: int, seed: int) -> list[Item]:
    """The questions of a split in the order of its file. `place` tells splits apart: no two share a clip's seed."""
    drawn = []
    for task_number, (task, count) in enumerate(zip(split.tasks, apportion(split.size, split.tasks), strict=True)):
        entropy = (seed, place, task_number)
        rng = np.random.default_rng((*entropy, 0, 1))  # a trailing zero would be dropped from the seed
        kinds, letters = deck(rng, count, task.classes), deck(rng, count, len(LETTERS))
        cues: list[bool | None] = [None] * count
        if split.shortcut is not None and task.name == "order":
            cues = (rng.permutation(count) < round(split.shortcut * count)).tolist()
        draws = [Draw(int(k), int(l), c) for k, l, c in zip(kinds, letters, cues, strict=True)]
        drawn += [Item(task, d, (*entropy, 1 + i, 2), i) for i, d in enumerate(draws)]
    return [drawn[i] for i in np.random.default_rng((seed, place, 3)).permutation(len(drawn))]


def suffix(item: Item, frames: Frames) -> str:
    """Clips are mp4; pictures are PNG, JPEG and still clips in turn."""
    return ".mp4" if len(frames) > 1 else (".png", ".jpg", ".mp4")[item.number % 3]


def record(split: Split, item: Item, question: DemoQuestion, problem_id: int, path: str | None) -> dict[str, Any]:
    """A question in the form of Video-R1's files; `process` only where the split has chains of thought."""
    kind = "text" if path is None else "video" if path.endswith(".mp4") else "image"
    options = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=False)]
    return {
        "problem_id": problem_id,
        "problem": question.problem,
        "data_type": kind,
        "problem_type": item.task.problem_type,
        "options": options,
        **({"process": f"<think>{question.thought}</think>"} if split.thoughts else {}),
        "solution": f"<answer>{question.letter}</answer>",
        "path": path,
        "data_source": item.task.name,
    }


def make(split: Split, item: Item, problem_id: int, root: Path) -> dict[str, Any]:
    """Draws a question, writes its clip or picture under `root` and returns its record."""
    question, path = item.question(), None
    if question.frames is not None:
        ending = suffix(item, question.frames)
        path = f"./media/{split.name}/{item.task.name}-{item.number:05d}{ending}"
        frames = question.frames
        if ending == ".mp4" and len(frames) == 1:
            frames = frames.repeat(FRAMES, axis=0)
        frames = scenes.noisy(np.random.default_rng((*item.entropy, 4)), frames)
        write_video(root / path, frames) if ending == ".mp4" else write_image(root / path, frames[0])
    return record(split, item, question, problem_id, path)


def write_video(path: Path, frames: Frames) -> None:
    """H.264 in mp4 at `FPS`. Key frames of one quantiser only: no frame shows traces of its neighbours or its place."""
    options = {"preset": "ultrafast", "qp": "14", "g": "1", "bf": "0", "x264-params": "log-level=error"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], "yuv420p", 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_image(path: Path, pixels: np.ndarray) -> None:
    """PNG or JPEG by the path's ending; JPEG without chroma subsampling."""
    options: dict[str, Any] = {} if path.suffix == ".png" else {"quality": 95, "subsampling": 0}
    Image.fromarray(pixels).save(path, **options)


def task_table() -> dict[str, dict[str, Any]]:
    """What tasks.json holds: type, whether frames' order matters, time-blind ceiling, whether held out as hard."""
    fields = ("problem_type", "temporal", "ceiling", "hard")
    return {t.name: {f: getattr(t, f) for f in fields} for t in (*TASKS, *HARD)}


def write_dataset(root: Path, settings: Settings) -> None:
    """Writes every file of the data set into `root`, which is there. About 4 ms a clip on one core."""
    todo = splits(settings)
    total, problem_id = sum(s.size for s in todo), 0
    every = 0.5 if sys.stderr.isatty() else 15.0
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc="questions", unit="", mininterval=every) as bar:
        for place, split in enumerate(todo):
            (root / "media" / split.name).mkdir(parents=True)
            drawn = items(split, place, settings.seed)
            ids = range(problem_id, problem_id + split.size)
            records = []
            for made in pool.map(make, [split] * split.size, drawn, ids, [root] * split.size):
                records.append(made)
                bar.update()
            write_records(root / f"{split.name}.json", records)
            problem_id += split.size
    (root / TASK_FILE).write_text(json.dumps(task_table(), indent=1) + "\n")


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """A JSON list with one record a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")


def wanted(out: Path, settings: Settings) -> bool:
    """Whether the data set is still to be made; raises UserError when `out` holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    try:
        found = json.loads((out / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out} holds other files; name a new folder") from None
    if asdict(Settings()) | found != asdict(settings):
        raise UserError(f"{out} was made with other settings, {json.dumps(found)}; name a new folder or use those")
    return False


def building(out: Path) -> Path:
    """An empty folder beside `out` to build in: what is renamed to `out` in the end is whole."""
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{partial} cannot be written: {error.strerror}") from None
    return partial


def finish(partial: Path, out: Path, settings: Settings) -> None:
    """Signs the folder with its settings and gives it its name."""
    (partial / SETTINGS_FILE).write_text(json.dumps(asdict(settings)) + "\n")
    partial.replace(out)


def questions(tasks: Sequence[DemoTask], each: int, seed: int) -> Iterator[DemoQuestion]:
    """`each` questions of every task without writing them: for a tokenizer's corpus and for contact sheets."""
    for number, task in enumerate(tasks):
        rng = np.random.default_rng((seed, number, 5))
        kinds, letters = deck(rng, each, task.classes), deck(rng, each, len(LETTERS))
        for kind, letter in zip(kinds, letters, strict=True):
            yield task.ask(rng, Draw(int(kind), int(letter)))
