"""launch/gke.py: what is given arrives word for word, what follows from it is right, and mistakes end with 2."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from stand_ins import ROOT

from jvr1.errors import UserError
from launch import gke

IMAGE = "us-docker.pkg.dev/my-project/jvr1/jvr1:tpu"
TRAIN = ["python", "-m", "jvr1.train_rl", f"--config={ROOT}/configs/tgrpo_7b.py", "--workdir", "gs://b/runs/it's here"]
HOSTILE = [
    "a b", " lead", "trail ", "a & b", "a | b", "x # no comment", "# none", "key: value", "- item", "* & ! %", "@at",
    "`id`", "$(id)", "$(HOME)", "$$(HOME)", "$$", "$", "$x", "${HOME}", "$(JOB_COMPLETION_INDEX)", "it's", 'say "hi"',
    "\\n", "a\nb\n", "\ta\r", "é 漢字 😀 \u2028", "\x01\x7f", "", "yes", "null", "~", "1e3", "0x10", "0o17", "1:20",
    "2026-01-01", "=", "<<", "{a: b}", "[a]", "IMAGE", "BUCKET", "gs://BUCKET/|&", "--", "-", "--help", "%s", "'", '"',
]  # fmt: skip


def rendered(capsys, *words: str, command=("true",), kind="tpu") -> dict:
    assert gke.main([kind, "--image", IMAGE, "--bucket", "my-bucket", *words, "--", *command]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def parts(jobset: dict) -> tuple[dict, dict, dict]:
    """Of a JobSet: its Job's spec, its pod's and its container."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    return job, pod, pod["containers"][0]


def expanded(text: str, environment: dict[str, str]) -> str:
    """As the kubelet does: $$ is $, $(NAME) a value, or itself where there is none."""
    return re.sub(
        r"\$(\$|\(([^)]*)\))", lambda m: "$" if m[1] == "$" else environment.get(m[2], m[0]), text, flags=re.S
    )


def started(jobset: dict) -> list[str]:
    """The words that the second pod's container is started with."""
    environment = {"JOB_COMPLETION_INDEX": "1", "HOME": "/root", "id": "no", "x": "no"}
    return [expanded(word, environment) for word in parts(jobset)[2]["command"]]


# --- words


def test_hostile_words_arrive_as_given(capsys):
    assert started(rendered(capsys, command=HOSTILE)) == ["launch/retry.sh", "--", *HOSTILE]
    assert started(rendered(capsys, command=HOSTILE, kind="gpu")) == ["launch/gpu_host.sh", "--", *HOSTILE]


@pytest.mark.slow
def test_hostile_words_of_a_shell_arrive_as_given():
    """Through the program itself, and its values of settings as well."""
    words = [*TRAIN, *(f"--config.model.source={word}" for word in HOSTILE)]
    command = [sys.executable, "launch/gke.py", "tpu", "--image", IMAGE, "--bucket", "my-bucket", "--topology=2x4"]
    done = subprocess.run([*command, "--", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert started(yaml.safe_load(done.stdout)) == ["launch/retry.sh", "--", *words]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text("$(id)")))
@effort(derandomize=True, max_examples=100, deadline=None)
def test_any_words_are_read_back(words):
    text = gke.written({"command": gke.escaped(words)})
    assert [expanded(word, {"id": "no"}) for word in yaml.safe_load(text)["command"]] == words


def test_every_text_is_quoted(capsys):
    """What one YAML reader takes for text another takes for a number: PyYAML writes 1e3 plain."""
    gke.main(["tpu", "--image", IMAGE, "--bucket", "my-bucket", "--", "1e3"])
    lines = [line.strip().removeprefix("- ") for line in capsys.readouterr().out.splitlines()]
    plain = [line for line in lines if not re.fullmatch(r'([\w./-]+: ?)?("[^"]*")?|[\w./-]+: (\d+|true)|\d+', line)]
    assert plain == []


# --- hosts


