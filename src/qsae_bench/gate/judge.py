"""CellResult cells against the thresholds file: which gates, which verdicts, which messages. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from qsae_bench.gate.cell_result import CellResult
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import (
    Gates,
    Verdict,
    check_reference,
    decide,
    failure_message,
    reason_below_noise_floor,
    suspicious_below,
)
from qsae_bench.metrics import GROUPS
from qsae_bench.metrics.features import BLOCKS
from qsae_bench.registry.specs import Cell
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import repeated_interval

UNQUANTIZED = (
    "the recipe left the model unquantized: no matrix of the decoder takes fewer bits or differs from the "
    "reference's; check its options and what it skips (most skip GPT-2's Conv1D, which is no nn.Linear)"
)


def mark_invalid(cell: Cell, measured: CellResult, reference: CellResult | None) -> None:
    """Note in ``measured`` why the whole cell is invalid, if it is; ``reference`` None for a reference."""
    if measured.quantized is not None and not measured.quantized.share:
        measured.broken = UNQUANTIZED
    elif not measured.measurement.is_finite:
        share = measured.estimates.cell["nonfinite_share"].value
        measured.broken = (
            f"non-finite values (nonfinite_share {share:.3g}): weights or activations overflowed"
        )
    elif cell.model.synthetic:
        return  # random weights have no quality to be sane or not
    elif cell.is_reference:
        bounds = cell.model.reference_bounds
        measured.verdicts = check_reference(measured.estimates, bounds, measured.tokens)
        measured.broken = next((v.reason for v in measured.verdicts if v.failing), "")
    elif reference is not None and reference.broken:
        measured.broken = f"its reference is not sane: {reference.broken}"


@dataclass(frozen=True)
class Judge:
    """Decides about the cells in ``measured``, which others fill."""

    thresholds: Thresholds
    measured: Mapping[Cell, CellResult]
    reference_of: Callable[[Cell], Cell]
    strict: bool
    """``suspicious`` fails too"""
    more: str
    """the command that shows more, less the cell's id"""
    moved: Callable[[Cell, Verdict], str] = lambda cell, verdict: ""
    """what moved since a failing gate last passed, in a line"""
    hardware: Callable[[], str] = lambda: ""
    """on which the cells run, as thresholds have it"""

    def undecided(self, cell: Cell, gates: Iterable[Gates]) -> bool:
        """Whether more tokens could decide a gate that the cell's tokens so far don't."""
        measured = self.measured[cell]
        if cell.is_reference or measured.broken:
            return False
        return any(
            self._judge(cell, measured, metric, one.layer).status == "inconclusive"
            for one in gates
            for metric in self._metrics(cell, one)
        )

    def verdicts(self, cell: Cell, gates: Gates) -> list[Verdict]:
        """The verdicts of these gates, and kept with the cell's others.

        The metrics that ``gates`` names are always among them. Those of its groups only where no other
        gates of this cell had them before: each is said once.
        """
        measured = self.measured[cell]
        known = {
            v.metric: v for v in measured.verdicts if v.layer == gates.layer and v.tokens == measured.tokens
        }
        asked = [
            known.get(metric) or self._judge(cell, measured, metric, gates.layer)
            for metric in self._metrics(cell, gates)
            if metric in gates.metrics or metric not in known
        ]
        fresh = {v.metric for v in asked} - known.keys()
        measured.verdicts = [
            v for v in measured.verdicts if not (v.layer == gates.layer and v.metric in fresh)
        ] + [v for v in asked if v.metric in fresh]
        return asked

    def failing(self, cell: Cell, gates: Gates) -> list[Verdict]:
        """Those that fail a test."""
        measured = self.measured[cell]
        if not cell.is_reference:
            found = self.verdicts(cell, gates)
        else:
            found = [v for v in measured.verdicts if v.layer == gates.layer]
        return [v for v in found if v.failing or (self.strict and v.status == "suspicious")]

    def message(self, cell: Cell, verdict: Verdict) -> str:
        """For the person who gets it at 3 a.m.; what it says of the past is kept with the verdict."""
        if not verdict.attribution:
            measured, bare = self.measured[cell], verdict
            verdict = replace(bare, attribution=self.moved(cell, bare))
            measured.verdicts = [verdict if v is bare else v for v in measured.verdicts]
        reference = None if cell.is_reference else self.measured[cell].beside
        return failure_message(cell.id, verdict, reference, f"{self.more} -k {cell.id}")

    def _metrics(self, cell: Cell, gates: Gates) -> list[str]:
        """What ``gates`` names, then what its groups have thresholds for."""
        names = (cell.model.name, cell.quantization.name)
        bounded = self.thresholds.metrics_for(*names, gates.layer, self.hardware())
        extra = {key for group in gates.also for key in GROUPS[group]} & bounded
        return [*gates.metrics, *sorted(extra.difference(gates.metrics))]

    def _judge(self, cell: Cell, measured: CellResult, metric: str, layer: int | None) -> Verdict:
        names = (cell.model.name, cell.quantization.name)
        threshold = self.thresholds.find(*names, metric, layer, self.hardware())
        broken = measured.broken
        found = measured.estimates.at(layer).get(metric)
        if found is None:
            hint = ": run with --splice" if metric in GROUPS["splice"] else ""
            found, broken = Estimate(math.nan), f"{metric} was not measured{hint}"
        reference = self.measured[self.reference_of(cell)]
        own = reference.estimates.at(layer).get(metric)
        floor = reference.floor.at(layer).get(metric) if reference.floor else None
        if threshold and floor and own and not broken:
            broken = reason_below_noise_floor(threshold, floor, own)
        degrees = BLOCKS - 1 if metric in GROUPS["features"] else 0
        return decide(
            metric, found, threshold, measured.tokens, layer, broken,
            judged=repeated_interval(found, measured.critical, degrees),
            looks=len(measured.looks), exhausted=measured.exhausted,
            suspicious_below=suspicious_below(metric, reference.estimates.at(layer), floor),
        )  # fmt: skip
