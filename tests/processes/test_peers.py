"""Who feeds which rows, and what is said of processes that cannot find each other (runs of several: processes/)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jvr1.data.share import ALONE, Share, share_among
from jvr1.errors import UserError
from jvr1.processes.peers import Peers, from_owner, gather
from jvr1.sharding import decode_mesh, make_mesh


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", 2, None), "go together"),
        ((None, None, 0), "go together"),
        (("host", 2, 0), "--coordinator host names no port"),
        (("host:1", 2, 2), "--process 2 must lie between 0 and --processes 2"),
        (("host:1", 2, -1), "--process -1 must lie"),
    ],
)
def test_flags_that_do_not_go_together(given, message):
    with pytest.raises(UserError, match=message):
        Peers(*given)


def test_gather_of_one_process_is_what_the_others_would_read():
    assert gather({"a": (1, 2.5, None)}) == [{"a": [1, 2.5, None]}]


def shares(processes, tensor, order=range(8)):
    """Of each of the processes, over eight devices in some order."""
    rows = np.asarray([i * processes // 8 for i in order]).reshape(-1, tensor).tolist()
    return [share_among(rows, process) for process in range(processes)]


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_row_belongs_to_one_process(processes, tensor):
    every = shares(processes, tensor)
    assert sorted(place for share in every for place in share.places(16)) == list(range(16))
    assert all(share.owner and not share.shared for share in every)


def test_a_tensor_axis_across_processes_shares_rows_and_the_first_owns_them():
    first, second = shares(2, 8)
    assert first.places(4) == second.places(4) == [0, 1, 2, 3]
    assert (first.owner, second.owner) == (True, False)
    assert first.shared
    assert second.shared
    four = shares(4, 4)
    assert [share.places(4) for share in four] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [share.owner for share in four] == [True, False, True, False]


def test_devices_of_a_process_need_not_stand_together():
    assert shares(2, 1, [0, 4, 1, 5, 2, 6, 3, 7])[1].places(16) == [2, 3, 6, 7, 10, 11, 14, 15]


def test_a_tensor_axis_that_crosses_unevenly_is_refused():
    with pytest.raises(UserError, match="crosses processes unevenly"):
        share_among([[0, 0, 0, 1], [1, 1, 1, 1]], 1)


def test_rows_that_cannot_be_split_are_refused():
    with pytest.raises(UserError, match="6 rows a microbatch cannot be split 4 ways"):
        Share((0,), 4).places(6)


def test_unshared_values_stay_as_they_are():
    value = object()
    assert from_owner(value, ALONE) is value


def test_the_mesh_of_generation_has_the_same_devices_in_order():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert decode_mesh(mesh, 0).shape == {"data": 4, "fsdp": 1, "tensor": 2}
    assert decode_mesh(mesh, 8).shape == {"data": 1, "fsdp": 1, "tensor": 8}
    assert isinstance(decode_mesh(mesh, 1), Mesh)
    assert list(decode_mesh(mesh, 4).devices.flat) == list(mesh.devices.flat)
    with pytest.raises(UserError, match=r"mesh\.decode_tensor=3 cannot split 8 devices"):
        decode_mesh(mesh, 3)
    assert jax.device_count() == 8
