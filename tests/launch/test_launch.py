"""launch/: dry runs, and the order of real runs against stand-ins for gcloud and srun."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import HOST, LAUNCH, POD, RETRY, ROOT, SECRETS, SLICE, SLURM, TRAIN, await_, calls, kinds, run, start

pytestmark = pytest.mark.slow

SHELL = sorted([*LAUNCH.glob("*.sh"), SLURM, *(ROOT / "tools").glob("*.sh")])


# --- all scripts


def test_shellcheck():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = run(program, "-x", *SHELL)
    assert done.returncode == 0, done.stdout
    assert len(SHELL) >= 9


@pytest.mark.parametrize("script", [RETRY, POD, HOST, SLURM, SECRETS], ids=lambda s: s.name)
def test_help_names_every_option(script):
    done = run("bash", script, "--help")
    options = set(re.findall(r"^ +(--[a-z-]+)\)", script.read_text(), re.M)) - {"--"}
    assert done.returncode == 0
    assert options & {"--dry-run", "--check"}
    assert [o for o in options if o not in done.stdout] == []
    assert done.stdout.strip().endswith(".")


@pytest.mark.parametrize(
    ("script", "words", "what"),
    [
        (RETRY, (), "no command"),
        (RETRY, ("--times", "--", "true"), "--times needs a whole number"),
        (RETRY, ("--wait", "1.5", "--", "true"), "--wait needs a whole number"),
        (RETRY, ("true",), "unknown option true"),
        (RETRY, ("--", "no-such-program"), "no command no-such-program"),
        (POD, ("--", "true"), "NAME, --zone and --type"),
        (POD, (*SLICE,), "no command"),
        (POD, (*SLICE, "--zone", "--", "true"), "--zone needs a value"),
        (POD, (*SLICE, "other", "--", "true"), "unexpected argument other"),
        (POD, (*SLICE, "--preemptible", "--", "true"), "unknown option --preemptible"),
        (POD, ("slice", "--zone", "z", "--type", "v99-8", "--", "true"), "no image is known for v99-8"),
        (HOST, (), "no command"),
        (HOST, ("--gpus", "all", "--", "true"), "--gpus needs numbers"),
        (HOST, ("--fast", "--", "true"), "unknown option --fast"),
        (HOST, ("--secrets", "--", "true"), "--secrets needs a file"),
        (SLURM, ("--secrets", "--", "true"), "--secrets needs a file"),
        (POD, (*SLICE, "--secrets", "/no/file", "--", "true"), "no file of secrets /no/file"),
        (SLURM, (), "no command"),
        (SLURM, ("--nodes", "2", "--", "true"), "unknown option --nodes"),
    ],
)
def test_a_mistake_is_one_line_and_2(script, words, what, fake):
    done = run("bash", script, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert what in done.stderr
    assert calls(fake) == []


# --- gpu_host.sh


def test_gpu_host_dry_run(fake, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    done = run(HOST, "--gpus", "2,3", "--deterministic", "--dry-run", "--", *TRAIN)
    words = shlex.split(done.stdout)
    assert words[-len(TRAIN) :] == TRAIN
    assert "CUDA_VISIBLE_DEVICES=2,3" in words
    assert words[2] == (
        "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_deterministic_ops=true --xla_dump_to=/tmp/x"
    )


def test_gpu_host_runs_under_retry_with_its_settings(fake, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    got = dict(line.partition("=")[::2] for line in run(HOST, "--", "env").stdout.splitlines())
    assert got["JAX_PLATFORMS"] == "cuda,cpu"
    assert got["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert got["JVR1_EXIT_ON_PREEMPTION"] == "75"
    assert "CUDA_VISIBLE_DEVICES" not in got


def test_xla_knows_the_flags(fake, monkeypatch):
    """XLA aborts on a flag that it does not know, on the CPU as well."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-c", "import jax; print(jax.devices())"]
    done = run(HOST, "--deterministic", "--", *command)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_no_such_flag=true")
    assert "Unknown flag" in run(*command).stderr


# --- slurm.sbatch


def test_slurm_dry_run(fake):
    done = run("bash", SLURM, "--dry-run", "--", *TRAIN)
    step, note, requeue = done.stdout.splitlines()
    words = shlex.split(step)
    assert words[:2] == ["JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7", "srun"]
    assert words[words.index("launch/gpu_host.sh") :] == ["launch/gpu_host.sh", "--", *TRAIN]
    assert (note, requeue) == ("# after exit code 75:", "scontrol requeue JOB")
    assert calls(fake) == []


@pytest.mark.parametrize("code", [0, 75, 2, 1, 137])
def test_slurm_requeues_after_75_only(code, fake, monkeypatch):
    for name, value in {"SRUN_EXIT": code, "SLURM_JOB_ID": 123, "SLURM_GPUS_ON_NODE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert run("bash", SLURM, "--", "python", "-V").returncode == code
    step, *rest = calls(fake)
    assert step.startswith("srun --label --ntasks-per-node=1 --cpus-per-task=12 ")
    assert step.endswith("launch/gpu_host.sh -- python -V JAX_LOCAL_DEVICE_IDS=0,1,2,3")
    assert rest == (["scontrol requeue 123"] if code == 75 else [])


def test_slurm_asks_for_one_task_a_node_and_a_notice_to_the_step():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SLURM.read_text(), re.M))
    assert options["ntasks-per-node"] == "1"
    assert options["signal"] == "TERM@600"  # not B:, which would reach this script and not the run
    assert "requeue" in options
    default = re.search(r"SLURM_CPUS_PER_TASK:-(\d+)", SLURM.read_text())[1]
    assert options["cpus-per-task"] == default


