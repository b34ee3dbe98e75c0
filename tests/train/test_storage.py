"""Storage that takes no more is told as what it is: full, without inodes, over quota, read-only; not as memory."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import pytest
from etils import epath
from train.test_checkpoint import assert_bit_equal, checkpoints, make_params, make_state, on_one

from jvr1.errors import SaveError, UserError, run_main, storage_fault
from jvr1.opening.places import check_writable
from jvr1.processes.guard import explain
from jvr1.train.checkpoint import Checkpoints

SAID = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "a file is too big",
}


def from_tensorstore(number: int) -> ValueError:
    """As it words it, a full disk with the name that XLA has for a lack of memory."""
    kind = "RESOURCE_EXHAUSTED" if number in (errno.ENOSPC, errno.EDQUOT) else "FAILED_PRECONDITION"
    return ValueError(f"{kind}: Error writing \"a/.zarray\": {os.strerror(number)} [os_error_code='{number}']")


@pytest.mark.parametrize("number", SAID)
def test_what_tensorstore_and_python_say_is_read(number, capsys):
    assert storage_fault(from_tensorstore(number)) == SAID[number]
    said = explain(from_tensorstore(number))
    assert isinstance(said, UserError)
    assert str(said).startswith(f"{SAID[number]}; what was saved before is whole")

    def main() -> int:
        raise OSError(number, os.strerror(number), "/runs/a/rollouts/step-3.jsonl")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"error: {SAID[number]} writing /runs/a/rollouts/step-3.jsonl; what was saved before is whole"
    )
    assert line.count("\n") == 1


def test_a_line_about_storage_stays_what_it_is():
    error = SaveError("step 2 could not be saved: No space left on device")
    error.__cause__ = from_tensorstore(errno.ENOSPC)
    assert explain(error) is None
    assert "out of memory on the device" in str(explain(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9.1G")))


@contextmanager
def disk(folder: Path, options: str):
    """A file system of its own; without the right to mount, yields False."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Until only a few files can be made there: a checkpoint's folders, not what is in them."""
    made = 0
    with suppress(OSError):
        while True:
            (folder / f"{made}").touch()
            made += 1
    for n in range(leave):
        (folder / f"{n}").unlink()


def test_a_disk_without_inodes(tmp_path, monkeypatch):
    """On a real one where the tests may mount it, else on what the system would say of one."""
    small = make_params()
    with disk(tmp_path / "disk", "size=8m,nr_inodes=200") as mounted:
        with checkpoints(tmp_path / "disk" / "run") as manager:
            manager.save(1, small, make_state(small), {"step": 1})
            manager.wait()
            if not mounted:
                full = os.statvfs_result((4096, 4096, 99, 99, 99, 200, 0, 0, 0, 255))
                monkeypatch.setattr(os, "statvfs", lambda _: full)
                error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "disk"))
                assert storage_fault(error) == f"no inodes are left writing {tmp_path / 'disk'}"
                return
            fill(tmp_path / "disk", leave=8)
            with pytest.raises(SaveError, match=r"step 2 could not be saved: no inodes are left; step 1 is whole$"):
                save_and_wait(manager, small)
        with checkpoints(tmp_path / "disk" / "run") as manager:
            params, state, _ = manager.restore(*on_one(small))
            assert_bit_equal((params, state), (small, make_state(small)))


def save_and_wait(manager: Checkpoints, params) -> None:
    manager.save(2, params, make_state(params), {"step": 2})
    manager.wait()


def test_a_read_only_disk_is_said_before_anything_is_begun(tmp_path, monkeypatch):
    with disk(tmp_path / "disk", "size=1m") as mounted:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        else:
            monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 9, 9, 9, 9, 9, 9, os.ST_RDONLY, 255)))
        with pytest.raises(UserError, match=r"cannot be written: the file system of .*disk is read-only"):
            check_writable(epath.Path(tmp_path / "disk" / "run"))
