"""What a user can mend ends in one line and code 2, whatever raised it; what is a fault of ours keeps its trace."""

from __future__ import annotations

import errno
import importlib.util
import locale
import os
import sys
import traceback
import types
from pathlib import Path

import pytest
from etils import epath

import jvr1
from jvr1 import config as settings
from jvr1.errors import UserError, run_main
from jvr1.mistakes import sentence

REPOSITORY = Path(__file__).parents[1]


def ended(capsys, error: Exception) -> str:
    """The one line that a command ends with."""

    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def raised(call) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which it is, is what callers look at
        call()
    return caught.value


def test_the_file_system_s_own_errors(tmp_path, capsys):
    """A folder for a file, a file for a folder, a circle of links, a name too long: raised by the system itself."""
    (tmp_path / "file").write_text("x")
    os.symlink("loop", tmp_path / "loop")
    for call, words in (
        (tmp_path.read_bytes, "a folder stands where a file is needed: "),
        ((tmp_path / "file" / "a").read_bytes, "a file stands where a folder is needed: "),
        ((tmp_path / "file").mkdir, "a file stands where a folder is needed: "),
        ((tmp_path / "loop").read_bytes, "symbolic links lead in a circle at "),
        ((tmp_path / ("n" * 300)).read_bytes, "the file system takes no name as long as "),
    ):
        assert f"{words}{tmp_path}" in ended(capsys, raised(call))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "no permission for /a/b"), (errno.EROFS, "the file system is read-only writing /a/b"),
        (errno.ESTALE, "the network file system lost /a/b"), (errno.EIO, "failed at /a/b"), (errno.EMFILE, "ulimit -n"),
        (errno.ENOMEM, "no memory left"), (errno.EADDRINUSE, "port of --coordinator"),
        (errno.ENOSPC, "the disk is full"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks(capsys, number, words):
    assert words in ended(capsys, OSError(number, os.strerror(number), "/a/b"))


def test_packages_that_are_not_there(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    error = raised(lambda: epath.Path("gs://bucket/a.json").open("rb"))  # what etils and fsspec say by themselves
    assert "gs:// paths need the package gcsfs: pip install gcsfs" in ended(capsys, error)
    missing = ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    assert "by the package matplotlib: pip install matplotlib" in ended(capsys, missing)
    assert "pip install jax" in ended(capsys, ModuleNotFoundError("No module named 'jax'", name="jax.numpy"))


def test_without_jax_a_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    jvr1.check_jax(["pytest"])
    with pytest.raises(SystemExit) as end:
        jvr1.check_jax(["-m"])
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: jax is not installed: pip install jax, or jax[cuda12], jax[cuda13] or jax[tpu]\n"
    )


def foreign(module: str, name: str, text: str) -> Exception:
    """An error as another package would raise it."""
    made = types.new_class(name, (Exception,))
    made.__module__ = module
    return made(text)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            foreign("google.auth.exceptions", "RefreshError", "invalid_grant: Token has been\nexpired or revoked."),
            "gcloud auth",
        ),
        (foreign("google.auth.exceptions", "DefaultCredentialsError", "no credentials"), "gcloud auth"),
        (foreign("gcsfs.retry", "HttpError", "Anonymous caller does not have access, 401"), "the bucket refused"),
        (foreign("huggingface_hub.errors", "GatedRepoError", "401 Client Error"), "HF_TOKEN"),
        (foreign("wandb.errors", "AuthenticationError", "API key expired"), "WANDB_API_KEY"),
    ],
)
def test_an_expired_login(capsys, error, words):
    assert words in ended(capsys, error)
    outer = RuntimeError("while reading")
    outer.__cause__ = error
    assert words in ended(capsys, outer)


def test_a_locale_of_c(capsys, monkeypatch):
    error = raised(lambda: "约".encode("ascii"))
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _=True: "ANSI_X3.4-1968")
    assert "the locale's encoding is ANSI_X3.4-1968, and files here are UTF-8; set LC_ALL=C.UTF-8" in ended(
        capsys, error
    )
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _=True: "UTF-8")
    assert sentence(error) is None


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"), ValueError("x"), AssertionError(), FileNotFoundError(errno.ENOENT, "no such file", "/a"),
        TypeError("x"),
        OSError("x"), PermissionError("x"), ImportError("cannot import name 'x' from 'jvr1'", name="jvr1"),
        foreign("gcsfs.retry", "HttpError", "500, try again"), foreign("google.auth", "Odd", "401"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""),
    ],
)  # fmt: skip
def test_our_own_faults_stay_faults(error):
    def main() -> int:
        raise error

    with pytest.raises(type(error)) as caught:
        run_main(main)
    assert caught.value is error


@pytest.mark.parametrize("kind", [UserError, RuntimeError, KeyError])
def test_errors_do_not_quote_secrets(kind, monkeypatch, capsys):
    """Nor does what they came from, which a traceback shows."""
    key = "4f1c-4f1c"
    for name, value in {"WANDB_API_KEY": key, "SHORT_KEY": "a key", "KEYBOARD": "is refused"}.items():
        monkeypatch.setenv(name, value)

    def main() -> int:
        try:
            raise ValueError(f"a key {key}")
        except ValueError as error:
            raise kind(f"a key {key} is refused") from error

    with pytest.raises((SystemExit, kind)) as end:
        run_main(main)
    said = capsys.readouterr().err + "".join(traceback.format_exception(end.value))
    assert key not in said
    assert "ValueError: a key $WANDB_API_KEY" in said
    assert "a key $WANDB_API_KEY is refused" in said


def test_what_was_handled_meanwhile_is_no_reason():
    def fault() -> None:
        try:
            Path("/").read_bytes()
        except IsADirectoryError:
            {}["ours"]

    assert sentence(raised(fault)) is None


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.batch.micro=x", "--config.batch.micro is 'x'; it must be a whole number"),
        ("--config.train.steps=1e3", "--config.train.steps is '1e3'; it must be a whole number"),
        ("--config.train.steps=", "--config.train.steps is ''; it must be a whole number"),
        ("--config.rl.beta=high", "--config.rl.beta is 'high'; it must be a number"),
        ("--config.data.suffixes=maybe", "--config.data.suffixes is 'maybe'; it must be true or false"),
        ("--config.data.train=('a.json',", "it must be one value or a tuple"),
        ("--processes=two", "--processes is 'two'; it must be a whole number"),
        ("--config.data.timeout=nan", "data.timeout is nan; it must be a number"),
        ("--config.sampling.temperature=nan", "sampling.temperature is nan"),
        ("--config.data.weights=('x',)", "data.weights is ('x',); it must be a number for each file"),
        ("--config.optimizer.freeze=[(", "optimizer.freeze holds '[(', which is no regular expression"),
        ("--config.lora.patterns=(", "lora.patterns holds '(', which is no regular expression"),
        ("--config.reward.user_timeout=0", "reward.user_timeout is 0.0; it must be positive"),
    ],
)
def test_a_value_that_is_none_says_what_would_be_one(argument, words):
    with pytest.raises(UserError) as error:
        settings.parse(
            ["x", f"--config={REPOSITORY}/configs/tiny.py:rl", "--workdir=w", "--config.model.source=m", argument]
        )
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"), [("configs", "is a folder"), ("README.md", "is no Python file"), ("none.py", "does not exist")]
)
def test_a_config_file_that_is_none(name, words):
    with pytest.raises(UserError, match=f"config file .*{name} {words}"):
        settings.parse(["x", f"--config={REPOSITORY}/{name}", "--workdir=w"])
