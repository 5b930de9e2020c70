"""A run of three made-up cells: its rows, journal entries and document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders import measurement, synthetic
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.results import journal
from qsae_bench.results.document import CellRecord, RunDocument
from qsae_bench.results.journal import JournalEntry, StoredCell
from qsae_bench.results.rows import read_rows
from qsae_bench.results.run_folder import RunFolder

CELLS = ("tiny-reference", "tiny-int8", "tiny-nf4")
ROWS = {
    cell: measurement(
        synthetic(seed, n=6), quantization=cell.partition("-")[2], costs={"load_seconds": 0.1}
    )
    for seed, cell in enumerate(CELLS)
}
CONDITIONS = {"--tokens": "2032", "thresholds": "abc"}


def entry(cell: str, **changes: Any) -> JournalEntry:
    """The journal's entry of a cell."""
    model, _, quantization = cell.partition("-")
    record = CellRecord(model=model, quantization=quantization, status="measured", tokens=len(cell))
    fields = {"cell": cell, "record": record, "tests": {f"t[{cell}]": [{"when": "call"}]}}
    return JournalEntry(**(fields | changes))


def document(run_id: str, cells: Sequence[str] = CELLS) -> RunDocument:
    """The document of a run of these cells."""
    return RunDocument(
        schema_version=1, metrics_version=METRICS_VERSION, run_id=run_id, started="s", finished="f", command="pytest", environment={},
        corpus={}, cells=[entry(cell).record for cell in cells],
    )  # fmt: skip


def store_cells(folder: RunFolder, *cells: str) -> dict[str, StoredCell]:
    """Write these cells into the journal."""
    return {cell: journal.write(folder.path, entry(cell), ROWS[cell]) for cell in cells}


def check_rows(folder: Path, cell: str) -> None:
    """Check that a cell's stored rows are those that were written, bit for bit."""
    found, true = read_rows(folder / "rows" / f"{cell}.parquet"), ROWS[cell]
    for mine, other in (
        (found.rows, true.rows),
        *zip(found.layers.values(), true.layers.values(), strict=True),
    ):
        for columns, others in ((mine.scalars, other.scalars), (mine.vectors, other.vectors)):
            assert columns.keys() == others.keys()
            assert all(columns[key].tobytes() == others[key].tobytes() for key in columns)