@pytest.mark.parametrize(
    ("words", "hosts", "chips"),
    [
        ((), 4, 4),
        (("--topology", "2x4"), 2, 4),
        (("--topology", "2x4", "--chips", "8"), 1, 8),
        (("--topology", "1x1"), 1, 1),
        (("--topology", "16x16"), 64, 4),
        (("--accelerator", "tpu-v5p-slice", "--topology", "2x2x2"), 2, 4),
        (("--accelerator", "tpu-of-tomorrow", "--topology", "2x2x4"), 4, 4),
    ],
)
def test_a_slice_has_the_hosts_of_its_topology(words, hosts, chips, capsys):
    job, pod, container = parts(rendered(capsys, *words))
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert topology in ("4x4", *words)
    assert math.prod(int(n) for n in topology.split("x")) == hosts * chips
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (hosts, hosts, "Indexed")
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}


def test_gpu_hosts_are_told_of_each_other(capsys):
    jobset = rendered(capsys, "--hosts", "3", "--gpus", "4", "--name", "mine", command=["true", "x"], kind="gpu")
    job, _, container = parts(jobset)
    assert (job["parallelism"], job["completions"]) == (3, 3)
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    group = jobset["spec"]["replicatedJobs"][0]["name"]
    coordinator = f"mine-{group}-0-0.mine:8476"  # JOBSET-GROUP-JOB-POD.SUBDOMAIN
    more = ["--coordinator", coordinator, "--processes", "3", "--process", "1"]
    assert started(jobset) == ["launch/gpu_host.sh", "--", "true", "x", *more]
    assert started(rendered(capsys, command=["true"], kind="gpu")) == ["launch/gpu_host.sh", "--", "true"]


@pytest.mark.parametrize(
    ("more", "topology", "added"),
    [
        ([], "2x4", []),  # 8 rows a microbatch, 8 chips
        ([], "2x2", []),
        ([], "4x4", ["micro=16", "per_step=2"]),
        ([], "4x8", ["micro=32", "per_step=1"]),
        (["--config.mesh.tensor=2"], "4x4", []),  # 8 parts
        (["--config.mesh.tensor=4"], "8x8", ["micro=16", "per_step=2"]),
        (["--config.mesh.data=2", "--config.mesh.fsdp=8"], "4x4", ["micro=16", "per_step=2"]),
        (["--config.batch.micro=48"], "4x4", []),
    ],
)
def test_the_rows_of_a_step_are_split_over_the_chips(more, topology, added, capsys):
    words = started(rendered(capsys, "--topology", topology, command=[*TRAIN, *more]))
    assert words == ["launch/retry.sh", "--", *TRAIN, *more, *(f"--config.batch.{each}" for each in added)]


def test_a_command_of_another_kind_is_left_alone(capsys):
    command = ["launch/retry.sh", "--", "python", "-m", "jvr1.evaluate", "--workdir", "jvr1.train_rl"]
    assert started(rendered(capsys, command=command))[2:] == command


# --- the rest of the manifest


