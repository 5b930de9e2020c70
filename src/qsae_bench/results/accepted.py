"""Find the last accepted run of a cell among the runs on disk.

A run accepted a cell if it judged the cell by at least one gate and none failed, its reference was sane,
and the cell was not worse than in the run accepted before. A run from which ``qsae-bench thresholds
update`` made bounds of the cell is accepted too, even if it was worse. Its rows must still be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qsae_bench.errors import QsaeError
from qsae_bench.gate.attribution import Setup
from qsae_bench.gate.verdict import FAILING
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.cell_pairs import RunCell, StoredRun
from qsae_bench.results.document import CellRecord, RunDocument
from qsae_bench.results.run_files import rows_path
from qsae_bench.results.run_folder import STARTED
from qsae_bench.results.setup import is_sane, setup_of

MOST_READ = 100
"""documents that are read in search of an accepted run: the newest is nearly always one"""


@dataclass(frozen=True)
class Found:
    """Hold the accepted run of a cell, or why there is none."""

    cell: RunCell | None
    why_not: str = ""


class AcceptedRuns:
    """Find accepted runs in one folder. Documents are read once for all cells."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._read = lru_cache(maxsize=MOST_READ)(StoredRun.read)

    def last(self, model: str, quantization: str, now: Setup, trusted: Collection[str] = ()) -> Found:
        """Return the newest run that accepted the cell on this hardware and text.

        Args:
            now: the setup of the run in progress.
            trusted: ids of runs from which thresholds of the cell were made.
        """
        why_not = f"no accepted run of {model}-{quantization} on {now.hardware} in {self._runs}"
        for run in self._with_rows(f"{model}-{quantization}"):
            cell = run.cells(model).get((model, quantization))
            if cell is None or not _is_accepted(run.document, cell, run.document.run_id in trusted):
                continue
            before = setup_of(run.document, cell, None)
            if (before.hardware, before.protocol) != (now.hardware, now.protocol):
                continue
            found = RunCell(run, cell)
            if found.fault:  # random weights, or other formulas
                continue
            if before.corpus == now.corpus:
                return Found(found)
            why_not = f"{why_not} on this corpus; run {run.document.run_id} has another one"
            break
        return Found(None, why_not)

    def _with_rows(self, cell: str) -> Iterator[StoredRun]:
        """Yield the finished runs that have rows of a cell, the newest first."""
        try:
            folders = sorted(self._runs.iterdir(), reverse=True)
        except OSError:
            return
        left = MOST_READ
        for folder in folders:
            if left and rows_path(folder, cell).is_file() and not (folder / STARTED).exists():
                left -= 1
                try:
                    yield self._read(folder)
                except QsaeError:  # damaged, or of another version
                    continue


def _is_accepted(document: RunDocument, cell: CellRecord, is_trusted: bool) -> bool:
    references = [c for c in document.cells if c.model == cell.model and c.quantization == REFERENCE]
    if not all(map(is_sane, [cell, *references])) or not cell.verdicts:
        return False
    passed = FAILING.isdisjoint(verdict.status for verdict in cell.verdicts)
    return is_trusted or (passed and not cell.is_worse)
