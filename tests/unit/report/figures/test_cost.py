"""Figures of cost: the front is what a brute-force search finds, and speeds have the spread of their rounds."""

from __future__ import annotations

from figure_data import rows_in
from qsae_bench.report.figures.cost import cost_figure, pareto_figure


def test_the_front_is_the_one_that_no_other_beats(cells):
    planes = [
        row
        for row in rows_in(pareto_figure("x", [(c.quantization, c) for c in cells]).spec)
        if "front" in row
    ]
    bits = planes[: len(cells)]  # KLD against bits a weight
    for one in bits:
        beaten = any(
            o["quality"] <= one["quality"] and o["cost"] <= one["cost"] and (o["quality"], o["cost"]) != (one["quality"], one["cost"])
            for o in bits
        )  # fmt: skip
        assert one["front"] == (not beaten)


def test_a_speed_has_the_spread_of_its_rounds(cells):
    rows = [row for row in rows_in(cost_figure("x", cells).spec) if row.get("rounds")]
    assert [(row["q"], row["panel"]) for row in rows] == [
        (cell.quantization, "prefill (tokens/s)") for cell in cells
    ]
    for row, cell in zip(rows, cells, strict=True):
        timing = cell.timings["prefill"]
        width = (row["high"] - row["low"]) / row["value"]
        assert abs(width - timing.spread_seconds / timing.median_seconds) < 1e-12


def test_no_cost_is_no_figure(cells):
    bare = [cell.model_copy(update={"metrics": {}, "layers": {}}) for cell in cells]
    assert pareto_figure("x", [(c.quantization, c) for c in bare]) is cost_figure("x", bare) is None
