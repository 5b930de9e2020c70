"""Query the history: a metric's series, and the last run that a gate accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from qsae_bench.errors import QsaeError, did_you_mean, plain
from qsae_bench.gate.attribution import FailedGate, Setup, Snapshot, choose_baseline, model_indicators
from qsae_bench.gate.verdict import FAILING
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.history.schema import NO_LAYER, cells, runs, values, verdicts
from qsae_bench.results.history.store import History
from qsae_bench.results.setup import METRICS_ENTRY, metrics_version
from qsae_bench.stats.bootstrap import Estimate


@dataclass(frozen=True)
class RunValue:
    """Hold the value that one run measured of a metric."""

    run_id: str
    started: str
    estimate: Estimate
    tokens: int
    status: str
    """of its verdict, '' if it was not gated"""
    versions: dict[str, str]


@dataclass(frozen=True)
class Series:
    """Hold comparable values: one metric of one cell, measured in one way on one machine and text."""

    model: str
    quantization: str
    metric: str
    layer: int | None
    hardware: str
    corpus: str
    synthetic: bool
    protocol: str
    batch_size: int
    """sequences per forward pass; 0 if no text was read"""
    sae: str
    """the SAE of the layer; '' for a value of the whole cell, or if it is not known"""
    metrics_version: int
    """version of the formulas: a changed one begins another series, it is no change of the model's level"""
    runs: tuple[RunValue, ...]
    """the oldest first"""


def series(
    history: History, model: str, metric: str, quantization: str = "", layer: int | None = None
) -> list[Series]:
    """Return every series of a metric, in a fixed order.

    Args:
        quantization: The quantization's name; '' for every one.
        layer: The layer; None for every layer and the values of whole cells.

    Raises:
        QsaeError: The history has no such series (the message names what it has), or it can't be read.
    """
    chosen = [values.c.model == model, values.c.metric == metric]
    chosen += [values.c.quantization == quantization] if quantization else []
    chosen += [values.c.layer == layer] if layer is not None else []
    query = (
        sa.select(
            values, cells.c.corpus, cells.c.tokens, cells.c.revision, cells.c.protocol, cells.c.batch_size,
            cells.c.saes, runs.c.started, runs.c.hardware, runs.c.synthetic, runs.c.versions,
            verdicts.c.status,
        )
        .join(cells, _same(values, cells))
        .join(runs, runs.c.run_id == values.c.run_id)
        .outerjoin(
            verdicts,
            _same(values, verdicts) & (values.c.layer == verdicts.c.layer)
            & (values.c.metric == verdicts.c.metric),
        )
        .where(*chosen)
    )  # fmt: skip
    with history.reading() as connection:
        found = connection.execute(query).all()
        if not found:
            raise QsaeError(f"{history.shown}: {_nothing(connection, model, metric, quantization, layer)}")
        parts: dict[tuple[str, int, str, str, bool, tuple[str, int, str, int]], list[RunValue]] = {}
        # sorted here, because a server's collation may order dates and ids in its own way
        for row in sorted(found, key=lambda row: (row.started, row.run_id)):
            way = (row.protocol, row.batch_size, _sae(row), metrics_version(_mapping(row.versions)))
            key = (row.quantization, row.layer, row.hardware, row.corpus, row.synthetic, way)
            parts.setdefault(key, []).append(_run_value(row))
    return [
        Series(
            model, one, metric, None if at == NO_LAYER else at, hardware, corpus, synthetic, *way,
            tuple(of_series),
        )
        for (one, at, hardware, corpus, synthetic, way), of_series in sorted(parts.items())
    ]  # fmt: skip


def _run_value(row: sa.Row[Any]) -> RunValue:
    about = _packages(row) | ({"model revision": row.revision[:8]} if row.revision else {})
    return RunValue(row.run_id, row.started, _estimate(row), row.tokens, row.status or "", about)


def _nothing(
    connection: sa.Connection, model: str, metric: str, quantization: str, layer: int | None
) -> str:
    """Return which of the names the history does not have."""
    column: sa.Column[Any]
    where: list[sa.ColumnElement[bool]] = []
    for what, column, wanted in (
        ("model", values.c.model, model), ("metric", values.c.metric, metric),
        ("quantization", values.c.quantization, quantization),
    ):  # fmt: skip
        known = sorted(connection.execute(sa.select(column).where(*where).distinct()).scalars())
        if not known:
            return "no values yet: run the benchmarks, or import a folder of runs"
        if wanted and wanted not in known:
            return f"no {what} {wanted!r}{plain(did_you_mean(wanted, known))}"
        where += [column == wanted] if wanted else []
    known_layers = connection.execute(sa.select(values.c.layer).where(*where).distinct()).scalars()
    layers = ", ".join(str(one) for one in sorted(known_layers) if one != NO_LAYER)
    return f"no layer {layer} of {metric}; known: {layers or 'none, it is one value a cell'}"


