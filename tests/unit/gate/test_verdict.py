"""The decision table of metrics.md: each verdict, its edges, and the message it comes with."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from builders import threshold
from qsae_bench.gate.verdict import (
    FAILING,
    Verdict,
    check_reference,
    decide,
    failure_message,
    reason_below_noise_floor,
    worst_status,
)
from qsae_bench.registry.sae_spec import Bounds
from qsae_bench.stats.bootstrap import Estimate, Estimates

METRIC = "perplexity_increase_pct"
NAN, INF = float("nan"), float("inf")


def status(value, low, high, side, bound, **more):
    return decide(METRIC, Estimate(value, low, high), threshold(bound, side), 1000, **more).status


@pytest.mark.parametrize(
    ("low", "high", "side", "bound", "expected"),
    [
        (0.5, 0.9, "max", 1.0, "pass"),
        (1.1, 1.5, "max", 1.0, "fail"),
        (0.8, 1.2, "max", 1.0, "inconclusive"),
        (0.5, 1.0, "max", 1.0, "pass"),  # high ≤ max
        (1.0, 1.5, "max", 1.0, "inconclusive"),  # low > max is needed to fail
        (1.0, 1.0, "max", 1.0, "pass"),
        (math.nextafter(1.0, 2), 1.5, "max", 1.0, "fail"),
        (0.5, math.nextafter(1.0, 2), "max", 1.0, "inconclusive"),
        (1.1, 1.5, "min", 1.0, "pass"),
        (0.5, 0.9, "min", 1.0, "fail"),
        (0.8, 1.2, "min", 1.0, "inconclusive"),
        (1.0, 1.5, "min", 1.0, "pass"),  # low ≥ min
        (0.5, 1.0, "min", 1.0, "inconclusive"),
        (0.5, math.nextafter(1.0, 0), "min", 1.0, "fail"),
        (-2.0, -1.5, "max", -1.0, "pass"),
        (-2.0, -1.5, "min", -1.0, "fail"),
    ],
)
def test_interval_against_bound(low, high, side, bound, expected):
    assert status((low + high) / 2, low, high, side, bound) == expected


@pytest.mark.parametrize(
    ("value", "side", "expected"),
    [
        (0.9, "max", "pass"), (1.0, "max", "pass"), (1.1, "max", "fail"),
        (0.9, "min", "fail"), (1.0, "min", "pass"), (1.1, "min", "pass"),
    ],
)  # fmt: skip
def test_without_an_interval_the_value_decides(value, side, expected):
    assert status(value, None, None, side, 1.0) == expected


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(NAN, 0.1, 0.2), (0.1, NAN, 0.2), (0.1, 0.0, INF), (-INF, None, None), (NAN, None, None)],
)
def test_a_number_that_is_not_finite_is_invalid(value, low, high):
    verdict = decide(METRIC, Estimate(value, low, high), threshold(1.0), 1000)
    assert verdict.status == "invalid"
    assert verdict.failing
    assert METRIC in verdict.reason and "finite" in verdict.reason


def test_no_threshold_is_unset_and_fails():
    verdict = decide(METRIC, Estimate(0.1, 0.0, 0.2), None, 1000)
    assert verdict.status == "unset"
    assert verdict.failing


def test_a_broken_cell_is_invalid_whatever_its_numbers():
    verdict = decide(
        METRIC, Estimate(0.1, 0.0, 0.2), threshold(1.0), 1000, invalid_reason="weights overflowed"
    )
    assert (verdict.status, verdict.reason) == ("invalid", "weights overflowed")
    assert decide(METRIC, Estimate(0.1), None, 1000, invalid_reason="x").status == "invalid"


def test_invalid_comes_before_unset():
    assert decide(METRIC, Estimate(NAN), None, 1000).status == "invalid"


def test_which_verdicts_fail_a_test():
    assert {"fail", "inconclusive", "invalid", "unset"} == FAILING
    passing = decide(METRIC, Estimate(0.1), threshold(1.0), 1)
    assert not passing.failing
    assert not dataclasses.replace(passing, status="suspicious").failing


def test_worst_is_the_gravest():
    assert worst_status(()) is None
    assert worst_status(["pass"]) == "pass"
    assert worst_status(["pass", "suspicious"]) == "suspicious"
    assert worst_status(["inconclusive", "fail", "pass"]) == "fail"
    assert worst_status(["pass", "suspicious", "inconclusive", "unset", "fail", "invalid"]) == "invalid"


def tokens_named(verdict: Verdict) -> int | None:
    found = re.search(r"about ([\d,]+) tokens", verdict.reason)
    return int(found.group(1).replace(",", "")) if found else None


def test_inconclusive_says_how_many_tokens_would_decide():
    # half width 0.2 must shrink to the distance 0.1: by 2, so 4 times the tokens
    verdict = decide(METRIC, Estimate(1.1, 0.9, 1.3), threshold(1.0), 1000)
    assert verdict.status == "inconclusive"
    assert tokens_named(verdict) in (4000, 4001)  # 1.1 − 1.0 is no exact float
    mirrored = decide(METRIC, Estimate(1.1, 0.9, 1.3), threshold(1.0, "min"), 1000)
    assert tokens_named(mirrored) == tokens_named(verdict)


@given(
    st.floats(0.01, 10), st.floats(0.01, 0.99), st.integers(100, 10**6), st.booleans(),
    st.sampled_from(["max", "min"]),
)  # fmt: skip
def test_that_many_tokens_bring_the_interval_to_the_bound(half, share, tokens, above, side):
    value = 5.0
    bound = value + (share if above else -share) * half
    verdict = decide(METRIC, Estimate(value, value - half, value + half), threshold(bound, side), tokens)
    assert verdict.status == "inconclusive"
    needed = tokens_named(verdict)
    assert needed is not None and needed > tokens
    distance, slack = abs(value - bound), 1 + 1e-6
    assert half * math.sqrt(tokens / needed) <= distance * slack, "that many must do"
    if needed > tokens + 1:
        assert half * math.sqrt(tokens / (needed - 1)) >= distance / slack, "and fewer must not"


def test_a_value_on_the_bound_is_never_decided():
    verdict = decide(METRIC, Estimate(1.0, 0.9, 1.1), threshold(1.0), 1000)
    assert verdict.status == "inconclusive"
    assert "no number of tokens" in verdict.reason


finite = st.floats(allow_nan=False, allow_infinity=False)
anything = st.none() | st.floats()


@given(st.floats(), anything, anything, finite, st.sampled_from(["max", "min"]), st.booleans(), st.text())
def test_any_numbers_get_one_verdict(value, low, high, bound, side, has_threshold, broken):
    given_threshold = threshold(bound, side) if has_threshold else None
    verdict = decide(METRIC, Estimate(value, low, high), given_threshold, 1000, invalid_reason=broken)
    assert verdict.status in {"pass", "fail", "inconclusive", "invalid", "unset"}
    numbers = [n for n in (value, low, high) if n is not None]
    bad = bool(broken) or not all(map(math.isfinite, numbers))
    assert (verdict.status == "invalid") == bad
    assert (verdict.status == "unset") == (not bad and not has_threshold)


@st.composite
def intervals(draw):
    low, value, high = sorted(draw(st.tuples(finite, finite, finite)))
    return Estimate(value) if draw(st.booleans()) else Estimate(value, low, high)


@given(intervals(), finite)
def test_a_lower_bound_is_the_mirror_of_an_upper_one(estimate, bound):
    mirrored = Estimate(
        -estimate.value,
        None if estimate.high is None else -estimate.high,
        None if estimate.low is None else -estimate.low,
    )
    upper = decide(METRIC, estimate, threshold(bound, "max"), 1000)
    lower = decide(METRIC, mirrored, threshold(-bound, "min"), 1000)
    assert (upper.status, upper.reason) == (lower.status, lower.reason)


LENIENCY = {"fail": 0, "inconclusive": 1, "pass": 2}


@given(intervals(), finite, finite, st.sampled_from(["max", "min"]))
def test_a_tighter_bound_is_never_kinder(estimate, one, other, side):
    assume(one != other)
    tight, loose = sorted([one, other], reverse=side == "min")
    tightened = decide(METRIC, estimate, threshold(tight, side), 1000).status
    loosened = decide(METRIC, estimate, threshold(loose, side), 1000).status
    assert LENIENCY[tightened] <= LENIENCY[loosened]


@given(intervals(), finite, st.sampled_from(["max", "min"]))
def test_a_verdict_follows_the_value_only_if_the_interval_agrees(estimate, bound, side):
    """A brute-force reading of metrics.md: look at every point of the interval that we know of."""
    points = [p for p in (estimate.value, estimate.low, estimate.high) if p is not None]
    within = [p <= bound if side == "max" else p >= bound for p in points]
    expected = "pass" if all(within) else "inconclusive" if any(within) else "fail"
    assert decide(METRIC, estimate, threshold(bound, side), 1000).status == expected


REFERENCE = Estimates(
    {"perplexity": Estimate(9.5), "cross_entropy": Estimate(2.25)},
    {3: {"fvu": Estimate(0.125), "l0": Estimate(47.0)}, 4: {"fvu": Estimate(0.75), "l0": Estimate(50.0)}},
)


def test_a_sane_reference_passes_everywhere():
    bounds = {"cross_entropy": Bounds(2.25, 2.25), "fvu": Bounds(0.1, 0.75)}
    verdicts = check_reference(REFERENCE, bounds, 1000)
    assert {(v.metric, v.layer, v.status) for v in verdicts} == {
        ("cross_entropy", None, "pass"), ("fvu", 3, "pass"), ("fvu", 4, "pass"),
    }  # fmt: skip


def test_the_layer_that_is_not_sane_is_named():
    verdicts = check_reference(REFERENCE, {"fvu": Bounds(0.1, 0.5)}, 1000)
    failing = [v for v in verdicts if v.failing]
    assert [(v.metric, v.layer, v.status) for v in failing] == [("fvu", 4, "invalid")]
    assert "0.75" in failing[0].reason and "[0.1, 0.5]" in failing[0].reason


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3.6, 0.4])
def test_a_reference_outside_its_bounds_is_invalid(value):
    estimates = Estimates({"cross_entropy": Estimate(value)}, {})
    (verdict,) = check_reference(estimates, {"cross_entropy": Bounds(0.5, 3.5)}, 1000)
    assert verdict.status == "invalid" and verdict.failing


def test_a_reference_is_judged_by_its_value_not_its_interval():
    estimates = Estimates({"cross_entropy": Estimate(2.0, 0.1, 9.0)}, {})
    (verdict,) = check_reference(estimates, {"cross_entropy": Bounds(0.5, 3.5)}, 1000)
    assert verdict.status == "pass"


def test_no_bounds_no_verdicts():
    assert check_reference(REFERENCE, {}, 1000) == []


@pytest.mark.parametrize(
    ("side", "bound", "own", "floor", "low"),
    [
        ("max", 1.0, 0.0, Estimate(1.1), True), ("max", 1.0, 0.0, Estimate(1.0), False),
        ("max", 1.0, 0.0, Estimate(0.2), False),
        ("max", 1e-7, 0.0, Estimate(-1e-3), True),  # moved the other way is moved all the same
        ("max", 1.0, 0.0, Estimate(0.1, -0.5, 1.5), False),  # an interval is of the text, not of numerics
        ("min", 0.9, 1.0, Estimate(0.8), True), ("min", 0.9, 1.0, Estimate(0.99), False),
        ("max", 1.0, 0.0, Estimate(math.nan), True),
    ],
)  # fmt: skip
def test_a_threshold_below_the_noise_floor_is_told(side, bound, own, floor, low):
    reason = reason_below_noise_floor(threshold(bound, side), floor, Estimate(own))
    assert bool(reason) is low
    assert "\n" not in reason
    assert not low or ("noise floor" in reason and METRIC in reason)


def test_a_failure_message_has_all_that_is_needed():
    verdict = decide("fvu", Estimate(0.5, 0.25, 0.75), threshold(0.125, metric="fvu"), 16256, layer=3)
    message = failure_message("tiny_gemma3-nf4", verdict, REFERENCE, "qsae-bench show x")
    for part in (
        "tiny_gemma3-nf4 layer 3", "fvu", "FAIL", "0.5", "[0.25, 0.75]", "fraction", "≤ 0.125",
        "[tiny.nf4]", "measured 1.2 with margin 0.3", "16,256 tokens", "perplexity 9.5", "fvu 0.125",
        "l0 47", "qsae-bench show x",
    ):  # fmt: skip
        assert part in message


def test_a_message_about_a_cell_shows_no_layer():
    verdict = decide(METRIC, Estimate(2.0, 1.5, 2.5), threshold(1.0), 1000)
    message = failure_message("tiny_gemma3-nf4", verdict, REFERENCE, "more")
    assert "layer" not in message
    assert "perplexity 9.5" in message and "[1.5, 2.5] %" in message


def test_an_unset_message_says_what_to_add():
    message = failure_message("c", decide(METRIC, Estimate(2.0), None, 1000), None, "more")
    assert "UNSET" in message
    assert f"add {METRIC} to thresholds.toml" in message


def test_an_inconclusive_message_says_how_many_tokens():
    verdict = decide(METRIC, Estimate(1.25, 0.75, 1.75), threshold(1.0), 1000)
    assert "about 4,000 tokens would decide" in failure_message("c", verdict, None, "more")


def test_a_message_about_nan_can_be_written():
    verdict = decide(METRIC, Estimate(NAN, NAN, NAN), threshold(1.0), 1000)
    assert "INVALID" in failure_message("c", verdict, REFERENCE, "more")


def test_an_insane_sae_is_invalid_with_both_numbers():
    """L0 or FVU far from what the SAE was trained to: another model's SAE, and both numbers say so."""
    values = {"l0": Estimate(900.0), "fvu": Estimate(70.0)}
    estimates = Estimates({}, {17: values})
    bounds = {"l0": Bounds(20, 180), "fvu": Bounds(0.01, 0.6)}
    verdicts = check_reference(estimates, bounds, 1000)
    assert [verdict.status for verdict in verdicts] == ["invalid", "invalid"]
    for verdict in verdicts:
        assert "l0 900" in verdict.reason and "fvu 70" in verdict.reason and "\n" not in verdict.reason
