"""What is kept of each finished cell while a run goes on, and read back when it is resumed.

Beside the rows, which lie where the finished run has them (``rows/<cell>.parquet``), a cell has one file,
``journal/<cell>.json``. It is written last, so where it is, all is: the cell's part of the run document,
the reports of its tests as pytest serializes them, and what other cells need of a reference.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qsae_bench.errors import QsaeError
from qsae_bench.files import put, put_file, sha256_of
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.document import CellRecord, CorpusRecord
from qsae_bench.results.rows import read_rows, write_rows
from qsae_bench.stats.bootstrap import Estimate, Estimates

FOLDER = "journal"
ROWS = "rows"

Number = float | Literal["nan", "inf", "-inf"]
Packed = dict[str, dict[str, tuple[Number, Number | None, Number | None]]]
"""'' or a layer -> metric -> value, low, high: JSON has no number that is not finite"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sane(_Strict):
    """What a quantized cell is judged beside: its reference, less the rows."""

    looks: tuple[int, ...]
    planned_tokens: int
    exhausted: bool
    broken: str
    estimates: Packed
    floor: Packed | None

    @classmethod
    def of(cls, measured: CellResult) -> Sane:
        return cls(
            looks=measured.looks,
            planned_tokens=measured.planned_tokens,
            exhausted=measured.exhausted,
            broken=measured.broken,
            estimates=pack(measured.estimates),
            floor=pack(measured.floor) if measured.floor else None,
        )

    def measured(self, measurement: Measurement) -> CellResult:
        """As it was, but for its verdicts: those are in its record."""
        return CellResult(
            measurement,
            unpack(self.estimates),
            self.looks,
            self.planned_tokens,
            exhausted=self.exhausted,
            floor=unpack(self.floor) if self.floor else None,
            broken=self.broken,
        )


class Entry(_Strict):
    """A finished cell."""

    format: Literal[1] = 1
    cell: str
    record: CellRecord
    costs: dict[str, float] = {}
    corpus: CorpusRecord | None = None
    reference: Sane | None = None
    """of a reference that was measured"""
    tests: dict[str, list[dict[str, Any]]] = {}
    """node id -> reports, as ``pytest_report_to_serializable`` has them; none of a reference that was not
    selected, and was measured for others"""
    timings: list[dict[str, Any]] = []
    """pytest-benchmark's"""
    files: dict[str, str] = {}
    """name in ``rows/`` -> sha256"""


@dataclass(frozen=True)
class Kept:
    """An entry, and the folder of the run that it was read from or written to."""

    folder: Path
    entry: Entry

    def measurement(self) -> Measurement | None:
        """The cell's rows, None where it was not measured.

        Raises:
            QsaeError: they can't be read.
        """
        return read_rows(rows_of(self.folder, self.entry.cell)) if self.entry.files else None


def rows_of(folder: Path, cell: str) -> Path:
    return folder / ROWS / f"{cell}.parquet"


def write(folder: Path, entry: Entry, measurement: Measurement | None) -> Kept:
    """Keep a finished cell in the run's folder, all or nothing.

    Raises:
        OSError: the disk is full or the folder can't be written.
        ValueError: something in it is not JSON.
    """
    for name in (FOLDER, ROWS):
        (folder / name).mkdir(exist_ok=True)
    files = {} if measurement is None else put_rows(folder, entry.cell, measurement)
    entry = entry.model_copy(update={"files": files})
    text = json.dumps(entry.model_dump(), allow_nan=False, default=str)  # ASCII: output may be no text
    put(folder / FOLDER / f"{entry.cell}.json", text.encode())
    return Kept(folder, entry)


def put_rows(folder: Path, cell: str, measurement: Measurement) -> dict[str, str]:
    """Put the rows of a cell in their place; name -> sha256 of each file."""
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        write_rows(part / f"{cell}.parquet", measurement)
        files = {path.name: sha256_of(path) for path in part.iterdir()}
        for name in files:
            (part / name).chmod(0o644)
            put_file(part / name, folder / ROWS / name)
        return files
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(folder: Path, cell: str) -> Kept | None:
    """The cell's entry, None where there is none.

    Raises:
        QsaeError: there is one, and it or its rows are damaged.
    """
    path = folder / FOLDER / f"{cell}.json"
    try:
        entry = Entry.model_validate(json.loads(path.read_bytes()))
        for name, expected in entry.files.items():
            if sha256_of(folder / ROWS / name) != expected:
                raise QsaeError(f"{folder / ROWS / name}: damaged (checksum differs)")
    except FileNotFoundError as error:
        if error.filename == str(path):
            return None
        raise QsaeError(f"{error.filename}: missing") from None
    except OSError as error:
        raise QsaeError(f"{error.filename}: can't be read: {error.strerror or error}") from None
    except (ValidationError, ValueError, RecursionError):
        raise QsaeError(f"{path}: damaged (not an entry of a journal)") from None
    return Kept(folder, entry)


def cells(folder: Path) -> list[str]:
    """Ids of the cells that have an entry."""
    try:
        return sorted(path.name.removesuffix(".json") for path in (folder / FOLDER).glob("[!.]*.json"))
    except OSError:
        return []


def pack(estimates: Estimates) -> Packed:
    """Estimates as JSON has them, to the last bit."""
    places: dict[str, Mapping[str, Estimate]] = {"": estimates.cell}
    places |= {str(layer): found for layer, found in estimates.layers.items()}
    return {
        place: {key: (_number(e.value), _number(e.low), _number(e.high)) for key, e in found.items()}
        for place, found in places.items()
    }


def unpack(packed: Packed) -> Estimates:
    """What :func:`pack` packed."""
    places = {
        place: {key: Estimate(float(v), _float(low), _float(high)) for key, (v, low, high) in found.items()}
        for place, found in packed.items()
    }
    return Estimates(places[""], {int(place): found for place, found in places.items() if place})


def _number(value: float | None) -> Any:
    return value if value is None or math.isfinite(value) else str(float(value))


def _float(value: Number | None) -> float | None:
    return None if value is None else float(value)