def last_accepted(history: History, gate: FailedGate, now: Setup) -> tuple[Snapshot | None, str]:
    """Find the run to compare a failing gate with.

    A run is accepted if its reference was sane, no number of the cell was invalid, and this gate passed.
    Only runs on the same hardware and with the same definitions of the metrics (protocol and version) are
    considered: the newest with the same setup, else the newest.

    Returns:
        The run and '', or None and why there is none.

    Raises:
        QsaeError: The history can't be read.
    """
    layer = NO_LAYER if gate.layer is None else gate.layer
    query = (
        sa.select(
            verdicts, runs.c.started, runs.c.hardware, runs.c.versions,
            cells.c.corpus, cells.c.revision, cells.c.tokens, cells.c.sane,
            cells.c.protocol, cells.c.batch_size, cells.c.saes,
        )
        .join(cells, _same(verdicts, cells))
        .join(runs, runs.c.run_id == verdicts.c.run_id)
        .where(
            verdicts.c.model == gate.model, verdicts.c.quantization == gate.quantization,
            verdicts.c.metric == gate.metric, verdicts.c.layer == layer, sa.not_(runs.c.synthetic),
            cells.c.protocol == now.protocol,
        )
    )  # fmt: skip
    with history.reading() as connection:
        found = connection.execute(query).all()
        judged = sorted(found, key=lambda row: (row.started, row.run_id), reverse=True)
        judged = [row for row in judged if metrics_version(_mapping(row.versions)) == now.metrics_version]
        here = [row for row in judged if row.hardware == now.hardware]
        accepted = [row for row in here if row.status == "pass" and row.sane]
        index = choose_baseline([_setup(row) for row in accepted], now)
        if index is None:
            return None, _no_accepted(gate, now, here, judged)
        row = accepted[index]
        reference, own = _numbers(connection, row.run_id, gate)
        later = here[: here.index(row)]
        return Snapshot(
            setup=_setup(row), tokens=row.tokens, reference=reference, own=own,
            bound=bound_words(row.side, row.bound), run_id=row.run_id, started=row.started,
            failed_since=sum(one.status in FAILING for one in later),
        ), ""  # fmt: skip


def _no_accepted(gate: FailedGate, now: Setup, here: list[Any], judged: list[Any]) -> str:
    text = f"no accepted run of {gate.cell} on {now.hardware} to compare with"
    if here:
        return f"{text}: {gate.metric} did not pass in any of the {len(here)} recorded"
    elsewhere = sorted({row.hardware for row in judged})
    return f"{text}; only on {', '.join(elsewhere)}" if elsewhere else text


def _numbers(
    connection: sa.Connection, run_id: str, gate: FailedGate
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Return the model indicators of the reference, and those of the cell with the gated metric."""
    places = [NO_LAYER] if gate.layer is None else [NO_LAYER, gate.layer]
    query = sa.select(values).where(
        values.c.run_id == run_id, values.c.model == gate.model, values.c.layer.in_(places),
        values.c.quantization.in_([REFERENCE, gate.quantization]),
    )  # fmt: skip
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.quantization, {}).setdefault(row.layer, {})[row.metric] = _estimate(row)

    def at(quantization: str) -> dict[str, Estimate]:
        known = found.get(quantization, {})
        layer = None if gate.layer is None else known.get(gate.layer, {})
        return model_indicators(known.get(NO_LAYER, {}), layer)

    own = {} if gate.quantization == REFERENCE else at(gate.quantization)
    gated = found.get(gate.quantization, {}).get(places[-1], {}).get(gate.metric)
    return at(REFERENCE), own | ({gate.metric: gated} if own and gated else {})


def bound_words(side: str | None, bound: float | None) -> str:
    """Return a bound as messages show it: ``≤ 1.2``."""
    return "" if side is None or bound is None else f"{'≤' if side == 'max' else '≥'} {bound:g}"


def _same(one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
    """Join rows of the same cell in the same run."""
    return sa.and_(*(one.c[name] == other.c[name] for name in ("run_id", "model", "quantization")))


def _setup(row: Any) -> Setup:
    return Setup(
        row.hardware, _packages(row), row.corpus, row.revision, row.batch_size, _sae(row),
        row.protocol, metrics_version(_mapping(row.versions)),
    )  # fmt: skip


def _sae(row: Any) -> str:
    return _mapping(row.saes).get(str(row.layer), "")


def _packages(row: Any) -> dict[str, str]:
    """Return the versions of what a run was made with, without that of the metrics."""
    return {key: value for key, value in _mapping(row.versions).items() if key != METRICS_ENTRY}


def _mapping(found: Any) -> dict[str, str]:
    return found if isinstance(found, dict) else {}


def _estimate(row: Any) -> Estimate:
    nan = float("nan")
    return Estimate(nan if row.value is None else row.value, row.low, row.high)
