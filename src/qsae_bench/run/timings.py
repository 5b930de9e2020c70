"""What was timed in this run: rounds kept, ratios within the run, and their gates. No torch.

A ratio is measured where both of its sides were timed in this invocation. Its gate is optional: it is
judged where a threshold bounds it, and nothing here starts a measurement of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from qsae_bench.errors import CannotRun
from qsae_bench.gate.thresholds import Threshold, Thresholds
from qsae_bench.gate.verdict import GateFailure, Verdict, decide, failure_message
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.cost import RATES, RATIOS, TURNS
from qsae_bench.registry.specs import Cell
from qsae_bench.results.document import SHARED_DEVICE, TimingRecord
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.speed_ratio import paired_ratio, speed_ratio

if TYPE_CHECKING:
    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.results.journal import StoredCell

INVOCATION = f"{time.time_ns():x}"
"""marks what was timed since the command was given. Forked processes share it; a run that is resumed has
another, for the machine may be in another state by then"""

SIMULATED = "the recipe is simulated, its speed is its reference's: take the threshold out"


@dataclass(frozen=True)
class TimedRounds:
    """Times of one work of a cell, round by round."""

    seconds: tuple[float, ...]
    """of every round, in the order in which they ran"""
    tokens: int
    """tokens processed per round"""
    flags: tuple[str, ...] = ()
    """what disturbed the device meanwhile, if anything did"""

    def __post_init__(self) -> None:
        if not self.seconds or not all(math.isfinite(s) and s > 0 for s in self.seconds):
            raise ValueError(f"a round must take more than 0 s: {self.seconds}")

    @property
    def is_shared(self) -> bool:
        """Whether other workers of the run used the device meanwhile: such rounds decide nothing."""
        return SHARED_DEVICE in self.flags

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread_seconds(self) -> float:
        """Distance between the quartiles of the rounds (linear interpolation)."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(high - low)

    @property
    def tokens_per_second(self) -> float:
        """Speed of the median round."""
        return self.tokens / self.median_seconds

    @property
    def speeds(self) -> list[float]:
        """Tokens per second of every round."""
        return [self.tokens / seconds for seconds in self.seconds]

    def record(self) -> TimingRecord:
        """Return these rounds for the run document, marked as timed by this invocation."""
        return TimingRecord(
            seconds=list(self.seconds),
            median_seconds=self.median_seconds,
            spread_seconds=self.spread_seconds,
            rounds=len(self.seconds),
            tokens=self.tokens,
            flags=list(self.flags),
            invocation=INVOCATION,
        )


