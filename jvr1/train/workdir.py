"""What a workdir holds of a run: how far it came, what it may go on with, and which weights it began from."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jvr1 import config as settings
from jvr1.errors import UserError
from jvr1.model.hf import CONFIG
from jvr1.model.lora import with_adapters
from jvr1.opening import checksums
from jvr1.opening.models import MODEL, Model, describe_model, open_base
from jvr1.opening.restore import newest_whole, quieten_orbax, read_meta
from jvr1.sharding import param_shardings


@dataclass(frozen=True)
class Origin:
    """The weights a run began from: as `model.source` named them, under the name that stays with them, and their
    fingerprint (None: KL is not measured from them)."""

    named: str
    pinned: str
    fingerprint: str | None


@dataclass(frozen=True)
class Begun:
    """A run found in a workdir: the step it goes on from, and what was saved beside it. Of older versions some is not
    known: config None (the workdir's config.json has it), origin None."""

    step: int
    stage: str
    config: dict[str, Any] | None
    origin: Origin | None


def find_run(workdir: epath.Path) -> Begun | None:
    """The run that a workdir holds, from its newest whole checkpoint; None: there is none. All processes call it.
    Raises UserError."""
    quieten_orbax()
    step = newest_whole(workdir)
    if step is None:
        return None
    meta = read_meta(workdir, step)
    guessed = "rl" if (workdir / "rollouts").exists() else "sft"  # of older versions
    origin = Origin(**meta["origin"]) if meta.get("origin") else None
    return Begun(step, meta.get("stage", guessed), meta.get("config"), origin)


def check_unchanged(config: ConfigDict, workdir: epath.Path, begun: Begun | None, stage: str) -> tuple[str, ...]:
    """What of the objective changed since the run began, each as 'name: before -> now'.

    Raises UserError when its checkpoints were made by another stage, or with another model, other data or other
    batches (a setting's `resume` says whether it may change).
    """
    if begun is None:
        return ()
    if begun.stage != stage:
        raise UserError(
            f"workdir {workdir} holds a run of jvr1.train_{begun.stage}; jvr1.train_{stage} needs another workdir, and "
            f"can begin from this one with model.source={workdir}"
        )
    changes = settings.changes(_kept_config(workdir, begun), config, str(workdir))
    resumed = {name: settings.SETTINGS[name].about.resume for name in changes}
    if fixed := [change for name, change in changes.items() if resumed[name] == "fixed"]:
        raise UserError(f"workdir {workdir} holds a run with other settings ({'; '.join(fixed)}); use another workdir")
    return tuple(change for name, change in changes.items() if resumed[name] == "tunable")


def keep_buckets(config: ConfigDict, workdir: epath.Path, begun: Begun | None) -> None:
    """Gives a run that goes on and fits its own buckets those it was begun with: other ones would be other batches."""
    if begun is None or not settings.fits_buckets(config):
        return
    kept = json.loads(_kept_config(workdir, begun)).get("data", {}).get("buckets")
    config.data.buckets = tuple(map(tuple, kept or ()))


def _kept_config(workdir: epath.Path, begun: Begun) -> str:
    if begun.config is not None:
        return json.dumps(begun.config)
    try:
        return (workdir / CONFIG).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{workdir / CONFIG} cannot be read: {reason}; its run cannot be told, use another workdir"
        ) from None


def measures_from_source(config: ConfigDict, stage: str) -> bool:
    """Whether KL is measured from the weights of `model.source`; under adapters it is from the frozen ones."""
    return stage == "rl" and config.rl.beta > 0 and not config.lora.rank


def open_weights(
    config: ConfigDict, workdir: epath.Path, begun: Begun | None, mesh: Mesh, stage: str
) -> tuple[Model, Origin]:
    """The model that a run trains, and what its weights were at the beginning. All processes call it.

    A new run reads `model.source`. A resumed one has its own weights in the checkpoint, the frozen ones too: the
    parameters are shapes then, but where KL is measured from the source they are its, as they were when the run began.
    Raises UserError when those are no more.
    """
    kw: dict[str, Any] = {
        "dtype": jnp.dtype(config.model.dtype),
        "param_dtype": jnp.dtype(settings.base_dtype(config)),
        "remat": config.model.remat,
        "attention": config.model.attention,
    }
    lora, origin = settings.lora(config), begun.origin if begun else None
    anchored = measures_from_source(config, stage)
    if begun is not None and not anchored:
        folder = workdir / MODEL
        if (folder / CONFIG).exists() and checksums.first_damaged(folder) is None:
            described = describe_model(folder, mesh, lora=None, **kw)
            if lora is not None:
                graphdef, shapes = with_adapters(described.graphdef, described.params, lora)
                shapes = jax.tree.map(_placed, shapes, param_shardings(shapes, mesh))
                described = Model(described.config, graphdef, shapes, described.carried, described.source, lora)
            return described, origin or Origin(config.model.source, config.model.source, None)
    source = origin.pinned if origin else config.model.source
    if begun is not None and origin is None and anchored and jax.process_index() == 0:
        print(
            f"warning: workdir {workdir} does not say which weights it began from, as of an older version: KL is "
            f"measured from {source} as it is now",
            file=sys.stderr,
        )
    try:
        model = open_base(source, mesh, lora=lora, seed=config.seed, marked=stage == "rl" and lora is None, **kw)
    except UserError as error:
        if origin is None or not anchored:
            raise
        raise UserError(f"{error}. KL is measured from what {source} was when this run began: bring it back") from None
    found = Origin(config.model.source, model.pinned, model.fingerprint)
    if origin is not None and anchored and origin.fingerprint not in (None, found.fingerprint):
        raise UserError(
            f"{source} has other weights than when this run began (fingerprint {found.fingerprint}, was "
            f"{origin.fingerprint}), and KL is measured from them: bring those back, or use another workdir"
        )
    return model, origin or found


def _placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def as_meta(origin: Origin) -> dict[str, Any]:
    """What `find_run` reads."""
    return asdict(origin)
