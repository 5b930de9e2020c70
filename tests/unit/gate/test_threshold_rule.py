"""From an interval to a bound: by hand, against exact fractions, and that the bound holds for what was measured."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.gate.threshold_rule import derive_bound, harmful_side
from qsae_bench.gate.thresholds import Threshold
from qsae_bench.gate.verdict import decide, reason_below_noise_floor
from qsae_bench.metrics import METRICS
from qsae_bench.stats.bootstrap import Estimate


@pytest.mark.parametrize(
    ("metric", "measured", "reference", "bound", "how"),
    [
        # a divergence: what the reference has is 0
        ("perplexity_increase_pct", (0.144, 0.0834, 0.211), 0.0, 0.43, "2 × high"),  # 0.422, up
        ("kl_divergence", (0.00145, 0.00112, 0.00184), 0.0, 0.0037, "2 × high"),
        ("perplexity_increase_pct", (0.001, -0.002, 0.004), 0.0, 0.01, "2 × high, at least 0.01"),
        ("fvu_drift", (-1.5e-05, -2.6e-05, -5e-06), 0.0, 2e-05, "2 × high, at least 2e-05"),
        # an agreement: 1
        (
            "top1_agreement",
            (0.9545, 0.9518, 0.9573),
            1.0,
            0.903,
            "2 × the loss at low",
        ),  # loss 0.0964 -> 0.097
        ("feature_survival", (1.0, 1.0, 1.0), 1.0, 0.99, "2 × the loss at low, at least 0.01"),
        ("residual_cosine", (0.99, 0.98, 0.995), 1.0, 0.96, "2 × the loss at low"),
        # so much is lost that twice the loss is no bound: 1 - 2 · 0.7 < 0
        ("feature_survival", (0.32, 0.3, 0.34), 1.0, 0.15, "low ÷ 2"),
        ("feature_survival", (0.0, 0.0, 0.0), 1.0, -1.0, "2 × the loss at low"),
        # a value that the reference has too
        ("fvu", (0.0800, 0.0790, 0.0812), 0.0763, 0.0861, "2 × the rise at high"),  # 0.0763 + 2 · 0.0049
        ("fvu", (0.0763, 0.0763, 0.0763), 0.0763, 0.076377, "2 × the rise at high, at least 7.63e-05"),
        # taken from the weights: exact, and the reference has none
        ("weight_gain_error", (0.0047, None, None), None, 0.0094, "2 × the value"),
        ("weight_gain_error", (4.1e-05, None, None), None, 0.005, "2 × the value, at least 0.005"),
        ("quantized_share", (1.0, None, None), None, 0.99, "2 × the loss at the value, at least 0.01"),
    ],
)
def test_by_hand(metric, measured, reference, bound, how):
    ruled = derive_bound(metric, harmful_side(metric), Estimate(*measured), reference)
    assert (ruled.bound, ruled.how) == (bound, how)


def test_the_margin_and_the_noise_floor():
    measured = Estimate(0.1, 0.08, 0.12)
    assert derive_bound("kl_divergence", "max", measured, 0.0, margin=3).bound == 0.36
    ruled = derive_bound("kl_divergence", "max", measured, 0.0, noise=0.3)
    assert (ruled.bound, ruled.how) == (0.3, "2 × high, at least the noise floor, 0.3")


def test_a_metric_of_which_neither_direction_is_better_has_no_side_of_its_own():
    assert harmful_side("l0_ratio") is None
    assert derive_bound("l0_ratio", "max", Estimate(1.05, 1.0, 1.1), 1.0).bound == 1.2
    assert derive_bound("l0_ratio", "min", Estimate(0.95, 0.9, 1.0), 1.0).bound == 0.8


def test_what_no_float_holds_is_refused_in_one_line():
    with pytest.raises(QsaeError, match="mse") as caught:
        derive_bound("mse", "max", Estimate(1e308, 1e308, 1.7e308), 0.0)
    one_line(caught.value)


gated = st.sampled_from([key for key, metric in METRICS.items() if metric.gateable])
SLACK = Fraction(1, 10**9)
"""of floats against fractions"""

numbers = st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.9g}"))
positive = st.floats(0, 1e6)


@st.composite
def intervals(draw):
    value = draw(numbers)
    if draw(st.booleans()):
        return Estimate(value)
    return Estimate(value, value - draw(positive), value + draw(positive))


@given(gated, st.sampled_from(["max", "min"]), intervals(), st.none() | numbers, st.floats(1, 100))
@example("top1_agreement", "min", Estimate(0.3, 0.1, 0.5), 1.0, 100.0)
def test_the_bound_holds_for_what_was_measured(metric, side, measured, reference, margin):
    assume(reference is not None or METRICS[metric].harmless is not None)
    bound = derive_bound(metric, side, measured, reference, margin).bound
    entry = Threshold(metric, side, bound, "s")
    assert decide(metric, measured, entry, 1000).status == "pass"


@given(gated, intervals(), numbers, st.floats(1, 10), st.floats(0, 10))
def test_against_exact_fractions(metric, measured, reference, margin, noise):
    """What is allowed is the rule's, and at most a tenth of itself more: two digits."""
    side = harmful_side(metric) or "max"
    end = measured.high if side == "max" else measured.low
    worse = Fraction(measured.value if end is None else end)
    harm = (worse - Fraction(reference)) * (1 if side == "max" else -1)
    allowed = max(
        Fraction(margin) * harm, Fraction(METRICS[metric].least_harm.amount(reference)), Fraction(noise)
    )
    assume(abs(reference) < 1e6 * allowed)  # the sum's own rounding stays out of it
    ruled = derive_bound(metric, side, measured, reference, margin, noise)
    found = (Fraction(ruled.bound) - Fraction(reference)) * (1 if side == "max" else -1)
    assert found <= allowed * (1 + Fraction(11, 100))
    if "÷" in ruled.how:  # the tighter of the two, and the lower bound of a share only
        assert side == "min"
        assert ruled.bound <= worse / Fraction(margin) * (1 + SLACK)
        assert found >= Fraction(noise) * (1 - SLACK)
    else:
        assert found >= allowed * (1 - SLACK)


@given(gated, intervals(), numbers)
def test_more_margin_is_never_tighter(metric, measured, reference):
    side = harmful_side(metric) or "max"
    bounds = [derive_bound(metric, side, measured, reference, margin).bound for margin in (1, 1.5, 2, 4)]
    assert bounds == sorted(bounds, reverse=side == "min")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_bound_is_never_below_the_noise_floor_that_it_was_given(value, low, noise):
    own, floor = Estimate(1.0, 1.0, 1.0), Estimate(1 - noise, 1 - noise, 1.0)
    measured = Estimate(max(value, low), min(value, low), 1.0)
    bound = derive_bound("top1_agreement", "min", measured, 1.0, noise=abs(floor.value - 1.0)).bound
    assert reason_below_noise_floor(Threshold("top1_agreement", "min", bound, "s"), floor, own) == ""
