"""Compute threshold changes from a run document, one per entry; raise if the run can't be trusted. Pure."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from qsae_bench.errors import QsaeError, plain
from qsae_bench.gate.threshold_rule import MARGIN, DerivedBound, derive_bound
from qsae_bench.gate.thresholds import (
    HARDWARE_TABLE,
    Provenance,
    Side,
    TablePath,
    Threshold,
    Thresholds,
    table_name,
)  # fmt: skip
from qsae_bench.gate.verdict import BELOW_NOISE_FLOOR, numerical_noise
from qsae_bench.machine import hardware_of, versions_of
from qsae_bench.metrics import GROUPS, METRICS, version_difference
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.document import CellRecord, RunDocument, estimate_of, metrics_at
from qsae_bench.stats.bootstrap import Estimate


@dataclass(frozen=True)
class UpdateOptions:
    """Hold the options of how a run becomes thresholds."""

    margin: float = MARGIN
    """how many times the measured harm a bound allows"""
    reason: str = ""
    """why bounds may be loosened; '' if they may not"""
    hardware_specific: bool = False
    """whether the entries are for the run's hardware alone"""
    keyword: str = ""
    """text that the id of a cell must contain"""


@dataclass(frozen=True)
class BoundChange:
    """Hold an entry that is to be written, and what it replaces."""

    path: TablePath
    new: Threshold
    old: Threshold | None
    """the threshold that decided so far, in whichever table"""
    here: Threshold | None
    """the threshold that this very table has now"""
    displaced: tuple[Threshold, ...] = ()
    """every threshold that no longer decides because of this entry, on any hardware"""

    @property
    def kind(self) -> Literal["new", "tighter", "looser", "same"]:
        """Return what happens to the bound; another side may let pass what the old one refused."""
        least, most = self.new.allowed
        if any(least < old.allowed[0] or most > old.allowed[1] for old in self.displaced):
            return "looser"
        if self.old is None:
            return "new"
        return "same" if self.new.allowed == self.old.allowed else "tighter"

    @property
    def needed(self) -> bool:
        """Return whether the file does not hold exactly this entry already."""
        return self.new != self.here


@dataclass(frozen=True)
class Update:
    """Hold the changes that follow from a run, in its order, and notes on them."""

    changes: tuple[BoundChange, ...]
    notes: tuple[str, ...]

    @property
    def needed(self) -> tuple[BoundChange, ...]:
        """Return the changes that change the file."""
        return tuple(change for change in self.changes if change.needed)


def update_from(run: RunDocument, thresholds: Thresholds, options: UpdateOptions) -> Update:
    """Turn every gated metric of the run's quantized cells into an entry with its measurement.

    ``thresholds`` are those that the file holds now.

    Raises:
        QsaeError: The run can't be trusted, or has no such cell.
    """
    _check_run(run)
    hardware = hardware_of(run.environment)
    if options.hardware_specific and not hardware:
        raise QsaeError(
            f"run {plain(run.run_id)}: it doesn't say on which hardware: leave --hardware-specific out"
        )
    cells = [cell for cell in run.cells if cell.status == "measured" and cell.quantization != REFERENCE]
    chosen = [cell for cell in cells if options.keyword in cell.label]
    if not chosen:
        known = ", ".join(cell.label for cell in cells) or "none"
        which = f" with {options.keyword!r} in its id" if options.keyword else ""
        raise QsaeError(f"run {plain(run.run_id)}: no measured quantized cell{which}; it has: {known}")
    updates = [_CellUpdate(run, cell, thresholds, hardware, options) for cell in chosen]
    return Update(
        tuple(change for one in updates for change in one.changes()),
        tuple(note for one in updates for note in one.notes()),
    )


def _check_run(run: RunDocument) -> None:
    """Raise if no threshold may be derived from the run as a whole."""
    if run.synthetic:
        raise QsaeError(
            f"run {plain(run.run_id)} has random weights (--synthetic): only its costs are real"
        )
    if run.protocol:
        raise QsaeError(
            f"run {plain(run.run_id)} has the protocol {run.protocol!r}, which defines metrics otherwise "
            "than the gates do: measure without --protocol"
        )
    if difference := version_difference(run.metrics_version):
        raise QsaeError(f"run {plain(run.run_id)} can't set thresholds: {difference}: measure again")
    faults: dict[str, list[str]] = {}
    for cell in run.cells:
        if why := _fault(cell):
            faults.setdefault(why, []).append(cell.label)
    if faults:
        named = "; ".join(f"{', '.join(cells)} ({why})" for why, cells in faults.items())
        raise QsaeError(
            f"run {plain(run.run_id)} can't set thresholds: {named}; repair these cells, or measure "
            "without them (--models, --quantizations)"
        )


