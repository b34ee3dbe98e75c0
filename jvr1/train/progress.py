"""A run's way through its steps: in a terminal a bar, in a log file a line a step; long compilations by name."""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import jax
from etils import epath
from jax import monitoring
from tqdm import tqdm

from jvr1.opening.staging import write_file

RECENT = 20
"""Steps whose median is what a step takes, for the time that is left."""
FIRST = 3
"""Steps that compile, before which nothing is said of the time left."""
LONG = 3.0
"""Seconds after which a compilation is spoken of."""
COMPILED = "compiled.json"
"""File of a workdir: seconds of programs that took long, by the name and which of that name they were in their run."""
_EVENT = "/jax/core/compile/backend_compile_duration"
_BAR = "{n_fmt}/{total_fmt} |{bar:10}| {desc}"


def say(text: str) -> None:
    """A line of the log, above a bar; process 0's alone."""
    if jax.process_index() == 0:
        tqdm.write(text)
        sys.stdout.flush()


def duration(seconds: float | int) -> str:
    """3 s, 2:05, 1:02:05."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{whole} s"


def short(value: float | int) -> str:
    """Three digits: 0.0123, 1.23, 123, 12,300."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Progress:
    """A bar where stderr is a terminal; lines where there is none, and where stdout is kept (a file, `| tee`). show:
    metric -> its short name, in the order shown. On process 0; elsewhere nothing."""

    def __init__(self, total: int, done: int, show: Mapping[str, str]):
        self.total, self.show = total, dict(show)
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self.bar: tqdm | None = None
        if sys.stderr.isatty() and jax.process_index() == 0:
            self.bar = tqdm(total=total, initial=done, bar_format=_BAR, dynamic_ncols=True)

    def after(self, step: int, values: Mapping[str, float | int]) -> None:
        """values: those of the step just taken, `seconds/step` among them."""
        self._seconds.append(values["seconds/step"])
        told = self.told(step, values)
        if self.bar is None or not sys.stdout.isatty():
            say(f"step {step}/{self.total}  {told}")
        if self.bar is not None:
            self.bar.set_description_str(told, refresh=False)
            self.bar.update()

    def told(self, step: int, values: Mapping[str, float | int]) -> str:
        """The numbers of a step, what it took, and the time left at the recent steps' median."""
        parts = [f"{label} {short(values[name])}" for name, label in self.show.items() if name in values]
        parts.append(f"{short(values['seconds/step'])} s")
        if len(self._seconds) > FIRST:
            parts.append(f"left {duration(statistics.median(self._seconds) * (self.total - step))}")
        return "  ".join(parts)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Compilations:
    """Says of what XLA compiles for longer than `LONG` seconds what it is and how long it took at the last start.

    Times are kept in WORKDIR/compiled.json. A function compiles once a shape: its second compilation in a run is
    compared with the second of the start before. Compiled programs that JAX keeps load in less and are not spoken of.
    """

    def __init__(self, workdir: epath.Path, after: float = LONG):
        self.file, self.longest = workdir / COMPILED, after
        self.seconds = _kept(self.file)
        self._before = dict(self.seconds)
        self._begun: Counter[str] = Counter()
        self._running: dict[tuple[int, str], tuple[threading.Timer, list[str], str]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside."""
        monitoring.register_scalar_listener(self._begins)
        monitoring.register_event_duration_secs_listener(self._ended)
        try:
            yield
        finally:
            monitoring.unregister_scalar_listener(self._begins)
            monitoring.unregister_event_duration_listener(self._ended)
            for timer, *_ in self._running.values():
                timer.cancel()

    def _begins(self, event: str, value: float | int, **about: str | int) -> None:
        if event != _EVENT:
            return
        name = program_name(str(about.get("fun_name", "?")))
        told: list[str] = []
        self._begun[name] += 1
        key = f"{name} {self._begun[name]}"
        timer = threading.Timer(self.longest, self._tell, (name, key, told))
        timer.daemon = True
        self._running[threading.get_ident(), name] = timer, told, key
        timer.start()

    def _tell(self, name: str, key: str, told: list[str]) -> None:
        before = self._before.get(key)
        told.append(name)
        say(f"compiling {name}" + (f", which took {duration(before)} the last time" if before else ""))

    def _ended(self, event: str, duration_secs: float, **about: str | int) -> None:
        name, seconds = program_name(str(about.get("fun_name", "?"))), duration_secs
        running = self._running.pop((threading.get_ident(), name), None) if event == _EVENT else None
        if running is None:
            return
        running[0].cancel()
        if running[1]:
            say(f"compiled {name} in {duration(seconds)}")
        if seconds >= self.longest:
            self.seconds[running[2]] = seconds
            with suppress(OSError):  # a storage that takes no more is told by what needs it
                if jax.process_index() == 0:
                    write_file(self.file, (json.dumps(self.seconds, indent=1) + "\n").encode())


def program_name(name: str) -> str:
    """'jit(update)', 'jit_update' -> 'update'."""
    inner = name.removeprefix("jit(").removesuffix(")") if name.startswith("jit(") else name.removeprefix("jit_")
    return inner.strip("_") or name


def _kept(file: epath.Path) -> dict[str, float]:
    """What an earlier start kept; a file that cannot be read is as none."""
    try:
        return {str(name): float(value) for name, value in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
