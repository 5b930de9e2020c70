"""Between a session and the journal: what a finished cell leaves, and a session that takes it over."""

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
"""a record's status -> what every later test of the cell meets"""


def settle(
    session: Session,
    cell: Cell,
    tests: Mapping[str, Sequence[dict[str, Any]]],
    timings: Sequence[dict[str, Any]],
) -> tuple[JournalEntry, Measurement | None]:
    """What is to be kept of a cell with which nothing more will be done. Its model is freed.

    ``tests`` and ``timings`` as :class:`qsae_bench.results.journal.JournalEntry` has them.
    """
    session.free(cell)  # now: what it says of memory that did not come back belongs to this cell
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


def restore(session: Session, cell: Cell, kept: StoredCell) -> None:
    """Let the session be as if it had just finished the cell.

    Of a quantized cell the rows stay on disk: nothing else needs them.
    """
    entry = kept.entry
    if entry.tests and cell not in session.requested:
        session.requested.append(cell)
    session.restored[cell] = kept
    session.warnings[cell] = list(entry.record.warnings)
    for key, value in entry.costs.items():
        session.record(cell, key, value)
    recall(session, cell, kept)


def recall(session: Session, cell: Cell, kept: StoredCell) -> None:
    """Let the session know what other cells need of this one."""
    entry = kept.entry
    if refusal := REFUSALS.get(entry.record.status):
        session.refused[cell] = refusal(entry.record.reason)
    if entry.reference is not None:
        # rows that can't be read by now are measured again
        with contextlib.suppress(QsaeError):
            measurement = kept.measurement()
            assert measurement is not None
            session.measured[cell] = entry.reference.cell_result(measurement)
