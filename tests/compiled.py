"""Where the tests keep what they compile: one folder for all of them, their child processes and later runs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

LARGEST = 2 << 30
"""Bytes of compiled programs that are kept."""


def folder() -> Path:
    """Of this kind of processor: a program compiled for another may not run. JVR1_TEST_CACHE names another place."""
    place = os.environ.get("JVR1_TEST_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(place) if place else home / "jvr1-tests") / f"xla-{_processor()}"


def environment() -> dict[str, str]:
    """Settings of JAX for the tests and the processes they start."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        # one that another process is still writing, or was killed while it wrote, is compiled again
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry",
        # simulated devices wait for each other; on a busy machine longer than XLA thinks right
        "XLA_FLAGS": "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
        # fused loops written by XLA's older emitters: programs compile in two thirds of the time, and run slower
        "--xla_cpu_use_fusion_emitters=false",
    }


def prune() -> None:
    """Takes away what was compiled longest ago, where there is too much."""
    files = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in folder().glob("*")), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > LARGEST:
            path.unlink(missing_ok=True)


def _processor() -> str:
    """Model and features, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = [next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags", "Features")]
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:12]
