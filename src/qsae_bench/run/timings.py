"""Record what is timed in a run, compute ratios within the run, and judge their gates. No torch.

A ratio is measured where both of its sides were timed in this invocation. Its gate is optional: it is
judged where a threshold bounds it, and nothing here starts a measurement of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qsae_bench.errors import CannotRun
from qsae_bench.gate.thresholds import Threshold
from qsae_bench.gate.verdict import GateFailure, Verdict, decide, failure_message
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.cost import RATES, RATIOS, TURNS
from qsae_bench.registry.specs import Cell
from qsae_bench.results.cell_facts import SHARED_DEVICE, TimingRecord
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.speed_ratio import paired_ratio, speed_ratio

if TYPE_CHECKING:
    from qsae_bench.run.session import Session

INVOCATION_ID = f"{time.time_ns():x}"
"""marks what was timed since the command was given. Forked processes share it; a run that is resumed has
another, for the machine may be in another state by then"""

SIMULATED_SPEED = "the quantization is simulated, its speed is its reference's: take the threshold out"


@dataclass(frozen=True)
class TimedRounds:
    """Hold the times of one workload of a cell, round by round."""

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
            seconds=list(self.seconds), median_seconds=self.median_seconds,
            spread_seconds=self.spread_seconds, rounds=len(self.seconds), tokens=self.tokens,
            flags=list(self.flags), invocation=INVOCATION_ID,
        )  # fmt: skip


class Timings:
    """Hold a session's timings: the speed benchmarks record and judge them, the run document has them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._reference_of = session.registry.reference_of
        self.rounds: dict[Cell, dict[str, TimedRounds]] = {}
        """by cell and workload"""
        self.turns: dict[Cell, dict[str, Estimate]] = {}
        """by cell and metric of TURNS"""
        self.judged: dict[Cell, dict[str, Verdict]] = {}

    # -- recording

    def record_rounds(
        self, cell: Cell, workload: str, seconds: Sequence[float], tokens: int, flags: Sequence[str] = ()
    ) -> None:
        """Record the rounds of a cell's workload, ``tokens`` each; its first flags become a warning."""
        if flags and not any(one.flags for one in self.rounds.get(cell, {}).values()):
            self._session.warn(cell, f"{cell.id}: while {workload} was timed, {'; '.join(flags)}")
        timing = TimedRounds(tuple(seconds), tokens, tuple(flags))
        self.rounds.setdefault(cell, {})[workload] = timing
        if workload in RATES:
            self._session.record(cell, RATES[workload], timing.tokens_per_second)

    def record_turns(
        self, cell: Cell, seconds: Mapping[str, Sequence[float]], tokens: int, flags: Sequence[str] = ()
    ) -> None:
        """Record workloads (those of TURNS) that were timed in turns, as many rounds of each."""
        for workload, rounds in seconds.items():
            self.record_rounds(cell, workload, rounds, tokens, flags)
        for metric, (above, below) in TURNS.items():
            found = paired_ratio(seconds[above], seconds[below])
            self.turns.setdefault(cell, {})[metric] = found

    # -- reading

    def rounds_of(self, cell: Cell, workload: str) -> TimedRounds | None:
        """Return the rounds of a workload if this invocation timed it."""
        if (own := self.rounds.get(cell, {}).get(workload)) is not None:
            return own
        restored = self._restored(cell, workload)
        if restored is None or restored.invocation != INVOCATION_ID:
            return None
        return TimedRounds(tuple(restored.seconds), restored.tokens, tuple(restored.flags))

    def _restored(self, cell: Cell, workload: str) -> TimingRecord | None:
        stored = self._session.restored.get(cell)
        return stored.entry.record.timings.get(workload) if stored is not None else None

    def ratios(self, cell: Cell) -> dict[str, Estimate]:
        """Return every measured ratio of the cell, with its interval."""
        found = dict(self.turns.get(cell, {}))
        if not cell.is_reference:
            for metric, workload in RATIOS.items():
                own = self.rounds_of(cell, workload)
                other = self.rounds_of(self._reference_of(cell), workload)
                if own and other:
                    found[metric] = speed_ratio(own.speeds, other.speeds)
        return found

    def records(self, cell: Cell) -> dict[str, TimingRecord]:
        """Return the cell's rounds for the run document."""
        return {workload: one.record() for workload, one in self.rounds.get(cell, {}).items()}

    def verdicts(self, cell: Cell) -> list[Verdict]:
        """Return the verdicts of :meth:`failing` so far, whether they failed or not."""
        return list(self.judged.get(cell, {}).values())

    # -- judging

    def failing(self, cell: Cell, metric: str) -> GateFailure | None:
        """Judge a ratio that a threshold bounds; return the failure with its message, if it fails.

        Raises:
            CannotRun: it was not measured; names the command that does.
        """
        names = (cell.model.name, cell.quantization.name)
        threshold = self._session.options.thresholds.find(*names, metric, hardware=self._session.hardware)
        if threshold is None:
            return None
        found = self.ratios(cell).get(metric)
        if found is None:
            raise CannotRun(self._why_missing(cell, metric))
        if any(timing.is_shared for _, timing in self._sides(cell, metric)):
            why = f"{metric} not judged: {SHARED_DEVICE}; one worker a device times it"
            raise CannotRun(f"{cell.id}: {why}")
        verdict = self._judge(cell, metric, found, threshold)
        self.judged.setdefault(cell, {})[metric] = verdict
        if not verdict.failing:
            return None
        more = f"{self._session.details_command} -k {cell.id}"
        return GateFailure(metric, verdict.status, failure_message(cell.id, verdict, None, more))

    def _judge(self, cell: Cell, metric: str, found: Estimate, threshold: Threshold) -> Verdict:
        sides = self._sides(cell, metric)
        measured = self._session.measured.get(cell)
        simulated = measured and measured.quantized and measured.quantized.simulated
        invalid_reason = (
            SIMULATED_SPEED if simulated and "simulated" in METRICS[metric].not_own_when else ""
        )
        strict, tokens = self._session.options.strict, sides[0][1].tokens
        verdict = decide(metric, found, threshold, tokens, invalid_reason=invalid_reason, strict=strict)
        why = verdict.reason
        if verdict.status == "inconclusive":
            why = (
                "the rounds differ by more than the distance to the threshold: a quieter machine decides it"
            )
        speeds = " against ".join(f"{name} {_shown(timing)}" for name, timing in sides)
        flags = [f"while {name} was timed, {flag}" for name, timing in sides for flag in timing.flags]
        return replace(verdict, reason="; ".join(filter(None, (why, speeds, *dict.fromkeys(flags)))))

    def _sides(self, cell: Cell, metric: str) -> list[tuple[str, TimedRounds]]:
        """Return the two timings of a measured ratio, with their names."""
        if metric in RATIOS:
            work = RATIOS[metric]
            sides = {"the cell": cell, "its reference": self._reference_of(cell)}
            found = [(f"{work} of {name}", self.rounds_of(one, work)) for name, one in sides.items()]
        else:
            found = [(work.replace("_", " "), self.rounds_of(cell, work)) for work in TURNS[metric]]
        return [(name, timing) for name, timing in found if timing is not None]

    def _why_missing(self, cell: Cell, metric: str) -> str:
        message = f"{cell.id}: {metric} not measured"
        workload, reference = RATIOS.get(metric, ""), self._reference_of(cell)
        if self.rounds_of(cell, workload) is None:
            return f"{message}: timing is off"
        selection = f"pytest benchmarks -k '{workload} and ({reference.id} or {cell.id})'"
        if self._restored(reference, workload) is not None:
            why = "its reference was timed before this run was resumed; run both anew"
        else:
            why = "the speed of its reference was not taken in this run; run both"
        return f"{message}: {why}: {selection}"


def _shown(timing: TimedRounds) -> str:
    """Format as ``9,123 tokens/s (5 rounds, quartiles 3.1% apart)``."""
    apart = 100 * timing.spread_seconds / timing.median_seconds
    rounds = f"{len(timing.seconds)} rounds, quartiles {apart:.1f}% apart"
    return f"{timing.tokens_per_second:,.0f} tokens/s ({rounds})"
