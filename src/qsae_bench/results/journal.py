"""Store each finished cell while a run goes on, and read it back when the run is resumed.

The rows of a cell lie where the finished run has them (``rows/<cell>.parquet``). Beside them each cell has
one file, ``journal/<cell>.json``, which is written last: where it exists, everything of the cell does. It
holds the cell's part of the run document, the reports of its tests as pytest serializes them, and what
other cells need of a reference.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from qsae_bench.errors import QsaeError
from qsae_bench.files import put, put_file, sha256_of
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.metrics import METRICS_VERSION, version_difference
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.document import CellRecord
from qsae_bench.results.rows import read_rows, write_rows
from qsae_bench.results.run_files import ROWS_DIR, rows_path
from qsae_bench.results.strict_model import StrictModel
from qsae_bench.stats.bootstrap import Estimate, Estimates

JOURNAL_DIR = "journal"

Number = float | Literal["nan", "inf", "-inf"]
PackedEstimates = dict[str, dict[str, tuple[Number, Number | None, Number | None]]]
"""'' or a layer -> metric -> value, low, high: JSON has no number that is not finite"""


class ReferenceState(StrictModel, strict=False):  # JSON has lists where these fields have tuples
    """Hold what quantized cells need of their reference to be judged, except its rows."""

    looks: tuple[int, ...]
    planned_tokens: int
    exhausted: bool
    broken: str
    estimates: PackedEstimates
    floor: PackedEstimates | None

    @classmethod
    def of(cls, result: CellResult) -> ReferenceState:
        """Pack the result of a reference cell."""
        return cls(
            looks=result.looks,
            planned_tokens=result.planned_tokens,
            exhausted=result.exhausted,
            broken=result.invalid_reason,
            estimates=pack_estimates(result.estimates),
            floor=pack_estimates(result.noise_floor) if result.noise_floor else None,
        )

    def cell_result(self, measurement: Measurement) -> CellResult:
        """Return the result as it was, without its verdicts: those are in the cell's record."""
        return CellResult(
            measurement,
            unpack_estimates(self.estimates),
            self.looks,
            self.planned_tokens,
            exhausted=self.exhausted,
            noise_floor=unpack_estimates(self.floor) if self.floor else None,
            invalid_reason=self.broken,
        )


class JournalEntry(StrictModel):
    """Hold a finished cell: the content of ``journal/<cell>.json``."""

    format: Literal[1] = 1
    cell: str
    record: CellRecord
    costs: dict[str, float] = Field(default={})
    corpus: CorpusRecord | None = None
    reference: ReferenceState | None = None
    """of a reference that was measured"""
    tests: dict[str, list[dict[str, Any]]] = Field(default={})
    """node id -> reports, as ``pytest_report_to_serializable`` returns them; empty for a reference that was
    not selected and was measured only because other cells need it"""
    timings: list[dict[str, Any]] = Field(default=[])
    """pytest-benchmark's"""
    files: dict[str, str] = Field(default={})
    """name in ``rows/`` -> sha256"""
    metrics_version: int = 1
    """version of the formulas, see :mod:`qsae_bench.metrics`; entries from before the field have 1"""


@dataclass(frozen=True)
class StoredCell:
    """Hold an entry, and the folder of the run that it was read from or written to."""

    folder: Path
    entry: JournalEntry

    def measurement(self) -> Measurement | None:
        """Read the cell's rows; None if the cell was not measured.

        Raises:
            QsaeError: The rows can't be read.
        """
        return read_rows(rows_path(self.folder, self.entry.cell)) if self.entry.files else None


def write(folder: Path, entry: JournalEntry, measurement: Measurement | None) -> StoredCell:
    """Write a finished cell into the run's folder, all or nothing, and return it as it was stored.

    Args:
        entry: The cell's entry, still without the checksums of its files.
        measurement: The cell's rows, None if it was not measured.

    Raises:
        OSError: The disk is full or the folder can't be written.
        ValueError: Something in the entry is not JSON.
    """
    for name in (JOURNAL_DIR, ROWS_DIR):
        (folder / name).mkdir(exist_ok=True)
    files = {} if measurement is None else put_rows(folder, entry.cell, measurement)
    entry = entry.model_copy(update={"files": files, "metrics_version": METRICS_VERSION})
    # in ASCII: the output of a test may hold half a surrogate pair, which no encoding takes
    text = json.dumps(entry.model_dump(), allow_nan=False, default=str)
    put(folder / JOURNAL_DIR / f"{entry.cell}.json", text.encode())
    return StoredCell(folder, entry)


def put_rows(folder: Path, cell: str, measurement: Measurement) -> dict[str, str]:
    """Put the row files of a cell in their place; return the sha256 of each by its name in ``rows/``."""
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        write_rows(part / f"{cell}.parquet", measurement)
        files = {path.name: sha256_of(path) for path in part.iterdir()}
        for name in files:
            (part / name).chmod(0o644)
            put_file(part / name, folder / ROWS_DIR / name)
        return files
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(folder: Path, cell: str) -> StoredCell | None:
    """Read a cell's entry and check its row files; None if there is no entry.

    Raises:
        QsaeError: The entry or one of its files is damaged or can't be read.
    """
    path = folder / JOURNAL_DIR / f"{cell}.json"
    try:
        entry = JournalEntry.model_validate(json.loads(path.read_bytes()))
        if difference := version_difference(entry.metrics_version):
            raise QsaeError(f"{path}: {difference}")
        for name, expected in entry.files.items():
            if sha256_of(folder / ROWS_DIR / name) != expected:
                raise QsaeError(f"{folder / ROWS_DIR / name}: damaged (checksum differs)")
    except FileNotFoundError as error:
        if error.filename == str(path):
            return None
        raise QsaeError(f"{error.filename}: missing") from None
    except OSError as error:
        raise QsaeError(f"{error.filename}: can't be read: {error.strerror or error}") from None
    except (ValidationError, ValueError, RecursionError):
        raise QsaeError(f"{path}: damaged (not an entry of a journal)") from None
    return StoredCell(folder, entry)


def cell_ids(folder: Path) -> list[str]:
    """List the ids of the cells that have an entry."""
    try:
        return sorted(path.name.removesuffix(".json") for path in (folder / JOURNAL_DIR).glob("[!.]*.json"))
    except OSError:
        return []


def pack_estimates(estimates: Estimates) -> PackedEstimates:
    """Convert estimates to what JSON can hold, exactly to the last bit."""

    def packed(value: float | None) -> Any:
        return value if value is None or math.isfinite(value) else str(float(value))

    places = {"": estimates.cell, **{str(layer): found for layer, found in estimates.layers.items()}}
    return {
        place: {key: (packed(e.value), packed(e.low), packed(e.high)) for key, e in found.items()}
        for place, found in places.items()
    }


def unpack_estimates(packed: PackedEstimates) -> Estimates:
    """Convert back what :func:`pack_estimates` returned."""

    def number(value: Number | None) -> float | None:
        return None if value is None else float(value)

    places = {
        place: {key: Estimate(float(v), number(low), number(high)) for key, (v, low, high) in found.items()}
        for place, found in packed.items()
    }
    return Estimates(places[""], {int(place): found for place, found in places.items() if place})
