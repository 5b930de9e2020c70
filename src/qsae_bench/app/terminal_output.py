"""Write warnings and progress to pytest's terminal while a test runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qsae_bench.errors import plain
from qsae_bench.progress import SILENT, ProgressOutput

REWRITE_SECONDS = 1.0
"""between two states of the progress line on a terminal"""
LOG_SECONDS = 30.0
"""between two lines of progress in a log"""


class RewrittenLine:
    """Rewrite one line of a terminal, below what pytest has written."""

    def __init__(self, reporter: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._reporter = reporter
        self._shown = False

    def write(self, line: str) -> None:
        """Replace the line, cut to the terminal's width."""
        room = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
        with self._reporter() as reporter:
            if not self._shown:
                reporter.ensure_newline()
            self._shown = True
            reporter.rewrite(plain(line)[:room], erase=True)

    def clear(self) -> None:
        """Erase the line."""
        if self._shown:
            self._shown = False
            with self._reporter() as reporter:
                reporter.rewrite("", erase=True)
                reporter.write("\r")


class TerminalOutput:
    """Write warnings and progress of one invocation past the capture of the running test."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._line = RewrittenLine(self._uncaptured)

    @contextlib.contextmanager
    def _uncaptured(self) -> Iterator[Any]:
        """Yield pytest's reporter, or None: it is registered after this plugin, or switched off."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
            yield reporter
            if reporter is not None:
                reporter.flush()

    def warn(self, message: str) -> None:
        """Write a line that is seen at once."""
        self._line.clear()
        with self._uncaptured() as reporter:
            if reporter is not None:
                reporter.ensure_newline()
                reporter.write_line(f"qsae-bench: {plain(message)}", yellow=True)

    def progress(self) -> ProgressOutput:
        """Return where progress goes: a rewritten line on a terminal, a line now and then in a log."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return SILENT
        if reporter.isatty:
            return ProgressOutput(self._line.write, REWRITE_SECONDS, self._line.clear)
        return ProgressOutput(self.warn, LOG_SECONDS)
