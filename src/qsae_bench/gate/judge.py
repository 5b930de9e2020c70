"""Judge measured cells against the thresholds file: gates, verdicts and messages. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.sanity import why_too_few, why_unexplained
from qsae_bench.gate.thresholds import Threshold, Thresholds
from qsae_bench.gate.verdict import (
    GatedMetric,
    Verdict,
    check_reference,
    decide,
    failure_message,
    reason_below_noise_floor,
    suspicious_below,
)
from qsae_bench.metrics import GROUPS, METRICS
from qsae_bench.metrics.features import BLOCKS, OF_ELIGIBLE
from qsae_bench.registry.specs import Cell
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import repeated_interval

UNQUANTIZED = (
    "the quantization left the model unquantized: no matrix of the decoder takes fewer bits or differs "
    "from the reference's; check its options and what it skips (most skip GPT-2's Conv1D, which is no "
    "nn.Linear)"
)


def mark_invalid(cell: Cell, measured: CellResult, reference: CellResult | None) -> None:
    """Set ``measured.invalid_reason`` if the whole cell is invalid; a reference has no ``reference``."""
    if measured.quantized is not None and not measured.quantized.share:
        measured.invalid_reason = UNQUANTIZED
    elif broken := measured.measurement.broken_saes:
        measured.invalid_reason = (
            f"the SAE of layer {', '.join(map(str, broken))} gives values that are not finite on "
            "activations that are: the SAE is damaged or overflows, not the model"
        )
    elif not measured.measurement.is_finite:
        share = measured.estimates.cell["nonfinite_share"].value
        measured.invalid_reason = (
            f"non-finite values (nonfinite_share {share:.3g}): weights or activations overflowed"
        )
    elif cell.model.synthetic:
        return  # random weights have no quality to be sane or not
    elif cell.is_reference:
        bounds = cell.model.reference_bounds
        measured.verdicts = check_reference(measured.estimates, bounds, measured.tokens)
        measured.invalid_reason = next((v.reason for v in measured.verdicts if v.failing), "")
    elif reference is not None and reference.invalid_reason:
        measured.invalid_reason = f"its reference is not sane: {reference.invalid_reason}"


@dataclass(frozen=True)
class Judge:
    """Judge the cells in ``measured``, which the session fills."""

    thresholds: Thresholds
    measured: Mapping[Cell, CellResult]
    reference_of: Callable[[Cell], Cell]
    strict: bool
    """``suspicious`` fails too, and a provisional bound is none"""
    details_command: str
    """the command that shows more, without the cell's id"""
    attribute: Callable[[Cell, Verdict], str] = lambda cell, verdict: ""
    """returns in a line what moved since a failing gate last passed"""
    hardware: Callable[[], str] = lambda: ""
    """returns the name of the hardware that the cells run on, as thresholds have it"""

    def undecided(self, cell: Cell, gates: Iterable[GatedMetric]) -> bool:
        """Return whether more tokens could decide a gate that the cell's tokens so far don't."""
        measured = self.measured[cell]
        if cell.is_reference or measured.invalid_reason:
            return False
        return any(
            self._judge(cell, measured, gate.metric, gate.layer).status == "inconclusive"
            for gate in gates
            if self.is_judged(cell, gate)
        )

    def is_judged(self, cell: Cell, gate: GatedMetric) -> bool:
        """Return whether the gate has a verdict: an optional one needs a threshold for this hardware."""
        return not gate.optional or self._threshold(cell, gate.metric, gate.layer) is not None

    def verdict(self, cell: Cell, gate: GatedMetric) -> Verdict | None:
        """Judge a metric on the cell's tokens so far and record the verdict; None if it is not judged.

        A reference has its verdicts from the start: its bounds are judged when it is measured.
        """
        measured = self.measured[cell]
        others = []
        for known in measured.verdicts:
            if (known.metric, known.layer) != (gate.metric, gate.layer):
                others.append(known)
            elif cell.is_reference or known.tokens == measured.tokens:
                return known
        if cell.is_reference or not gate.metric or not self.is_judged(cell, gate):
            return None
        found = self._judge(cell, measured, gate.metric, gate.layer)
        measured.verdicts = [*others, found]
        return found

    def fails(self, verdict: Verdict) -> bool:
        """Return whether a verdict fails a test."""
        return verdict.failing or (self.strict and verdict.status == "suspicious")

    def message(self, cell: Cell, verdict: Verdict) -> str:
        """Return the failure message; what it attributes the failure to is stored with the verdict."""
        if not verdict.attribution:
            measured, bare = self.measured[cell], verdict
            verdict = replace(bare, attribution=self.attribute(cell, bare))
            measured.verdicts = [verdict if v is bare else v for v in measured.verdicts]
        reference = None if cell.is_reference else self.measured[cell].reference_values
        return failure_message(cell.id, verdict, reference, f"{self.details_command} -k {cell.id}")

    def _threshold(self, cell: Cell, metric: str, layer: int | None) -> Threshold | None:
        names = (cell.model.name, cell.quantization.name)
        return self.thresholds.find(*names, metric, layer, self.hardware())

    def _judge(self, cell: Cell, measured: CellResult, metric: str, layer: int | None) -> Verdict:
        threshold = self._threshold(cell, metric, layer)
        invalid_reason = measured.invalid_reason
        found = measured.estimates.at(layer).get(metric)
        if found is None:
            hint = ": run with --splice" if metric in GROUPS["splice"] else ""
            found, invalid_reason = Estimate(math.nan), f"{metric} was not measured{hint}"
        reference = self.measured[self.reference_of(cell)]
        own = reference.estimates.at(layer).get(metric)
        floor = reference.noise_floor.at(layer).get(metric) if reference.noise_floor else None
        if layer is not None and not invalid_reason:
            invalid_reason = why_unexplained(metric, reference.estimates.at(layer))
        if metric in OF_ELIGIBLE and not invalid_reason:
            invalid_reason = why_too_few(measured.estimates.at(layer))
        if threshold and floor and own and not invalid_reason:
            invalid_reason = reason_below_noise_floor(threshold, floor, own)
        degrees = BLOCKS - 1 if METRICS[metric].interval == "jackknife" else 0
        return decide(
            metric, found, threshold, measured.tokens, layer, invalid_reason,
            judged=repeated_interval(found, measured.critical, degrees),
            looks=len(measured.looks), exhausted=measured.exhausted,
            suspicious_below=suspicious_below(metric, reference.estimates.at(layer), floor),
            strict=self.strict,
        )  # fmt: skip
