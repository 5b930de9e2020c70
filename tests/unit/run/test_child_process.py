"""Work in a forked process: how a child ends, and what it sends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from qsae_bench.run import child_process
from qsae_bench.run.child_process import run_in_child


def test_a_child_sends_lines_and_ends():
    def work(send):
        send("one")
        send("two: ü \udc80")
        os.environ["QSAE_CHILD"] = "changes nothing here"

    ended = run_in_child(work)
    assert (ended.failure, ended.lines) == ("", ("one", "two: ü ?"))
    assert "QSAE_CHILD" not in os.environ


@pytest.mark.parametrize(
    ("work", "failure"),
    [
        (lambda send: os.kill(os.getpid(), signal.SIGSEGV), "killed by SIGSEGV"),
        (lambda send: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL: by hand, or"),
        (lambda send: os.kill(os.getpid(), signal.SIGRTMIN + 1), "killed by signal 35"),
        (lambda send: os._exit(41), "ended with exit status 41"),
        (lambda send: sys.exit(3), "ended with exit status 70"),
        (lambda send: 1 / 0, "ended with exit status 70"),
        (lambda send: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5), "interrupted"),
    ],
)
def test_how_a_child_ended(work, failure, capfd):
    def after_a_word(send):
        send("begun")
        work(send)

    ended = run_in_child(after_a_word)
    assert ended.failure.startswith(failure)
    assert ended.lines == ("begun",)


def test_a_child_that_takes_too_long_is_killed():
    started = time.monotonic()
    ended = run_in_child(lambda send: time.sleep(600), timeout_seconds=0.3)
    assert ended.failure == "took longer than 0.3 s"
    assert time.monotonic() - started < 60


def test_a_child_that_does_not_die_is_left_and_said(monkeypatch):
    """SIGKILL waits for a driver's call to end; here it is not sent at all."""
    children, real = [], os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: children.append(pid))
    monkeypatch.setattr(child_process, "KILL_SECONDS", 0.3)
    started = time.monotonic()
    ended = run_in_child(lambda send: send("begun") or time.sleep(600), timeout_seconds=0.2)
    (child,) = children
    real(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert time.monotonic() - started < 60
    assert ended.lines == ("begun",)
    assert ended.failure == (
        f"took longer than 0.2 s, and its process {child} did not die within 0.3 s of being killed"
    )


@pytest.mark.alone
def test_a_process_that_the_child_leaves_behind_is_not_waited_for():
    def work(send):
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)

    started = time.monotonic()
    assert run_in_child(work).failure == ""
    assert time.monotonic() - started < 2.5


def test_what_ends_the_wait_ends_the_child(monkeypatch):
    children, real = [], psutil.Process.wait

    def wait(process, timeout=None):
        children.append(process.pid)
        if len(children) == 1:
            raise KeyboardInterrupt
        return real(process, timeout)

    monkeypatch.setattr(psutil.Process, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        run_in_child(lambda send: time.sleep(600))
    with pytest.raises(ChildProcessError):  # it is gone, and was waited for
        os.waitpid(children[0], 0)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="what ties a child to its parent is Linux's"
)
def test_a_child_dies_with_its_parent(tmp_path):
    code = (
        "import os, sys, time\n"
        "from qsae_bench.run.child_process import run_in_child\n"
        "def work(send):\n"
        "    open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "run_in_child(work)\n"
    )
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)])
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    child = int(path.read_text())
    parent.kill()
    parent.wait()
    while time.monotonic() < until:
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")
