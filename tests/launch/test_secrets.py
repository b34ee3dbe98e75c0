"""Secrets reach COMMAND's environment and nothing else: no argument, no output, no file that others may read."""

from __future__ import annotations

import hashlib
import re
import subprocess

import pytest
from stand_ins import HOST, POD, RETRY, SECRETS, SLICE, SLURM, await_, calls, run, start

pytestmark = pytest.mark.slow

KEY = '4f1c-k $(id) "q" it\'s # & | ü'
FILE = f"# of wandb\n\nWANDB_API_KEY={KEY}\nline=a=b\nHF_TOKEN=hf_Zk4 \r\n"
VALUES = {"WANDB_API_KEY": KEY, "line": "a=b", "HF_TOKEN": "hf_Zk4 "}
"""As `kubectl create secret generic --from-env-file` (1.32) reads FILE."""
LOOK = """printf %s "$WANDB_API_KEY" | sha256sum | cut -c1-64 >>"$FAKE/got"
cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' >>"$FAKE/ps"; ls ~ >>"$FAKE/left" # as it is now"""
COMMAND = ("bash", "-c", LOOK)


@pytest.fixture
def secrets(fake):
    file = fake / "my secrets"
    file.write_text(FILE, newline="")
    file.chmod(0o600)
    return file


LAUNCHERS = [(HOST, "--secrets"), (SLURM, "--secrets"), (POD, *SLICE, "--secrets")]


def no_secret_in(*texts: str) -> bool:
    """Of FILE; those of the refused commands, 4f1c, stand in the arguments of other tests' processes."""
    return all(part not in text for text in texts for part in ("9b7e", "hf_Zk4"))


def printed(done: subprocess.CompletedProcess) -> str:
    return done.stdout + done.stderr


# --- secrets.sh


def test_the_command_has_the_values_to_the_byte(secrets):
    done = run(SECRETS, secrets, "--", "env", "-0")
    got = dict(pair.partition("=")[::2] for pair in done.stdout.split("\0"))
    assert {name: got.get(name) for name in VALUES} == VALUES
    assert secrets.exists()


def test_without_a_file_the_command_runs():
    assert run(SECRETS, "--", "echo", "a  b").stdout == "a  b\n"


def test_once_removes_the_file_before_the_command_runs(secrets):
    assert run(SECRETS, "--once", secrets, "--", "test", "-e", secrets).returncode == 1


def test_a_pipe_will_do(secrets):
    script = f'"{SECRETS}" <(cat "{secrets}") -- printenv line'
    assert run("bash", "-c", script).stdout == "a=b\n"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601])
def test_a_file_that_others_may_use_is_refused(mode, secrets):
    secrets.chmod(mode)
    done = run(SECRETS, secrets, "--", "true")
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("A=1\nexport B=4f1c\n", "line 2 of .* is not NAME=VALUE"),
        ("A=1\n B=4f1c\n", "line 2 .* is not NAME=VALUE"),
        ("4f1c\n", "line 1 .* is not NAME=VALUE"),
        ("1A=4f1c\n", "line 1 .* is not NAME=VALUE"),
        ('A="4f1c"\n', "quotes around the value of A"),
        ("A='4f1c'\n", "quotes around the value of A"),
        ("A=\n", "gives A no value"),
        ("A=4f1c\nA=4f1c\n", "line 2 .* gives A again"),
        ("# nothing\n", "no line NAME=VALUE"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_without_its_text(text, what, secrets):
    secrets.write_text(text)
    for check in ((), ("--check",)):
        done = run(SECRETS, *check, secrets, "--", "echo", "ran")
        assert done.returncode == 2
        assert re.search(what, done.stderr)
        assert len(done.stderr.splitlines()) == 1
        assert "4f1c" not in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("env", "WANDB_API_KEY=4f1c", "python"),
        ("bash", "-c", "cd /x; HF_TOKEN='4f1c' python"),
        ("bash", "-c", 'AWS_SECRET_ACCESS_KEY="4f1c" python'),
        ("--password=x", "DB_PASSWORD=4f1c"),
    ],
)
@pytest.mark.parametrize("script", [(SECRETS,), (HOST,), (POD, *SLICE), (SLURM,)], ids=lambda s: s[0].name)
@pytest.mark.parametrize("dry", [False, True])
def test_a_secret_in_the_command_is_refused(words, script, dry, fake):
    if dry and script[0] == SECRETS:
        script = (SECRETS, "--check")
    elif dry:
        script = (*script, "--dry-run")
    done = run("bash", *script, "--", *words)
    assert done.returncode == 2
    assert "stands in the command, where ps and logs show it" in done.stderr
    assert "4f1c" not in printed(done)
    assert calls(fake) == []


def test_what_is_no_secret_is_not_refused():
    words = [
        "XLA_FLAGS=--a", "GOOGLE_APPLICATION_CREDENTIALS=/x", "--config.sampling.max_tokens=3", 'HF_TOKEN="$TOKEN"',
        "WANDB_API_KEY=$(cat key)", "--config.data.special_tokens_in_text=true", "tokenizer=x",
    ]  # fmt: skip
    assert run(SECRETS, "--check", "--", *words).returncode == 0


def test_a_trace_told_by_the_environment_shows_none_either(secrets):
    """From a launcher that is traced so; bash -x goes no further than itself."""
    done = run("env", "SHELLOPTS=xtrace", "bash", SECRETS, secrets, "--", "printenv", "line")
    assert done.stdout == "a=b\n"
    assert "a=b" not in done.stderr
    assert no_secret_in(done.stderr)


