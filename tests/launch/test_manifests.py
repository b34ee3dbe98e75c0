"""The commands of docs/launch.md: consistent, and made of configs and settings that exist."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from stand_ins import GKE, HOST, POD, RETRY, ROOT, SLURM, calls, run

from jvr1 import config as settings
from jvr1.__main__ import COMMANDS as COMMANDS_OF_JVR1
from launch import gke

GUIDE = (ROOT / "docs" / "launch.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, re.M | re.S)
COMMANDS = [
    command
    for block in BLOCKS
    for command in block.replace("\\\n", " ").splitlines()
    if re.match(r"(launch/|sbatch .*launch/|python launch/)", command)
]
CHIPS = {"v5p-16": 8, "v6e-16": 16, "slurm.sbatch": 16, "gpu_host.sh": 8}
JOBSET = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": str, "annotations?": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str}},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": ("Recreate", "BlockingRecreate"),
            "rules": [
                {
                    "name": re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
                    "action": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                    "onJobFailureReasons": [("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy")],
                }
            ],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": dict}}],
    },
}
"""Of JobSet's schema (kubernetes-sigs/jobset, config/components/crd/bases as of 0107852) what is used."""
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": ("Indexed", "NonIndexed"),
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [
            {
                "action": ("FailIndex", "FailJob", "Ignore", "Count"),
                "onExitCodes": {"containerName": str, "operator": ("In", "NotIn"), "values": [int]},
            }
        ]
    },
    "template": {
        "spec": {
            "restartPolicy": ("Always", "OnFailure", "Never"),
            "terminationGracePeriodSeconds": int,
            "serviceAccountName": str,
            "nodeSelector": {re.compile(r"cloud\.google\.com/gke-[a-z-]+"): str},
            "containers": [
                {
                    "name": str,
                    "image": str,
                    "workingDir": str,
                    "command": [str],
                    "envFrom": [{"secretRef": {"name": str, "optional": bool}}],
                    "env": [{"name": str, "value": str}],
                    "resources": {"limits": {re.compile(r"google\.com/tpu|nvidia\.com/gpu"): int}},
                    "volumeMounts": [{"name": str, "mountPath": str}],
                }
            ],
            "volumes": [{"name": str, "emptyDir": {"medium": ("", "Memory")}}],
        }
    },
}
"""Of Kubernetes' batch/v1 JobSpec."""


@pytest.fixture
def printed(capsys, monkeypatch):
    """printed(command of the page) -> the manifest."""
    monkeypatch.chdir(ROOT)

    def text(command: str) -> str:
        words = shlex.split(command.partition(">")[0])
        assert words[:2] == ["python", "launch/gke.py"]
        assert gke.main(words[2:]) == 0
        return capsys.readouterr().out

    return text


def conforms(value, schema, where="") -> None:
    """A value has the fields of a schema and no others, of its types."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        fields = {k.removesuffix("?") if isinstance(k, str) else k: v for k, v in schema.items()}
        for key, field in value.items():
            (match,) = [f for f in fields if (f.fullmatch(key) if isinstance(f, re.Pattern) else f == key)] or [None]
            assert match is not None, f"{where}.{key}"
            conforms(field, fields[match], f"{where}.{key}")
        assert {k for k in schema if isinstance(k, str) and not k.endswith("?")} <= set(value), where
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for each in value:
            conforms(each, schema[0], f"{where}[]")
    elif isinstance(schema, re.Pattern):
        assert schema.fullmatch(value), where
    elif isinstance(schema, type):
        assert type(value) is schema, f"{where}: {value!r}"
    else:
        assert value in schema if isinstance(schema, tuple) else value == schema, f"{where}: {value!r}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "gke.py" in c], ids=lambda c: c.split()[2])
def test_jobset(command, printed):
    jobset = yaml.safe_load(printed(command))
    conforms(jobset, JOBSET)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    conforms(job, JOB)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (failure,) = job["podFailurePolicy"]["rules"]  # a second rule of FailJob would end the JobSet as well
    assert failure["action"] == "FailJob"
    assert failure["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert pod["restartPolicy"] == "Never"  # the failure policy needs it
    assert job["backoffLimit"] == 0
    assert pod["terminationGracePeriodSeconds"] >= 600
    assert group["replicas"] == 1
    assert job["parallelism"] == job["completions"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    (chips,) = container["resources"]["limits"].values()
    check_training(container["command"], job["completions"] * chips)
    assert job["completions"] * chips == 16
    assert container["command"][0] in ("launch/retry.sh", "launch/gpu_host.sh")
    assert (ROOT / container["command"][0]).is_file()


def test_the_manifest_that_the_page_shows_is_the_one_that_is_printed(printed):
    (shown,) = [block for block in BLOCKS if "envFrom:" in block]
    (command,) = [c for c in COMMANDS if "gke.py gpu" in c]
    assert shown in printed(command)


# --- commands of the page and the manifests


def check_training(words: list[str], chips: int) -> None:
    """The training command's config exists, its settings too, and its rows split over the chips."""
    words = words[words.index("jvr1") :]
    assert words[1] in COMMANDS_OF_JVR1
    flags = [f.replace("configs/", f"{ROOT}/configs/") for f in words[2:]]
    flags = [f.replace("$(JOB_COMPLETION_INDEX)", "1") for f in flags]
    config, workdir, *_ = settings.parse([words[1], *flags])
    assert config.batch.micro % chips == 0
    assert config.batch.micro * config.batch.per_step == 32
    assert "runs/" in workdir


def test_the_page_shows_every_script():
    shown = " ".join(COMMANDS)
    assert all(f"launch/{s.name}" in shown for s in (RETRY, POD, HOST, SLURM, GKE))
    assert len(COMMANDS) == 6
    assert "apply --dry-run=client" in GUIDE


@pytest.mark.parametrize("command", [c for c in COMMANDS if "gke.py" not in c], ids=lambda c: c.split()[0])
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
        assert re.search(r"jvr1\s+train-rl", done.stdout), done.stdout
    assert calls(fake) == []


def test_the_quickstarts_lead_to_the_page():
    assert "(launch.md)" in (ROOT / "docs" / "quickstarts.md").read_text()
    assert "(docs/quickstarts.md)" in (ROOT / "README.md").read_text()
