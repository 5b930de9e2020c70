"""The figure of a metric's history has every run's value and marks changes of level."""

from __future__ import annotations

from figure_data import rows_in
from qsae_bench.report.figures.history import history_figure
from qsae_bench.results.history.queries import RunValue, Series
from qsae_bench.stats.bootstrap import Estimate


def test_runs_are_drawn_with_their_changes_of_level():
    values = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 2.0, 2.01, 1.99, 2.0, 2.01, 1.98]
    nights = tuple(
        RunValue(f"r{i}", f"2026-11-{i + 1:02}T02:00:00", Estimate(v, v - 0.05, v + 0.05), 1000, "pass", {})
        for i, v in enumerate(values)
    )
    series = Series("m", "nf4", "kl_divergence", None, "cpu", "c", False, "", 16, "", 1, nights)
    rows = [row for row in rows_in(history_figure("x", [series]).spec) if "number" in row]
    assert [row["value"] for row in rows] == values
    assert [row["number"] for row in rows if row["level"] == "changed"] == [7]
    single = Series("m", "nf4", "kl_divergence", None, "cpu", "c", False, "", 16, "", 1, nights[:1])
    assert history_figure("x", [single]) is None