# --- tpu_pod.sh


def pod(*options, command=("true",)) -> subprocess.CompletedProcess:
    return run(POD, *SLICE, *options, "--", *command)


@pytest.mark.parametrize("options", [(), ("--queued", "--spot")])
def test_pod_dry_run_prints_the_commands_of_the_real_run(options, fake):
    done = pod(*options, "--dry-run", command=TRAIN)
    assert done.returncode == 0, done.stderr
    assert calls(fake) == []
    assert list(fake.glob("[01]/*")) == []
    words = shlex.split(done.stdout)
    shown = [" ".join(words[i + 3 : i + 5]) for i, word in enumerate(words) if word == "gcloud"]
    assert ("--spot" in words) == ("--spot" in options)
    assert shlex.split(re.search(r"^set -- (.*)$", words[-1], re.M)[1]) == ["launch/retry.sh", "--", *TRAIN]
    assert pod(*options).returncode == 0
    assert kinds(fake) == shown


def test_pod_makes_a_slice_installs_and_runs(fake):
    """The command arrives word for word on both workers, in the environment and under retry.sh."""
    command = ["bash", "-c", 'echo "$VENV $JVR1_EXIT_ON_PREEMPTION <$0> <$1>"; ls', "it's", 'two "words" $HOME']
    done = pod("--spot", command=command)
    assert done.returncode == 0, done.stderr
    assert kinds(fake) == ["tpu-vm describe", "tpu-vm create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    create = calls(fake)[1]
    assert create == "tpus tpu-vm create slice --zone z --accelerator-type=v5p-16 --version=v2-alpha-tpuv5 --spot"
    assert done.stdout.count('active 75 <it\'s> <two "words" $HOME>\n') == 2
    assert done.stdout.count("\npyproject.toml\n") == 2  # in jvr1's folder
    for worker in (fake / "0", fake / "1"):
        uv, pip = (worker / "installed").read_text().splitlines()
        assert uv == "uv venv -q --seed --python 3.11 .venv"
        assert pip == "pip install -q -c constraints.txt -e .[tpu,gcs,wandb]"


def test_pod_takes_the_slice_that_is_there(fake):
    (fake / "tpu-vm").write_text("READY\n")
    assert pod("--queued").returncode == 0
    assert kinds(fake) == ["tpu-vm describe", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert pod().returncode == 0  # again: nothing to install
    assert (fake / "0" / "installed").read_text().count("\n") == 2


def test_pod_waits_in_the_queue(fake):
    (fake / "queued-resources").write_text("SUSPENDED\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    (fake / "tpu-vm").write_text("PREEMPTED\n")
    assert pod("--queued", "--spot").returncode == 0
    queue = "queued-resources"
    assert kinds(fake)[:7] == [
        "tpu-vm describe", f"{queue} describe", f"{queue} delete", f"{queue} create", *[f"{queue} describe"] * 3
    ]  # fmt: skip
    assert calls(fake)[2] == "tpus queued-resources delete slice --zone z --force --quiet"
    assert calls(fake)[3] == (
        "tpus queued-resources create slice --zone z --node-id=slice --accelerator-type=v5p-16 "
        "--runtime-version=v2-alpha-tpuv5 --spot"
    )


def test_pod_waits_for_the_request_that_is_in_the_queue(fake):
    (fake / "queued-resources").write_text("WAITING_FOR_RESOURCES\nACTIVE\n")
    assert pod("--queued").returncode == 0
    assert "queued-resources create" not in kinds(fake)


def test_pod_says_75_when_the_queue_fails(fake):
    (fake / "queued-resources").write_text("WAITING_FOR_RESOURCES\nFAILED\n")
    done = pod("--queued")
    assert done.returncode == 75
    assert "the request for slice is FAILED" in done.stderr
    assert "tpu-vm scp" not in kinds(fake)


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_pod_makes_anew_what_was_taken_away(state, fake):
    (fake / "tpu-vm").write_text(f"{state}\n")
    assert pod().returncode == 0
    assert kinds(fake)[:3] == ["tpu-vm describe", "tpu-vm delete", "tpu-vm create"]


def test_pod_leaves_a_slice_in_change_alone(fake):
    (fake / "tpu-vm").write_text("REPAIRING\n")
    done = pod()
    assert done.returncode == 75
    assert kinds(fake) == ["tpu-vm describe"]


def test_pod_ends_with_the_code_of_the_run(fake):
    (fake / "tpu-vm").write_text("READY\n")
    assert pod(command=["bash", "-c", "echo wrong setting; exit 2"]).returncode == 2


def test_pod_shows_the_run_that_goes_on_after_a_broken_connection(fake):
    (fake / "tpu-vm").write_text("READY\n")
    wait = "echo start >>starts; until [ -e go ]; do sleep 0.02; done; echo the end"
    first = start(POD, *SLICE, "--", "bash", "-c", wait)
    await_(lambda: all((fake / w / "jvr1" / "starts").exists() for w in "01"))
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    second = start(POD, *SLICE, "--", "bash", "-c", wait)
    seen: list[str] = []
    while seen.count("a run goes on\n") < 2:
        seen.append(second.stdout.readline())
        assert seen[-1]
    for worker in "01":
        (fake / worker / "jvr1" / "go").touch()
    out, errors = second.communicate(timeout=30)
    assert second.returncode == 0, errors
    assert out.splitlines().count("the end") == 2
    assert [(fake / w / "jvr1" / "starts").read_text() for w in "01"] == ["start\n"] * 2
