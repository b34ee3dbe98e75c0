"""launch/gke.yaml and the commands of docs/launch.md: consistent, and made of configs and settings that exist."""

from __future__ import annotations

import itertools
import math
import re
import shlex

import pytest
import yaml
from stand_ins import HOST, LAUNCH, POD, RETRY, ROOT, SLURM, calls, run

from jvr1 import config as settings

GUIDE = (ROOT / "docs" / "launch.md").read_text()
JOBSETS = {d["metadata"]["name"]: d for d in yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())}


@pytest.mark.parametrize("name", ["jvr1-tpu", "jvr1-gpu"])
def test_jobset(name):
    jobset = JOBSETS[name]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["labels"]["accelerator"] == name.removeprefix("jvr1-")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (failure,) = job["podFailurePolicy"]["rules"]  # a second rule of FailJob would end the JobSet as well
    assert failure["action"] == "FailJob"
    assert failure["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # the failure policy needs it
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 600
    assert group["replicas"] == 1
    assert job["parallelism"] == job["completions"]
    volumes = {v["name"] for v in job["template"]["spec"]["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes


def job_of(name: str) -> tuple[dict, dict, list[str]]:
    """The job's spec, its container, and the words of its command."""
    job = JOBSETS[name]["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    command = container["command"]
    return job, container, shlex.split(command[2]) if command[0] == "bash" else command


def test_tpu_jobset_has_the_hosts_of_its_topology():
    job, container, command = job_of("jvr1-tpu")
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(n) for n in topology.split("x"))
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips
    check_training(command, chips)
    assert command[:3] == ["launch/retry.sh", "--", "python"]


def test_gpu_jobset_tells_its_processes_of_each_other():
    job, container, command = job_of("jvr1-gpu")
    nodes = job["completions"]
    check_training(command, nodes * container["resources"]["limits"]["nvidia.com/gpu"])
    assert command[:4] == ["exec", "launch/gpu_host.sh", "--", "python"]
    flags = dict(itertools.pairwise(command))
    assert flags["--processes"] == str(nodes)
    assert flags["--process"] == "$JOB_COMPLETION_INDEX"
    group = JOBSETS["jvr1-gpu"]["spec"]["replicatedJobs"][0]["name"]
    assert flags["--coordinator"] == f"jvr1-gpu-{group}-0-0.jvr1-gpu:8476"  # JOBSET-GROUP-JOB-POD.SUBDOMAIN


# --- commands of the page and the manifests


def check_training(words: list[str], chips: int) -> None:
    """The training command's config exists, its settings too, and its rows split over the chips."""
    words = words[words.index("python") :]
    assert words[1] == "-m"
    assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    flags = words[3:]
    flags = [f.replace("configs/", f"{ROOT}/configs/") for f in flags]
    flags = [f.replace("$JOB_COMPLETION_INDEX", "1") for f in flags]
    config, workdir, *_ = settings.parse([words[2], *flags])
    assert config.batch.micro % chips == 0
    assert config.batch.micro * config.batch.per_step == 32
    assert "runs/" in workdir


BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, re.M | re.S)
COMMANDS = [c for b in BLOCKS for c in b.replace("\\\n", " ").splitlines() if "launch/" in c and c.lstrip()[0] in "ls"]
CHIPS = {"v5p-16": 8, "v6e-16": 16, "slurm.sbatch": 16, "gpu_host.sh": 8}


def test_the_page_shows_every_script():
    shown = " ".join(COMMANDS)
    assert all(f"launch/{s.name}" in shown for s in (RETRY, POD, HOST, SLURM))
    assert len(COMMANDS) == 5
    assert "apply --dry-run=client" in GUIDE


@pytest.mark.parametrize("command", [c for c in COMMANDS if "jvr1.train" in c], ids=lambda c: c.split()[0])
def test_commands_of_the_page(command, fake):
    words = shlex.split(command, comments=True)
    (chips,) = (n for name, n in CHIPS.items() if name in command)
    check_training(words, chips)
    if words[0] == "sbatch":
        words = ["bash", *words[words.index("launch/slurm.sbatch") :]]
    for script in [i for i, w in enumerate(words) if w.startswith("launch/")][::-1]:  # retry.sh goes around tpu_pod.sh
        part = words[script:] if words[0] != "bash" else words
        dry = [*part[: part.index("--")], "--dry-run", *part[part.index("--") :]]
        done = run(*dry)
        assert done.returncode == 0, done.stderr
        assert "jvr1.train_rl" in done.stdout
    assert calls(fake) == []


def test_readme_leads_to_the_page():
    assert "(docs/launch.md)" in (ROOT / "README.md").read_text()
