"""Pages opened in Chromium, as a reader does."""

from __future__ import annotations

import subprocess
from pathlib import Path


def browse(file: Path, *arguments: str) -> tuple[str, str]:
    """Chromium's answer and what it logged. Fresh profile, nothing of its own in the background."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={file.parent / 'profile'}", "--enable-logging=stderr", "--v=0", "--window-size=1200,1600",
        "--host-resolver-rules=MAP * ~NOTFOUND", *arguments, file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]
