"""The loop around a step: resume, rows, validation, metrics, checkpoints, signals. Training mains give the step."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jvr1 import config as settings
from jvr1.chips import chip_of
from jvr1.data.batch import Microbatch
from jvr1.data.pipeline import FailureJournal, ahead
from jvr1.errors import UserError
from jvr1.opening.holder import lost
from jvr1.opening.values import check_finite
from jvr1.processes.guard import Watchdog, end_all_with, stop_code
from jvr1.processes.peers import gather, processes
from jvr1.questions.replies import mode_of
from jvr1.questions.summary import as_metrics, summarise
from jvr1.questions.together import answer_all
from jvr1.rl.judge import Judge
from jvr1.train.checkpoint import Checkpoints
from jvr1.train.hooks import Hook
from jvr1.train.metrics import MetricsWriter, PhaseClock, Profiler, Sums, Tally
from jvr1.train.optimizer import combine, make_schedule
from jvr1.train.progress import Compilations, Progress, say
from jvr1.train.setup import Run, keep_run
from jvr1.train.state import (
    TrainState,
    abstract_state,
    beside_params,
    check_bad_steps,
    check_last_steps,
    init_state,
    make_update,
)
from jvr1.train.validation import keep_answers, log_answers, validation_line
from jvr1.train.workdir import as_meta

Step = Callable[[int, Sequence[Microbatch]], tuple[Tally, Any]]
"""step(steps taken before, microbatches) -> its statistics, and what the main's hooks look at (None: nothing)."""


class Stopped(Exception):
    """The run was told to stop while a step waited for more rows."""


