"""From a value to a bound: by hand, against exact fractions, and that noise never loosens it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.gate.binding import why_not_binding
from qsae_bench.gate.threshold_rule import derive_bound, harmful_sides
from qsae_bench.gate.verdict import decide, reason_below_noise_floor
from qsae_bench.metrics import METRICS
from qsae_bench.stats.bootstrap import Estimate


@pytest.mark.parametrize(
    ("metric", "measured", "reference", "ends", "how"),
    [
        # a divergence: what the reference has is 0
        (
            "perplexity_increase_pct",
            (0.144, 0.0834, 0.211),
            0.0,
            (None, 0.29),
            "2 × the value",
        ),  # 0.288, up
        ("kl_divergence", (0.00145, 0.00112, 0.00184), 0.0, (None, 0.0029), "2 × the value"),
        (
            "perplexity_increase_pct",
            (0.001, -0.002, 0.004),
            0.0,
            (None, 0.01),
            "2 × the value, at least 0.01",
        ),
        ("fvu_drift", (-1.5e-05, -2.6e-05, -5e-06), 0.0, (None, 2e-05), "2 × the value, at least 2e-05"),
        # an agreement: 1
        ("top1_agreement", (0.9545, 0.9518, 0.9573), 1.0, (0.909, None), "2 × the loss"),  # 1 - 0.091
        ("feature_survival", (1.0, 1.0, 1.0), 1.0, (0.99, None), "2 × the loss, at least 0.01"),
        ("residual_cosine", (0.99, 0.985, 0.995), 1.0, (0.98, None), "2 × the loss"),
        # so much is lost that twice the loss is no bound: 1 - 2 · 0.7 < 0
        ("feature_survival", (0.32, 0.3, 0.34), 1.0, (0.16, None), "the value ÷ 2"),
        # a value that the reference has too
        ("fvu", (0.0800, 0.0790, 0.0812), 0.0763, (None, 0.0837), "2 × the rise"),  # 0.0763 + 2 · 0.0037
        ("fvu", (0.0763, 0.0763, 0.0763), 0.0763, (None, 0.076377), "2 × the rise, at least 7.63e-05"),
        # taken from the weights: exact, and the reference has none
        ("weight_gain_error", (0.0047, None, None), None, (None, 0.0094), "2 × the value"),
        ("weight_gain_error", (4.1e-05, None, None), None, (None, 0.005), "2 × the value, at least 0.005"),
        ("quantized_share", (1.0, None, None), None, (0.99, None), "2 × the loss, at least 0.01"),
        # neither direction is better: both are bounded, as far as the metric's range has room
        ("l0_ratio", (1.05, 1.04, 1.06), None, (0.9, 1.1), "2 × the change"),
        ("l0_ratio", (0.95, 0.94, 0.96), None, (0.9, 1.1), "2 × the change"),
        ("l2_ratio", (0.97, 0.96, 0.98), 0.95, (0.91, 0.99), "2 × the change"),
        ("flips_to_right", (0.01, 0.008, 0.012), None, (None, 0.02), "2 × the value"),
    ],
)
def test_by_hand(metric, measured, reference, ends, how):
    found = derive_bound(metric, Estimate(*measured), reference).threshold
    assert (found.ends, found.source) == (ends, how)


def test_the_margin_the_noise_floor_and_the_sides_asked_for():
    measured = Estimate(0.1, 0.08, 0.12)
    assert derive_bound("kl_divergence", measured, 0.0, margin=3).threshold.bound == 0.3
    found = derive_bound("kl_divergence", measured, 0.0, noise=0.3).threshold
    assert (found.bound, found.source) == (0.3, "2 × the value, at least the noise floor, 0.3")
    for side, ends in (("max", (None, 1.1)), ("min", (0.9, None))):
        assert derive_bound("l0_ratio", Estimate(1.05), sides=(side,)).threshold.ends == ends


@pytest.mark.parametrize(
    ("metric", "measured", "why"),
    [
        ("kl_divergence", (0.1, 0.0, 0.25), "[0, 0.25] reaches beyond the bound that its value gives, ≤ 0.2; one 3 times"),
        ("feature_survival", (0.9, 0.72, 1.0), "≥ 0.8; one 4 times as long"),
        ("l0_ratio", (1.1, 0.55, 1.15), "0.8 to 1.2; one 4 times as long"),
        ("feature_survival", (0.0, 0.0, 0.0), "2 × the loss gives min -1, which bounds nothing"),
        ("feature_damaged", (0.7, 0.7, 0.7), "2 × the value gives max 1.4, which bounds nothing"),
    ],
)  # fmt: skip
def test_where_there_is_no_bound(metric, measured, why):
    found = derive_bound(metric, Estimate(*measured))
    assert found.threshold is None and why in found.why_none


def test_what_no_float_holds_is_refused_in_one_line():
    with pytest.raises(QsaeError, match="mse") as caught:
        derive_bound("mse", Estimate(1.7e308), 0.0)
    one_line(caught.value)


gated = st.sampled_from([key for key, metric in METRICS.items() if metric.gateable])
SLACK = Fraction(1, 10**9)
"""of floats against fractions"""

numbers = st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.9g}"))
positive = st.floats(0, 1e6)
shares = st.floats(0, 1).map(lambda x: float(f"{x:.6g}"))


@st.composite
def intervals(draw):
    value = draw(numbers | shares)
    if draw(st.booleans()):
        return Estimate(value)
    return Estimate(value, value - draw(positive | shares), value + draw(positive | shares))


@given(gated, intervals(), st.none() | numbers | shares, st.floats(1, 100))
@example("top1_agreement", Estimate(0.3, 0.1, 0.5), 1.0, 100.0)
def test_a_bound_binds_and_holds_for_what_was_measured(metric, measured, reference, margin):
    assume(reference is not None or METRICS[metric].harmless is not None)
    found = derive_bound(metric, measured, reference, margin).threshold
    if found is not None:
        assert why_not_binding(metric, *found.ends) == ""
        assert decide(metric, measured, found, 1000).status == "pass"


@given(gated, intervals(), numbers | shares, st.floats(1, 10), positive, positive)
def test_a_wider_interval_around_the_same_value_never_loosens(
    metric, measured, reference, margin, down, up
):
    """It gives the same bound or none."""
    low, high = (measured.value if end is None else end for end in (measured.low, measured.high))
    wider = Estimate(measured.value, low - down, high + up)
    found = derive_bound(metric, wider, reference, margin)
    assert found.threshold in (None, derive_bound(metric, measured, reference, margin).threshold)


@given(gated, numbers | shares, numbers | shares, st.floats(1, 10), st.floats(0, 10))
def test_against_exact_fractions(metric, value, reference, margin, noise):
    """What is allowed is the rule's, and at most a tenth of itself more: two digits."""
    found = derive_bound(metric, Estimate(value), reference, margin, noise).threshold
    assume(found is not None)
    change = Fraction(value) - Fraction(reference)
    sides = harmful_sides(metric)
    harm = abs(change) if len(sides) > 1 else change if sides == ("max",) else -change
    allowed = max(
        Fraction(margin) * harm, Fraction(METRICS[metric].least_harm.amount(reference)), Fraction(noise)
    )
    assume(abs(reference) < 1e6 * allowed)  # the sum's own rounding stays out of it
    for end in (one for one in found.ends if one is not None):
        room = abs(Fraction(end) - Fraction(reference))
        assert room <= allowed * (1 + Fraction(11, 100))
        if "÷" in found.source:  # the tighter of the two, and the lower bound of a share only
            assert sides == ("min",)
            assert Fraction(end) <= Fraction(value) / Fraction(margin) * (1 + SLACK)
            assert room >= Fraction(noise) * (1 - SLACK)
        else:
            assert room >= allowed * (1 - SLACK)


@given(gated, numbers | shares, numbers | shares)
def test_more_margin_is_never_tighter(metric, value, reference):
    least, most = METRICS[metric].limits
    assume(least <= min(value, reference) and max(value, reference) <= most)
    margins = (1, 1.5, 2, 4)
    found = [derive_bound(metric, Estimate(value), reference, margin).threshold for margin in margins]
    allowed = [(float("-inf"), float("inf")) if one is None else one.allowed for one in found]
    assert [low for low, _ in allowed] == sorted((low for low, _ in allowed), reverse=True)
    assert [high for _, high in allowed] == sorted(high for _, high in allowed)


@given(st.floats(0, 1), st.floats(0, 0.9))
def test_a_bound_is_never_below_the_noise_floor_that_it_was_given(value, noise):
    own, floor = Estimate(1.0, 1.0, 1.0), Estimate(1 - noise, 0.0, 1.0)
    found = derive_bound("top1_agreement", Estimate(value), 1.0, noise=abs(floor.value - 1.0)).threshold
    assert found is None or reason_below_noise_floor(found, floor, own) == ""