# --- the launchers


@pytest.mark.parametrize(
    "script",
    [(SECRETS,), (HOST, "--secrets"), (SLURM, "--secrets"), (POD, *SLICE, "--secrets")],
    ids=lambda s: s[0].name,
)
@pytest.mark.parametrize("traced", [False, True])
def test_the_command_has_them_and_nobody_else(script, traced, secrets, fake, monkeypatch):
    monkeypatch.setenv("SRUN_RUNS", "1")
    done = run("bash", *(["-x"] if traced else []), *script, secrets, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    hosts = 2 if script[0] == POD else 1
    expected = hashlib.sha256(KEY.encode()).hexdigest()
    assert (fake / "got").read_text().split() == [expected] * hosts
    logs = [file.read_text() for file in fake.glob("[01]/jvr1.log")]
    assert len(logs) == hosts - (hosts == 1)
    shown = (fake / "ps").read_text()
    assert "WANDB_API_KEY" in shown  # the command's own words: it has looked
    assert no_secret_in(printed(done), (fake / "calls").read_text(), shown, *logs)


@pytest.mark.parametrize("script", LAUNCHERS, ids=lambda s: s[0].name)
def test_a_dry_run_shows_the_file_s_name_alone(script, secrets, fake):
    done = run("bash", *script, secrets, "--dry-run", "--", "python", "-V")
    assert done.returncode == 0, done.stderr
    assert "my" in done.stdout
    assert no_secret_in(printed(done))
    secrets.chmod(0o644)
    assert run("bash", *script, secrets, "--dry-run", "--", "python", "-V").returncode == 2


def test_the_pod_s_copy_is_its_owner_s_and_gone_when_the_run_begins(secrets, fake):
    run(POD, *SLICE, "--secrets", secrets, "--", *COMMAND)
    copied = [line for line in (fake / "copied").read_text().splitlines() if line.endswith("secrets")]
    assert copied == [f"600 {fake}/{w}/jvr1.secrets" for w in "01"]  # beside jvr1, not in it
    assert "jvr1.log" in (fake / "left").read_text()  # as the command saw it
    assert "secrets" not in (fake / "left").read_text()
    sent = [call for call in calls(fake) if call.startswith("tpus tpu-vm scp") and "secrets" in call]
    assert sent == [f"tpus tpu-vm scp {secrets} slice:jvr1.secrets --zone z --worker=all"]


def test_the_pod_s_copy_is_made_by_a_restricted_mask_even_where_one_lies_open(secrets, fake):
    (fake / "tpu-vm").write_text("READY\n")
    for worker in "01":
        (fake / worker / "jvr1.secrets").write_text("old")
        (fake / worker / "jvr1.secrets").chmod(0o644)
    run(POD, *SLICE, "--secrets", secrets, "--", *COMMAND)
    assert "600 " in (fake / "copied").read_text()
    assert "644 " not in "".join(x for x in (fake / "copied").read_text().splitlines() if "secrets" in x)


def test_a_copy_that_a_broken_connection_left_goes_with_the_next_start(fake):
    (fake / "tpu-vm").write_text("READY\n")
    (fake / "0" / "jvr1.secrets").write_text("left")
    assert run(POD, *SLICE, "--", "true").returncode == 0
    assert not (fake / "0" / "jvr1.secrets").exists()


def test_a_start_beside_a_run_that_goes_on_leaves_no_copy(secrets, fake):
    (fake / "tpu-vm").write_text("READY\n")
    wait = "echo start >>starts; until [ -e go ]; do sleep 0.02; done"
    first = start(POD, *SLICE, "--secrets", secrets, "--", "bash", "-c", wait)
    await_(lambda: all((fake / w / "jvr1" / "starts").exists() for w in "01"))
    second = start(POD, *SLICE, "--secrets", secrets, "--", "bash", "-c", wait)
    await_(lambda: (fake / "copied").read_text().count("secrets") == 4)
    await_(lambda: not any((fake / w / "jvr1.secrets").exists() for w in "01"))
    for worker in "01":
        (fake / worker / "jvr1" / "go").touch()
    for each in (first, second):
        said = "".join(each.communicate(timeout=30))
        assert each.returncode == 0
        assert no_secret_in(said)
    assert [(fake / w / "jvr1" / "starts").read_text() for w in "01"] == ["start\n"] * 2


def test_restarts_have_them_too(secrets, fake):
    """The copy is gone by then; retry.sh has them."""
    command = ("bash", "-c", "[[ $HF_TOKEN ]] && echo x >>runs; [[ $(wc -l <runs) == 2 ]] || exit 75")
    words = (SECRETS, "--once", secrets, "--", RETRY, "--wait", "0", "--", *command)
    assert subprocess.run(words, cwd=fake, capture_output=True, timeout=60).returncode == 0
    assert (fake / "runs").read_text() == "x\nx\n"
    assert not secrets.exists()


def test_a_file_among_the_code_is_refused(fake):
    inside = POD.parent / "test.env"
    inside.write_text("A_KEY=4f1c\n")
    inside.chmod(0o600)
    try:
        done = run(POD, *SLICE, "--secrets", "launch/test.env", "--", "true")
    finally:
        inside.unlink()
    assert done.returncode == 2
    assert "would be copied with the code" in done.stderr
    assert calls(fake) == []
