"""``pytest benchmarks`` in processes of their own that need not import torch and sae-lens first.

Those imports take ten seconds of a processor, more than most runs of a test after them. One process for each
number of threads imports them once, and forks for each run; a run then goes on as ``python -m pytest
benchmarks`` does: its own environment, working directory, session, output and exit status. Where that can't be
done, or might not be the same (a GPU driver does not survive a fork), each run is started afresh.

What depends on the state of a fresh interpreter, or on variables that libraries read while they are imported
(HF_HOME and the like), is not run here.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from paths import ROOT

PACKAGES = (
    "pytest", "pydantic", "tomlkit", "torch", "numpy", "scipy.stats", "pandas", "pyarrow.parquet", "sqlalchemy", "datasets", "accelerate",
    "transformers", "transformers.models.gemma3.modeling_gemma3", "bitsandbytes", "sae_lens",
)  # fmt: skip
THREADS = "OMP_NUM_THREADS"
REPORTED = "with a report"
"""among the arguments of a run: it makes its report.html, which takes seconds and few tests look at"""
POSSIBLE = sys.platform.startswith("linux") and not Path("/proc/driver/nvidia").exists()


class Run:
    """What of ``subprocess.Popen`` the tests use."""

    def __init__(self, args: list[str], ended: socket.socket, out: IO[str], err: IO[str] | None) -> None:
        self.args, self.returncode = args, None
        self.stdout, self._err, self._ended = out, err, ended
        self.pid = int(ended.recv(64))  # told once it leads a process group

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._ended.settimeout(max(timeout, 1e-3) if timeout is not None else None)
            try:
                status = self._ended.recv(64)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            assert status, "the process that waited for the run is gone"
            self.returncode = int(status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout.read(), self._err.read() if self._err else ""


def start(
    arguments: list[str], environment: dict[str, str], merged: bool = False
) -> Run | subprocess.Popen[str]:
    """``python -m pytest benchmarks`` with these arguments, from the clone, in a process group of its own.

    ``merged``: what it writes to stderr is among its output.
    """
    arguments = [*([] if REPORTED in arguments else ["--no-report"]), *arguments]
    arguments = [one for one in arguments if one != REPORTED]
    command = [sys.executable, "-m", "pytest", "benchmarks", *arguments]
    if not POSSIBLE:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        )  # fmt: skip
    out = output()
    err = None if merged else output()
    asked = json.dumps({"arguments": ["benchmarks", *arguments], "environment": environment})
    ended, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as opened:
        opened.enter_context(tell)
        # opened once more: what a run writes must not move the place at which it is read
        ends = [
            opened.enter_context(open(f"/proc/self/fd/{one.fileno()}", "ab")) for one in (out, err or out)
        ]
        fds = [one.fileno() for one in (*ends, tell)]
        socket.send_fds(server(environment.get(THREADS, "")), [asked.encode()], fds)
    return Run(command, ended, out, err)


def output() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def run(
    arguments: list[str], environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """The same to its end."""
    process = start(arguments, environment)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ready(environment: dict[str, str]) -> None:
    """Import now what runs in this environment need, so that it is not in the time of one of them."""
    if POSSIBLE:
        server(environment.get(THREADS, ""))


@functools.cache
def server(threads: str) -> socket.socket:
    """The process that forks for runs with so many threads; it ends with the one that asked for it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {key: value for key, value in os.environ.items() if key not in (THREADS, "PYTHONPATH")}
    with its:
        subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()], cwd=ROOT, start_new_session=True,
            env=environment | ({THREADS: threads} if threads else {}),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    assert ours.recv(64), "it could not be started"
    return ours


# -- the other process ----------------------------------------------------------------------------------


def serve(channel: socket.socket) -> None:
    for package in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    gc.collect()
    gc.freeze()  # of what is imported nothing becomes garbage: no run looks at it again
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    channel.send(b"ready")
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not message:
            return
        if os.fork() == 0:
            channel.close()
            return begin(json.loads(message), *fds)
        for fd in fds:
            os.close(fd)


def begin(asked: dict[str, Any], out: int, err: int, ended: int) -> None:
    """In a fork that waits for another one: the run, which may take its whole process group with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    tell = socket.socket(fileno=ended)
    if pid := os.fork():
        os.close(out)
        os.close(err)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # nobody wants to know any more
            tell.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.setsid()
    tell.send(str(os.getpid()).encode())
    tell.close()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    tempfile.tempdir = None
    sys.path[:1] = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored, where a shell runs us in the background
    sys.argv[1:] = asked["arguments"]
    runpy.run_module("pytest", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
