from __future__ import annotations

import os
import sys

import pytest
from stand_ins import PROGRAMS


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder with stand-ins first in PATH; `calls` in it lists what was called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "calls").touch()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("REAL_PYTHON", sys.executable)
    monkeypatch.setenv("POLL_SECONDS", "0")
    for name in ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for home in tmp_path.glob("[01]/jvr1"):
        (home / "go").touch()  # ends a run that waits for it, however the test ended