def _fault(cell: CellRecord) -> str:
    """Return in one line why a cell makes its run untrustworthy; '' if it does not."""
    if cell.status not in ("measured", "timed", "not run"):
        return plain(f"{cell.status}: {cell.reason}")
    invalid = [
        v for v in cell.verdicts if v.status == "invalid" and not v.reason.startswith(BELOW_NOISE_FLOOR)
    ]
    reason = cell.reason or next((f"{v.metric}: {v.reason}" for v in invalid), "")
    if cell.status == "measured" and reason:
        return plain(f"invalid: {reason}")
    return ""


@dataclass(frozen=True)
class _CellUpdate:
    """Computes the entries of one cell."""

    run: RunDocument
    cell: CellRecord
    thresholds: Thresholds
    hardware: str
    options: UpdateOptions

    @property
    def deciding(self) -> str:
        """Return the hardware whose tables are written; '' for the general tables."""
        return self.hardware if self.options.hardware_specific else ""

    @property
    def reference(self) -> CellRecord | None:
        """Return the reference cell of the same model, if the run has it."""
        cells = (c for c in self.run.cells if c.model == self.cell.model and c.quantization == REFERENCE)
        return next(cells, None)

    def own(self, metric: str, layer: int | None) -> Estimate | None:
        """Return the reference's value on this cell's tokens; None if the run has none.

        For a metric that compares the pair, that value does not depend on the tokens.
        """
        if beside := metrics_at(self.cell.beside, layer).get(metric):
            return estimate_of(beside)
        reference, tokens = self.reference, self.run.tokens_of
        if (
            METRICS[metric].harmless is None
            and reference is not None
            and tokens(reference) != tokens(self.cell)
        ):
            return None  # an undecided cell is measured on more tokens than its reference
        return estimate_of(metrics_at(reference, layer).get(metric))

    def lacks_reference(self, metric: str, layer: int | None) -> bool:
        """Return whether harm is defined by the reference's value alone, and the run has none."""
        return METRICS[metric].harmless is None and self.own(metric, layer) is None

    @property
    def owner(self) -> tuple[str, str]:
        """Return the table of the cell: model and quantization."""
        return (self.cell.model, self.cell.quantization)

    def changes(self) -> Iterator[BoundChange]:
        """Yield a change for each gated metric that a bound can be derived for.

        Raises:
            QsaeError: A measured value is not finite.
        """
        for layer, metric in self.gated():
            if self.lacks_reference(metric, layer):
                continue
            measured = self.measured(metric, layer)
            ruled = self.derived(metric, layer, measured).threshold
            if ruled is None:
                continue
            path, provenance = self.path(layer), self.provenance(measured, metric)
            new = replace(ruled, table=table_name(path), provenance=provenance)
            old = self.thresholds.find(*self.owner, metric, layer, self.deciding)
            here = self.thresholds.tables.get(path, {}).get(metric)
            yield self.with_reason(BoundChange(path, new, old, here, self.displaced(metric, layer)))

    def measured(self, metric: str, layer: int | None) -> Estimate:
        """Return the cell's value; raise if it is not finite."""
        found = estimate_of(metrics_at(self.cell, layer)[metric])
        if found is None:
            where = f"{self.cell.label} {metric}"
            raise QsaeError(f"run {plain(self.run.run_id)} can't set thresholds: {where} is not finite")
        return found

    def derived(self, metric: str, layer: int | None, measured: Estimate) -> DerivedBound:
        """Return the bound that the measurement supports, on the sides that the file bounds so far."""
        old = self.thresholds.find(*self.owner, metric, layer, self.deciding)
        lower, upper = old.ends if old else (None, None)
        sides: tuple[Side, ...] = ()
        if (lower is None) != (upper is None):
            sides = ("max",) if lower is None else ("min",)
        own = self.own(metric, layer)
        reference = own.value if own else None
        noise = self.noise(metric, layer)
        return derive_bound(metric, measured, reference, self.options.margin, noise, sides)

    def gated(self) -> Iterator[tuple[int | None, str]]:
        """Yield layer and metric of everything that was judged, or was measured and has a threshold."""
        for layer in (None, *self.cell.layer_numbers):
            wanted = {v.metric for v in self.cell.verdicts if v.layer == layer}
            wanted |= self.thresholds.metrics_for(*self.owner, layer, self.deciding)
            wanted &= metrics_at(self.cell, layer).keys()
            for metric, about in METRICS.items():
                scope = "cell" if layer is None else "layer"
                if metric in wanted and about.gateable and about.scope == scope:
                    yield layer, metric

    def path(self, layer: int | None) -> TablePath:
        """Return the table that an entry is written to."""
        path: TablePath = self.owner
        if self.options.hardware_specific:
            path = (*path, HARDWARE_TABLE, self.hardware)
        return path if layer is None else (*path, f"layer{layer}")

    def displaced(self, metric: str, layer: int | None) -> tuple[Threshold, ...]:
        """Return the thresholds that decide now where the new entry will decide.

        A general entry decides on all hardware without an entry of its own.
        """
        names = {self.deciding}
        if not self.deciding:
            names |= {path[3] for path in self.thresholds.tables if path[2:3] == (HARDWARE_TABLE,)}
            names = {name for name in names if not (name and self.has_own(name, metric, layer))}
        found = (self.thresholds.find(*self.owner, metric, layer, name) for name in sorted(names))
        return tuple(one for one in found if one is not None)

    def has_own(self, hardware: str, metric: str, layer: int | None) -> bool:
        """Return whether the cell's tables for a hardware bound the metric."""
        special = (*self.owner, HARDWARE_TABLE, hardware)
        paths = (special, (*special, f"layer{layer}"))
        return any(metric in self.thresholds.tables.get(path, {}) for path in paths)

    def with_reason(self, change: BoundChange) -> BoundChange:
        """Attach the reason for loosening; it stays with the bound as long as the bound stays."""
        here = change.here
        reason = self.options.reason if change.kind == "looser" else ""
        if here is not None and here.allowed == change.new.allowed:
            reason = here.provenance.reason
        provenance = replace(change.new.provenance, reason=reason)
        return replace(change, new=replace(change.new, provenance=provenance))

    def noise(self, metric: str, layer: int | None) -> float:
        """Return how far another batch size alone moves the reference's metric; 0 if it is not known."""
        floor = self.reference.noise_floor if self.reference else None
        found = estimate_of(metrics_at(floor, layer).get(metric))
        own = estimate_of(metrics_at(self.reference, layer).get(metric))
        return numerical_noise(found, own) if found and own else 0.0

    def provenance(self, measured: Estimate, metric: str) -> Provenance:
        """Describe the measurement that a bound rests on."""
        value, low, high = (  # to six digits, because a person reads them
            None if number is None else float(f"{number:.6g}")
            for number in (measured.value, measured.low, measured.high)
        )
        tokens = None if METRICS[metric].interval == "rounds" else self.run.tokens_of(self.cell) or None
        date = None
        with contextlib.suppress(ValueError):
            date = datetime.date.fromisoformat(self.run.finished[:10])
        found = Provenance(
            value,
            low,
            high,
            tokens,
            self.hardware,
            versions_of(self.run.environment),
            date,
            plain(self.run.run_id),
        )
        corpus = self.run.corpus.get(self.cell.model)
        if corpus is None or tokens is None or metric in GROUPS["weights"]:
            return found
        return replace(
            found,
            corpus=plain(corpus.text),
            fingerprint=plain(corpus.fingerprint),
            sequence_length=corpus.sequence_length,
        )

    def notes(self) -> Iterator[str]:
        """Yield what a user should know about the entries of this cell."""
        name = self.cell.label
        for layer, metric in self.gated():
            where = metric if layer is None else f"layer {layer} {metric}"
            old = self.thresholds.find(*self.owner, metric, layer, self.deciding)
            if self.lacks_reference(metric, layer):
                yield (
                    f"{name} {where}: no bound: the run has no value of the reference on the same tokens; "
                    "measure both in one run"
                )
            elif why := self.derived(metric, layer, self.measured(metric, layer)).why_none:
                kept = f"; {old.limit} of [{old.table}] stays" if old else ""
                yield f"{name} {where}: no bound: {why}{kept}"
            if not self.deciding and self.has_own(self.hardware, metric, layer):
                yield f"{name} {where}: an entry of its own still decides on {self.hardware}"
            before, now = old.provenance.tokens if old else None, self.run.tokens_of(self.cell)
            if before and now < before:
                yield f"{name} {where}: measured on {now:,} tokens, what it replaces on {before:,}"
        if undecided := sum(v.status == "inconclusive" for v in self.cell.verdicts):
            yield f"{name}: {undecided} of its gates were undecided: measure it on more tokens first"
        for verdict in self.cell.verdicts:
            if verdict.status == "suspicious":
                at = "" if verdict.layer is None else f"layer {verdict.layer} "
                yield f"{name} {at}{verdict.metric} is suspicious: {plain(verdict.reason)}"
