"""Python programs in processes of their own without their seconds of imports: forks of a process that has done them.

`Fork(command, ...)` is a `subprocess.Popen` of a Python program. The process it forks, one for each of pytest's, has
imported what the mains import and has one thread and no device. What JAX reads while it is imported is set anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any

SIZES = struct.Struct("!I")
ENDED = struct.Struct("!i")
ASKING = threading.Lock()


class Fork(subprocess.Popen):
    """Of [python, "-mMODULE" or FILE, argument ..]; its exit is told by the process that was forked, in a pipe.

    largest_file: KB above which the kernel refuses to write, as it does on a full disk.
    """

    def __init__(self, command: list[str], *, largest_file: int | None = None, **how: Any):
        self._largest, self._told = largest_file, -1
        super().__init__([str(part) for part in command], **how)

    def _execute_child(self, args, _1, _2, _3, _4, cwd, env, _7, _8, _9, *rest) -> None:
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[:6]
        self._told, tell = os.pipe()
        request = {
            "command": args[1:], "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env),
            "largest": self._largest,
        }  # fmt: skip
        with open(os.devnull) as nothing, ASKING:
            ends = [
                nothing.fileno() if p2cread == -1 else p2cread,
                1 if c2pwrite == -1 else c2pwrite,
                2 if errwrite == -1 else errwrite,
                tell,
            ]
            body = json.dumps(request).encode()
            line = _server()
            socket.send_fds(line, [SIZES.pack(len(body))], ends)
            line.sendall(body)
            self.pid = ENDED.unpack(_exactly(line, ENDED.size))[0]
        os.close(tell)
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """As os.waitpid: (0, 0) while it runs."""
        if wait_flags == os.WNOHANG and not select.select([self._told], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._told, ENDED.size)
        return self.pid, ENDED.unpack(told)[0] if told else signal.SIGKILL

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, str(theirs.fileno())]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
    theirs.close()
    return ours


def _exactly(line: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = line.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def serve(line: socket.socket) -> dict[str, Any]:
    """Forks a process a request and tells of each one's end. Returns, in the fork, what it is to become."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    tells: dict[int, int] = {}
    waited: list[Any] = [line, reading]
    while True:
        ready = select.select(waited, [], [])[0]
        if reading in ready:
            os.read(reading, 4096)
            while tells and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                tell = tells.pop(ended[0])
                with contextlib.suppress(BrokenPipeError):
                    os.write(tell, ENDED.pack(ended[1]))
                os.close(tell)
        if line not in ready:
            continue
        head, ends, _, _ = socket.recv_fds(line, SIZES.size, 4)
        if not head:
            os._exit(0)
        request = json.loads(_exactly(line, SIZES.unpack(head)[0]))
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, end in enumerate(ends[:3]):
                os.dup2(end, number)
            for other in (line.detach(), reading, writing, *ends, *tells.values()):
                os.close(other)
            return request
        tells[child] = ends.pop()
        for end in ends:
            os.close(end)
        line.sendall(ENDED.pack(child))


def become(request: dict[str, Any]) -> None:
    """Runs the program as Python would, in this process."""
    import jax

    before = dict(os.environ)
    # those of before were made for other files
    out, err = (io.BufferedWriter(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
    sys.stdout = io.TextIOWrapper(out)
    sys.stderr = io.TextIOWrapper(err, line_buffering=True, errors="backslashreplace")
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for name, value in request["env"].items():
        if name.startswith("JAX_") and value != before.get(name) and name.lower() in jax.config.values:
            kind = type(jax.config.values[name.lower()])
            jax.config.update(name.lower(), int(value) if kind in (int, bool) else value)
    if request["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"] * 1024,) * 2)
    program, *arguments = request["command"]
    paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [program, *arguments]
    if program.startswith("-m"):
        sys.path[:1] = ["", *paths]
        runpy.run_module(program[2:], run_name="__main__", alter_sys=True)
    else:
        sys.path[:1] = [str(Path(program).resolve().parent), *paths]
        runpy.run_path(program, run_name="__main__")


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    warnings.filterwarnings("ignore", message="os.fork", category=RuntimeWarning)
    # what the mains import, but for themselves, which run as __main__, and what transformers does at first use
    import transformers.configuration_utils
    import transformers.models.qwen2.tokenization_qwen2  # noqa: F401

    import jvr1.answering
    import jvr1.eval.page
    import jvr1.eval.report
    import jvr1.train.loop
    import jvr1.train.reference
    import jvr1.train.rollouts  # noqa: F401

    become(serve(line))


if __name__ == "__main__":
    main()
