"""What moved, for a failing gate of a running session: its measurements against the history."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.gate.attribution import FailedGate, Setup, Snapshot, attribute, model_indicators
from qsae_bench.gate.verdict import Verdict
from qsae_bench.registry.specs import Cell
from qsae_bench.stats.bootstrap import Estimate, Estimates

if TYPE_CHECKING:
    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.results.document import CorpusRecord
    from qsae_bench.results.history.store import History

LEFT_OUT = frozenset({"pass", "unset"})
"""statuses about which nothing moved: without a threshold there was no gate to pass before either"""


@dataclass
class Attributor:
    """Called with a cell and a verdict. The history is opened when the first gate fails, and only then.

    A history that can't be read costs the message that line, and no gate its verdict.
    """

    url: str
    """of the history; '' where none is kept"""
    measured: Mapping[Cell, CellResult]
    reference_of: Callable[[Cell], Cell]
    corpora: Mapping[str, CorpusRecord]
    """by model"""
    hardware: Callable[[], str]
    protocol: str = ""
    _lost: str = field(default="", init=False)

    def __call__(self, cell: Cell, verdict: Verdict) -> str:
        """One line, '' where there is nothing to say."""
        if not self.url or self._lost or verdict.status in LEFT_OUT:
            return self._lost
        from qsae_bench.results.history.queries import bound_words, last_accepted

        bound = verdict.threshold
        words = bound_words(bound.side, bound.bound) if bound is not None else ""
        gate = FailedGate(cell.model.name, cell.quantization.name, verdict.metric, verdict.layer, words)
        now = self._now(cell, gate)
        try:
            before, absent = None, ""
            if self._history is not None:
                before, absent = last_accepted(self._history, gate, now.setup)
        except QsaeError as error:
            self._lost = f"not known: {error}"
            return self._lost
        return attribute(gate, now, before, self._noise(cell, gate), absent).text

    @cached_property
    def _history(self) -> History | None:
        """None where nothing was kept yet."""
        from qsae_bench.results.history.store import READER_SECONDS, History, NoHistory

        try:
            return History.open(self.url, wait_seconds=READER_SECONDS)
        except NoHistory:
            return None

    def _now(self, cell: Cell, gate: FailedGate) -> Snapshot:
        from qsae_bench.machine import environment
        from qsae_bench.results.history.flatten import UNKNOWN_HARDWARE, versions

        measured, reference = self.measured[cell], self.measured[self.reference_of(cell)]
        corpus = self.corpora.get(cell.model.name)
        setup = Setup(
            self.hardware() or UNKNOWN_HARDWARE, versions(environment()),
            corpus.fingerprint if corpus else "",
            measured.revision, corpus.batch_size if corpus else 0, cell.model.sae_name(gate.layer),
            self.protocol,
        )  # fmt: skip
        own: dict[str, Estimate] = {}
        if not cell.is_reference:
            own = _witnesses(measured.estimates, gate.layer)
            found = measured.estimates.at(gate.layer).get(gate.metric)
            own |= {gate.metric: found} if found is not None else {}
        return Snapshot(
            setup, measured.tokens, _witnesses(reference.estimates, gate.layer), own, gate.bound
        )

    def _noise(self, cell: Cell, gate: FailedGate) -> dict[str, float]:
        reference = self.measured[self.reference_of(cell)]
        if reference.floor is None:
            return {}
        moved, still = ({**e.cell, **e.at(gate.layer)} for e in (reference.floor, reference.estimates))
        steps = {key: abs(moved[key].value - still[key].value) for key in moved.keys() & still.keys()}
        return {key: step for key, step in steps.items() if math.isfinite(step)}


def _witnesses(estimates: Estimates, layer: int | None) -> dict[str, Estimate]:
    return model_indicators(estimates.cell, None if layer is None else estimates.at(layer))
