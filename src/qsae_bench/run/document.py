"""Turn a session's state into the run document and journal entries, and an entry back into state."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, Crashed, OutOfMemory, QsaeError
from qsae_bench.metrics import METRICS, METRICS_VERSION
from qsae_bench.metrics.features import survival_curve, worst_features
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.metrics.sinks import WITH_SINKS
from qsae_bench.progress import progress_of
from qsae_bench.registry.entries import STUDY
from qsae_bench.registry.sae_releases import neuronpedia_id
from qsae_bench.registry.specs import Cell, ModelSpec
from qsae_bench.results import document as results
from qsae_bench.results.accepted_record import AcceptedRecord
from qsae_bench.results.cell_facts import QuantizedRecord, SinksRecord
from qsae_bench.results.corpus_record import CorpusRecord
from qsae_bench.results.journal import JournalEntry, ReferenceState, StoredCell
from qsae_bench.run.recipe import recipe_digest
from qsae_bench.stats.bootstrap import Estimates
from qsae_bench.stats.documents import document_count
from qsae_bench.stats.stability import STUDY_TOKENS, stability, still_moving

if TYPE_CHECKING:
    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.models.weights.inspection import QuantizationEffect
    from qsae_bench.run.session import Session

REFUSALS: Mapping[str, type[QsaeError]] = {
    "skipped": CannotRun, "oom": OutOfMemory, "crashed": Crashed, "error": QsaeError,
}  # fmt: skip
"""by a record's status: the error that every later test of the cell raises"""


def run_document(session: Session) -> results.RunDocument:
    """Return the run so far, cells in the order in which they were asked for, references first."""
    cells: dict[Cell, None] = {}
    for cell in session.requested:
        reference = session.registry.reference_of(cell)
        cells |= {reference: None} if reference in session.measured else {}
        cells[cell] = None
    models = {cell.model.name: cell.model for cell in cells}
    return results.RunDocument(
        schema_version=1,
        run_id=results.new_run_id(),
        started=session.started,
        finished=results.now(),
        command=session.options.command,
        environment=dict(session.environment),
        corpus=_corpora(session),
        cells=[cell_record(session, cell) for cell in cells],
        protocol=session.options.selection.protocol,
        synthetic=session.options.selection.synthetic,
        metrics_version=METRICS_VERSION,
        published=_published(models.values()) if session.options.selection.protocol == STUDY else {},
        saes={
            name: {str(layer): model.sae_name(layer) for layer in model.layers}
            for name, model in models.items()
        },
        neuronpedia={name: ids for name, model in models.items() if (ids := _neuronpedia(model))},
    )


def _neuronpedia(model: ModelSpec) -> dict[str, str]:
    found = {str(layer): neuronpedia_id(model, layer) for layer in model.layers}
    return {layer: known for layer, known in found.items() if known}


def _corpora(session: Session) -> dict[str, CorpusRecord]:
    known = ((cell.model.name, stored.entry.corpus) for cell, stored in session.restored.items())
    found = {name: record for name, record in known if record is not None}
    return found | session.corpora


def _published(models: Iterable[ModelSpec]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        model.name: {name: dict(values) for name, values in model.published.items()}
        for model in models
        if model.published
    }


def cell_record(session: Session, cell: Cell) -> results.CellRecord:
    """Return a cell's part of the document: as it is now, or as the journal has it."""
    if cell in session.restored:
        stored = session.restored[cell].entry.record
        return stored.model_copy(update={"warnings": session.warnings.get(cell, [])})
    names = {"model": cell.model.name, "quantization": cell.quantization.name}
    costs = {k: results.Value(value=v) for k, v in session.costs(cell).items()}
    costs |= {k: results.value_record(e) for k, e in session.timings.ratios(cell).items()}
    refusal = session.refused.get(cell)
    measured = session.measured.get(cell)
    record: dict[str, Any]
    if refusal is not None:
        status = next(name for name, kind in REFUSALS.items() if isinstance(refusal, kind))
        record = {"status": status, "reason": str(refusal), "metrics": costs}
    elif measured is None:
        record = {"status": "timed" if costs else "not run", "metrics": costs}
    else:
        study = session.options.selection.protocol == STUDY
        corpus = session.corpora.get(cell.model.name)
        record = {"status": "measured", **_measured(measured, study, corpus)}
        record["reason"] = measured.invalid_reason
        record["metrics"] = record["metrics"] | costs
        record["accepted"] = _accepted(session, cell)
    if measured is not None and measured.quantized is not None:
        record["quantized"] = _quantized(measured.quantized, cell.quantization.stored_bits)
    record["recipe"] = "" if cell.is_reference else recipe_digest(cell.quantization)
    record["warnings"] = session.warnings.get(cell, [])
    record["timings"] = session.timings.records(cell)
    record["shared_device"] = session.shares_device(cell)
    record["hardware"] = session.hardware_of(cell)
    spent = session.spent(cell)
    record |= {"busy_seconds": round(spent.busy_seconds, 3), "setup_seconds": round(spent.setup_seconds, 3)}
    of_timings = [results.verdict_record(v) for v in session.timings.verdicts(cell)]
    record["verdicts"] = record.get("verdicts", []) + of_timings
    if record["status"] == "measured":
        record["unjudged"] = _unjudged(session, cell, record["verdicts"])
    return results.CellRecord.model_validate(names | record)


