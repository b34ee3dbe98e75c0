"""One step on every mesh, in 1, 2 and 4 processes: one device's gradients, the same rows, the same random draws."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from forks import Fork
from runs import free_port

KINDS = {(1, "1x1x8"), (2, "2x2x2"), (4, "1x4x2")}
"""Processes and mesh: heads and all axes split, within a process and over them. The rest is for the night."""
MESHES = ("8x1x1", "1x8x1", "2x2x2", "1x4x2", "1x1x8")
CASES = [
    pytest.param(count, mesh, marks=() if (count, mesh) in KINDS else pytest.mark.nightly)
    for count in (1, 2, 4)
    for mesh in MESHES
]
HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(request, tmp_path_factory):
    """Number of processes -> what the driver found; eight devices in all."""
    asked = [item.callspec.params for item in request.session.items if item.path == request.path]
    out = tmp_path_factory.mktemp("gradients") / "one"
    found = {}
    for processes in (1, 2, 4):  # first one, whose gradient on one device the others are compared with
        meshes = sorted({case["mesh"] for case in asked if case["processes"] == processes})
        environment = os.environ | {
            "JAX_NUM_CPU_DEVICES": str(8 // processes),
            "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE.parent))),
        }
        coordinator = f"localhost:{free_port()}"
        logs = [Path(f"{out}.{processes}.{i}.log") for i in range(processes)]
        started = [
            Fork(
                [sys.executable, HERE / "driver.py", out, coordinator, str(processes), str(i), *meshes],
                env=environment, stderr=log.open("w"),
            )
            for i, log in enumerate(logs)
        ]  # fmt: skip
        assert [process.wait() for process in started] == [0] * processes, [log.read_text() for log in logs]
        found[processes] = json.loads(Path(f"{out}.{processes}.json").read_text())
    return found


@pytest.mark.parametrize(("processes", "mesh"), CASES)
def test_a_step_is_one_device_s(reports, processes, mesh):
    report = reports[processes][mesh]
    assert report["gradient"][0] < 1e-5, report["gradient"]
    assert report["loss"] < 1e-6
    assert report["same_tokens"]


@pytest.mark.parametrize(("processes", "mesh"), CASES)
def test_every_row_is_fed_by_the_processes_that_hold_it(reports, processes, mesh):
    tensor = int(mesh.split("x")[2])
    places = reports[processes][mesh]["places"]
    across = max(1, tensor // (8 // processes))  # processes that the tensor axis crosses
    for row in range(8):
        assert sum(row in own for own in places) == across
    assert all(own == sorted(own) and len(own) == 8 * across // processes for own in places)
