"""Read the markers and parameters of a test: its cell, what it gates, what it times."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from qsae_bench.errors import did_you_mean
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.metrics import GROUPS, METRICS
from qsae_bench.registry.specs import Cell
from qsae_bench.run.timed_workloads import WORKLOADS, workloads_for
from qsae_bench.run.workers.tasks import Task

RUNS_FIRST = {"loads_cell": "loading", "measures_cell": "evaluation"}
"""markers of the tests that time what later tests of a cell only reuse, in the order in which they run"""

MARKERS = (
    *(f"{marker}: times the {what}, so it runs first in its cell" for marker, what in RUNS_FIRST.items()),
    "gates(*metrics, also=()): metrics that are held against their thresholds, each in a test of its own; "
    "`also` names groups of metrics that are held too where a threshold bounds them",
    "times(work): the work of qsae_bench.run.timed_workloads that the test asks for",
)
"""for ``pytest --markers``"""


@dataclass(frozen=True)
class GatesMarker:
    """Hold the arguments of ``@pytest.mark.gates(*metrics, also=groups)``."""

    metrics: tuple[str, ...]
    """judged in any case: ``unset`` where they have no threshold. Ratios of timings only where they do"""
    also: tuple[str, ...] = ()
    """groups of metrics that are judged too where a threshold bounds them"""

    @classmethod
    def of(cls, marker: pytest.Mark, test: str) -> GatesMarker:
        """Check a marker's arguments; ``test`` names the test in messages.

        Raises:
            pytest.UsageError: an unknown metric, group or argument.
        """
        also = tuple(marker.kwargs.get("also", ()))
        for names, known, what in ((marker.args, METRICS, "metric"), (also, GROUPS, "group of metrics")):
            for name in names:
                if name not in known:
                    hint = did_you_mean(name, known)
                    raise pytest.UsageError(f"{test}: gates: unknown {what} {name!r}{hint}")
        if unknown := set(marker.kwargs) - {"also"}:
            raise pytest.UsageError(f"{test}: gates: unknown argument {min(unknown)!r}")
        return cls(marker.args, also)

    def gates(
        self, cell: Cell, layer: int | None, thresholds: Thresholds, elsewhere: Collection[str] = ()
    ) -> list[GatedMetric]:
        """Return what a test gates of a cell, or of a layer of it; one gate without a metric if nothing.

        Of a reference these are the bounds of its registry entry, and ratios of timings. Which hardware
        runs the cell is not known yet: a ratio of timings, or a group's metric, that a threshold bounds on
        some hardware is in, as an optional gate.

        Args:
            elsewhere: metrics that other tests gate already; ``also`` does not repeat them.
        """
        groups = {key for group in self.also for key in GROUPS[group]}
        optional = {key for key in self.metrics if METRICS[key].interval == "rounds"}
        if cell.is_reference:
            scope = "cell" if layer is None else "layer"
            covered = groups.union(self.metrics)
            bounds = [key for key in cell.model.reference_bounds if METRICS[key].scope == scope]
            found = [GatedMetric(key, layer) for key in bounds if key in covered and key not in elsewhere]
        else:
            found = [GatedMetric(key, layer) for key in self.metrics if key not in optional]
            optional |= groups.difference(self.metrics)
        bounded = thresholds.metrics_on_any_hardware(cell.model.name, cell.quantization.name, layer)
        more = sorted((optional & bounded).difference(elsewhere))
        found += [GatedMetric(key, layer, optional=True) for key in more]
        return found or [GatedMetric("", layer)]


def cell_of(item: pytest.Item) -> Cell | None:
    """Return the cell that a test is about, or None."""
    return _parameter(item, "cell")


def gate_of(item: pytest.Item) -> GatedMetric | None:
    """Return what a test gates, or None."""
    return _parameter(item, "gated")


def _parameter(item: pytest.Item, name: str) -> Any:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(name) if callspec else None


def work_of(item: pytest.Item) -> str | None:
    """Return the name of what a test times, or None.

    Raises:
        pytest.UsageError: not the name of a work.
    """
    marker = item.get_closest_marker("times")
    if marker is None:
        return None
    if len(marker.args) != 1 or marker.args[0] not in WORKLOADS:
        raise pytest.UsageError(f"{item.nodeid}: times: names one of {', '.join(WORKLOADS)}")
    return str(marker.args[0])


def task_of(cell: Cell, items: Iterable[pytest.Item]) -> Task:
    """Return what a worker has to do so that these tests of a cell can be run here."""
    items = [item for item in items if item.get_closest_marker("skip") is None]
    works = workloads_for(cell, [work for item in items if (work := work_of(item)) is not None])
    # all fixtures that a test uses, directly or through others
    measures = "evaluation" in works or any("measured" in getattr(i, "fixturenames", ()) for i in items)
    return Task(cell, works, measures)


def order_in_cell(item: pytest.Item) -> int:
    """Return the rank of a test among those of its cell: what others reuse comes first."""
    return next(
        (rank for rank, marker in enumerate(RUNS_FIRST) if item.get_closest_marker(marker)), len(RUNS_FIRST)
    )