def _accepted(session: Session, cell: Cell) -> AcceptedRecord | None:
    found = session.against_accepted(cell)
    return None if found is None else AcceptedRecord.of(found, session.against_accepted.fails)


def _unjudged(
    session: Session, cell: Cell, verdicts: list[results.VerdictRecord]
) -> list[results.PlacedMetric]:
    """Return the gates of a quantized cell that no verdict is about.

    These are the metrics that a test gates in any case, and those that a threshold bounds on this hardware.
    A ratio of timings is left out: where nothing is timed, it is not asked.
    """
    if cell.is_reference or cell.model.synthetic:
        return []
    names, bounded = (cell.model.name, cell.quantization.name), session.options.thresholds.metrics_for
    gates = {(g.metric, g.layer) for g in session.options.collected_gates.get(cell, ()) if not g.optional}
    for layer in (None, *cell.model.layers):
        gates |= {(metric, layer) for metric in bounded(*names, layer, session.hardware)}
    gates = {gate for gate in gates if METRICS[gate[0]].interval != "rounds"}
    gates -= {(verdict.metric, verdict.layer) for verdict in verdicts}
    found = sorted(gates, key=lambda gate: (gate[0], -1 if gate[1] is None else gate[1]))
    return [results.PlacedMetric(metric=metric, layer=layer) for metric, layer in found]


def _quantized(found: QuantizationEffect, declared_bits: float) -> QuantizedRecord:
    matrix, gain = found.furthest or ("", math.nan)
    return QuantizedRecord(
        share=found.share,
        simulated=found.simulated,
        without=found.without,
        skipped=list(found.skipped),
        declared_bits=declared_bits,
        worst_matrix=matrix,
        worst_gain=gain if math.isfinite(gain) else None,
    )


def _measured(measured: CellResult, study: bool, corpus: CorpusRecord | None) -> dict[str, Any]:
    measurement = measured.measurement
    with progress_of(f"{measurement.model}-{measurement.quantization}: stability"):
        history = stability(measurement, STUDY_TOKENS if study else ())
    scopes = _values(measured.estimates)
    for layer, sums in measured.measurement.features.items():
        scopes["layers"][str(layer)]["worst_features"] = worst_features(sums)
        scopes["layers"][str(layer)]["survival_curve"] = survival_curve(sums)
    return {
        **scopes,
        "verdicts": [results.verdict_record(v, corpus) for v in measured.verdicts],
        "noise_floor": _values(measured.noise_floor) if measured.noise_floor else None,
        "stability": [{"tokens": tokens, **_values(e)} for tokens, e in history.items()],
        "still_moving": still_moving(history),
        "tokens": measured.tokens,
        "sequences": len(measurement.rows),
        "documents": None if measurement.rows.documents is None else document_count(measurement.rows),
        "planned_tokens": measured.planned_tokens,
        "looks": len(measured.looks),
        "revision": measured.revision,
        "sinks": _sinks(measurement),
        "beside": _values(measured.reference_values) if len(measured.looks) > 1 else None,
    }


def _sinks(measurement: Measurement) -> SinksRecord | None:
    rule = measurement.sinks
    if rule is None:
        return None
    columns = measurement.layers[rule.layer].scalars
    keys = (WITH_SINKS, "sinks", "sinks_gained", "sinks_lost")
    positions, reference, gained, lost = (int(columns[key].sum()) for key in keys)
    return SinksRecord(
        layer=rule.layer, multiple=rule.multiple, positions=positions, reference=reference, gained=gained,
        lost=lost,
    )  # fmt: skip


def _values(estimates: Estimates) -> dict[str, dict[str, Any]]:
    return {
        "metrics": {k: results.value_record(e) for k, e in estimates.cell.items()},
        "layers": {
            str(layer): {"metrics": {k: results.value_record(e) for k, e in found.items()}}
            for layer, found in estimates.layers.items()
        },
    }


def finish_cell(
    session: Session,
    cell: Cell,
    tests: Mapping[str, Sequence[dict[str, Any]]],
    timings: Sequence[dict[str, Any]],
) -> tuple[JournalEntry, Measurement | None]:
    """Free a finished cell's model, and return its journal entry and its measurement.

    ``tests`` and ``timings`` are as :class:`qsae_bench.results.journal.JournalEntry` has them.
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