def test_spot_account_secret_and_cache(capsys):
    _, pod, container = parts(rendered(capsys, "--spot", "--service-account", "other", "--secret", "keys"))
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["serviceAccountName"] == "other"
    assert container["envFrom"] == [{"secretRef": {"name": "keys", "optional": True}}]
    assert {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://my-bucket/xla"} in container["env"]
    _, pod, _ = parts(rendered(capsys, kind="gpu"))
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


# --- mistakes

LONG = "a" * 60


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "required: tpu|gpu"),
        (["tpu", "--bucket", "bbb", "--", "x"], "required: --image"),
        (["tpu", "--preemptible"], "required"),
        (["tpu", "--image", "i", "--bucket", "bbb", "--preemptible", "--", "x"], "--preemptible"),
        (["tpu", "--image", "i", "--bucket", "bbb"], "no command after --"),
        (["tpu", "--image", "i", "--bucket", "bbb", "--"], "no command after --"),
        (["tpu", "--image", "i", "--bucket", "bbb", "x"], "unrecognized arguments: x"),
        *(
            (["tpu", "--image", image, "--bucket", "bbb", "--", "x"], "is not an image")
            for image in ("", "a b", "x/Caps", "x:tag:tag", "x@sha256:12", "a|b", "x\n", "-", "host:port/x", "$(id)")
        ),
        *(
            (["tpu", "--image", "i", "--bucket", bucket, "--", "x"], "is not a bucket's name")
            for bucket in ("", "bb", "gs://bbb", "bbb/x", "Bbb", "b b", "-", "_bb", "bbb\n", "b&b")
        ),
        *(
            (["gpu", "--image", "i", "--bucket", "bbb", "--name", name, "--", "x"], "--name")
            for name in ("", "a_b", "A", "-a", "a-", "1a", "a.b", "a b", "a\n", LONG)
        ),
        (["gpu", "--image", "i", "--bucket", "bbb", "--secret", "A", "--", "x"], "--secret 'A' is not small"),
        (["gpu", "--image", "i", "--bucket", "bbb", "--service-account", "a b", "--", "x"], "--service-account"),
        (["gpu", "--image", "i", "--bucket", "bbb", "--accelerator", "a: b", "--", "x"], "--accelerator"),
        (["gpu", "--image", "i", "--bucket", "bbb", "--hosts", "0", "--", "x"], "--hosts is 0"),
        (["gpu", "--image", "i", "--bucket", "bbb", "--gpus", "-1", "--", "x"], "--gpus is -1"),
        (["gpu", "--image", "i", "--bucket", "bbb", "--hosts", "two", "--", "x"], "invalid int value"),
        *(
            (["tpu", "--image", "i", "--bucket", "bbb", *words, "--", "x"], what)
            for words, what in (
                (["--topology", "4"], "is not numbers of chips"),
                (["--topology", "4x0"], "is not numbers of chips"),
                (["--topology", "4x4x4x4"], "is not numbers of chips"),
                (["--topology", "2x2x2"], "one of tpu-v6e-slice has 2 sizes"),
                (["--topology", "2x2", "--accelerator", "tpu-v5p-slice"], "one of tpu-v5p-slice has 3 sizes"),
                (["--chips", "3"], "no multiple of --chips 3"),
                (["--chips", "0"], "no multiple of --chips 0"),
            )
        ),
        (["tpu", "--image", "i", "--bucket", "bbb", "--", "env", "HF_TOKEN=4f1c"], "HF_TOKEN stands in the command"),
        (["tpu", "--image", "i", "--bucket", "bbb", "--", "\udce9"], "not UTF-8"),
    ],
)
def test_a_mistake_is_said(words, what, capsys):
    with pytest.raises(UserError) as caught:
        gke.main(words)
    assert what in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "4f1c" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--config.no.such=1"], "there is no setting"),
        (["--workdir", "runs/rl"], "--workdir runs/rl would be in a pod"),
        (["--config.batch.micro=8"], "batch.micro is 8; on 64 chips it must be a multiple of 64"),
        ([], "32 rows a step do not split over 64 parts"),
        (["--config.mesh.fsdp=4"], "does not fit 64 devices"),
    ],
)
def test_a_mistake_in_the_training_command_is_said(more, what):
    words = ["tpu", "--image", "i", "--bucket", "bbb", "--topology", "8x8"]
    with pytest.raises(UserError) as caught:
        gke.main([*words, "--", *TRAIN, *more])
    assert what in str(caught.value)


@pytest.mark.slow
def test_the_program_ends_with_2_and_one_line():
    command = [sys.executable, "launch/gke.py", "tpu", "--image", "a b", "--bucket", "bbb", "--", "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --image 'a b' is not an image")


@pytest.mark.parametrize(
    "image",
    [
        "x",
        "x:1",
        "a/b__c/d-e",
        "localhost:5000/x",
        "host.io/p/x:T_1",
        f"x@sha256:{'0' * 64}",
        f"h:1/x:t@sha256:{'a' * 64}",
    ],
)  # fmt: skip
def test_images_that_are_some(image, capsys):
    assert gke.main(["tpu", "--image", image, "--bucket", "my-bucket", "--", "true"]) == 0
    assert parts(yaml.safe_load(capsys.readouterr().out))[2]["image"] == image
