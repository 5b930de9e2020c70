"""Work in a forked process, and how that process ended: what dies there dies alone.

The parent must not have started a GPU's runtime or a library's threads, which no fork survives.
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
RAISED = 70
"""exit status of a child whose work raised: EX_SOFTWARE of sysexits.h"""
POLL_SECONDS = 0.05
DYING_SECONDS = 30.0
"""after which a killed child that is still there is left alone: a driver's call can hold it for ever"""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    fate: str
    """'' where its work was done, else in words"""
    told: tuple[str, ...]
    """what it told its parent, a line each"""


def in_child(work: Callable[[Tell], None], timeout_seconds: float | None = None) -> Ended:
    """Fork, let the child do the work, and wait for it. Whatever ends the wait kills the child.

    ``work`` gets a function that tells the parent a line. Nothing else of the child comes back.
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
        told, overdue, lives = _listen(reading, child, timeout_seconds)
        status = 0 if lives else os.waitpid(child, 0)[1]
    except BaseException:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        raise
    finally:
        os.close(reading)
    fate = (
        f"took longer than {timeout_seconds:g} s" if overdue else fate_of(os.waitstatus_to_exitcode(status))
    )
    if lives:
        fate += f", and its process {child} did not die within {DYING_SECONDS:g} s of being killed"
    return Ended(fate, tuple(told.decode("utf-8", "replace").splitlines()))


def _be_child(work: Callable[[Tell], None], writing: int, parent: int) -> None:
    """Never returns: what the parent would do at its end is not the child's to do."""
    status = RAISED
    try:
        die_with(parent)
        work(lambda line: _tell(writing, line))
        status = 0
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _tell(writing: int, line: str) -> None:
    os.write(writing, line.encode("utf-8", "replace") + b"\n")


def die_with(parent: int) -> None:
    """Linux kills the child when the parent dies; elsewhere it finishes its work first."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(RAISED)


def _listen(reading: int, child: int, timeout_seconds: float | None) -> tuple[bytes, bool, bool]:
    """What the child tells until it ends, whether it was killed for taking too long, and lives on yet."""
    told, overdue = b"", False
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        # a process that the child started may hold the pipe open: its end is not waited for
        while select.select([reading], [], [], 0 if ended else POLL_SECONDS)[0]:
            piece = os.read(reading, 1 << 16)
            if not piece:
                if not ended:
                    time.sleep(POLL_SECONDS)
                break
            told += piece
        if ended:
            return told, overdue, False
        if deadline is not None and time.monotonic() > deadline:
            if overdue:
                return told, True, True
            overdue, deadline = True, time.monotonic() + DYING_SECONDS
            os.kill(child, signal.SIGKILL)


def fate_of(code: int) -> str:
    """An exit code as :mod:`subprocess` has it, in words; '' for 0."""
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
    """What is buffered at a fork would be written twice, and at ``os._exit`` not at all."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
