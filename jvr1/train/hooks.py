"""What goes on beside the steps: validation, saving, logging, pictures, and what a main adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hook:
    """Calls `act(step, made)` after a step when it is due: step counted from 1, made what the step returned for hooks.

    steps: every so many, from step `first` on (0: from step `steps`). seconds: after the first step that begins so long
    after the one it last acted on, by process 0's clock. 0: not by these. also: asked after each step, and True makes
    it due as well. at_start: a new run calls it before the first step too, with step 0.

    `act` runs on all processes at the same steps, so that it may do what all must do together; what `also` says must be
    the same on all.
    """

    def __init__(
        self,
        act: Callable[[int, Any], object],
        *,
        steps: int = 0,
        seconds: float = 0.0,
        first: int = 0,
        also: Callable[[], bool] = lambda: False,
        at_start: bool = False,
    ):
        self._act, self._steps, self._seconds, self._first, self._also = act, steps, seconds, first, also
        self._at_start = at_start and (steps > 0 or seconds > 0)
        self._last: float | None = None

    def begin(self) -> None:
        """Before the first step of a new run."""
        if self._at_start:
            self._act(0, None)

    def after(self, step: int, made: Any, now: float) -> None:
        """After a step. now: seconds on process 0's clock as the step began."""
        if self._last is None:
            self._last = now
        if self.due(step, now):
            self._last = now
            self._act(step, made)

    def due(self, step: int, now: float) -> bool:
        """Whether `after` acts. Seconds count from the beginning of the first step, then of each that it acted on."""
        by_steps = self._steps > 0 and step >= self._first and (step - self._first) % self._steps == 0
        by_clock = self._seconds > 0 and self._last is not None and now - self._last >= self._seconds
        return by_steps or by_clock or self._also()
