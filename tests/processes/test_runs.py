"""Runs in several processes: the losses of one, preemption, a lost peer, checkpoints that go on elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from runs import REPOSITORY, scalars

STEPS = 20
CHANGES = {"batch__micro": 8, "batch__per_step": 1, "train__steps": STEPS, "train__save_every": 4, "train__keep": 20}
NIGHTLY = pytest.mark.nightly
SECRETS = {"WANDB_API_KEY": "4f1c" * 10, "HF_TOKEN": "hf_Qm7vXb2", "MY_PASSWORD": "tr0ub4dor&3"}


def losses(workdir: Path) -> np.ndarray:
    values = scalars(workdir)["loss"]
    assert [step for step, _ in values] == list(range(1, STEPS + 1))
    return np.asarray([value for _, value in values])


def finish(processes) -> list[str]:
    """Ends of what they said on stderr; all must end well."""
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), ends
    return [out for out, _ in ends]


def wait_for(path: Path, processes) -> None:
    while not path.exists() and all(process.poll() is None for process in processes):
        time.sleep(0.01)


def start(demo, workdir, count, devices, mesh, **how):
    data, fsdp, tensor = mesh
    return demo.together(
        "sft", workdir, count, devices, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, **CHANGES, **how
    )


@pytest.fixture(scope="module")
def one_device(demo, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    finish(start(demo, workdir, 1, 1, (1, 1, 1)))
    return losses(workdir)


@pytest.fixture(scope="module")
def preempted(demo, tmp_path_factory):
    """Two processes of four devices, of which the second was told to stop: codes, outputs, workdir."""
    workdir = tmp_path_factory.mktemp("preempted") / "run"
    with_secrets = ["env", *(f"{name}={value}" for name, value in SECRETS.items())]
    processes = start(demo, workdir, 2, 4, (2, 4, 1), before=with_secrets)
    wait_for(workdir / "checkpoints" / "4", processes)
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate() for process in processes]
    return [process.returncode for process in processes], ends, workdir


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [pytest.param(1, 8, (1, 8, 1), marks=NIGHTLY), pytest.param(4, 2, (2, 2, 2), marks=NIGHTLY)],
    ids=["1x8", "4x2"],
)
def test_losses_are_one_device_s(demo, one_device, tmp_path, processes, devices, mesh):
    finish(start(demo, tmp_path / "run", processes, devices, mesh))
    np.testing.assert_allclose(losses(tmp_path / "run"), one_device, rtol=1e-3)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1  # written once


def test_a_signal_to_one_process_makes_all_save_the_same_step(preempted):
    codes, ends, workdir = preempted
    assert codes == [75, 75], ends
    last = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 4 <= last < STEPS
    assert f"stopped at step {last} of {STEPS}, saved" in ends[0][0]
    assert "stopped at" not in ends[1][0]  # said once


def test_logs_and_workdir_have_no_secrets_of_the_environment(preempted):
    _, ends, workdir = preempted
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert {"config.json"} < {path.name for path in files}
    for content in [*(path.read_bytes() for path in files), *(text.encode() for end in ends for text in end)]:
        assert [name for name, value in SECRETS.items() if value.encode() in content] == []


@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [pytest.param(1, 8, (8, 1, 1), marks=NIGHTLY), (1, 1, (1, 1, 1)), pytest.param(2, 4, (1, 8, 1), marks=NIGHTLY)],
    ids=["8x1", "1x1", "2 processes"],
)
def test_a_checkpoint_goes_on_elsewhere_with_the_same_rows(
    demo, preempted, one_device, tmp_path, processes, devices, mesh
):
    _, _, workdir = preempted
    shutil.copytree(workdir, tmp_path / "run")
    out = finish(start(demo, tmp_path / "run", processes, devices, mesh))[0]
    assert "resumed at step" in out
    np.testing.assert_allclose(losses(tmp_path / "run"), one_device, rtol=1e-3)


def test_a_killed_process_ends_the_other_and_retry_brings_both_back(demo, one_device, tmp_path):
    retry = ["bash", str(REPOSITORY / "launch" / "retry.sh"), "--times", "3", "--wait", "1", "--"]
    processes = start(demo, tmp_path / "run", 2, 1, (1, 2, 1), before=retry)
    wait_for(tmp_path / "run" / "checkpoints" / "4", processes)
    pid = processes[1].pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert "lost a peer" in ends[0][1]
    assert "resumed at step" in ends[0][0]
    np.testing.assert_allclose(losses(tmp_path / "run"), one_device, rtol=1e-3)