@dataclass
class Timings:
    """Filled by the speed benchmarks, judged by them, written by the document."""

    thresholds: Thresholds
    reference_of: Callable[[Cell], Cell]
    restored: Mapping[Cell, StoredCell]
    """cells that this process didn't run: another of the invocation did, or an earlier one"""
    record: Callable[[Cell, str, float], None]
    warn: Callable[[Cell, str], None]
    measured: Mapping[Cell, CellResult]
    """of which it is known whether their recipes keep rounded values as floats"""
    hardware: Callable[[], str]
    more: str
    """the command that shows more, less the cell's id"""
    timings: dict[Cell, dict[str, TimedRounds]] = field(default_factory=dict)
    """cell -> work -> its rounds"""
    turns: dict[Cell, dict[str, Estimate]] = field(default_factory=dict)
    """cell -> metric of TURNS"""
    judged: dict[Cell, dict[str, Verdict]] = field(default_factory=dict)

    # -- recording

    def record_rounds(
        self, cell: Cell, work: str, seconds: Sequence[float], tokens: int, flags: Sequence[str] = ()
    ) -> None:
        """Keep the rounds of one work of a cell, each of ``tokens`` tokens.

        ``flags`` say what disturbed the device meanwhile; the cell's first are said and kept as a warning.
        """
        if flags and not any(one.flags for one in self.timings.get(cell, {}).values()):
            self.warn(cell, f"{cell.id}: while {work} was timed, {'; '.join(flags)}")
        timing = TimedRounds(tuple(seconds), tokens, tuple(flags))
        self.timings.setdefault(cell, {})[work] = timing
        if work in RATES:
            self.record(cell, RATES[work], timing.tokens_per_second)

    def record_turns(
        self, cell: Cell, seconds: Mapping[str, Sequence[float]], tokens: int, flags: Sequence[str] = ()
    ) -> None:
        """Keep works (those of TURNS) that were timed in turns, as many rounds of each."""
        for work, rounds in seconds.items():
            self.record_rounds(cell, work, rounds, tokens, flags)
        for metric, (above, below) in TURNS.items():
            found = paired_ratio(seconds[above], seconds[below])
            self.turns.setdefault(cell, {})[metric] = found

    # -- reading

    def timing(self, cell: Cell, work: str) -> TimedRounds | None:
        """The rounds of a work, if this invocation timed it."""
        if (own := self.timings.get(cell, {}).get(work)) is not None:
            return own
        kept = self._kept(cell, work)
        if kept is None or kept.invocation != INVOCATION:
            return None
        return TimedRounds(tuple(kept.seconds), kept.tokens, tuple(kept.flags))

    def _kept(self, cell: Cell, work: str) -> TimingRecord | None:
        return self.restored[cell].entry.record.timings.get(work) if cell in self.restored else None

    def ratios(self, cell: Cell) -> dict[str, Estimate]:
        """Every ratio of the cell that was measured, with its interval."""
        found = dict(self.turns.get(cell, {}))
        if not cell.is_reference:
            for metric, work in RATIOS.items():
                own, other = self.timing(cell, work), self.timing(self.reference_of(cell), work)
                if own and other:
                    found[metric] = speed_ratio(own.speeds, other.speeds)
        return found

    def records(self, cell: Cell) -> dict[str, TimingRecord]:
        """For the run document."""
        return {work: one.record() for work, one in self.timings.get(cell, {}).items()}

    def verdicts(self, cell: Cell) -> list[Verdict]:
        """Those of :meth:`failing` so far, whether they failed or not."""
        return list(self.judged.get(cell, {}).values())

    # -- judging

    def failing(self, cell: Cell, metrics: Sequence[str]) -> list[GateFailure]:
        """Judge those of ``metrics`` that a threshold bounds; those that fail a test, with what to say.

        Raises:
            CannotRun: nothing failed, and one that is bounded was not measured: says what to run.
        """
        measured, missing = self.ratios(cell), ""
        names = (cell.model.name, cell.quantization.name)
        for metric in metrics:
            threshold = self.thresholds.find(*names, metric, hardware=self.hardware())
            if threshold is None:
                continue
            if metric in measured and any(timing.is_shared for _, timing in self._sides(cell, metric)):
                missing = (
                    missing
                    or f"{cell.id}: {metric} not judged: {SHARED_DEVICE}; one worker a device times it"
                )
            elif metric in measured:
                verdict = self._judge(cell, metric, measured[metric], threshold)
                self.judged.setdefault(cell, {})[metric] = verdict
            else:
                missing = missing or self._why_missing(cell, metric)
        found = self.judged.get(cell, {})
        failing = [found[metric] for metric in metrics if metric in found and found[metric].failing]
        if missing and not failing:
            raise CannotRun(missing)
        more = f"{self.more} -k {cell.id}"
        return [GateFailure(v.metric, v.status, failure_message(cell.id, v, None, more)) for v in failing]

    def _judge(self, cell: Cell, metric: str, found: Estimate, threshold: Threshold) -> Verdict:
        sides = self._sides(cell, metric)
        measured = self.measured.get(cell)
        simulated = measured and measured.quantized and measured.quantized.simulated
        broken = SIMULATED if simulated and "simulated" in METRICS[metric].not_own_when else ""
        verdict = decide(metric, found, threshold, sides[0][1].tokens, broken=broken)
        why = verdict.reason
        if verdict.status == "inconclusive":
            why = (
                "the rounds differ by more than the distance to the threshold: a quieter machine decides it"
            )
        speeds = " against ".join(f"{name} {_told(timing)}" for name, timing in sides)
        flags = [f"while {name} was timed, {flag}" for name, timing in sides for flag in timing.flags]
        return replace(verdict, reason="; ".join(filter(None, (why, speeds, *dict.fromkeys(flags)))))

    def _sides(self, cell: Cell, metric: str) -> list[tuple[str, TimedRounds]]:
        """The two timings of a measured ratio, and what to call them."""
        if metric in RATIOS:
            work = RATIOS[metric]
            pairs = [(f"{work} of the cell", cell), (f"{work} of its reference", self.reference_of(cell))]
            found = [(name, self.timing(one, work)) for name, one in pairs]
        else:
            found = [(work.replace("_", " "), self.timing(cell, work)) for work in TURNS[metric]]
        return [(name, timing) for name, timing in found if timing is not None]

    def _why_missing(self, cell: Cell, metric: str) -> str:
        said = f"{cell.id}: {metric} not measured"
        if metric not in RATIOS:
            return f"{said}: timing is off"
        work, reference = RATIOS[metric], self.reference_of(cell)
        if self.timing(cell, work) is None:
            return f"{said}: timing is off"
        selection = f"pytest benchmarks -k '{work} and ({reference.id} or {cell.id})'"
        if self._kept(reference, work) is not None:
            return (
                f"{said}: its reference was timed before this run was resumed; run both anew: {selection}"
            )
        return f"{said}: the speed of its reference was not taken in this run; run both: {selection}"


def _told(timing: TimedRounds) -> str:
    """``9,123 tokens/s (5 rounds, quartiles 3.1% apart)``."""
    apart = 100 * timing.spread_seconds / timing.median_seconds
    rounds = f"{len(timing.seconds)} rounds, quartiles {apart:.1f}% apart"
    return f"{timing.tokens_per_second:,.0f} tokens/s ({rounds})"
