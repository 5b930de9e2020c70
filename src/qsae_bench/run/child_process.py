"""Run work in a forked process, so that a crash there does not take this process with it.

The parent must not have started a GPU's runtime or a library's threads: they do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import psutil

PR_SET_PDEATHSIG = 1
"""Linux's name for the option, from sys/prctl.h"""
WORK_RAISED = 70
"""exit status of a child whose work raised: EX_SOFTWARE of sysexits.h"""
KILL_SECONDS = 30.0
"""for a killed child to end; then it is left alone, since a call into a driver can block it for ever"""

Send = Callable[[str], None]


@dataclass(frozen=True)
class ChildResult:
    """Describe how a child ended."""

    failure: str
    """'' where its work was done, else how it ended, in words"""
    lines: tuple[str, ...]
    """what it sent to its parent"""


def run_in_child(work: Callable[[Send], None], timeout_seconds: float | None = None) -> ChildResult:
    """Fork, do the work in the child, and wait for it. An exception in the wait kills the child.

    Args:
        work: called with a function that sends the parent a line. Nothing else of the child comes back.
        timeout_seconds: after which the child is killed; None: never.
    """
    # in memory: a disk may be full, and a process that the child leaves behind may hold a pipe open
    with open(os.memfd_create("child"), "w+b", buffering=0) as lines:
        _flush()
        parent = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of any thread
            child = os.fork()
        if child == 0:
            _be_child(lambda: work(lambda line: _send(lines.fileno(), line)), parent)
        failure = _wait(psutil.Process(child), timeout_seconds)
        lines.seek(0)
        return ChildResult(failure, tuple(lines.read().decode("utf-8", "replace").splitlines()))


def _wait(child: psutil.Process, timeout_seconds: float | None) -> str:
    try:
        return describe_exit(child.wait(timeout_seconds) or 0)
    except psutil.TimeoutExpired:
        failure = f"took longer than {timeout_seconds:g} s"
    except BaseException:
        child.kill()
        child.wait()
        raise
    child.kill()
    try:
        child.wait(KILL_SECONDS)
    except psutil.TimeoutExpired:
        failure += f", and its process {child.pid} did not die within {KILL_SECONDS:g} s of being killed"
    return failure


def _be_child(work: Callable[[], None], parent: int) -> NoReturn:
    """Do the work and exit, without returning: the parent's cleanup must not run twice."""
    status = WORK_RAISED
    try:
        die_with_parent(parent)
        work()
        status = 0
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _send(file: int, line: str) -> None:
    os.write(file, line.encode("utf-8", "replace") + b"\n")


def die_with_parent(parent: int) -> None:
    """Let Linux kill this process when its parent dies; elsewhere it finishes its work first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(WORK_RAISED)


def describe_exit(code: int) -> str:
    """Describe an exit code of :mod:`subprocess` in words; '' for 0."""
    if code == 0:
        return ""
    if code == -signal.SIGKILL:
        return "killed by SIGKILL: by hand, or by the system because memory ran out"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    if code == 128 + signal.SIGINT:
        return "interrupted"
    return f"ended with exit status {code}"


def _flush() -> None:
    """Flush buffers: at a fork they would be written twice, and at ``os._exit`` not at all."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
