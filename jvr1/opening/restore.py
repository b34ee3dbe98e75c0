"""What a workdir's checkpoints hold, and reading one back: the newest that is whole, the optimizer's state by name."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from jvr1.data.cache import is_remote
from jvr1.errors import UserError
from jvr1.opening import checksums
from jvr1.processes.peers import gather
from jvr1.sharding import path_name

ITEMS = ("params", "optimizer", "meta")
CHECKPOINTS, DAMAGED = "checkpoints", "damaged"


def folder_of(workdir: epath.PathLike) -> epath.Path:
    """The folder of a workdir's checkpoints; orbax needs it absolute."""
    return epath.Path(workdir).expanduser().resolve() / CHECKPOINTS


def steps_of(folder: epath.Path) -> list[int]:
    """The steps saved in a folder of checkpoints, the newest first; one still being written is none."""
    if not folder.is_dir():
        return []
    there = [path for path in folder.iterdir() if re.fullmatch(r"\d+", path.name)]
    if is_remote(str(folder)):  # a bucket has no renaming: orbax marks what is complete
        there = [path for path in there if (path / "commit_success.txt").exists()]
    return sorted((int(path.name) for path in there), reverse=True)


def newest_whole(workdir: epath.PathLike) -> int | None:
    """The newest step whose files are those that were written; None where nothing was saved. All processes call it.

    Newer ones that are damaged are moved to WORKDIR/damaged, and said. Raises UserError when there are checkpoints
    and none is whole; then nothing is moved.
    """
    folder = folder_of(workdir)
    steps = gather(steps_of(folder))[0]
    damaged: dict[int, str] = {}
    for step in steps:
        found = gather(_damage(folder / str(step), jax.process_index(), jax.process_count()))
        problem = next((one for one in found if one), None)
        if problem is None:
            break
        damaged[step] = problem
    if steps and len(damaged) == len(steps):
        all_of_them = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
        raise UserError(f"{folder} holds no whole checkpoint ({all_of_them}); bring one back, or use another workdir")
    left = [step for step in steps if step not in damaged]
    if jax.process_index() == 0:
        for step, problem in damaged.items():
            aside = _put_aside(folder / str(step))
            _warn(f"checkpoint {folder / str(step)} is damaged: {problem}; it is kept as {aside}")
        if damaged:
            _warn(f"going on from step {left[0]}, which is whole")
        if left and not checksums.has_checksums(folder / str(left[0])):
            _warn(f"checkpoint {folder / str(left[0])} has no checksums, as of an older version: taken as it is")
    gather(None)  # nobody looks before all is in its place
    return left[0] if left else None


def _damage(step: epath.Path, part: int, parts: int) -> str | None:
    missing = next((name for name in ITEMS if not (step / name).is_dir()), None)
    return f"{missing} is missing" if missing else checksums.first_damaged(step, "", part, parts)


def _put_aside(step: epath.Path) -> epath.Path:
    """Moves a checkpoint to WORKDIR/damaged, under its name, or that with a number where there is one already."""
    folder = step.parent.parent / DAMAGED
    folder.mkdir(parents=True, exist_ok=True)
    names = (step.name if n == 0 else f"{step.name}-{n}" for n in range(1000))
    free = next(folder / name for name in names if not (folder / name).exists())
    step.rename(free)
    return free


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def read_meta(workdir: epath.PathLike, step: int) -> dict[str, Any]:
    """The values saved beside the arrays. Raises UserError."""
    path = folder_of(workdir) / str(step) / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {_one_line(error)}; move its checkpoint away, or bring it back"
        ) from None
    if not isinstance(meta, dict) or not isinstance(meta.get("step", 0), int):
        raise UserError(f"{path} holds no values of a checkpoint; move its checkpoint away, or bring it back")
    return meta


def check_fits(step: epath.Path, params: Any, state: Any) -> None:
    """Raises UserError when the checkpoint has not what the trees (of arrays or shapes) want: parameters under the same
    paths in the same shapes and dtypes, and a state for each that is trained. State of others may be in it, and the
    moments may be of another dtype."""
    with _reading(step) as reader:
        _match(step, reader, params, state)


