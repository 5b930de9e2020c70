"""Numbers with the digits that their intervals support."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qsae_bench.report.number_format import cell_values, in_sequences, ranged, supported
from qsae_bench.results.document import CellRecord, Value


@pytest.mark.parametrize(
    "value, low, high, shown",
    [
        (0.1436, 0.0799, 0.2073, "0.144 ± 0.064"),
        (0.00160298, 0.00134575, 0.00188342, "0.00160 ± 0.00027"),
        (1.37e-05, 1.2e-05, 1.5e-05, "(1.37 ± 0.15)e-05"),
        (4.2914, 4.2, 4.4, "4.29 ± 0.10"),
        (12345.6, 12000, 12700, "12,350 ± 350"),
        (-0.5, -0.6, -0.4005, "-0.50 ± 0.10"),
        (0.0, -0.0996, 0.0996, "0.00 ± 0.10"),
        (0.076352, None, None, "0.07635"),
        (1.0, 1.0, 1.0, "1"),
        (1.0, 1 - 1e-16, 1.0, "1"),
        (5.0, 4.999999999999998, 5.0, "5"),
        (0.99947, 0.998, 1.0, "0.9995 (0.9980 to 1.0000)"),
        (None, None, None, "not finite"),
    ],
)
def test_by_hand(value, low, high, shown):
    assert supported(Value(value=value, low=low, high=high)) == shown


@pytest.mark.parametrize(
    "value, low, high, shown",
    [
        (0.00160298, 0.00134575, 0.00188342, "0.00160 (0.00135 to 0.00188)"),
        (0.02, 0.018, 0.022, "0.0200 (0.0180 to 0.0220)"),
        (1.37e-05, 1.2e-05, 1.5e-05, "1.37e-05 (1.20e-05 to 1.50e-05)"),
        (12345.6, 12000, 12700, "12,350 (12,000 to 12,700)"),
        (0.5, None, None, "0.5"),
        (None, 0.1, 0.2, "not finite"),
    ],
)
def test_ranges_by_hand(value, low, high, shown):
    assert ranged(Value(value=value, low=low, high=high), Value(value=value, low=low, high=high)) == shown


def test_signs_and_dashes():
    assert supported(None) == "–"
    assert supported(Value(value=0.5, low=0.4, high=0.6), signed=True) == "+0.50 ± 0.10"


def read(text):
    found = re.fullmatch(r"\(?([-\d.,]+) ± ([\d.,]+)(?:\)e([+-]\d+))?", text)
    power = Decimal(10) ** int(found[3] or 0)
    return [Decimal(found[i].replace(",", "")) for i in (1, 2)], power


@example(51.0, 9950.0)
@given(st.floats(-1e12, 1e12), st.floats(1e-12, 1e6))
def test_two_digits_of_the_interval_and_no_more_of_the_value(value, half):
    shown = Value(value=value, low=value - half, high=value + half)
    true = (shown.high - shown.low) / 2
    if true <= 1e-9 * abs(value):  # of arithmetic
        assert "±" not in supported(shown)
        return
    (number, width), power = read(supported(shown))
    # both end at the same place, and each is what it was to half of that place
    assert number.as_tuple().exponent == width.as_tuple().exponent
    place = Decimal(1).scaleb(width.as_tuple().exponent) * power
    # 9,950 is 10,000 in two digits: the place is that of what is shown
    step = max(place, Decimal(10) ** (len(str(int(width * power))) - 2)) if true >= 99.5 else place
    assert abs(width * power - Decimal(true)) <= step * Decimal("0.5001")
    assert abs(number * power - Decimal(value)) <= step * Decimal("0.5001") + abs(Decimal(value)) * Decimal(
        "1e-15"
    )
    # two digits of the half-width carry information
    assert Decimal("0.0049") * Decimal(true) <= step <= Decimal("0.11") * Decimal(true)


@pytest.mark.parametrize(
    ("changes", "marks"),
    [
        ({}, {"load_seconds": "", "sae_tokens_per_second": "", "peak_memory_bytes": ""}),
        ({"quantized": {"share": 1.0, "simulated": True}},
         {"load_seconds": "*", "sae_tokens_per_second": "", "peak_memory_bytes": "*", "bits_per_weight": ""}),
        ({"shared_device": True},
         {"load_seconds": "†", "sae_tokens_per_second": "†", "peak_memory_bytes": ""}),
    ],
)  # fmt: skip
def test_a_cost_that_is_not_the_quantizations_own_is_marked(changes, marks):
    about = {"model": "m", "quantization": "rtn_int4", "status": "measured"} | changes
    cell = CellRecord.model_validate(about | {"metrics": {key: {"value": 5.0} for key in marks}})
    assert cell_values(cell, {key: (key, ".0f*") for key in marks}) == {
        k: f"5{m}" for k, m in marks.items()
    }


def test_a_reference_has_no_comparison_with_itself():
    columns = {"KLD": ("kl_divergence", ".1f"), "perplexity": ("perplexity", ".1f±")}
    metrics = {"perplexity": {"value": 9.0, "low": 8.5, "high": 9.5}}
    for name, divergence in (("reference", ""), ("nf4", "–")):
        cell = CellRecord(model="m", quantization=name, status="measured", metrics=metrics)
        assert cell_values(cell, columns) == {"KLD": divergence, "perplexity": "9.0 ± 0.5"}


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((2048, 1024, False), " in 2,048 sequences of 1,024 documents"),
        ((256, 128, True), " in 256 sequences of 128 pieces of one document"),
        ((256, None, False), " in 256 sequences, documents unknown"),
        ((0, None, False), ", documents unknown"),
    ],
)
def test_sequences_are_named_with_their_documents(counts, shown):
    assert in_sequences(*counts) == shown
