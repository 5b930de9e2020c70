"""Store each finished cell in the run's folder, and replay the reports of cells that are stored.

The tests of a stored cell are not run: their stored reports are sent through pytest's hooks, so that the
terminal, JUnit and every plugin see each test once. ``--resume`` replays what an earlier process stored,
``--isolate`` what a child of this process did.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qsae_bench.app import replay_reports
from qsae_bench.app.invocation import Invocation
from qsae_bench.app.markers import cell_of, task_of
from qsae_bench.app.options import NEWEST
from qsae_bench.app.run_fingerprint import conditions, files_of
from qsae_bench.errors import QsaeError
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.registry.specs import Cell
from qsae_bench.results import document as results
from qsae_bench.results import journal, run_files, run_folder
from qsae_bench.results.document import CellRecord, RunDocument
from qsae_bench.results.journal import JournalEntry, StoredCell
from qsae_bench.results.run_folder import RunFolder
from qsae_bench.run.child_process import Send, run_in_child
from qsae_bench.run.workers.tasks import Task

if TYPE_CHECKING:
    from qsae_bench.run.session import Session

ENDED_EARLY = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)


class CellReplay:
    """Store each cell when the last of its tests is done, and replay stored cells: a pytest plugin."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.config = invocation.config
        self.settings = invocation.settings
        self.folder: RunFolder | None = None
        """where cells are stored; None before the first cell, or where no folder could be made"""
        self.stored: dict[str, StoredCell] = {}
        """by cell id: the journal"""
        self.tests: dict[Cell, list[pytest.Item]] = {}
        self.replayed: dict[Cell, StoredCell] = {}
        self._begun = False
        self._not_writable = False
        self._waiting: dict[Cell, set[str]] = {}
        self._cells: dict[str, Cell] = {}
        """by test"""
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._warn = invocation.terminal.warn
        invocation.opened = self._restore_cells
        invocation.tasks = self._tasks

    # -- before the first test

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if (cell := cell_of(item)) is not None:
                self.tests.setdefault(cell, []).append(item)
                self._waiting.setdefault(cell, set()).add(item.nodeid)
                self._cells[item.nodeid] = cell
        which = self.config.getoption("resume")
        if which is not None and not self.config.getoption("collectonly"):
            try:
                self._resume("" if which == NEWEST else which)
            except QsaeError as error:
                raise pytest.UsageError(str(error)) from None

    def _tasks(self) -> list[Task]:
        return [task_of(cell, items) for cell, items in self.tests.items() if cell.id not in self.stored]

    def _conditions(self) -> dict[str, str]:
        items = [item for items in self.tests.values() for item in items]
        return conditions(self.settings, self._cells, files_of(items))

    def _resume(self, which: str) -> None:
        self.folder = run_folder.resume_run(self.settings.session.qsae_dir, which, self._conditions())
        self._begun = True
        self._read(self.folder.path)
        done = sum(cell.id in self.stored for cell in self.tests)
        self._warn(f"resuming {self.folder.path.name}: {done} of {len(self.tests)} cells are finished")

    def _begin(self) -> None:
        """Make the run's folder, once."""
        if self._begun:
            return
        self._begun = True
        qsae_dir, shared = self.settings.session.qsae_dir, self._conditions()
        try:
            for name in run_folder.clean_up(qsae_dir, shared):
                self._warn(f"run {name} of the same selection is unfinished: --resume goes on with it")
            self.folder = RunFolder.create(qsae_dir, self.settings.session.command, shared)
        except OSError as error:
            self._cannot_store(error)

    def _cannot_store(self, error: Exception) -> None:
        """Warn once: what the run measures stays in memory."""
        if not self._not_writable:
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
            place = self.folder.path if self.folder else self.settings.session.qsae_dir
            self._warn(
                f"{place}: finished cells can't be stored: {why}; the run goes on, but can't be resumed"
            )
        self._not_writable = True

    # -- each test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        cell = cell_of(item)
        if cell is None:
            return None
        self._begin()
        if self.settings.workers.isolate and cell.id not in self.stored:
            self._run_isolated(cell, item.session)
        if cell.id not in self.stored:
            return None
        if cell not in self.replayed:
            self.replayed[cell] = self.stored[cell.id]
            if self.invocation.session is not None:
                self._restore_cells(self.invocation.session)
        replay_reports.replay(item, self.stored[cell.id].entry)
        # what an earlier test left set up for this one is of no use to a later one
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._cells:
            self._reports.setdefault(report.nodeid, []).append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        cell = self._cells.get(nodeid)
        if cell is not None:
            self._waiting[cell].discard(nodeid)
            if not self._waiting[cell] and cell.id not in self.stored and self.folder is not None:
                self._finish_cell(cell, self.folder.path)

    def _restore_cells(self, session: Session) -> None:
        """Give the session what is replayed, and references that were measured for other cells."""
        from qsae_bench.run.document import restore_cell, restore_result

        known = dict(self.replayed)
        for reference in map(self.settings.registry.reference_of, self.tests):
            stored = self.stored.get(reference.id)
            if stored is None or reference in known or reference in session.restored:
                continue
            if reference in self.tests:  # its own tests are replayed when their turn comes
                restore_result(session, reference, stored)
            else:
                known[reference] = stored
        for cell, stored in known.items():
            if cell not in session.restored:
                restore_cell(session, cell, stored)

    # -- storing

    def _finish_cell(self, cell: Cell, folder: Path) -> bool:
        """Store a cell with which nothing more will be done; return whether it could be written."""
        session = self.invocation.session
        if session is None:
            return False
        from qsae_bench.run.document import finish_cell

        reference = self.settings.registry.reference_of(cell)
        unasked = reference not in self.tests and reference.id not in self.stored
        try:
            if unasked and (reference in session.measured or reference in session.refused):
                self._store(folder, reference, *finish_cell(session, reference, {}, ()))
            tests = {
                item.nodeid: replay_reports.serialized(self.config, self._reports.get(item.nodeid, ()))
                for item in self.tests[cell]
            }
            timings = replay_reports.timings_of(self.config, tests)
            self._store(folder, cell, *finish_cell(session, cell, tests, timings))
        except Exception as error:  # whatever it is, it must not end the run
            self._cannot_store(error)
            return False
        return True

    def _store(self, folder: Path, cell: Cell, entry: JournalEntry, rows: Measurement | None) -> None:
        stored = self.stored[cell.id] = journal.write(folder, entry, rows)
        if self.invocation.session is not None:
            self.invocation.session.restored[cell] = stored

    def _read(self, folder: Path) -> None:
        """Take over the entries of a journal; a damaged one is as if it were not there."""
        for cell in journal.cell_ids(folder):
            if cell not in self.stored:
                try:
                    stored = journal.read(folder, cell)
                except QsaeError as error:
                    self._warn(f"{error}; {cell} is measured again")
                else:
                    self.stored |= {cell: stored} if stored is not None else {}

    # -- a cell in a process of its own

    def _run_isolated(self, cell: Cell, session: pytest.Session) -> None:
        items = self.tests[cell]
        after = session.items[session.items.index(items[-1]) + 1 :]
        ended = run_in_child(
            lambda send: self._be_child(cell, items, after[0] if after else None, send),
            self.settings.workers.isolate_timeout_seconds,
        )
        sent = {key: value for key, _, value in (line.partition(" ") for line in ended.lines)}
        output = self._output_of_child()
        if "stored" in sent:
            self._read(Path(sent["stored"]))
        if cell.id not in self.stored:
            why = ended.failure or sent.get("lost", "its process left nothing")
            if ended.failure and "running" in sent:
                why += f" in {sent['running'].rpartition('::')[2].partition('[')[0]}"
            self._store_crashed(cell, f"{cell.id}: crashed: {why}", output)

    def _be_child(
        self, cell: Cell, items: list[pytest.Item], after: pytest.Item | None, send: Send
    ) -> None:
        """Run the cell's tests and store them, unlogged: the parent replays their reports."""
        from _pytest.runner import runtestprotocol

        for item, following in zip(items, [*items[1:], after], strict=True):
            send(f"running {item.nodeid}")
            self._reports[item.nodeid] = runtestprotocol(item, log=False, nextitem=following)
        try:
            session = self.invocation.open_session()
        except QsaeError as error:  # every test has met it
            send(f"lost {error}")
            return
        if self.folder is not None and self._finish_cell(cell, self.folder.path):
            send(f"stored {self.folder.path}")
        else:
            other = Path(tempfile.mkdtemp(prefix="qsae-run-"))
            written = self._finish_cell(cell, other)
            send(f"stored {other}" if written else f"lost {other} can't be written either")
        session.close()

    def _output_of_child(self) -> list[tuple[str, str]]:
        """Return what a child that died had written into pytest's capture, which both share."""
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if capture is None or not capture.is_globally_capturing():
            return []
        out, err = capture.read_global_capture()
        return [(f"Captured {name}", text) for name, text in (("stdout", out), ("stderr", err)) if text]

    def _store_crashed(self, cell: Cell, reason: str, output: list[tuple[str, str]]) -> None:
        """Store that every test of the cell failed for this reason; the first one shows the output."""
        reports = {
            item.nodeid: replay_reports.crash_reports(item, reason, () if k else output)
            for k, item in enumerate(self.tests[cell])
        }
        record = CellRecord(
            model=cell.model.name, quantization=cell.quantization.name, status="crashed", reason=reason
        )
        tests = {test: replay_reports.serialized(self.config, of) for test, of in reports.items()}
        entry = JournalEntry(cell=cell.id, record=record, tests=tests)
        self.stored[cell.id] = StoredCell(Path(), entry)
        if self.folder is not None:
            try:
                self.stored[cell.id] = journal.write(self.folder.path, entry, None)
            except (OSError, ValueError) as error:
                self._cannot_store(error)

    # -- the end

    def conclude(self, exitstatus: int) -> tuple[RunDocument | None, Path | QsaeError | str] | None:
        """Write the run; return its document, and its folder, the error, or how it can be continued.

        None where no cell was asked for.
        """
        early = exitstatus in ENDED_EARLY and self.folder is not None and not self._not_writable
        if self.replayed and not early:
            try:
                self.invocation.open_session()
            except QsaeError as error:
                return None, error
        session = self.invocation.session
        document = self._document(session) if session is not None and session.requested else None
        if early and self.folder is not None and (self.stored or document is not None):
            done = sum(cell.id in self.stored for cell in self.tests)
            return document, (
                f"unfinished: {done} of {len(self.tests)} cells are stored in {self.folder.path}; "
                "--resume goes on with it"
            )
        if session is None or document is None:
            if self.folder is not None and not early:
                self.folder.discard()
            return None
        rows = {
            cell.id: measured.measurement.with_costs(session.costs(cell))
            for cell, measured in session.measured.items()
            if cell.id not in self.stored
        }
        try:
            if self.folder is None:
                return document, run_files.write_run(self.settings.session.qsae_dir, document, rows)
            return document, self.folder.finish(document, self._stored_in(document), rows)
        except QsaeError as error:
            if self.folder is not None and self.folder.finished:
                return document, error
            return document, self._write_elsewhere(document, rows, error)

    def _document(self, session: Session) -> RunDocument:
        from qsae_bench.run.document import run_document

        others = [
            results.FailedTest(test=one.test, said=one.reason) for one in self.invocation.failures.others
        ]
        document = run_document(session).model_copy(update={"failed_tests": others})
        if self.folder is None:
            return document
        about = self.folder.start
        known = {"run_id": about.run_id, "started": about.started, "command": about.command}
        with contextlib.suppress(QsaeError):  # killed between its end and pytest's: it is written again
            known["finished"] = results.read_run(self.folder.path).finished
        return document.model_copy(update=known)

    def _stored_in(self, document: RunDocument) -> Mapping[str, StoredCell]:
        inside = {f"{cell.model}-{cell.quantization}" for cell in document.cells}
        return {cell: stored for cell, stored in self.stored.items() if cell in inside}

    def _write_elsewhere(
        self, document: RunDocument, rows: Mapping[str, Measurement], error: QsaeError
    ) -> QsaeError:
        """Write the run to a temporary folder; return the error, with that folder's path."""
        every = dict(rows)
        for cell, stored in self._stored_in(document).items():
            try:
                measurement = stored.measurement()
            except (OSError, QsaeError) as unreadable:  # the other cells' rows are not lost with it
                self._warn(f"{unreadable}; the rows of {cell} are lost")
            else:
                every |= {cell: measurement} if measurement is not None else {}
        try:
            place = Path(tempfile.mkdtemp(prefix="qsae-run-"))
            return QsaeError(f"{error}; it is stored in {run_files.write_run(place, document, every)}")
        except (OSError, QsaeError) as another:
            return QsaeError(f"{error}; nor could it be written elsewhere: {another}")

    def pytest_unconfigure(self) -> None:
        """Remove the journal of a finished run: JUnit and what else pytest writes are there by now."""
        if self.folder is None:
            return
        if self.folder.finished:
            self.folder.finalize()
        else:
            self.folder.close()
