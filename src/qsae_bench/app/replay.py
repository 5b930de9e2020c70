"""pytest's side of surviving the night: finished cells are kept, replayed, and run apart.

One object, registered for an invocation. Where a cell is in the journal, its tests are not run: their
reports are told again, so that the terminal, JUnit and every plugin hear of each test once. ``--resume``
and ``--isolate`` are the same replay, of what an earlier process or a child of this one has kept.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qsae_bench.app import replay_reports, replay_timings
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
    """Stores each cell when the last of its tests is done, and replays the reports of stored cells."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.config = invocation.config
        self.settings = invocation.settings
        self.folder: RunFolder | None = None
        """where cells are kept; None before the first cell, or where no folder could be made"""
        self.kept: dict[str, StoredCell] = {}
        """by cell id: the journal"""
        self.tests: dict[Cell, list[pytest.Item]] = {}
        self.replayed: dict[Cell, StoredCell] = {}
        self._begun = False
        self._faulty = False
        self._waiting: dict[Cell, set[str]] = {}
        self._cells: dict[str, Cell] = {}
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._warn = invocation.terminal.warn
        invocation.opened = self._hand_over
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
        return [task_of(cell, items) for cell, items in self.tests.items() if cell.id not in self.kept]

    def _conditions(self) -> dict[str, str]:
        items = [item for items in self.tests.values() for item in items]
        return conditions(self.settings, self._cells, files_of(items))

    def _resume(self, which: str) -> None:
        self.folder = run_folder.resume_run(self.settings.session.qsae_dir, which, self._conditions())
        self._begun = True
        self._read(self.folder.path)
        done = sum(cell.id in self.kept for cell in self.tests)
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
            self._cannot_keep(error)

    def _cannot_keep(self, error: Exception) -> None:
        """Say it once: the run goes on, and what it measures is kept in memory."""
        if not self._faulty:
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
            place = self.folder.path if self.folder else self.settings.session.qsae_dir
            self._warn(
                f"{place}: finished cells can't be kept: {why}; the run goes on, but can't be resumed"
            )
        self._faulty = True

    # -- each test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        cell = cell_of(item)
        if cell is None:
            return None
        self._begin()
        if self.settings.isolate and cell.id not in self.kept:
            self._run_apart(cell, item.session)
        if cell.id not in self.kept:
            return None
        self._replay(cell, item)
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
            if not self._waiting[cell] and cell.id not in self.kept and self.folder is not None:
                self._settle(cell, self.folder.path)

    def _replay(self, cell: Cell, item: pytest.Item) -> None:
        """Tell all that was told of a test when it ran."""
        kept = self.kept[cell.id]
        if cell not in self.replayed:
            self.replayed[cell] = kept
            if self.invocation.session is not None:
                self._hand_over(self.invocation.session)
        for one in kept.entry.timings:
            if one["fullname"] == item.nodeid:
                replay_timings.restore(self.config, item, one)
        replay_reports.replay(item, kept.entry.tests.get(item.nodeid, ()))

    def _hand_over(self, session: Session) -> None:
        """Let the session have what is replayed, and references that were measured for others."""
        from qsae_bench.run.restore import restore_cell, restore_result

        known = dict(self.replayed)
        for cell in self.tests:
            reference = self.settings.registry.reference_of(cell)
            kept = self.kept.get(reference.id)
            if kept is not None and reference not in known and reference not in session.restored:
                if reference in self.tests:
                    restore_result(
                        session, reference, kept
                    )  # its own tests are told again when their turn comes
                else:
                    known[reference] = kept
        for cell, kept in known.items():
            if cell not in session.restored:
                restore_cell(session, cell, kept)

    # -- keeping

    def _settle(self, cell: Cell, folder: Path) -> bool:
        """Keep a cell with which nothing more will be done; whether that could be written."""
        session = self.invocation.session
        if session is None:
            return False
        from qsae_bench.run.restore import finish_cell

        reference = self.settings.registry.reference_of(cell)
        unasked = reference not in self.tests and reference.id not in self.kept
        try:
            if unasked and (reference in session.measured or reference in session.refused):
                self._keep(folder, reference, *finish_cell(session, reference, {}, ()))
            tests = {
                item.nodeid: replay_reports.serialized(self.config, self._reports.get(item.nodeid, ()))
                for item in self.tests[cell]
            }
            timings = replay_timings.timings_of(self.config, tests)
            self._keep(folder, cell, *finish_cell(session, cell, tests, timings))
        except Exception as error:  # whatever it is, it must not end a night
            self._cannot_keep(error)
            return False
        return True

    def _keep(self, folder: Path, cell: Cell, entry: JournalEntry, rows: Measurement | None) -> None:
        kept = self.kept[cell.id] = journal.write(folder, entry, rows)
        if self.invocation.session is not None:
            self.invocation.session.restored[cell] = kept

    def _read(self, folder: Path) -> None:
        """Take over the entries of a journal; a damaged one is as if it were not there."""
        for cell in journal.cell_ids(folder):
            if cell not in self.kept:
                try:
                    kept = journal.read(folder, cell)
                except QsaeError as error:
                    self._warn(f"{error}; {cell} is measured again")
                else:
                    self.kept |= {cell: kept} if kept is not None else {}

    # -- a cell in a process of its own

    def _run_apart(self, cell: Cell, session: pytest.Session) -> None:
        items = self.tests[cell]
        after = session.items[session.items.index(items[-1]) + 1 :]
        ended = run_in_child(
            lambda tell: self._be_child(cell, items, after[0] if after else None, tell),
            self.settings.isolate_timeout_seconds,
        )
        heard: dict[str, str] = {}
        for line in ended.lines:
            key, _, value = line.partition(" ")
            heard[key] = value
        output = self._output_of_child()
        if "kept" in heard:
            self._read(Path(heard["kept"]))
        if cell.id not in self.kept:
            why = ended.failure or heard.get("lost", "its process left nothing")
            if ended.failure and "running" in heard:
                why += f" in {heard['running'].rpartition('::')[2].partition('[')[0]}"
            self._crashed(cell, f"{cell.id}: crashed: {why}", output)

    def _be_child(
        self, cell: Cell, items: list[pytest.Item], after: pytest.Item | None, tell: Send
    ) -> None:
        """Run the cell's tests and keep them; what hears of tests hears of them from the parent."""
        from _pytest.runner import runtestprotocol

        for item, following in zip(items, [*items[1:], after], strict=True):
            tell(f"running {item.nodeid}")
            self._reports[item.nodeid] = runtestprotocol(item, log=False, nextitem=following)
        try:
            session = self.invocation.open_session()
        except QsaeError as error:  # every test has met it
            tell(f"lost {error}")
            return
        if self.folder is not None and self._settle(cell, self.folder.path):
            tell(f"kept {self.folder.path}")
        else:
            other = Path(tempfile.mkdtemp(prefix="qsae-run-"))
            tell(f"kept {other}" if self._settle(cell, other) else f"lost {other} can't be written either")
        session.close()

    def _output_of_child(self) -> list[tuple[str, str]]:
        """What a child that died had written into pytest's capture, which both share."""
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        if capture is None or not capture.is_globally_capturing():
            return []
        out, err = capture.read_global_capture()
        return [(f"Captured {name}", text) for name, text in (("stdout", out), ("stderr", err)) if text]

    def _crashed(self, cell: Cell, reason: str, output: list[tuple[str, str]]) -> None:
        """Every test of the cell fails, and says why."""
        tests = {}
        for item in self.tests[cell]:
            reports = replay_reports.crash_reports(
                item, reason, output if item is self.tests[cell][0] else ()
            )
            tests[item.nodeid] = replay_reports.serialized(self.config, reports)
        record = CellRecord(
            model=cell.model.name, quantization=cell.quantization.name, status="crashed", reason=reason
        )
        entry = JournalEntry(cell=cell.id, record=record, tests=tests)
        self.kept[cell.id] = StoredCell(Path(), entry)
        if self.folder is not None:
            try:
                self.kept[cell.id] = journal.write(self.folder.path, entry, None)
            except (OSError, ValueError) as error:
                self._cannot_keep(error)

    # -- the end

    def conclude(self, exitstatus: int) -> tuple[RunDocument | None, Path | QsaeError | str] | None:
        """Write the run; its document, and its folder, why there is none, or how it goes on later.

        None where no cell was asked for.
        """
        early = exitstatus in ENDED_EARLY and self.folder is not None and not self._faulty
        if self.replayed and not early:
            try:
                self.invocation.open_session()
            except QsaeError as error:
                return None, error
        session = self.invocation.session
        document = self._document(session) if session is not None and session.requested else None
        if early and self.folder is not None and (self.kept or document is not None):
            done = sum(cell.id in self.kept for cell in self.tests)
            return document, (
                f"unfinished: {done} of {len(self.tests)} cells are kept in {self.folder.path}; "
                "--resume goes on with it"
            )
        if session is None or document is None:
            if self.folder is not None and not early:
                self.folder.discard()
            return None
        rows = {
            cell.id: measured.measurement.with_costs(session.costs(cell))
            for cell, measured in session.measured.items()
            if cell.id not in self.kept
        }
        try:
            if self.folder is None:
                return document, run_files.write_run(self.settings.session.qsae_dir, document, rows)
            return document, self.folder.finish(document, self._finished(document), rows)
        except QsaeError as error:
            if self.folder is not None and self.folder.finished:
                return document, error
            return document, self._elsewhere(document, rows, error)

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

    def _finished(self, document: RunDocument) -> Mapping[str, StoredCell]:
        inside = {f"{cell.model}-{cell.quantization}" for cell in document.cells}
        return {cell: kept for cell, kept in self.kept.items() if cell in inside}

    def _elsewhere(
        self, document: RunDocument, rows: Mapping[str, Measurement], error: QsaeError
    ) -> QsaeError:
        """Keep what was measured where there is room; what to say of it."""
        every = dict(rows)
        for cell, kept in self._finished(document).items():
            try:
                measurement = kept.measurement()
            except (OSError, QsaeError) as unreadable:  # the other cells' rows are not lost with it
                self._warn(f"{unreadable}; the rows of {cell} are lost")
            else:
                every |= {cell: measurement} if measurement is not None else {}
        try:
            place = Path(tempfile.mkdtemp(prefix="qsae-run-"))
            return QsaeError(f"{error}; it is kept in {run_files.write_run(place, document, every)}")
        except (OSError, QsaeError) as another:
            return QsaeError(f"{error}; nor could it be written elsewhere: {another}")

    def pytest_unconfigure(self) -> None:
        """The last that happens: JUnit and what else pytest writes are there."""
        if self.folder is None:
            return
        if self.folder.finished:
            self.folder.finalize()
        else:
            self.folder.close()
