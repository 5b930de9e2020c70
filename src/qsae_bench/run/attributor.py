"""Explain a failing gate of a running session by what changed since the history's last accepted run."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.gate.attribution import FailedGate, Setup, Snapshot, attribute, model_indicators
from qsae_bench.gate.verdict import Verdict
from qsae_bench.registry.specs import Cell
from qsae_bench.run.recipe import recipe_digest
from qsae_bench.stats.bootstrap import Estimate, Estimates

if TYPE_CHECKING:
    from qsae_bench.gate.cell_result import CellResult
    from qsae_bench.results.history.store import History
    from qsae_bench.run.session import Session

LEFT_OUT = frozenset({"pass", "unset"})
"""statuses without anything to explain: without a threshold there was no gate to pass before either"""


class Attributor:
    """Explain verdicts of a session. The history is opened only when the first gate fails.

    If the history can't be read, the message lacks this line; no verdict changes.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._url = session, session.options.history
        self._unavailable = ""

    def __call__(self, cell: Cell, verdict: Verdict) -> str:
        """Return one line on what changed; '' where there is nothing to explain."""
        if not self._url or self._unavailable or verdict.status in LEFT_OUT:
            return self._unavailable
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
            self._unavailable = f"not known: {error}"
            return self._unavailable
        return attribute(gate, now, before, self._noise(cell, gate), absent).text

    @cached_property
    def _history(self) -> History | None:
        """None where the history is empty yet"""
        from qsae_bench.results.history.store import READER_SECONDS, History, NoHistory

        try:
            return History.open(self._url, wait_seconds=READER_SECONDS)
        except NoHistory:
            return None

    def _now(self, cell: Cell, gate: FailedGate) -> Snapshot:
        measured, reference = self._session.measured[cell], self._reference(cell)
        setup = setup_now(self._session, cell, gate.layer)
        own: dict[str, Estimate] = {}
        if not cell.is_reference:
            own = _witnesses(measured.estimates, gate.layer)
            found = measured.estimates.at(gate.layer).get(gate.metric)
            own |= {gate.metric: found} if found is not None else {}
        return Snapshot(
            setup, measured.tokens, _witnesses(reference.estimates, gate.layer), own, gate.bound
        )

    def _reference(self, cell: Cell) -> CellResult:
        return self._session.measured[self._session.registry.reference_of(cell)]

    def _noise(self, cell: Cell, gate: FailedGate) -> dict[str, float]:
        reference = self._reference(cell)
        if reference.noise_floor is None:
            return {}
        both = (reference.noise_floor, reference.estimates)
        other, usual = ({**estimates.cell, **estimates.at(gate.layer)} for estimates in both)
        steps = {key: abs(other[key].value - usual[key].value) for key in other.keys() & usual.keys()}
        return {key: step for key, step in steps.items() if math.isfinite(step)}


def setup_now(session: Session, cell: Cell, layer: int | None) -> Setup:
    """Return the setup in which a running session measured a cell, at one of its layers."""
    from qsae_bench.results.setup import UNKNOWN_HARDWARE, relevant_versions

    corpus = session.corpora.get(cell.model.name)
    return Setup(
        session.hardware or UNKNOWN_HARDWARE, relevant_versions(session.environment),
        corpus.fingerprint if corpus else "",
        session.measured[cell].revision, corpus.batch_size if corpus else 0, cell.model.sae_name(layer),
        session.options.selection.protocol, recipe=recipe_digest(cell.quantization),
    )  # fmt: skip


def _witnesses(estimates: Estimates, layer: int | None) -> dict[str, Estimate]:
    return model_indicators(estimates.cell, None if layer is None else estimates.at(layer))
