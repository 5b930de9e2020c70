"""Define the run document (``run.json``), read it and validate it.

It is JSON without NaN and Infinity. :mod:`qsae_bench.results.run_files` writes it, with the rows beside it
in Parquet.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from qsae_bench.errors import QsaeError, plain
from qsae_bench.gate.thresholds import Provenance
from qsae_bench.gate.verdict import Status, Verdict
from qsae_bench.metrics.base import finite
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.registry.toml import quoted_key
from qsae_bench.results.accepted_record import AcceptedRecord
from qsae_bench.results.cell_facts import (
    FeatureRecord,
    QuantizedRecord,
    SinksRecord,
    SurvivalRecord,
    TimingRecord,
)
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.strict_model import StrictModel
from qsae_bench.stats.bootstrap import Estimate

HOME = Path(".qsae")
"""the default of --qsae-dir"""

LAYER_KEY = re.compile(r"0|[1-9][0-9]{0,4}")


class Value(StrictModel):
    """Hold a metric's value and interval; null where it is not finite or has no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class VerdictRecord(StrictModel):
    """Record what was decided about one metric, and by which threshold."""

    metric: str
    layer: int | None
    status: Status
    side: Literal["max", "min"] | None
    bound: float | None
    source: str | None
    provisional: bool
    tokens: int
    reason: str
    attribution: str = ""
    """of a failing gate: what moved since it last passed, if the history shows it"""
    judged: Value | None = None
    """the value with the interval that decided, wider than 95% if a cell may be looked at several times"""
    looks: int = 1
    fallback: str = ""
    """why a general threshold decided although other hardware has a threshold of its own"""
    other_text: str = ""
    """what text the bound was measured on, if it was not this run's: ``tiny in sequences of 128``"""
    lower: float | None = None
    """of a two-sided bound its lower end; ``bound`` is the upper one then, and ``side`` is ``max``"""

    @property
    def limit(self) -> str:
        """Return the bound in words: ``max 0.43``, ``0.9 to 1.1``, ``none``."""
        if self.bound is None:
            return "none"
        return f"{self.side} {self.bound:g}" if self.lower is None else f"{self.lower:g} to {self.bound:g}"


class PlacedMetric(StrictModel):
    """Name a metric of a cell, or of one of its layers."""

    metric: str
    layer: int | None = None


class LayerRecord(StrictModel):
    """Record what was measured at one layer."""

    metrics: dict[str, Value]
    worst_features: list[FeatureRecord] = []
    survival_curve: SurvivalRecord | None = None


class ScopedValues(StrictModel):
    """Hold values of a whole cell and of its layers."""

    metrics: dict[str, Value]
    layers: dict[str, LayerRecord] = {}


class StabilityRecord(ScopedValues):
    """Hold the headline metrics on the first ``tokens`` tokens."""

    tokens: int


class CellRecord(StrictModel):
    """Record everything about one cell: its values, its verdicts, and what it took to measure it."""

    model: str
    quantization: str
    status: Literal["measured", "timed", "skipped", "oom", "error", "crashed", "not run"]
    reason: str = ""
    metrics: dict[str, Value] = {}
    layers: dict[str, LayerRecord] = {}
    verdicts: list[VerdictRecord] = []
    unjudged: list[PlacedMetric] = []
    """gates of the cell that no selected test judged"""
    noise_floor: ScopedValues | None = None
    """of a reference: its values at another batch size"""
    accepted: AcceptedRecord | None = None
    """None of a reference, of an invalid cell, and in documents from before the field"""
    recipe: str = ""
    """digest of the quantization's entry and of its own code"""
    stability: list[StabilityRecord] = []
    still_moving: list[str] = []
    """headline metrics that have not settled as tokens were added"""
    quantized: QuantizedRecord | None = None
    """of a quantized cell that was loaded"""
    warnings: list[str] = []
    """problems that are no verdicts, such as memory that was not given back"""
    tokens: int = 0
    """predicted tokens that it was measured on"""
    sequences: int = 0
    """in so many sequences; 0 in runs from before the field"""
    documents: int | None = None
    """of so many documents; runs from before the field don't know"""
    planned_tokens: int = 0
    """tokens that it would have been measured on, had its gates stayed undecided"""
    looks: int = 0
    revision: str = ""
    """identifies the model's weights: the hub's commit, or a digest of local files"""
    beside: ScopedValues | None = None
    """the reference's values on this cell's tokens, if those are more than the reference was measured on"""
    sinks: SinksRecord | None = None
    """None where the model has no sinks, and in documents from before they were left out"""
    timings: dict[str, TimingRecord] = {}
    """by name of the work"""
    hardware: str = ""
    """name of the GPU or CPU that it was measured on"""
    busy_seconds: float = 0.0
    """time that processes worked on it: setup, load, passes, and everything that was timed"""
    setup_seconds: float = 0.0
    """the part of ``busy_seconds`` for tokens and SAEs, which the cells of a model share in a process"""
    shared_device: bool = False
    """whether its load and speeds were timed while other workers of the run used its device"""

    @property
    def is_reference(self) -> bool:
        """Whether it is the unquantized model."""
        return self.quantization == REFERENCE

    @property
    def is_worse(self) -> bool:
        """Whether it is worse than the last accepted run of it."""
        return self.accepted is not None and bool(self.accepted.worse)

    @property
    def has_values(self) -> bool:
        """Whether anything of it was measured or timed."""
        return self.status in ("measured", "timed")

    @property
    def simulated(self) -> bool:
        """Return whether it stores rounded values as floats: speed, memory and load are not its own."""
        return self.quantized is not None and self.quantized.simulated

    @property
    def label(self) -> str:
        """Return the cell's id as a message may show it, whatever the file holds."""
        return plain(f"{self.model}-{self.quantization}")

    @property
    def layer_numbers(self) -> list[int]:
        """Return the layers that it has metrics of."""
        return [int(key) for key in self.layers if LAYER_KEY.fullmatch(key)]


