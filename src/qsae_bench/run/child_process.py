"""Run work in a forked process, so that a crash there does not take this process with it.

The parent must not have started a GPU's runtime or a library's threads: they do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
"""Linux's name for the option, from sys/prctl.h"""
WORK_RAISED = 70
"""exit status of a child whose work raised: EX_SOFTWARE of sysexits.h"""
POLL_SECONDS = 0.05
KILL_SECONDS = 30.0
"""for a killed child to end; then it is left alone, since a call into a driver can block it for ever"""

Send = Callable[[str], None]


@dataclass(frozen=True)
class ChildResult:
    """How a child ended."""

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
    reading, writing = os.pipe()
    _flush()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of any thread
        child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(work, writing, parent)
    os.close(writing)
    try:
        sent, timed_out, alive = _listen(reading, child, timeout_seconds)
        status = 0 if alive else os.waitpid(child, 0)[1]
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        raise
    finally:
        os.close(reading)
    if timed_out:
        failure = f"took longer than {timeout_seconds:g} s"
    else:
        failure = describe_exit(os.waitstatus_to_exitcode(status))
    if alive:
        failure += f", and its process {child} did not die within {KILL_SECONDS:g} s of being killed"
    return ChildResult(failure, tuple(sent.decode("utf-8", "replace").splitlines()))


def _be_child(work: Callable[[Send], None], writing: int, parent: int) -> None:
    """Do the work and exit, without returning: the parent's cleanup must not run twice."""
    status = WORK_RAISED
    try:
        die_with_parent(parent)
        work(lambda line: _send(writing, line))
        status = 0
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _send(writing: int, line: str) -> None:
    os.write(writing, line.encode("utf-8", "replace") + b"\n")


def die_with_parent(parent: int) -> None:
    """Let Linux kill this process when its parent dies; elsewhere it finishes its work first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(WORK_RAISED)


def _listen(reading: int, child: int, timeout_seconds: float | None) -> tuple[bytes, bool, bool]:
    """Return what the child sends until it ends, whether it timed out, and whether it is still alive."""
    sent, timed_out = b"", False
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        # a process that the child started may hold the pipe open: the end of the pipe is not waited for
        while select.select([reading], [], [], 0 if ended else POLL_SECONDS)[0]:
            piece = os.read(reading, 1 << 16)
            if not piece:
                if not ended:
                    time.sleep(POLL_SECONDS)
                break
            sent += piece
        if ended:
            return sent, timed_out, False
        if deadline is not None and time.monotonic() > deadline:
            if timed_out:
                return sent, True, True
            timed_out, deadline = True, time.monotonic() + KILL_SECONDS
            os.kill(child, signal.SIGKILL)


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
