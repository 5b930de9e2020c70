"""Hold the state of one invocation of pytest: settings, session, what failed, what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qsae_bench.app.options import Settings
from qsae_bench.app.replay_reports import is_timing
from qsae_bench.app.terminal_output import TerminalOutput
from qsae_bench.errors import QsaeError
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.registry.specs import Cell
from qsae_bench.results.failures import Failures

if TYPE_CHECKING:
    from qsae_bench.results.document import RunDocument
    from qsae_bench.run.session import Session, SessionOptions
    from qsae_bench.run.timed_workloads import TimedResult
    from qsae_bench.run.workers.tasks import Task


class Invocation:
    """Hold what hooks, fixtures and the replay of cells share; ``config.stash[INVOCATION_KEY]``."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.terminal = TerminalOutput(config)
        self.failures = Failures()
        self.session: Session | None = None
        """None before the first test asks for it"""
        self.no_session: QsaeError | None = None
        """why there can't be one"""
        self.make_session: Callable[[SessionOptions], Session] = self._session
        self.tasks: Callable[[], Sequence[Task]] = tuple
        """returns what workers are asked for: a task for each selected cell that is not finished"""
        self.opened: Callable[[Session], None] = lambda session: None
        """is called with the session once it is made"""
        self.gated_at_collection: dict[tuple[Cell, int | None], dict[str, str]] = {}
        """cell and layer -> metric -> the test that gates it, before -k"""
        self.collected_gates: dict[Cell, tuple[GatedMetric, ...]] = {}
        """what all tests gate of each cell, before -k"""
        self.gates: dict[Cell, tuple[GatedMetric, ...]] = {}
        """what the selected tests gate of each cell"""
        self.timed: dict[tuple[Cell, str], TimedResult] = {}
        """cell and work -> what was timed"""
        self.collected = 0
        """tests about cells, before -k"""
        self.document: RunDocument | None = None
        self.outcome: Path | QsaeError | str | None = None
        """the run's folder, why it could not be written, or how an interrupted run can be continued"""
        self.not_written: list[str] = []
        """what of the run or the history could not be written, and why"""
        self.warnings: list[str] = []
        """about the summary and the report"""
        self.status: int | None = None
        """the exit status, once it is decided"""

    @property
    def concluded(self) -> bool:
        """Whether the run had a cell, so that there is something to show at the end."""
        return self.document is not None or self.outcome is not None

    def open_session(self) -> Session:
        """Return the one session, made when the first test asks for it.

        Raises:
            QsaeError: there can't be one.
        """
        if self.no_session is not None:
            raise self.no_session
        if self.session is None:
            options = replace(
                self.settings.session,
                gates=self.gates,
                collected_gates=self.collected_gates,
                timing=is_timing(self.config),
                on_warning=self.terminal.warn,
                progress=self.terminal.progress(),
            )
            try:
                self.session = self.make_session(options)
            except QsaeError as error:
                self.no_session = error.without_traceback()
                raise
            self.opened(self.session)
        return self.session

    def _session(self, options: SessionOptions) -> Session:
        workers = self.settings.workers
        if workers.in_process:
            from qsae_bench.run.local_session import LocalSession

            return LocalSession(options)
        from qsae_bench.run.worker_session import WorkerSession

        return WorkerSession(options, workers.engine(options), self.tasks(), workers.shards)


INVOCATION_KEY = pytest.StashKey[Invocation]()
