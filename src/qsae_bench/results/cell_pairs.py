"""Resolve the operands of ``qsae-bench compare`` to pairs of cells.

An operand is a run's folder, the name of a quantization of the run at hand, or ``RUN:NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qsae_bench.errors import QsaeError, did_you_mean
from qsae_bench.metrics import version_difference
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.document import CellRecord, RunDocument, read_run, resolve_run
from qsae_bench.results.run_files import DOCUMENT, rows_path


@dataclass(frozen=True)
class StoredRun:
    """Hold a run that is on disk: its folder and its document."""

    folder: Path
    document: RunDocument

    @classmethod
    def read(cls, folder: Path) -> StoredRun:
        """Read the run of a folder; two names of one folder (``latest``) give the same folder."""
        return cls(resolve_run(folder).resolve(), read_run(folder))

    def cells(self, model: str | None = None) -> dict[tuple[str, str], CellRecord]:
        """Return the cells of one model or of all, by (model, quantization)."""
        cells = self.document.cells
        return {(c.model, c.quantization): c for c in cells if model in (None, c.model)}

    @property
    def quantizations(self) -> list[str]:
        """Return the quantizations of its cells, each once, in their order."""
        return list(dict.fromkeys(cell.quantization for cell in self.document.cells))


@dataclass(frozen=True)
class Operand:
    """Hold the run, or one quantization of it, that an operand names."""

    run: StoredRun
    quantization: str | None
    """None: the whole run"""


@dataclass(frozen=True)
class RunCell:
    """Identify a cell of a run on disk."""

    run: StoredRun
    cell: CellRecord

    @property
    def name(self) -> str:
        """Return the cell's id."""
        return f"{self.cell.model}-{self.cell.quantization}"

    @property
    def corpus(self) -> CorpusRecord | None:
        """Return the token sequences that it was measured on, if the document has them."""
        return self.run.document.corpus.get(self.cell.model)

    @property
    def rows(self) -> Path:
        """Return the file of its rows."""
        return rows_path(self.run.folder, self.name)

    @property
    def fault(self) -> str:
        """Return why nothing can be compared with it; '' if it can be compared."""
        if self.run.document.synthetic:
            return f"{self.name} has random weights (--synthetic): only its costs are real"
        if self.cell.status != "measured":
            why = f": {self.cell.reason}" if self.cell.reason else ""
            return f"{self.name} was not measured ({self.cell.status}{why})"
        if self.cell.reason:
            return f"{self.name} is invalid: {self.cell.reason}"
        if difference := version_difference(self.run.document.metrics_version):
            return f"{self.name} of {self.run.folder.name}: {difference}: measure it again to compare it"
        if not self.rows.exists():
            return f"{self.rows}: no rows of {self.name} are stored: measure it again"
        return ""


@dataclass(frozen=True)
class Pair:
    """Hold two cells of one model to be compared."""

    a: RunCell
    b: RunCell

    @property
    def one_run(self) -> bool:
        """Return whether both belong to the same run."""
        return self.a.run.folder == self.b.run.folder

    @property
    def name(self) -> str:
        """Return both cells as a message names them."""
        if self.one_run:
            return f"{self.a.name} and {self.b.name}"
        return f"{self.a.name} of {self.a.run.folder.name} and {self.b.name} of {self.b.run.folder.name}"


def find(text: str, run: Path) -> Operand:
    """Find the run or the quantization that an operand names; ``run`` is the one for a bare name.

    Raises:
        QsaeError: It is neither a run's folder nor a quantization of the run, or it is the reference.
    """
    if (named := resolve_run(Path(text)) / DOCUMENT).is_file():
        return Operand(StoredRun.read(named.parent), None)
    folder, colon, name = text.rpartition(":")
    if not colon and ("/" in text or Path(text).is_dir()):
        raise QsaeError(f"{text}: no run.json there; a run is .qsae/runs/<run id>, or .qsae/latest")
    found = StoredRun.read(Path(folder) if colon else run)
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


def check_has_model(run: StoredRun, model: str | None) -> None:
    """Raise if the run has no cells of a model; the message names a near miss."""
    known = list(dict.fromkeys(cell.model for cell in run.document.cells))
    if model is not None and model not in known:
        raise QsaeError(f"unknown model {model!r} in {run.folder.name}{did_you_mean(model, known)}")


def pairs(a: Operand, b: Operand | None, model: str | None) -> Iterator[Pair]:
    """Yield the pairs that two operands give, in the order of A's run.

    Without ``b`` these are A with each other quantization of its run; without ``model``, of all models.

    Raises:
        QsaeError: The operands are a run and a quantization, or the same cell twice, or give no pair.
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
            yield Pair(RunCell(a.run, cell), RunCell(b.run, other))
