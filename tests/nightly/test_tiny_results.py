"""What the embedded model must show at its default number of tokens: the study's shape, and the control's."""

from __future__ import annotations

from itertools import pairwise

import pytest

from paths import ROOT
from qsae_bench.gate.threshold_file import load_thresholds
from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.gate.verdict import decide
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.run.local_session import LocalSession
from qsae_bench.run.session import SessionOptions

SWEEP = [f"rtn_int{bits}" for bits in (8, 7, 6, 5, 4, 3)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every quantization, by name."""
    registry = load_registry()
    folder = tmp_path_factory.mktemp("tiny")
    session = LocalSession(SessionOptions(registry, Thresholds({}), folder, "test"))
    names = ("reference", "int8", "nf4", "fp4", *SWEEP)
    cells = registry.select(Selection(models=("tiny_gemma3",), quantizations=names))
    found = {cell.quantization.name: session.measure(cell) for cell in cells}
    session.close()
    return found


def increase(measured, name):
    return measured[name].estimates.cell["perplexity_increase_pct"]


def test_enough_tokens(measured):
    assert all(one.tokens >= 16_000 for one in measured.values())


def test_int8_changes_nothing_to_speak_of(measured):
    found = increase(measured, "int8")
    assert abs(found.value) < 0.1
    assert found.half_width <= 0.05


def test_four_bits_show_and_fp4_more_than_nf4(measured):
    assert increase(measured, "nf4").low > 0
    assert increase(measured, "fp4").low > 0
    assert increase(measured, "fp4").value > increase(measured, "nf4").value
    for layer, nf4 in measured["nf4"].estimates.layers.items():
        assert measured["fp4"].estimates.layers[layer]["fvu_drift"].low > nf4["fvu_drift"].high


def test_reference_is_its_own_equal(measured):
    reference = measured["reference"].estimates
    for key in ("perplexity_increase_pct", "cross_entropy_delta", "kl_divergence", "flips_to_wrong"):
        assert (reference.cell[key].value, reference.cell[key].low, reference.cell[key].high) == (0, 0, 0)
    for layer in reference.layers.values():
        assert (layer["fvu_drift"].low, layer["fvu_drift"].high) == (0, 0)


def test_control_is_monotone_in_its_bits(measured):
    for more, fewer in pairwise(SWEEP):
        a, b = measured[more].estimates, measured[fewer].estimates
        assert a.cell["kl_divergence"].value < b.cell["kl_divergence"].value, fewer
        for layer in a.layers:
            assert a.layers[layer]["fvu_drift"].value < b.layers[layer]["fvu_drift"].value, (fewer, layer)


@pytest.mark.parametrize(
    ("name", "statuses"), [("rtn_int8", {"pass"}), ("int8", {"pass"}), ("rtn_int3", {"fail"})]
)
def test_int8_thresholds_tell_int8_from_int3(measured, name, statuses):
    thresholds = load_thresholds(ROOT / "thresholds.toml")
    one = measured[name]
    found = set()
    for metric in ("perplexity_increase_pct", "kl_divergence", "top1_agreement"):
        bound = thresholds.find("tiny_gemma3", "int8", metric)
        found.add(decide(metric, one.estimates.cell[metric], bound, one.tokens).status)
    for layer, estimates in one.estimates.layers.items():
        bound = thresholds.find("tiny_gemma3", "int8", "fvu_drift", layer)
        found.add(decide("fvu_drift", estimates["fvu_drift"], bound, one.tokens, layer).status)
    assert found == statuses


def test_perplexity_alone_would_miss_what_features_see(measured):
    """Three bits: perplexity within 2%, yet features are lost and none at eight bits are."""
    three, eight = measured["rtn_int3"].estimates, measured["rtn_int8"].estimates
    assert increase(measured, "rtn_int3").high < 2
    for layer in three.layers:
        assert eight.layers[layer]["feature_survival"].value == 1
        assert three.layers[layer]["feature_survival"].value < 0.999