class Loop:
    """State of a run and what goes on around its steps.

    A step calls `phase` and `update`, and `more` for further rows; `show` names what the progress bar prints. judge:
    whose failures may end the run, and whose user's rewards give accuracies of validation. also: trees of arrays by
    name, saved beside the optimizer's; a step may put others of their shape in their place, as in `kept`, JSON values
    that are saved too.
    """

    def __init__(
        self,
        run: Run,
        show: Mapping[str, str],
        profile: range = range(0),
        judge: Judge | None = None,
        also: Mapping[str, Any] | None = None,
    ):
        self.run_, self.show, self.judge, self.also = run, dict(show), judge, dict(also or {})
        self.kept: dict[str, Any] = {}
        self.watchdog, self.profiler = Watchdog(run.settings.train.step_limit), Profiler(run.workdir, profile)
        train = run.settings.train
        failed = end_all_with if processes() > 1 else None
        self.checkpoints = Checkpoints(run.workdir, train.keep, train.stop_metric or None, failed=failed)
        shapes = abstract_state(run.tx, run.trainable, run.mesh)
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        self._apply = make_update(run.tx, shardings)
        self.state: TrainState
        unread: Sequence[Any] = ()
        if run.begun is None:
            # jitted: the moments are made where they lie
            make = jax.jit(lambda p: beside_params(init_state(run.tx, p)), out_shardings=beside_params(shardings))
            self.state = TrainState(params=run.trainable, **make(run.trainable))
        else:
            unread = self._resume(run.begun.step, shapes)
        if not self._finished:
            keep_run(run)
        self.journal = FailureJournal(run.workdir, jax.process_index(), run.settings.data.max_failed, known=unread)
        # events count steps from 1: those after the checkpoint are written again; without one, all
        first = self.step + 1 if self.step else 0
        self.writer = MetricsWriter(run.workdir, train.wandb or None, first_step=first)
        if not self.step:
            self.writer.text(0, "settings/all", settings.to_json(run.settings))
        if run.changed and self.step and not self._finished:
            say(f"settings changed since the run began: {'; '.join(run.changed)}")
            self.writer.text(self.step + 1, "settings/changed", "\n".join(run.changed))
        self.clock, self.tally = PhaseClock(), Tally()
        self._schedule = make_schedule(run.optimizer)
        self._stop = False
        self._rows: Iterator[list[Microbatch]] = iter(())
        self._drawn = self._rounds
        self._now = 0.0
        self._measured: dict[str, float] | None = None

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._step

    _step = 0
    _rounds = 0
    """Batches of rows that the steps taken have used: one a step, and what `more` gave."""
    _finished = False

    def _own_hooks(self, progress: Progress) -> tuple[Hook, ...]:
        """After those of the main, in this order: what validation finds ends the run and is saved with it."""
        train = self.run_.settings.train
        return (
            Hook(lambda step, _: self._log(step, progress), steps=1),
            Hook(lambda step, _: self._validate(step), steps=train.validate_every, at_start=True),
            Hook(
                lambda *_: self.save(self._measured),
                steps=train.save_every,
                seconds=60 * train.save_minutes,
                also=lambda: self._finished or self._measured is not None,
            ),
        )

    def _resume(self, step: int, shapes: TrainState) -> Sequence[Any]:
        """Takes all weights, the frozen ones too, from the checkpoint; returns the rows that had failed by then."""
        run = self.run_
        whole, frozen = jax.tree.map(_as_shape, run.params), jax.tree.map(_as_shape, run.frozen)
        for array in jax.tree.leaves((run.params, run.trainable, run.frozen)):
            if isinstance(array, jax.Array) and not array.is_deleted():
                array.delete()  # what the source held: memory
        also = {name: jax.tree.map(_as_shape, tree) for name, tree in self.also.items()}
        params, rest, meta = self.checkpoints.restore(whole, beside_params(shapes) | also, step)
        self.also = {name: rest.pop(name) for name in also}
        where = self.checkpoints.directory / str(step)
        if meta.get("rows", run.rows) != run.rows:
            raise UserError(
                f"{self.checkpoints.directory.parent} was trained on other rows: its data files, or what of their "
                "media could be read, changed since; use another workdir, with model.source=this one"
            )
        check_finite({"params": params, **rest}, f"checkpoint {where}", "move it away to go on from the one before")
        self.run_ = replace(run, params=params, frozen=_like(params, frozen))
        self.state = TrainState(params=_like(params, shapes.params), **rest)
        self._step = int(meta["step"])
        self._rounds, self.kept = int(meta.get("rounds", self._step)), meta.get("kept", {})
        # finished by its last step, it goes on when given more of them; finished by its stop value, it does not
        stopped_early = meta["finished"] and self._step < meta["steps"]
        self._finished = stopped_early or self._step >= run.settings.train.steps
        say(f"resumed at step {self._step} from {self.checkpoints.directory}")
        return meta.get("failed", ())

    # --- what a step calls

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a part of the step."""
        with self.clock.phase(name):
            yield

    def update(self, gradients: dict, *, has_rows: bool) -> Sums:
        """Applies the gradient of all microbatches; returns statistics."""
        self.state, stats = self._apply(self.state, gradients, np.bool_(has_rows))
        return {"update/gradient_norm": (stats.gradient_norm, 1.0), "update/applied": (stats.applied, 1.0)}

    def more(self) -> list[Microbatch]:
        """Rows of another step's size for the step that is being taken. Raises Stopped when the run is to end: that
        step is then taken again after a restart."""
        self.watchdog.beat(f"step {self.step + 1}, more rows")
        with self.phase("data"):
            microbatches, stop = self._agree(self._next())
        if stop:
            raise Stopped
        return list(microbatches)

    def _next(self) -> list[Microbatch]:
        """Rows not seen before. A signal to the whole group has ended the workers that read: none then."""
        if self._stop:
            return []
        self._drawn += 1
        return next(self._rows)

    # --- the loop

    def run(self, step_of: Step, *hooks: Hook) -> int:
        """Steps until the last, a signal to any process, or the validation value that ends the run early.

        hooks: of the main; after a step they come before logging, validation and saving. Returns the exit code.
        """
        train, pipeline = self.run_.settings.train, self.run_.pipeline
        most = (train.steps - self.step) * (1 + self.run_.settings.rl.refill * (self.run_.stage == "rl"))
        rows = ahead(pipeline.steps(self._rounds, self._rounds + most, dict(self.journal.failed)), 1)
        self._rows = rows
        progress, compilations = Progress(train.steps, self.step, self.show), Compilations(self.run_.workdir)
        own = self._own_hooks(progress)
        with ExitStack() as stack:
            # the mesh in force: the model splits its activations over it
            stack.enter_context(jax.set_mesh(self.run_.mesh))
            stack.enter_context(_signals(self._on_signal))
            stack.enter_context(self.watchdog.watching())
            stack.enter_context(compilations.watched())
            for thing in (self.writer, progress, rows, self.profiler):
                stack.enter_context(closing(thing))
            for hook in (*hooks, *own) if self.step == 0 else ():
                hook.begin()
            self.clock.take()
            while not self._finished:
                self.watchdog.beat(f"step {self.step + 1}")
                with self.clock.phase("data"):
                    read = self._next()
                microbatches, stop = self._agree(read)
                if stop:
                    break
                self.profiler.at(self.step + 1)
                try:
                    tally, made = step_of(self.step, microbatches)
                except Stopped:
                    break
                with self.phase("update"):  # JAX returns before the device is done
                    jax.block_until_ready(self.state)
                self._take(tally)
                for hook in hooks:
                    hook.after(self.step, made, self._now)
                del made  # memory: validation needs it
                for hook in own:
                    hook.after(self.step, None, self._now)
                self.clock.take()  # a step's seconds are its own, without validation and saving
            if not self._finished and self.step:
                self.save()
            self.watchdog.beat("writing the last checkpoint")
            self.checkpoints.close()
        if self._finished:
            check_last_steps(self.step, int(self.state.bad_steps))
            return 0
        say(f"stopped at step {self.step} of {train.steps}" + (", saved" if self.step else "; nothing to save"))
        return stop_code()

    def _take(self, tally: Tally) -> None:
        """Counts a step that was taken."""
        self.tally = self.tally.add(*tally)
        self._step += 1
        self._rounds = self._drawn
        self._finished = self.step == self.run_.settings.train.steps
        self._measured = None

    def _agree(self, microbatches: Sequence[Microbatch]) -> tuple[Sequence[Microbatch], bool]:
        """What all processes do now: the microbatches without the rows that any of them could not read, and whether
        one was told to stop. Process 0's clock is that of all. Raises UserError on all when one of them has too many
        failures."""
        failures = self.journal.note(self.step, microbatches)
        self._count_rows(microbatches, failures)
        failed = [(row.micro, row.place) for row in failures]
        wrong = lost(self.run_.workdir) or self.journal.excess or (self.judge.excess() if self.judge else None)
        every = gather([self._stop, wrong, failed, time.monotonic()])
        self._now = every[0][3]
        problem = next((excess for _, excess, _, _ in every if excess), None)
        if problem:
            raise UserError(problem)
        if self.run_.share.shared:
            there = {tuple(row) for _, _, rows, _ in every for row in rows}
            microbatches = [micro.without(there) for micro in microbatches]
        return microbatches, any(stop for stop, _, _, _ in every)

    def _reached(self, metrics: Mapping[str, float]) -> bool:
        """Whether validation gave the value at which the run is to end."""
        name, value = self.run_.settings.train.stop_metric, self.run_.settings.train.stop_value
        if not name or not metrics or metrics[name] < value:
            return False
        say(f"step {self.step}: {name} is {metrics[name]:.3f}, at least {value}: done")
        return True

    def save(self, metrics: Mapping[str, float] | None = None) -> None:
        """Starts a checkpoint of all a restart needs; the position in the data is how many batches were used."""
        run, rest = self.run_, beside_params(self.state) | self.also
        self.writer.flush()
        with self._finishing():
            check_finite({"params": self.state.params, **rest}, f"step {self.step}", "it is not saved")
        meta = {
            "step": self.step,
            "steps": run.settings.train.steps,
            "rounds": self._rounds,
            "kept": self.kept,
            "finished": self._finished,
            "rows": run.rows,
            "stage": run.stage,
            "origin": as_meta(run.origin),
            "config": json.loads(settings.to_json(run.settings)),
            "failed": sorted({row for rows in gather(self.journal.rows()) for row in map(tuple, rows)}),
        }
        self.checkpoints.save(self.step, combine(self.state.params, run.frozen), rest, meta, metrics)

    @contextmanager
    def _finishing(self) -> Iterator[None]:
        """What was saved before is on disk when an error that all processes have ends the run."""
        try:
            yield
        except UserError:
            self.checkpoints.wait()
            raise

    def _on_signal(self, number: int) -> None:
        if self._stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        say("signal received: finishing the step, then saving")
        self._stop = True

    def _validate(self, step: int) -> None:
        run = self.run_
        assert run.questions is not None  # where validate_every is set
        self.watchdog.beat("validation")
        decode = run.decoder.answering(run.decoder.weights(combine(self.state.params, run.frozen)), run.key)
        user = self.judge.user if self.judge else None
        questions = answer_all(*run.questions, decode, run.tokenizer, run.share, user)
        if jax.process_index() == 0:
            keep_answers(run.workdir, step, questions, mode_of(run.settings.reward.mode))
        log_answers(self.writer, step, questions, mode_of(run.settings.reward.mode))
        metrics = as_metrics(summarise(questions, mode_of(run.settings.reward.mode)))
        wanted = run.settings.train.stop_metric
        if wanted and wanted not in metrics:
            raise UserError(f"train.stop_metric={wanted!r} is not measured; validation gives {', '.join(metrics)}")
        self.writer.scalars(step, {f"valid/{name}": value for name, value in metrics.items()})
        say(validation_line(step, metrics))
        if step:
            self._measured = metrics
            self._finished = self._finished or self._reached(metrics)

    def _count_rows(self, microbatches: Sequence[Microbatch], failures: Sequence[Any]) -> None:
        real, room = 0, 0
        for micro in microbatches:
            mask = micro.arrays.prompt.mask[np.asarray(micro.arrays.valid)]
            real, room = real + int(mask.sum()), room + micro.arrays.prompt.mask.size
        rows = sum(row.record is not None for micro in microbatches for row in micro.rows)
        sums = {"data/padding": (room - real, room), "data/failed": (len(failures), rows)}
        causes = Counter((row.error or "").partition(":")[0] for row in failures)
        self.tally = self.tally.add(sums | {f"data/failed/{cause}": (count, rows) for cause, count in causes.items()})

    def _log(self, step: int, progress: Progress) -> None:
        seconds, tally = self.clock.take(), self.tally.of_all(self.run_.share)
        values, total = tally.means(), seconds.pop("total")
        values |= {f"seconds/{name}": value for name, value in seconds.items()} | {"seconds/step": total}
        values |= {
            "update/learning_rate": float(self._schedule(int(self.state.step) - 1)),
            "update/skipped": int(self.state.skipped),
        }
        if "completion/tokens" in tally.sums:
            values["tokens_per_second"] = float(tally.sums["completion/tokens"][0]) / total
            values.pop("completion/tokens", None)
        if "advantage_square" in values:
            variance = values.pop("advantage_square") - values["advantage"] ** 2
            values["advantage_std"] = math.sqrt(max(variance, 0.0))
        if "flops" in tally.sums:
            values.pop("flops", None)
            values["flops_per_second"] = float(tally.sums["flops"][0]) / total
            if chip := chip_of(jax.devices()[0].device_kind):
                values["flops_share_of_peak"] = values["flops_per_second"] / (chip.flops * jax.device_count())
        self.writer.scalars(step, values)
        progress.after(step, values)
        self.tally = Tally()
        with self._finishing():
            check_bad_steps(step, int(self.state.bad_steps), self.run_.optimizer.max_bad_steps)


def _as_shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _like(params: dict, part: dict) -> dict:
    """The branches of `params` that `part` has."""
    return {key: _like(params[key], value) if isinstance(value, dict) else params[key] for key, value in part.items()}


@contextmanager
def _signals(notify: Callable[[int], None]) -> Iterator[None]:
    """Calls `notify` with the number of a SIGTERM or SIGINT while inside; the handlers of before come back after."""
    before = {s: signal.signal(s, lambda number, _: notify(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
