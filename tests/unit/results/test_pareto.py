"""Who dominates whom: the laws of a front, and what of a cell stands on which axis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsae_bench.results.document import CellRecord
from qsae_bench.results.pareto import (
    COSTS,
    QUALITY,
    SPEEDS,
    cost,
    dominates,
    dominators,
    planes,
    point,
    quality,
)

KLD, SURVIVAL = QUALITY
PREFILL, EVALUATION = SPEEDS
(BITS,) = set(COSTS) - set(SPEEDS)
PLANE = (KLD, PREFILL)
"""one axis of either direction"""

values = st.integers(0, 4).map(float)  # few, so that points tie
places = st.fixed_dictionaries({KLD: values, PREFILL: values})
some = st.dictionaries(st.sampled_from("abcdefgh"), places, min_size=1)


def cell(quantization="nf4", status="measured", simulated=None, layers=(), **metrics):
    record = {
        "model": "m", "quantization": quantization, "status": status,
        "metrics": {key: {"value": value} for key, value in metrics.items()},
        "layers": {str(i): {"metrics": {"feature_survival": {"value": v}}} for i, v in enumerate(layers)},
    }  # fmt: skip
    if simulated is not None:
        record["quantized"] = {"share": 1.0, "simulated": simulated}
    return CellRecord.model_validate(record)


def test_by_hand():
    points = {
        "cheap": {KLD: 3.0, PREFILL: 9.0},
        "good": {KLD: 1.0, PREFILL: 2.0},
        "between": {KLD: 2.0, PREFILL: 5.0},
        "worse": {KLD: 2.5, PREFILL: 2.0},
        "twin": {KLD: 1.0, PREFILL: 2.0},
        "untimed": {KLD: 0.1},
    }
    assert dominators(points, PLANE) == {
        "cheap": (), "good": (), "between": (), "twin": (), "worse": ("good", "twin", "between"),
    }  # fmt: skip


def test_directions():
    low, high = {BITS: 1.0, SURVIVAL: 1.0}, {BITS: 2.0, SURVIVAL: 1.0}
    assert dominates(low, high, (SURVIVAL, BITS)) and not dominates(high, low, (SURVIVAL, BITS))
    less = low | {SURVIVAL: 0.5}
    assert dominates(low, less, (SURVIVAL, BITS)) and not dominates(less, low, (SURVIVAL, BITS))


@given(some)
def test_a_front_is_never_empty_and_dominates_the_rest(points):
    found = dominators(points, PLANE)
    assert found.keys() == points.keys()
    front = {name for name, by in found.items() if not by}
    assert front
    for name, by in found.items():
        mine = points[name]
        for other in by:
            theirs = points[other]
            assert theirs[KLD] <= mine[KLD] and theirs[PREFILL] >= mine[PREFILL]
            assert theirs != mine
            assert name not in found[other]
        assert not by or by[0] in front


@given(some, st.data())
def test_a_dominated_point_changes_no_ones_place(points, data):
    before = dominators(points, PLANE)
    worse = dict(points[data.draw(st.sampled_from(sorted(points)))])
    worse[KLD] += data.draw(st.integers(1, 3))
    after = dominators(points | {"new": worse}, PLANE)
    assert after.pop("new")
    assert {name: bool(by) for name, by in after.items()} == {n: bool(by) for n, by in before.items()}
    front = [name for name, by in before.items() if not by]
    assert all("new" not in after[name] for name in front)


@given(some, st.sampled_from("abcdefgh"))
def test_a_missing_value_takes_only_that_point_out(points, name):
    rest = {other: place for other, place in points.items() if other != name}
    holed = rest | {name: {KLD: 0.0}}
    assert dominators(holed, PLANE) == dominators(rest, PLANE)


def test_planes_are_each_quality_against_each_cost():
    timed = {"a": {PREFILL: 1.0, EVALUATION: 1.0}, "b": {EVALUATION: 1.0}}
    bits = [(KLD, BITS), (SURVIVAL, BITS)]
    assert planes({"a": {}}) == bits
    assert planes(timed) == [*bits, (KLD, PREFILL), (SURVIVAL, PREFILL)], "one speed, the same for all"
    assert planes({"b": timed["b"]}) == [*bits, (KLD, EVALUATION), (SURVIVAL, EVALUATION)]


def test_a_cells_place():
    found = point(
        cell(kl_divergence=0.5, bits_per_weight=4.5, prefill_tokens_per_second=9.0, layers=(1.0, 0.25))
    )
    assert found == {KLD: 0.5, SURVIVAL: 0.25, BITS: 4.5, PREFILL: 9.0}
    assert quality(cell(), SURVIVAL) is None
    assert point(cell(kl_divergence=None, bits_per_weight=4.5)) == {BITS: 4.5}


@pytest.mark.parametrize("changes", [{"quantization": "reference"}, {"status": "timed"}])
def test_no_place_for_a_reference_nor_for_what_was_not_measured(changes):
    assert point(cell(kl_divergence=0.0, bits_per_weight=32.0, **changes)) == {}
    broken = cell(kl_divergence=0.1).model_copy(update={"reason": "non-finite values"})
    assert point(broken) == {}


@pytest.mark.parametrize(("simulated", "speed"), [(True, None), (False, 9.0), (None, 9.0)])
def test_a_simulated_quantization_has_bits_and_no_speed(simulated, speed):
    one = cell(
        simulated=simulated, kl_divergence=0.5, bits_per_weight=4.5, weight_bytes=9.0, load_seconds=9.0,
        prefill_tokens_per_second=9.0, evaluation_tokens_per_second=9.0, peak_memory_bytes=9.0,
    )  # fmt: skip
    assert cost(one, "bits_per_weight") == 4.5
    for key in ("weight_bytes", "load_seconds", "prefill_tokens_per_second", "peak_memory_bytes"):
        assert cost(one, key) == speed
    assert point(one).get(PREFILL) == speed
    assert KLD in point(one)


def test_beside_other_workers_a_cell_has_memory_and_no_speed():
    costs = {"peak_memory_bytes": 9.0, "weight_bytes": 9.0, "load_seconds": 9.0, PREFILL: 9.0}
    one = cell(kl_divergence=0.5, **costs).model_copy(update={"shared_device": True})
    assert {key: cost(one, key) for key in costs} == {
        "peak_memory_bytes": 9.0, "weight_bytes": 9.0, "load_seconds": None, PREFILL: None,
    }  # fmt: skip
    assert point(one) == {"kl_divergence": 0.5}
