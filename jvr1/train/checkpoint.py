"""Checkpoints of a run: asynchronous, whole or absent, the latest few and the best one kept."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jvr1.errors import SaveError, UserError, storage_fault
from jvr1.opening import checksums
from jvr1.opening.restore import folder_of, quieten_orbax, read_meta, restore_checkpoint


class _Told:
    """A future of orbax that tells of its failure before orbax waits for the other processes, which know of none."""

    def __init__(self, future: Any, tell: Callable[[Exception], None]):
        self._future, self._tell = future, tell

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout)
        except Exception as error:
            self._tell(error)
            raise

    def cancel(self) -> None:
        self._future.cancel()


def _tell_of(handler: Any, tell: Callable[[Exception], None]) -> None:
    """What a handler begins to write tells of its failure. (orbax knows its handlers by their very class.)"""
    begin = handler.async_save

    async def telling(*args: Any, **kwargs: Any) -> Any:
        return [_Told(future, tell) for future in await begin(*args, **kwargs) or ()]

    handler.async_save = telling


class Checkpoints:
    """WORKDIR/checkpoints/STEP with the items 'params', 'optimizer' and 'meta'. One trainer writes a workdir.

    Kept: the latest `keep`, and the one with the largest value of `best_metric` (NaN is never best) among those saved
    with it. Writing goes on in the background: its failure is raised as SaveError by the next `save`, `wait` or
    `close`. What a killed run left half written is removed by the next save.
    failed: called with it at once, in a thread of orbax; of several processes the next `wait` of all may never end.
    Errors: UserError for a setting that is not possible.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        keep: int = 2,
        best_metric: str | None = None,
        failed: Callable[[SaveError], Any] | None = None,
    ):
        if keep < 1:
            raise UserError(f"train.keep is {keep}; at least 1 checkpoint must be kept to resume from")
        quieten_orbax()
        self.directory = folder_of(workdir)
        self._saved: int | None = None
        self._best_metric = best_metric

        def value(metrics: Mapping[str, float]) -> float:
            number = metrics.get(str(best_metric), -math.inf)  # saved by a run with another best_metric
            return -math.inf if math.isnan(number) else number

        policies = [LatestN(keep)]
        if best_metric is not None:
            policies.append(BestN(get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=None if best_metric is None else value,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum_up),
        )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        if failed is not None:
            for handler in handlers.values():
                _tell_of(handler, lambda error: failed(self._said(error, self._saved)))
        with self._saving(None):
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def save(
        self,
        step: int,
        params: Any,
        optimizer_state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the arrays to the host and starts to write them; they may be donated afterwards.

        params: the whole pure dict. optimizer_state: any pytree of arrays. meta: JSON. metrics: of this step's
        validation, if there was one. Saving the step that was saved last again does nothing.
        Raises SaveError, also for a failure of the save before.
        """
        self.wait()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            if step == latest:
                return
            raise SaveError(
                f"step {step} cannot be saved: {self.directory} already holds step {latest}; "
                "use another workdir, or remove the later steps"
            )
        value = (metrics or {}).get(self._best_metric or "")
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimizer=ocp.args.StandardSave(optimizer_state),
            meta=ocp.args.JsonSave(dict(meta)),
        )
        with self._saving(step):
            self._saved = step
            chosen = None if value is None else {self._best_metric: float(value)}
            if not self._manager.save(step, args=items, metrics=chosen):
                raise SaveError(f"orbax declined to save step {step} in {self.directory}")

    def restore(self, params: Any, optimizer_state: Any, step: int | None = None) -> tuple[Any, Any, dict[str, Any]]:
        """(params, optimizer state, meta) of `step`, or of the latest.

        The arguments are trees of ShapeDtypeStruct with shardings; any mesh will do, values are equal to the bit.
        Raises UserError when there is no such checkpoint, when one of its files is not what was written, when one of
        its parameters has another path, shape or dtype, or when it has no state for one that is trained.
        """
        self.wait()
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"{self.directory} holds no checkpoint to resume from")
        if step is None:
            step = steps[-1]
        if step not in steps:
            raise UserError(f"{self.directory} has no step {step}; it holds {', '.join(map(str, steps))}")
        got = restore_checkpoint(self.directory / str(step), params, optimizer_state)
        return *got, read_meta(self.directory.parent, step)

    def latest_step(self) -> int | None:
        """The last step saved, one still being written included."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best value of `best_metric`; None before a validated one was saved."""
        return None if self._best_metric is None else self._manager.best_step()

    def wait(self) -> None:
        """Returns when what was saved is on disk, whole. Raises SaveError when it could not be written."""
        with self._saving(self.latest_step()):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the threads. Raises SaveError when the last save could not be written."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _sum_up(self) -> None:
        """Adds the checksums to a step that is written and does not count yet: process 0, in orbax' own thread."""
        for written in self.directory.glob(f"{self._saved}*"):
            if written.name.partition(".")[0] == str(self._saved):
                checksums.write_checksums(written)

    @contextlib.contextmanager
    def _saving(self, step: int | None) -> Iterator[None]:
        """Turns what goes wrong while writing into one line. orbax raises ValueError, OSError and others for IO."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise self._said(error, step) from error

    def _said(self, error: Exception, step: int | None) -> SaveError:
        what = "the folder cannot be made" if step is None else f"step {step} could not be saved"
        whole = [s for s in self._manager.all_steps() if s != step] if step is not None else []
        kept = f"; step {max(whole)} is whole" if whole else ""
        return SaveError(f"{self.directory}: {what}: {_reason(error, self.directory)}{kept}")


def _reason(error: Exception, place: epath.Path | None = None) -> str:
    """'No space left on device' of an OSError or of tensorstore's long chain, else the error's first line."""
    said = storage_fault(error, str(place))
    if said is not None and said.startswith("no inodes"):  # the system calls that a full disk
        return "no inodes are left"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r"\[os_error_code='(\d+)'", str(error))
    if found:
        return os.strerror(int(found[1]))
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
