"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath

from jvr1.data.cache import is_remote
from jvr1.model.hf import claim_folder
from jvr1.opening import checksums
from jvr1.processes.peers import gather


@contextmanager
def appearing(out: epath.PathLike) -> Iterator[epath.Path]:
    """The folder to write to; when the block ends it is `out`, with checksums. All processes call it.

    What an interrupted attempt left is removed, so that it can be made again under the same name. In a bucket, where
    renaming copies, the folder is `out` itself. Raises UserError when `out` is not empty or cannot be written.
    """
    out = epath.Path(out)
    first = jax.process_index() == 0
    beside = out if is_remote(str(out)) else out.with_name(f".{out.name}.partial")
    if first:
        claim_folder(out)
        if beside != out and beside.exists():
            beside.rmtree()
    gather(None)
    try:
        yield beside
    except BaseException:
        if first and beside != out and beside.exists():
            beside.rmtree()  # a full disk has room again
        raise
    gather(None)
    if first:
        checksums.write_checksums(beside)
        if beside != out:
            out.rmdir()
            beside.rename(out)
    gather(None)


def write_file(path: epath.Path, content: bytes) -> None:
    """A local file appears whole or not at all, or stays as it was; an object in a bucket does anyway."""
    beside = path if is_remote(str(path)) else path.with_name(f".{path.name}.partial")
    beside.write_bytes(content)
    if beside != path:
        beside.replace(path)
