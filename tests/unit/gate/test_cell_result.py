"""A cell's result from look to look."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from builders import measurement, self_measurement, synthetic
from qsae_bench.errors import Invalid
from qsae_bench.gate.cell_result import CellResult
from qsae_bench.metrics import METRICS
from qsae_bench.stats.bootstrap import estimate
from qsae_bench.stats.sequential import Z_95, LookPlan, critical_value

PLAN = LookPlan((100, 200, 400), is_short=False, revision="abc")


def begun(gated=True):
    return CellResult.begin(
        measurement(synthetic()), PLAN, gated, SimpleNamespace(values={"weight_nsr": 0.5})
    )


def test_looks_follow_the_plan_and_each_has_its_critical_value():
    result = begun()
    assert (result.looks, result.planned_tokens, result.is_last_look) == ((100,), 400, False)
    assert result.critical == critical_value((100,), 400) > Z_95
    assert result.estimates.cell["weight_nsr"].value == 0.5
    before = result.tokens
    result.extend(measurement(synthetic(1)), PLAN)
    assert (result.looks, result.is_last_look) == ((100, 200), False)
    assert result.tokens > before
    result.exhausted = True
    assert result.is_last_look and result.critical == critical_value((100, 200), 400, last=True)


def test_a_cell_without_gates_is_looked_at_once():
    result = begun(gated=False)
    assert result.is_last_look and result.critical == Z_95


def test_the_references_values_are_those_of_the_reference_itself():
    own = estimate(self_measurement(synthetic()), replicates=0)
    found = begun().reference_values
    for values, expected, key in (
        (found.cell, own.cell, "perplexity"),
        (found.layers[3], own.layers[3], "fvu"),
    ):
        assert all(METRICS[key].harmless is None for key in values)
        assert values[key].value == pytest.approx(expected[key].value)


def test_an_invalid_cell_is_refused_with_its_reason():
    result = begun()
    result.check_valid()
    result.invalid_reason = "overflow"
    with pytest.raises(Invalid, match="tiny-nf4: INVALID: overflow"):
        result.check_valid()