def restore_checkpoint(step: epath.Path, params: Any, state: Any) -> tuple[Any, Any]:
    """(params, optimizer state) of a checkpoint, for trees of ShapeDtypeStruct with shardings. Any mesh will do, values
    are equal to the bit, but for moments of another dtype, which are cast. All processes call it. Raises UserError."""
    with _reading(step) as reader:
        moments = _match(step, reader, params, state)
        got = reader.restore(step / "params", args=_args(params))
        saved = reader.metadata(step / "optimizer").item_metadata.tree
        wanted = {there: x for there, x in moments.values()}

        def target(path: Any, x: Any) -> Any:
            here = wanted.get(path_name(path))
            return ocp.PLACEHOLDER if here is None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here.sharding)

        tree = jax.tree_util.tree_map_with_path(target, saved, is_leaf=_is_array)
        tree = reader.restore(step / "optimizer", args=_args(tree))
        leaves = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        return got, jax.tree_util.tree_map_with_path(lambda path, x: _as(leaves[moments[path_name(path)][0]], x), state)


def _args(targets: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(targets, ocp.checkpoint_utils.construct_restore_args(targets))


def _as(array: jax.Array, wanted: Any) -> jax.Array:
    return array if array.dtype == wanted.dtype else array.astype(wanted.dtype)


@contextlib.contextmanager
def _reading(step: epath.Path) -> Iterator[ocp.Checkpointer]:
    """What orbax raises of files that are not as it wrote them becomes one line: checkpoints of older versions have no
    checksums that would tell before."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            yield reader
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint {step} cannot be read: {_one_line(error)}; move it away to go on from the one before"
        ) from error


def _match(step: epath.Path, reader: ocp.Checkpointer, params: Any, state: Any) -> dict[str, tuple[str, Any]]:
    """Of each leaf of the state: path here -> (path in the checkpoint, leaf)."""
    saved = {name: _arrays(reader.metadata(step / name).item_metadata.tree) for name in ("params", "optimizer")}
    _check_same(saved["params"], _arrays(params), f"checkpoint {step} is of another model")
    there = {_named(path): path for path in saved["optimizer"]}
    found: dict[str, tuple[str, Any]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        name = path_name(path)
        known = there.get(_named(name))
        if known is None:
            raise UserError(
                f"checkpoint {step} has no {_named(name)}: that was frozen when it was made. optimizer.freeze may name "
                "more than before, not less; to train it, use another workdir with model.source=this one"
            )
        before, now = saved["optimizer"][known], _described(x)
        if before.partition("[")[2] != now.partition("[")[2]:
            raise UserError(
                f"checkpoint {step} is of another optimizer: {name} is {before} in it and {now} in this run"
            )
        found[name] = known, x
    return found


def _named(path: str) -> str:
    """A leaf's name whatever else the chain of optax does: a part has a number, and takes part or not."""
    return re.sub(r"^optimizer/\d+/", "", path)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape")


def _arrays(tree: Any) -> dict[str, str]:
    """Path -> 'float32[8,4]' of a tree of arrays, of shapes, or of orbax' metadata."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_array)
    return {path_name(path): _described(x) for path, x in leaves}


def _described(x: Any) -> str:
    return f"{jnp.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


def _check_same(saved: dict[str, str], wanted: dict[str, str], message: str) -> None:
    for path in [*wanted, *saved]:
        there, here = saved.get(path), wanted.get(path)
        if there != here:
            raise UserError(f"{message}: {path} is {there or 'absent'} in it and {here or 'absent'} in this run")


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@functools.cache
def quieten_orbax() -> None:
    """Keeps orbax' tracebacks off stderr, pages of them for a full disk: the same error is raised to us.

    After it tensorstore's other writes fail too, with nobody waiting, or find the event loop closed: Python would
    report both, sometimes.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = report_others
