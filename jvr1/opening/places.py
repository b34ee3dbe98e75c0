"""Folders that a run writes to: its workdir, what it keeps on this machine, compiled programs."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
from etils import epath

from jvr1.data.cache import is_remote
from jvr1.errors import UserError


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs, where JAX_COMPILATION_CACHE_DIR says or in the user's cache."""
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "jvr1" / "xla"))


def check_writable(workdir: epath.Path) -> None:
    """Raises UserError when the workdir cannot be made or written to; makes nothing."""
    if is_remote(str(workdir)):
        return
    folder = Path(workdir).resolve()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    if not there.is_dir():
        raise UserError(f"workdir {workdir} cannot be made: {there} is a file")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise UserError(f"workdir {workdir} cannot be written: the file system of {there} is read-only")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"workdir {workdir} cannot be written: no permission in {there}")


def local_cache(workdir: epath.Path) -> Any:
    """A folder of this machine for files that worker processes map into memory; of a workdir in a bucket always the
    same one, in the temporary directory."""
    own = f"process-{jax.process_index()}"
    if not is_remote(str(workdir)):
        return Path(workdir) / "cache" / own
    name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"jvr1-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; name another temporary directory in TMPDIR")
    return folder / own
