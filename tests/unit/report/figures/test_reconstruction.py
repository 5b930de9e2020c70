"""Figures of the SAEs' reconstruction show the run's own numbers."""

from __future__ import annotations

import pytest

from figure_data import rows_in
from qsae_bench.report.figures.reconstruction import definitions_figure, fvu_figure, resolution_figure


def test_the_reference_is_a_band_on_the_cells_own_tokens(document, cells):
    reference = document.cells[0]
    beside = {"metrics": {}, "layers": {"3": {"metrics": {"fvu": {"value": 0.5, "low": 0.4, "high": 0.6}}}}}
    extended = type(cells[0]).model_validate(cells[0].model_dump() | {"beside": beside})
    rows = [
        row for row in rows_in(fvu_figure("x", [extended, cells[1]], reference).spec) if "ref_value" in row
    ]
    own = reference.layers["3"].metrics["fvu"]
    assert [(r["ref_low"], r["ref_value"], r["ref_high"]) for r in rows if r["layer"] == 3] == [
        (0.4, 0.5, 0.6), (own.low, own.value, own.high)
    ]  # fmt: skip


def test_the_definitions_change_is_relative_to_the_reference(document, cells):
    rows = [
        row
        for row in rows_in(definitions_figure("x", cells, document.cells[0]).spec)
        if "definition" in row
    ]
    assert len(rows) == 3 * 2 * 3
    of_nf4 = {r["definition"]: r["change"] for r in rows if r["q"] == "nf4" and r["layer"] == 9}
    before, after = (c.layers["9"].metrics for c in (document.cells[0], cells[1]))
    for key, change in of_nf4.items():
        assert change == pytest.approx(100 * (after[key].value - before[key].value) / before[key].value)


def test_no_layer_is_no_figure(document, cells):
    bare = [cell.model_copy(update={"layers": {}}) for cell in cells]
    assert resolution_figure("x", bare) is fvu_figure("x", bare, document.cells[0]) is None
    assert definitions_figure("x", bare, document.cells[0]) is None