class FailedTest(StrictModel):
    """Record a test that failed although no gate did: a crash, an assertion, a lack of the machine."""

    test: str
    said: str


class RunDocument(StrictModel):
    """Record one invocation: what was measured, on what, and what was decided."""

    schema_version: Literal[1]
    run_id: str
    started: str
    finished: str
    command: str
    environment: dict[str, Any]
    corpus: dict[str, CorpusRecord]
    """by model: another tokenizer makes other sequences"""
    cells: list[CellRecord]
    protocol: str = ""
    published: dict[str, dict[str, dict[str, float]]] = {}
    """model -> quantization -> metric -> the number that the study published, under its protocol"""
    synthetic: bool = False
    """random weights: timings and memory are real, nothing else is"""
    saes: dict[str, dict[str, str]] = {}
    """model -> layer -> release and id, or the folder"""
    neuronpedia: dict[str, dict[str, str]] = {}
    """model -> layer -> the SAE's id on neuronpedia.org if it has one:
    ``gemma-3-12b/24-gemmascope-2-res-16k``"""
    failed_tests: list[FailedTest] = []
    """tests that failed without a failing gate"""
    metrics_version: int = Field(default=1, ge=1, le=1_000_000)
    """version of the formulas, see :mod:`qsae_bench.metrics`; documents from before the field have 1"""

    def tokens_of(self, cell: CellRecord) -> int:
        """Return the number of tokens that a cell was measured on, 0 if it is not known."""
        corpus = self.corpus.get(cell.model)
        tokens = cell.tokens or (corpus.tokens if corpus else 0)
        return tokens if 0 < tokens <= sys.maxsize else 0


def new_run_id() -> str:
    """Make an id that sorts by time; the suffix tells two runs of one second apart."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def now() -> str:
    """Return the time, in UTC and ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def value_record(estimate: Estimate) -> Value:
    """Convert an estimate; a number that is not finite becomes null."""
    return Value(value=finite(estimate.value), low=finite(estimate.low), high=finite(estimate.high))


def other_text(measured: Provenance, corpus: CorpusRecord | None) -> str:
    """Return what text a bound was measured on, if that is known and not ``corpus``, which it judges now.

    A fingerprint is of so many sequences: two can be compared only if both are of as many tokens.
    """
    if corpus is None or not measured.corpus:
        return ""
    if (measured.corpus, measured.sequence_length) != (plain(corpus.text), corpus.sequence_length):
        return measured.text
    same = not measured.fingerprint or measured.fingerprint == corpus.fingerprint
    return "" if same or measured.tokens != corpus.tokens else f"another text named {measured.corpus}"


def verdict_record(verdict: Verdict, corpus: CorpusRecord | None = None) -> VerdictRecord:
    """Convert a verdict, with the facts of its threshold; ``corpus`` is what was measured."""
    threshold = verdict.threshold
    same = ("metric", "layer", "status", "tokens", "reason", "attribution", "looks")
    return VerdictRecord(
        **{name: getattr(verdict, name) for name in same},
        side=threshold.side if threshold else None,
        bound=threshold.bound if threshold else None,
        source=threshold.origin if threshold else None,
        provisional=threshold.is_provisional if threshold else False,
        judged=value_record(verdict.judged or verdict.estimate),
        fallback=threshold.fallback if threshold else "",
        other_text=other_text(threshold.provenance, corpus) if threshold else "",
        lower=threshold.lower if threshold else None,
    )


def text_of(document: RunDocument) -> str:
    """Return the content of ``run.json``.

    Raises:
        QsaeError: A field of free content (``environment``) holds a number that is not finite.
    """
    try:
        return json.dumps(document.model_dump(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        raise QsaeError(f"run {document.run_id}: can't be written: a number in it is not finite") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def metrics_at(record: CellRecord | ScopedValues | None, layer: int | None) -> Mapping[str, Value]:
    """Return the metrics of a cell (``layer`` None) or of one of its layers; empty without a record."""
    if record is None:
        return {}
    if layer is None:
        return record.metrics
    found = record.layers.get(str(layer))
    return found.metrics if found else {}


def estimate_of(value: Value | None) -> Estimate | None:
    """Convert a value back to an estimate; None if it is not known or not finite."""
    if value is None or value.value is None:
        return None
    return Estimate(value.value, value.low, value.high)


def resolve_run(run: Path, home: Path = HOME) -> Path:
    """Return the folder of a run that is named by its folder, or by its id alone as tables print it."""
    known = home / "runs" / run
    return known if len(run.parts) == 1 and not run.exists() and known.is_dir() else run


def read_run(folder: Path) -> RunDocument:
    """Read and validate the document of a run, named by its folder or its id.

    Raises:
        QsaeError: There is no document, or it is not one of this version; the message has the first fault.
    """
    path = resolve_run(folder) / "run.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        return RunDocument.model_validate(document)
    except OSError as error:
        if (folder / "started.json").is_file():
            raise QsaeError(f"{folder}: unfinished: it still runs, or goes on with --resume") from None
        raise QsaeError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(quoted_key(str(part)) for part in fault["loc"]) or "the document"
        raise QsaeError(f"{path}: not a run document: {where}: {fault['msg']}") from None
    except (ValueError, RecursionError) as error:  # a giant integer is a plain ValueError
        raise QsaeError(f"{path}: not JSON: {error}") from None
