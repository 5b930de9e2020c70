"""The run document: write, read, validate. JSON without NaN, rows in Parquet, all or nothing.

A run is a folder ``<qsae dir>/runs/<run id>/`` with ``run.json`` and ``rows/<cell>.parquet``;
``<qsae dir>/latest`` points at the newest. What is written at once is written under another name and
renamed; what a run leaves cell by cell is in :mod:`qsae_bench.results.run_folder`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qsae_bench.errors import QsaeError
from qsae_bench.gate.verdict import Status, Verdict
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.registry.toml import shown
from qsae_bench.results.rows import write_rows
from qsae_bench.stats.bootstrap import Estimate

if TYPE_CHECKING:
    from qsae_bench.measure.corpus.packing import Corpus


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Value(_Strict):
    """A metric's value and interval; null where it is not finite or has no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class VerdictRecord(_Strict):
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
    """what moved since the gate last passed, where it fails and a history knows"""
    judged: Value | None = None
    """with the interval that decided: wider than 95% where a cell may be looked at several times"""
    looks: int = 1
    fallback: str = ""
    """why a general threshold decided, where other hardware has one of its own"""


class FeatureRecord(_Strict):
    """One of the features that lost most, for looking it up."""

    index: int
    active_reference: int
    active_quantized: int
    correlation: float | None
    slope: float | None
    weight: float | None


class SurvivalRecord(_Strict):
    """The share of eligible features whose correlation with the reference is at least so much."""

    correlation: list[float]
    share: list[float]
    weighted: list[float]
    """by each feature's share of the reconstruction's energy"""


class LayerRecord(_Strict):
    metrics: dict[str, Value]
    worst_features: list[FeatureRecord] = []
    survival_curve: SurvivalRecord | None = None


class ScopedValues(_Strict):
    metrics: dict[str, Value]
    layers: dict[str, LayerRecord] = {}


class StabilityRecord(ScopedValues):
    """Headline metrics on the first so many tokens."""

    tokens: int


class QuantizedRecord(_Strict):
    """What the recipe did to the decoder's weights."""

    share: float
    """of them that are quantized"""
    simulated: bool
    """rounded values kept as floats: quality is real, speed and weight_bytes are the reference's"""
    skipped: list[str] = []
    """modules left as they were, such as ``mlp.down_proj in layers 3–5``"""
    worst_matrix: str = ""
    """``layer.path`` of the matrix whose gain is furthest from 1, see metrics/weights.py"""
    worst_gain: float | None = None


SHARED_DEVICE = "its device was shared with other workers of this run"
"""a flag of timings; a ratio with such a side decides nothing"""


class TimingRecord(_Strict):
    """How long one work of a cell took: prefill, decode, the SAE, an evaluation, a bare forward."""

    seconds: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """of every round"""
    median_seconds: float
    spread_seconds: float
    """between the quartiles"""
    rounds: int
    tokens: int
    """that a round works on"""
    flags: list[str] = []
    """what disturbed the device meanwhile, such as throttling or another process"""
    invocation: str = ""
    """equal where one command timed both: ratios are of such pairs only"""


class CellRecord(_Strict):
    model: str
    quantization: str
    status: Literal["measured", "timed", "skipped", "oom", "error", "crashed", "not run"]
    reason: str = ""
    metrics: dict[str, Value] = {}
    layers: dict[str, LayerRecord] = {}
    verdicts: list[VerdictRecord] = []
    noise_floor: ScopedValues | None = None
    """of a reference: itself again at another batch size"""
    stability: list[StabilityRecord] = []
    still_moving: list[str] = []
    """headline metrics that have not settled"""
    quantized: QuantizedRecord | None = None
    """of a quantized cell that was loaded"""
    warnings: list[str] = []
    """what went on with this cell that is no verdict, such as memory that was not given back"""
    tokens: int = 0
    """predicted, that it was measured on"""
    planned_tokens: int = 0
    """that it would have been measured on, had its gates stayed undecided"""
    looks: int = 0
    revision: str = ""
    """of the model's weights: the hub's commit, or a digest of local files"""
    beside: ScopedValues | None = None
    """the reference's values on this cell's tokens, where those are more than the reference's own"""
    timings: dict[str, TimingRecord] = {}
    """work -> its rounds"""
    hardware: str = ""
    """the GPU's or CPU's name that it was measured on"""
    busy_seconds: float = 0.0
    """that processes were at it: setup, load, passes, and all that was timed"""
    setup_seconds: float = 0.0
    """of those, for tokens and SAEs, which a process shares between the model's cells"""
    shared_device: bool = False
    """its load and speeds were taken while other workers of the run used its device"""

    @property
    def simulated(self) -> bool:
        """Whether it keeps rounded values as floats: speed, memory and load are then not its own."""
        return self.quantized is not None and self.quantized.simulated


class FailedTest(_Strict):
    """A test that failed though no gate did: a crash, an assertion, what the machine lacks."""

    test: str
    said: str


