"""What a run shows: TensorBoard, optional wandb, rollouts, and the sums and clocks behind the numbers."""

from __future__ import annotations

import contextlib
import html
import importlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.typing import ArrayLike
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from jvr1.data.share import Share
from jvr1.errors import UserError
from jvr1.processes.peers import gather


class MetricsWriter:
    """Writes WORKDIR/tensorboard, and to wandb where a project is named; on process 0, elsewhere nothing.

    first_step: events of that step and later, left by a run that was killed, are hidden by TensorBoard.
    A resumed run goes on in the same wandb run (its id is kept in WORKDIR/wandb_run).
    Errors: UserError when a project is named and wandb is not installed.
    """

    def __init__(self, workdir: epath.PathLike, wandb_project: str | None = None, first_step: int = 0):
        self._board: EventFileWriter | None = None
        self._wandb: Any = None
        if jax.process_index() != 0:
            return
        workdir = epath.Path(workdir)
        if wandb_project:
            self._wandb = _start_wandb(workdir, wandb_project)
        # not tensorboardX: its flush does not wait for its queue, so that a killed run would lose events
        self._board = EventFileWriter(str(workdir / "tensorboard"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers under their names; 'reward/format' stands beside 'reward/accuracy'."""
        if self._board is None:
            return
        values = {name: float(value) for name, value in values.items()}
        summary = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=summary)))
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        """A text as it is, whatever markdown it contains."""
        self._note(step, tag, "\n".join("    " + line for line in text.splitlines()), text)

    def table(self, step: int, tag: str, head: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A text and a table below it, whose rows are numbered, with their last cells below the table: TensorBoard
        gives a long one all the width. Cells are shown as they are, line breaks as spaces."""
        cells = [[_cell(text) for text in row] for row in (columns, *rows)]
        lines = [f"**{_cell(line)}**\n" for line in head.splitlines()]
        lines += [f"| {' | '.join(['', *cells[0][:-1]])} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join([str(i), *row[:-1]])} |" for i, row in enumerate(cells[1:], 1)]
        lines += [f"\n**{i}** {row[-1]}" for i, row in enumerate(cells[1:], 1)]
        self._note(step, tag, "\n".join(lines), "\n".join(lines))

    def _note(self, step: int, tag: str, markdown: str, text: str) -> None:
        if self._board is None:
            return
        self._add(Event(step=step, summary=text_pb(tag, markdown)))
        if self._wandb is not None:
            self._wandb.log({tag: text}, step=step)

    def image(self, step: int, tag: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture, stored as PNG."""
        if self._board is None:
            return
        png = io.BytesIO()
        Image.fromarray(image).save(png, format="PNG")
        height, width, colours = image.shape
        picture = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=png.getvalue())
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=picture)])))
        if self._wandb is not None:
            self._wandb.log({tag: importlib.import_module("wandb").Image(image)}, step=step)

    def flush(self) -> None:
        """Returns when all events so far are on disk. Call it before a checkpoint is saved."""
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _add(self, event: Event) -> None:
        if self._board is not None:
            event.wall_time = time.time()
            self._board.add_event(event)


def _cell(text: str) -> str:
    """Text that neither markdown nor HTML reads as more than that, on one line."""
    return re.sub(r"([\\`*_{}\[\]#+!|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def check_wandb(project: str) -> None:
    """Raises UserError where a project is named and wandb is not installed."""
    try:
        if project:
            importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            f"train.wandb is {project!r} but wandb is not installed; pip install wandb, or leave train.wandb empty"
        ) from None


def _start_wandb(workdir: epath.Path, project: str) -> Any:
    check_wandb(project)
    wandb = importlib.import_module("wandb")
    kept = workdir / "wandb_run"
    known = kept.read_text().strip() if kept.exists() else None
    run = wandb.init(project=project, id=known, resume="allow", name=workdir.name)
    workdir.mkdir(parents=True, exist_ok=True)
    kept.write_text(run.id)
    return run


def write_rollouts(workdir: epath.PathLike, step: int, process: int, rows: Sequence[Mapping[str, Any]]) -> epath.Path:
    """Writes WORKDIR/rollouts/step-N.process-K.jsonl, one JSON object a row, whole or not at all; returns the path.

    numpy values are written as numbers and lists. A file of the same step, left by a killed run, is replaced.
    """
    folder = epath.Path(workdir) / "rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step}.process-{process}.jsonl"
    lines = [json.dumps(row, ensure_ascii=False, default=lambda x: np.asarray(x).tolist()) + "\n" for row in rows]
    unfinished = folder / f"{path.name}.tmp"
    # a lone surrogate, which JSON can carry, has no UTF-8 form
    unfinished.write_bytes("".join(lines).encode("utf-8", "replace"))
    return unfinished.replace(path)


LEAST_HEIGHT = 112
"""Pixels: smaller frames are shown in whole multiples of their size."""
FRAMES_BESIDE, MOST_LINES = 4, 15
_GAP, _MARGIN = 2, 4


def frame_strip(frames: UInt8[np.ndarray, "n h w 3"], caption: str, min_width: int = 480) -> UInt8[np.ndarray, "H L 3"]:
    """Frames on white, four beside each other, small ones enlarged; below them the caption, wrapped to their width, in
    letters that can be read where TensorBoard shows the picture 350 pixels wide."""
    times = -(-LEAST_HEIGHT // frames.shape[1])
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    n, h, w, _ = frames.shape
    rows, columns = -(-n // FRAMES_BESIDE), min(n, FRAMES_BESIDE)
    width, height = max(columns * (w + _GAP) - _GAP, min_width), rows * (h + _GAP) - _GAP
    size = max(15, width // 30)
    font = ImageFont.load_default(size)
    lines = [line for part in caption.splitlines() for line in _wrap(part, font, width - 2 * _MARGIN)]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], ".."]
    line_height = round(1.4 * size)
    image = Image.new("RGB", (width, height + 2 * _MARGIN + line_height * len(lines)), "white")
    for i, frame in enumerate(frames):
        row, column = divmod(i, FRAMES_BESIDE)
        image.paste(Image.fromarray(frame), (column * (w + _GAP), row * (h + _GAP)))
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, height + _MARGIN + i * line_height), line, fill="black", font=font)
    return np.asarray(image)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for character in word:  # a word wider than the strip breaks anywhere
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line]


Sums = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""Name -> (numerator, denominator): a mean that can still be added up. `rl.objectives.Mean` is one."""


class Tally(NamedTuple):
    """Statistics of an optimizer step, added over its microbatches on the device: reading them comes last.

    sums: name -> (numerator, denominator). maxima: name -> the largest value. Buckets may bring different names.
    """

    sums: dict[str, tuple[Any, Any]] = {}  # noqa: RUF012  (never written to: `add` returns a new Tally)
    maxima: dict[str, Any] = {}  # noqa: RUF012

    def add(self, sums: Sums, maxima: Mapping[str, ArrayLike] | None = None) -> Tally:
        """A new Tally with one microbatch more. Without host synchronisation; works on tracers."""
        total, largest = dict(self.sums), dict(self.maxima)
        for name, (numerator, denominator) in sums.items():
            before = total.get(name, (0, 0))
            total[name] = (before[0] + numerator, before[1] + denominator)
        for name, value in (maxima or {}).items():
            largest[name] = jnp.maximum(largest[name], value) if name in largest else value
        return Tally(total, largest)

    def of_all(self, share: Share) -> Tally:
        """The same numbers on every process: what is an array counts for all already, what is a number is this
        process's own and is added up, by the owners of the rows."""
        own = {k: [float(n), float(d)] for k, (n, d) in self.sums.items() if not isinstance(n, jax.Array)}
        largest = {k: float(v) for k, v in self.maxima.items() if not isinstance(v, jax.Array)}
        total = Tally({k: v for k, v in self.sums.items() if k not in own}, dict(self.maxima))
        for sums, maxima in gather([own, largest] if share.owner else [{}, {}]):
            total = total.add({k: (n, d) for k, (n, d) in sums.items()}, maxima)
        return total

    def means(self) -> dict[str, float]:
        """Numerator / denominator of each sum, and the maxima. A sum with denominator 0 has no mean: left out."""
        sums, maxima = jax.device_get((self.sums, self.maxima))
        means = {name: float(n) / float(d) for name, (n, d) in sums.items() if d != 0}
        return means | {name: float(value) for name, value in maxima.items()}


class Profiler:
    """Traces a range of steps into WORKDIR/profile/process-K, for TensorBoard's profile plugin or Perfetto."""

    def __init__(self, workdir: epath.PathLike, steps: range):
        self._folder, self._steps, self._on = epath.Path(workdir) / "profile", steps, False

    def at(self, step: int) -> None:
        """Call it before each step: the trace begins before the first of the range and ends after the last."""
        if step in self._steps and not self._on:
            jax.profiler.start_trace(str(self._folder / f"process-{jax.process_index()}"))
            self._on = True
        elif step not in self._steps:
            self.close()

    def close(self) -> None:
        """Ends the trace, if one is being made."""
        if self._on:
            jax.profiler.stop_trace()
        self._on = False


class PhaseClock:
    """Seconds spent in the named phases of a step: waiting for data, generation, reward, update.

    JAX returns before the device is done: block on a phase's result within the phase, or its time is another's.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._start = now, now()
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds within to the phase, an exception notwithstanding."""
        start = self._now()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - start

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call, `total` those on the wall; starts again from zero."""
        end = self._now()
        seconds, self._seconds = self._seconds | {"total": end - self._start}, {}
        self._start = end
        return seconds
