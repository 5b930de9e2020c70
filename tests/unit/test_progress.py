"""Progress: nothing of short work, a line now and then of long work, and one line that goes away on a terminal."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from qsae_bench.app.terminal_output import RewrittenLine
from qsae_bench.progress import ProgressOutput, TokenProgress, progress_of, progress_to


class Recorder:
    """An output that records lines every few milliseconds, and waits for what is to come."""

    def __init__(self, every_seconds=0.005):
        self.lines, self.cleared, self._came = [], 0, threading.Event()
        self.output = ProgressOutput(self._write, every_seconds, self._clear)

    def _write(self, line):
        self.lines.append(line)
        self._came.set()

    def _clear(self):
        self.cleared += 1

    def wait(self):
        self._came.clear()
        assert self._came.wait(10)


def test_long_work_is_reported_and_its_line_removed():
    recorder = Recorder()
    with progress_to(recorder.output):
        with progress_of("m: loading", lambda: ", 1.0 of 2.0 GB"):
            recorder.wait()
        assert recorder.cleared == 1
        written = len(recorder.lines)
        time.sleep(0.03)
        assert len(recorder.lines) == written, "nothing is written of work that is done"
    assert set(recorder.lines) == {"m: loading: 0 s, 1.0 of 2.0 GB"}
    assert recorder.cleared == 2


def test_short_work_is_silent():
    recorder = Recorder(every_seconds=30.0)
    with progress_to(recorder.output), progress_of("m: loading"):
        pass
    assert recorder.lines == []


def test_only_the_innermost_work_writes():
    recorder = Recorder()
    with progress_to(recorder.output), progress_of("outer"):
        recorder.wait()
        with progress_of("inner"):
            recorder.wait()  # the outer one may have been about to write
            start = len(recorder.lines)
            recorder.wait()
            recorder.wait()
            assert set(recorder.lines[start:]) == {"inner: 0 s"}
        recorder.wait()
        recorder.wait()
        assert recorder.lines[-1] == "outer: 0 s"


def test_without_an_output_no_thread_is_started():
    before = threading.active_count()
    with progress_of("m: loading"):
        assert threading.active_count() == before


def test_work_that_fails_ends_its_progress():
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), progress_to(recorder.output), progress_of("m"):
        1 / 0  # noqa: B018
    assert recorder.cleared == 2
    with progress_of("n"):
        time.sleep(0.02)
    assert recorder.lines == []


def test_a_pass_reports_tokens_and_its_line_is_removed(monkeypatch):
    now = iter([0.0, 0.5, 2.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    recorder = Recorder(every_seconds=1.0)
    progress = TokenProgress("m-nf4", 100, recorder.output)
    for done in (1, 2, 4):
        progress(done, 4)
    assert recorder.lines == ["m-nf4: 200 of 400 tokens, 100 tokens/s, 2 s left"]
    assert recorder.cleared == 1


class Reporter:
    """What of pytest's is used."""

    def __init__(self):
        self.calls = []

    def ensure_newline(self):
        self.calls.append("newline")

    def rewrite(self, line, erase):
        assert erase
        self.calls.append(line)

    def write(self, text):
        self.calls.append(text)


def test_the_line_of_a_terminal_starts_below_and_leaves_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    reporter = Reporter()
    line = RewrittenLine(lambda: contextlib.nullcontext(reporter))
    line.clear()
    line.write("one")
    line.write("two\x1b[2J " + "x" * 30)
    line.clear()
    line.clear()
    assert reporter.calls == ["newline", "one", "two [2J xxxxxxxxxxx", "", "\r"]


def test_a_warning_in_a_test_is_seen_and_what_it_prints_is_not(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "from qsae_bench.app.terminal_output import TerminalOutput\n"
        "def test_it(pytestconfig):\n"
        "    print('captured')\n"
        "    TerminalOutput(pytestconfig).warn('warned\\x1b[2J')\n"
        "    print('captured again')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "\nqsae-bench: warned [2J\n" in done.stdout
    assert "captured" not in done.stdout