class CorpusRecord(_Strict):
    name: str
    fingerprint: str
    sequences: int
    sequence_length: int
    tokens: int
    batch_size: int
    dropped_documents: int
    dropped_tokens: int
    source: str = ""
    """where the text came from, where that can differ"""

    @classmethod
    def of(cls, corpus: Corpus) -> CorpusRecord:
        path = Path(corpus.source)
        return cls(
            name=corpus.spec.name,
            fingerprint=corpus.fingerprint,
            sequences=len(corpus.ids),
            sequence_length=corpus.spec.sequence_length,
            tokens=corpus.predicted_tokens,
            batch_size=corpus.spec.batch_size,
            source=path.name if path.is_absolute() else corpus.source,
            dropped_documents=corpus.dropped["documents"],
            dropped_tokens=corpus.dropped["tokens"],
        )


class RunDocument(_Strict):
    """One invocation: what was measured, on what, and what was decided."""

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
    """model -> quantization -> metric -> the study's number, under its protocol"""
    synthetic: bool = False
    """random weights: timings and memory are real, nothing else is"""
    saes: dict[str, dict[str, str]] = {}
    """model -> layer -> release and id, or the folder"""
    neuronpedia: dict[str, dict[str, str]] = {}
    """model -> layer -> the SAE's id there, ``gemma-3-12b/24-gemmascope-2-res-16k``, where it has one"""
    failed_tests: list[FailedTest] = []
    """beside the failing gates"""


def new_run_id() -> str:
    """Sorts by time; the suffix keeps two runs of one second apart."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def value_record(estimate: Estimate) -> Value:
    def finite(number: float | None) -> float | None:
        return number if number is not None and math.isfinite(number) else None

    return Value(value=finite(estimate.value), low=finite(estimate.low), high=finite(estimate.high))


def verdict_record(verdict: Verdict) -> VerdictRecord:
    threshold = verdict.threshold
    return VerdictRecord(
        metric=verdict.metric,
        layer=verdict.layer,
        status=verdict.status,
        side=threshold.side if threshold else None,
        bound=threshold.bound if threshold else None,
        source=threshold.origin if threshold else None,
        provisional=threshold.provisional if threshold else False,
        tokens=verdict.tokens,
        reason=verdict.reason,
        attribution=verdict.attribution,
        judged=value_record(verdict.judged or verdict.estimate),
        looks=verdict.looks,
        fallback=threshold.fallback if threshold else "",
    )


def write_run(qsae_dir: Path, document: RunDocument, measurements: Mapping[str, Measurement]) -> Path:
    """Write the run's folder in one rename and point ``latest`` at it.

    Raises:
        QsaeError: the folder can't be written; nothing half-written is left.
    """
    runs = qsae_dir / "runs"
    folder = runs / document.run_id
    try:
        runs.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=runs))
        try:
            (part / "run.json").write_text(text_of(document), encoding="utf-8")
            (part / "rows").mkdir()
            for cell_id, measurement in measurements.items():
                write_rows(part / "rows" / f"{cell_id}.parquet", measurement)
            part.chmod(0o755)
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise cannot_write(qsae_dir, error) from None
    point_latest(folder)
    return folder


def text_of(document: RunDocument) -> str:
    """``run.json``.

    Raises:
        QsaeError: a field that the document leaves open holds a number that is not finite.
    """
    try:
        return json.dumps(document.model_dump(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        raise QsaeError(f"run {document.run_id}: can't be written: a number in it is not finite") from None


def cannot_write(qsae_dir: Path, error: OSError) -> QsaeError:
    return QsaeError(
        f"{qsae_dir}: the run can't be written: {error.strerror or error}; "
        "free space or name another place with --qsae-dir"
    )


def point_latest(folder: Path) -> None:
    """Let ``<qsae dir>/latest`` be this run.

    Raises:
        QsaeError: it can't.
    """
    link = folder.parents[1] / "latest"
    try:
        _point(link, Path("runs") / folder.name)
    except OSError as error:
        raise QsaeError(
            f"{folder} is written, but {link} can't point at it: {error.strerror or error}"
        ) from None


def _point(link: Path, target: Path) -> None:
    fresh = link.with_name(f".latest-{secrets.token_hex(4)}")
    fresh.symlink_to(target, target_is_directory=True)
    try:
        os.replace(fresh, link)
    finally:
        fresh.unlink(missing_ok=True)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


HOME = Path(".qsae")


def located(run: Path, home: Path = HOME) -> Path:
    """The folder of a run that is named by its folder, or by its id alone as tables print it."""
    known = home / "runs" / run
    return known if len(run.parts) == 1 and not run.exists() and known.is_dir() else run


def read_run(folder: Path) -> RunDocument:
    """The validated document of a run's folder, or of its id.

    Raises:
        QsaeError: there is none, or it is not a run document of this version; names the first fault.
    """
    path = located(folder) / "run.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        return RunDocument.model_validate(document)
    except OSError as error:
        if (folder / "started.json").is_file():
            raise QsaeError(f"{folder}: unfinished: it still runs, or goes on with --resume") from None
        raise QsaeError(f"{path}: can't be read: {error.strerror or error}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(shown(str(part)) for part in fault["loc"]) or "the document"
        raise QsaeError(f"{path}: not a run document: {where}: {fault['msg']}") from None
    except (ValueError, RecursionError) as error:  # a giant integer is a plain ValueError
        raise QsaeError(f"{path}: not JSON: {error}") from None
