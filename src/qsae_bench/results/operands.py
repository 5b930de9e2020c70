"""What the operands of ``qsae-bench compare`` name, and the pairs of cells that follow.

An operand is a run's folder, a quantization of the run at hand, or ``RUN:NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.document import CellRecord, CorpusRecord, RunDocument, located, read_run


@dataclass(frozen=True)
class Run:
    folder: Path
    document: RunDocument

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The run in a folder; two names of one folder (``latest``) are one run."""
        return cls(located(folder).resolve(), read_run(folder))

    def cells(self, model: str | None = None) -> dict[tuple[str, str], CellRecord]:
        """(model, quantization) -> cell, of one model or of all."""
        cells = self.document.cells
        return {(c.model, c.quantization): c for c in cells if model in (None, c.model)}

    @property
    def quantizations(self) -> list[str]:
        return list(dict.fromkeys(cell.quantization for cell in self.document.cells))


@dataclass(frozen=True)
class Operand:
    run: Run
    quantization: str | None
    """None: the whole run"""


@dataclass(frozen=True)
class Side:
    """A cell of a run."""

    run: Run
    cell: CellRecord

    @property
    def name(self) -> str:
        return f"{self.cell.model}-{self.cell.quantization}"

    @property
    def corpus(self) -> CorpusRecord | None:
        return self.run.document.corpus.get(self.cell.model)

    @property
    def rows(self) -> Path:
        return self.run.folder / "rows" / f"{self.name}.parquet"

    @property
    def fault(self) -> str:
        """Why nothing can be compared with it; '' where nothing speaks against it."""
        if self.run.document.synthetic:
            return f"{self.name} has random weights (--synthetic): only its costs are real"
        if self.cell.status != "measured":
            why = f": {self.cell.reason}" if self.cell.reason else ""
            return f"{self.name} was not measured ({self.cell.status}{why})"
        if self.cell.reason:
            return f"{self.name} is invalid: {self.cell.reason}"
        return (
            ""
            if self.rows.exists()
            else f"{self.rows}: no rows of {self.name} are stored: measure it again"
        )


@dataclass(frozen=True)
class Pair:
    a: Side
    b: Side

    @property
    def one_run(self) -> bool:
        return self.a.run.folder == self.b.run.folder

    @property
    def name(self) -> str:
        if self.one_run:
            return f"{self.a.name} and {self.b.name}"
        return f"{self.a.name} of {self.a.run.folder.name} and {self.b.name} of {self.b.run.folder.name}"


def find(text: str, run: Path) -> Operand:
    """What an operand names.

    Raises:
        QsaeError: neither a run's folder nor a quantization of the run, or the reference.
    """
    if (named := located(Path(text)) / "run.json").is_file():
        return Operand(Run.read(named.parent), None)
    folder, colon, name = text.rpartition(":")
    if not colon and ("/" in text or Path(text).is_dir()):
        raise QsaeError(f"{text}: no run.json there; a run is .qsae/runs/<run id>, or .qsae/latest")
    found = Run.read(Path(folder) if colon else run)
    if name == REFERENCE:
        raise QsaeError(
            f"{text!r} is what every metric already compares with: qsae-bench show has each cell against it"
        )
    if name not in found.quantizations:
        known = [known for known in found.quantizations if known != REFERENCE]
        where = did_you_mean(name, known) if known else ": it holds no quantized cell"
        other = "" if colon else "; of another run: .qsae/runs/<run id>:NAME, or --run"
        raise QsaeError(f"unknown quantization {name!r} in {found.folder.name}{where}{other}")
    return Operand(found, name)


def check_model(run: Run, model: str | None) -> None:
    known = list(dict.fromkeys(cell.model for cell in run.document.cells))
    if model is not None and model not in known:
        raise QsaeError(f"unknown model {model!r} in {run.folder.name}{did_you_mean(model, known)}")


def pairs(a: Operand, b: Operand | None, model: str | None) -> Iterator[Pair]:
    """In the order of A's run.

    Raises:
        QsaeError: a run against a quantization, a cell against itself, or no cell to pair.
    """
    if b is None:
        others = [q for q in a.run.quantizations if q not in (a.quantization, REFERENCE)]
        if not others:
            raise QsaeError(
                f"{a.quantization} is the only quantization of {a.run.folder.name}: name a second"
            )
        for other in others:
            yield from _paired(a, Operand(a.run, other), model)
        return
    if (a.quantization is None) != (b.quantization is None):
        raise QsaeError(
            "a run can't be compared with a quantization: name one in each, as RUN:NAME, or two runs"
        )
    if a.run.folder == b.run.folder and a.quantization == b.quantization:
        raise QsaeError(f"{a.quantization or a.run.folder.name} is compared with itself: name another")
    found = list(_paired(a, b, model))
    if not found:
        in_a, in_b = (", ".join("-".join(key) for key in one.run.cells(model)) for one in (a, b))
        raise QsaeError(f"no cell to pair; A has {in_a}; B has {in_b}")
    yield from found


def _paired(a: Operand, b: Operand, model: str | None) -> Iterator[Pair]:
    others = b.run.cells(model)
    for (name, quantization), cell in a.run.cells(model).items():
        if quantization == REFERENCE or a.quantization not in (None, quantization):
            continue
        if other := others.get((name, b.quantization or quantization)):
            yield Pair(Side(a.run, cell), Side(b.run, other))
