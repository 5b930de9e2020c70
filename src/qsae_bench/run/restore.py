"""Turn a finished cell into a journal entry, and a journal entry back into a session's state."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, Crashed, OutOfMemory, QsaeError
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.registry.specs import Cell
from qsae_bench.results.journal import JournalEntry, ReferenceState, StoredCell
from qsae_bench.run.document import cell_record

if TYPE_CHECKING:
    from qsae_bench.run.session import Session

REFUSALS: Mapping[str, type[QsaeError]] = {
    "skipped": CannotRun, "oom": OutOfMemory, "crashed": Crashed, "error": QsaeError,
}  # fmt: skip
"""by a record's status: the error that every later test of the cell raises"""


def finish_cell(
    session: Session,
    cell: Cell,
    tests: Mapping[str, Sequence[dict[str, Any]]],
    timings: Sequence[dict[str, Any]],
) -> tuple[JournalEntry, Measurement | None]:
    """Free a finished cell's model, and return its journal entry and its measurement.

    Args:
        session: that measured it.
        cell: the finished one.
        tests: as :class:`qsae_bench.results.journal.JournalEntry` has them.
        timings: as :class:`qsae_bench.results.journal.JournalEntry` has them.
    """
    session.free(cell)  # now: a warning about memory that was not freed belongs to this cell
    measured = session.measured.get(cell)
    costs = dict(session.costs(cell))
    entry = JournalEntry(
        cell=cell.id,
        record=cell_record(session, cell),
        costs=costs,
        corpus=session.corpora.get(cell.model.name),
        reference=ReferenceState.of(measured) if measured is not None and cell.is_reference else None,
        tests={test: list(reports) for test, reports in tests.items()},
        timings=list(timings),
    )
    return entry, measured.measurement.with_costs(costs) if measured is not None else None


def restore_cell(session: Session, cell: Cell, stored: StoredCell) -> None:
    """Put the session into the state of having just finished the cell.

    The rows of a quantized cell stay on disk: nothing else needs them.
    """
    entry = stored.entry
    if entry.tests and cell not in session.requested:
        session.requested.append(cell)
    session.restored[cell] = stored
    session.warnings[cell] = list(entry.record.warnings)
    for key, value in entry.costs.items():
        session.record(cell, key, value)
    restore_result(session, cell, stored)


def restore_result(session: Session, cell: Cell, stored: StoredCell) -> None:
    """Give the session what other cells need of this one: a refusal, or a reference's result."""
    entry = stored.entry
    if refusal := REFUSALS.get(entry.record.status):
        session.refused[cell] = refusal(entry.record.reason)
    if entry.reference is not None:
        # if its rows can't be read any more, the reference is measured again
        with contextlib.suppress(QsaeError):
            measurement = stored.measurement()
            assert measurement is not None
            session.measured[cell] = entry.reference.cell_result(measurement)
