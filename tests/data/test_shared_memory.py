"""Rows in shared memory are gone before Python ends, so that nothing is told of leaks."""

import time
from pathlib import Path

import numpy as np
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from jvr1.data.pipeline import finish_deletions


def test_rows_that_were_let_go_are_unlinked_when_waited_for():
    SharedMemoryArray.enable_async_del(1)
    made = [SharedMemoryArray((4,), np.int32) for _ in range(5)]
    files = [Path("/dev/shm", array.metadata.name) for array in made]
    for array in made:
        array.unlink_on_del()
    assert all(file.exists() for file in files)
    SharedMemoryArray._del_thread_pool.apply_async(time.sleep, (0.2,))  # the thread is behind, as at the end of a run
    del array
    made.clear()
    assert all(file.exists() for file in files)
    finish_deletions()
    assert not any(file.exists() for file in files)


def test_rows_in_a_cycle_are_let_go_first():
    SharedMemoryArray.enable_async_del(1)
    row = SharedMemoryArray((4,), np.int32)
    file = Path("/dev/shm", row.metadata.name)
    row.unlink_on_del()
    cycle = [row]
    cycle.append(cycle)
    del row, cycle
    assert file.exists()
    finish_deletions()
    assert not file.exists()
