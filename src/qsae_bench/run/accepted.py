"""Compare the cells of a running session with the last accepted runs of them, whose rows are on disk."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.gate.accepted import (
    ACCEPTED_ALPHA,
    AgainstAccepted,
    Place,
    in_short,
    message,
    worse_metrics,
)
from qsae_bench.gate.attribution import FailedGate, Setup, Snapshot, attribute, model_indicators
from qsae_bench.gate.verdict import numerical_noise
from qsae_bench.metrics import headline
from qsae_bench.metrics.measurement import Measurement, Rows, reference_side
from qsae_bench.progress import progress_of
from qsae_bench.registry.specs import Cell
from qsae_bench.run.attributor import setup_now
from qsae_bench.stats import comparison
from qsae_bench.stats.bootstrap import Estimate, Estimates, estimate
from qsae_bench.stats.comparison import Difference, check_comparable, on_common_sequences
from qsae_bench.stats.permutation import Resampling, swaps_for

if TYPE_CHECKING:
    from qsae_bench.results.accepted import AcceptedRuns
    from qsae_bench.results.cell_pairs import RunCell
    from qsae_bench.run.session import Session

SAME_MODEL = 0.01
"""relative difference between a sequence's sums of the reference that another library explains: bfloat16
rounds a number by up to 0.4%. A reference that moved by more is another model, and nothing can be said"""


class AcceptedComparison:
    """Compare each cell once, when it is first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: dict[Cell, AgainstAccepted | None] = {}

    def __call__(self, cell: Cell) -> AgainstAccepted | None:
        """Return the comparison; None of a reference and of a cell without a quality to compare.

        A cell that is worse is warned of at once.
        """
        if cell not in self._known:
            measured = self._session.measured.get(cell)
            skipped = cell.is_reference or cell.model.synthetic or measured is None
            found = None if skipped or (measured and measured.invalid_reason) else self._compare(cell)
            self._known[cell] = found
            if found is not None and found.is_worse:
                self._session.options.on_warning(f"{cell.id}: {in_short(found)}")
        return self._known[cell]

    def forget(self, cell: Cell) -> None:
        """Forget the comparison of a cell that is measured again."""
        self._known.pop(cell, None)

    @property
    def fails(self) -> bool:
        """Whether a cell that is worse fails its test."""
        options = self._session.options
        return options.accepted == "fail" or (options.strict and options.accepted != "warn")

    def message(self, cell: Cell, found: AgainstAccepted) -> str:
        """Return the failure message, with the commands that show more and that accept the run."""
        place = self._session.latest
        runs = place.parent / "runs" / found.run
        quantization = cell.quantization.name
        compare = (
            f"qsae-bench compare {place}:{quantization} {runs}:{quantization} --model {cell.model.name}"
        )
        return message(cell.id, found, compare, f"qsae-bench thresholds update --from {place} -k {cell.id}")

    @cached_property
    def _runs(self) -> AcceptedRuns:
        from qsae_bench.results.accepted import AcceptedRuns

        return AcceptedRuns(self._session.options.qsae_dir / "runs")

    def _compare(self, cell: Cell) -> AgainstAccepted:
        session = self._session
        now = self._setup(cell, None)
        trusted = session.options.thresholds.runs_behind(cell.model.name, cell.quantization.name)
        found = self._runs.last(cell.model.name, cell.quantization.name, now, trusted)
        if found.cell is None:
            return AgainstAccepted(not_compared=found.why_not)
        before = found.cell
        about = AgainstAccepted(before.run.document.run_id, before.run.document.started)
        try:
            with progress_of(f"{cell.id}: against run {about.run}"):
                return self._tested(cell, before, about)
        except QsaeError as error:
            why = str(error)
        except KeyError as error:  # rows of another version: they must not cost this run its document
            why = f"its rows have no column {error}"
        return replace(about, not_compared=f"can't be compared with run {about.run}: {why}")

    def _tested(self, cell: Cell, before: RunCell, about: AgainstAccepted) -> AgainstAccepted:
        from qsae_bench.results.rows import read_rows

        a, b = on_common_sequences(self._session.measured[cell].measurement, read_rows(before.rows))
        a, b = self._with_same_saes(cell, a, before, b)
        about = replace(about, tokens=a.rows.tokens)
        if equal(a, b):
            return about
        wanted = comparison.metrics_to_test(headline("comparison"))
        check_comparable(a, b, wanted, SAME_MODEL)
        tests = sum(1 if metric.scope == "cell" else len(a.layers) for metric in wanted)
        how = Resampling(swaps=swaps_for(tests, ACCEPTED_ALPHA))
        differences = comparison.differences(a, b, wanted, how)
        worse = worse_metrics(differences, self._noise(cell, differences))
        moved = self._moved(cell, a, before, b, worse[0]) if worse else ""
        return replace(about, tests=len(differences), worse=worse, moved=moved)

    def _with_same_saes(
        self, cell: Cell, a: Measurement, before: RunCell, b: Measurement
    ) -> tuple[Measurement, Measurement]:
        """Return both with those of their layers that the same SAE read."""
        known = before.run.document.saes.get(cell.model.name, {})
        same = {k for k in a.layers.keys() & b.layers.keys() if known.get(str(k)) == cell.model.sae_name(k)}

        def reduced(one: Measurement) -> Measurement:
            return replace(
                one, layers={k: rows for k, rows in one.layers.items() if k in same},
                features={k: sums for k, sums in one.features.items() if k in same},
            )  # fmt: skip

        return reduced(a), reduced(b)

    def _setup(self, cell: Cell, layer: int | None) -> Setup:
        setup = setup_now(self._session, cell, layer)
        return replace(setup, hardware=self._session.hardware_of(cell) or setup.hardware)

    def _noise(self, cell: Cell, differences: list[Difference]) -> dict[Place, float]:
        """Return the noise floor of each metric, where this run measured it."""
        reference = self._session.measured.get(self._session.registry.reference_of(cell))
        if reference is None or reference.noise_floor is None:
            return {}
        found: dict[Place, float] = {}
        for d in differences:
            floor = reference.noise_floor.at(d.layer).get(d.metric)
            own = reference.estimates.at(d.layer).get(d.metric)
            if floor is not None and own is not None:
                found[d.metric, d.layer] = numerical_noise(floor, own)
        return found

    def _moved(self, cell: Cell, a: Measurement, before: RunCell, b: Measurement, first: Difference) -> str:
        """Return what changed between the runs, from the metric that is worse for sure."""
        from qsae_bench.results.setup import setup_of

        gate = FailedGate(cell.model.name, cell.quantization.name, first.metric, first.layer)
        document = before.run.document
        now = _snapshot(a, self._setup(cell, first.layer), gate, first.tested.a)
        then = replace(
            _snapshot(b, setup_of(document, before.cell, first.layer), gate, first.tested.b),
            run_id=document.run_id, started=document.started,
        )  # fmt: skip
        return attribute(gate, now, then, {}).text


def _snapshot(measurement: Measurement, setup: Setup, gate: FailedGate, value: float) -> Snapshot:
    own, reference = (estimate(one, replicates=0) for one in (measurement, reference_side(measurement)))

    def indicators(of: Estimates) -> dict[str, Estimate]:
        return model_indicators(of.cell, None if gate.layer is None else of.at(gate.layer))

    return Snapshot(
        setup,
        measurement.rows.tokens,
        indicators(reference),
        indicators(own) | {gate.metric: Estimate(value)},
    )


def equal(a: Measurement, b: Measurement) -> bool:
    """Return whether all rows of both are the same: the same code on one machine repeats to the bit."""

    def same(one: Rows, other: Rows) -> bool:
        return all(
            mine.keys() == theirs.keys()
            and all(np.array_equal(mine[k], theirs[k], equal_nan=True) for k in mine)
            for mine, theirs in ((one.scalars, other.scalars), (one.vectors, other.vectors))
        )

    return same(a.rows, b.rows) and all(same(a.layers[k], b.layers[k]) for k in a.layers)
