"""The survival curve of the run is drawn whole."""

from __future__ import annotations

from figure_data import rows_in
from qsae_bench.report.figures.features import survival_figure


def test_the_survival_curve_is_drawn_whole(cells):
    rows = [row for row in rows_in(survival_figure("x", cells).spec) if "t" in row]
    assert [(r["q"], r["layer"]) for r in rows] == [
        (c.quantization, layer) for c in cells for layer in (3, 9)
    ]
    assert rows[0]["of features"] == cells[0].layers["3"].survival_curve.share


def test_no_curve_is_no_figure(cells):
    assert survival_figure("x", [cell.model_copy(update={"layers": {}}) for cell in cells]) is None
