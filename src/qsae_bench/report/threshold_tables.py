"""Print what each threshold can decide, and what an update of them changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qsae_bench.gate.power import POWER, TokenNeed, token_need
from qsae_bench.gate.thresholds import DEFAULTS_TABLE, Thresholds, table_name
from qsae_bench.gate.verdict import decide
from qsae_bench.machine import hardware_of
from qsae_bench.metrics import METRICS
from qsae_bench.registry.entries import Registry
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.document import CellRecord, RunDocument, estimate_of, metrics_at
from qsae_bench.results.threshold_update import BoundChange, Update


@dataclass(frozen=True)
class PlacedThreshold:
    """Hold a bound of a cell and its place: at one layer, or (None) of the whole."""

    layer: int | None
    need: TokenNeed

    @property
    def name(self) -> str:
        metric = self.need.threshold.metric
        return metric if self.layer is None else f"layer {self.layer} {metric}"


def file_line(thresholds: Thresholds, where: str) -> str:
    """Say in one line what is in the file."""
    entries = [entry for found in thresholds.tables.values() for entry in found.values()]
    provisional = sum(entry.is_provisional for entry in entries)
    return (
        f"{where}: {len(entries)} bounds in {len(thresholds.tables)} tables, {provisional} of them "
        "provisional; nothing in it is wrong"
    )


def check_lines(
    run: RunDocument, thresholds: Thresholds, registry: Registry, keyword: str = ""
) -> Iterator[str]:
    """Yield for each measured cell what deciding at each of its bounds takes."""
    hardware = hardware_of(run.environment)
    cells = [cell for cell in run.cells if cell.has_values]
    placed = {cell.label: list(_placed(run, cell, thresholds, registry, hardware)) for cell in cells}
    shown = {name: found for name, found in placed.items() if keyword in name and found}
    yield from wrapped(f"run {run.run_id} on {hardware or 'unknown hardware'}")
    for cell in cells:
        if found := shown.get(cell.label):
            yield from _cell_lines(run, cell, found)
    if shown:
        yield ""
        yield from wrapped(
            f"to decide: tokens that decide a cell which is as measured, {POWER:.0%} of the time. "
            "resolves: how far from its bound a cell must lie for max_tokens to decide it as often. "
            "now: the verdict on the 95% interval."
        )
    yield from _warnings(shown)
    if not keyword:
        yield from _idle(run, thresholds, [one for found in placed.values() for one in found])


def _placed(
    run: RunDocument, cell: CellRecord, thresholds: Thresholds, registry: Registry, hardware: str
) -> Iterator[PlacedThreshold]:
    corpus = run.corpus.get(cell.model)
    spec = registry.corpora.get(corpus.name) if corpus else None
    first, most = (spec.tokens, spec.max_tokens) if spec else (0, None)
    tokens = run.tokens_of(cell)
    for layer in (None, *cell.layer_numbers):
        bounded = thresholds.metrics_for(cell.model, cell.quantization, layer, hardware)
        for metric, value in metrics_at(cell, layer).items():
            measured = estimate_of(value)
            threshold = thresholds.find(cell.model, cell.quantization, metric, layer, hardware)
            if metric not in bounded or threshold is None or measured is None:
                continue
            if METRICS[metric].interval == "rounds":  # more tokens don't decide it
                yield PlacedThreshold(layer, TokenNeed(threshold, measured, tokens, 0.0, most, None))
            elif tokens:
                yield PlacedThreshold(layer, token_need(threshold, measured, tokens, first, most))


def _cell_lines(run: RunDocument, cell: CellRecord, placed: list[PlacedThreshold]) -> Iterator[str]:
    first = placed[0].need
    corpus = run.corpus.get(cell.model)
    of = f" of {corpus.name}" if corpus else ""
    most = "max_tokens is not known" if first.most is None else f"max_tokens is {first.most:,}"
    yield ""
    yield from wrapped(f"{cell.label}: measured on {first.tokens:,} tokens{of}; {most}")
    yield from table(_row(one) for one in placed)
    general: dict[str, list[str]] = {}
    for one in placed:
        if fallback := one.need.threshold.fallback:
            general.setdefault(f"[{one.need.threshold.table}], general: {fallback}", []).append(one.name)
    for why, names in general.items():
        yield from wrapped(f"{why}: {', '.join(names)}")


def _row(one: PlacedThreshold) -> dict[str, str]:
    found = one.need
    value, half = found.measured.value, found.measured.half_width
    return {
        "layer": "" if one.layer is None else str(one.layer), "metric": found.threshold.metric,
        "bound": found.threshold.limit,
        "measured": f"{value:.4g} ± {half:.2g}" if half else f"{value:.4g}",
        "to decide": _tokens(found) + "!" * (not found.decidable),
        "resolves": "–" if not found.resolved else f"± {found.resolved:.2g}",
        "now": decide(found.threshold.metric, found.measured, found.threshold, found.tokens).status,
    }  # fmt: skip


def _tokens(found: TokenNeed) -> str:
    if METRICS[found.threshold.metric].interval == "rounds":
        return "by rounds"
    if found.needed == 0:
        return "exact" if found.measured.low is None else "no spread"
    return "never" if math.isinf(found.needed) or found.needed > 1e15 else f"{math.ceil(found.needed):,}"


def _warnings(shown: Mapping[str, list[PlacedThreshold]]) -> Iterator[str]:
    for name, placed in shown.items():
        for one in placed:
            found = one.need
            if not found.decidable:
                value = f"{found.measured.value:.4g} ± {found.measured.half_width:.2g}"
                takes = _tokens(found)
                takes = "no number of tokens does" if takes == "never" else f"that takes {takes}"
                yield from wrapped(
                    f"warning: {name} {one.name}: {found.most:,} tokens (max_tokens) can't decide "
                    f"{found.threshold.limit} at {value}: {takes}; "
                    "raise max_tokens, or move the bound away from what is measured"
                )


def _idle(run: RunDocument, thresholds: Thresholds, placed: Iterable[PlacedThreshold]) -> Iterator[str]:
    """Name the entries that decided nothing and could have, and count those of cells not measured."""
    used = {(one.need.threshold.table, one.need.threshold.metric) for one in placed}
    measured = [cell for cell in run.cells if cell.has_values]
    owners = {(cell.model, cell.quantization) for cell in measured}
    owners |= {(DEFAULTS_TABLE, quantization) for _, quantization in owners}
    others, idle = 0, []
    for path, entries in thresholds.tables.items():
        left = [metric for metric in entries if (table_name(path), metric) not in used]
        if path[:2] not in owners:
            others += len(left)
        elif left:
            idle.append(f"[{table_name(path)}] {', '.join(left)}")
    if idle or others:
        yield ""
    if idle:
        yield from wrapped(f"bound nothing in this run: {'; '.join(idle)}")
    if others:
        yield f"bounds of models and quantizations that this run did not measure: {others}"


# -- an update ------------------------------------------------------------------------------------


def change_lines(update: Update) -> Iterator[str]:
    """Yield old and new bound of every entry that changes, table by table."""
    last = None
    wide = max((len(change.new.metric) for change in update.needed), default=0)
    for change in update.needed:
        if change.new.table != last:
            last = change.new.table
            yield f"[{last}]"
        yield f"  {change.new.metric:{wide}}  {_change(change)}"
    for note in update.notes:
        yield from wrapped(f"note: {note}")


def _change(change: BoundChange) -> str:
    if change.old is None:
        return f"{change.new.limit}  new"
    elsewhere = f", so far [{change.old.table}]" if change.here is None else ""
    return f"{change.old.limit} → {change.new.limit}  {change.kind}{elsewhere}"


def one_line(changes: Iterable[BoundChange], most: int = 10) -> str:
    """Say the changes in one line, the first few by name."""
    named = []
    for change in changes:
        before = dict.fromkeys(one.limit for one in (change.old, *change.displaced) if one is not None)
        bounds = f"{', '.join(before)} → {change.new.limit}"
        named.append(f"[{change.new.table}] {change.new.metric} {bounds}")
    more = f"; and {len(named) - most} more" if len(named) > most else ""
    return "; ".join(named[:most]) + more
