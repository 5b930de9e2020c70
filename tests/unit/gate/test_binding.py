"""Bounds that bind: by hand, and against a search for a value on either side."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bounds
from qsae_bench.gate.binding import why_not_binding
from qsae_bench.metrics import METRICS

BINDING = [
    ("kl_divergence", None, 0.0037), ("top1_agreement", 0.903, None), ("feature_survival", 1.0, None),
    ("nonfinite_share", None, 0.0), ("fvu", None, 1.2), ("residual_cosine", -0.5, None),
    ("fvu_drift", None, -0.1), ("l0_ratio", 0.9, 1.1), ("l0_ratio", None, 1.1), ("l0_ratio", 0.9, None),
    ("feature_slope_p50", 0.95, 1.05), ("l2_ratio", 0.9, 1.0), ("delta_p_mean", -0.01, 0.01),
]  # fmt: skip


@pytest.mark.parametrize(("metric", "lower", "upper"), BINDING)
def test_what_binds(metric, lower, upper):
    assert why_not_binding(metric, lower, upper) == ""


@pytest.mark.parametrize(
    ("metric", "lower", "upper", "why"),
    [
        ("kl_divergence", None, None, "max or min is needed"),
        ("kl_divergence", 0.0037, None, "min = 0.0037 lets every damage pass, because lower is better"),
        ("kl_divergence", 0.001, 0.0037, "min = 0.001 lets every damage pass"),
        ("top1_agreement", None, 0.903, "max = 0.903 lets every damage pass, because higher is better"),
        ("feature_survival", -1.0, None, "min = -1: never below 0, so it bounds nothing"),
        ("feature_survival", 0.0, None, "min = 0: never below 0, so it bounds nothing"),
        ("top1_agreement", 90.2, None, "min = 90.2: never above 1, so nothing passes; 90.2% is 0.902"),
        ("feature_damaged", None, 1.0, "max = 1: never above 1, so it bounds nothing"),
        ("feature_damaged", None, 5.0, "max = 5: never above 1, so it bounds nothing; 5% is 0.05"),
        ("kl_divergence", None, -0.1, "max = -0.1: never below 0, so nothing passes"),
        ("perplexity", None, 1e-9, "never below 1"),
        ("l0_ratio", 0.0, 1.1, "min = 0: never below 0, so it bounds nothing"),
        ("l0_ratio", 1.1, 0.9, "min = 1.1 must be below max = 0.9, or nothing passes"),
        ("l0_ratio", 1.0, 1.0, "must be below"),
        ("delta_p_mean", -1.0, 0.01, "min = -1: never below -1"),
    ],
)
def test_what_does_not(metric, lower, upper, why):
    assert why in why_not_binding(metric, lower, upper)


gateable = st.sampled_from([key for key, metric in METRICS.items() if metric.gateable])
numbers = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 90.0]) | st.floats(-1e6, 1e6)


def values(metric, *marks):
    """Values that a metric can have, around every mark."""
    least, most = METRICS[metric].limits
    for mark in (least, most, *marks):
        for value in (mark, math.nextafter(mark, math.inf), math.nextafter(mark, -math.inf)):
            if math.isfinite(value) and least <= value <= most:
                yield value
    yield from (v for v in (-1e300, 1e300) if least <= v <= most)


@given(gateable, numbers, numbers)
def test_a_bound_binds_if_some_value_passes_and_some_value_on_the_side_of_harm_fails(metric, lower, upper):
    given_ends = [end for end in (lower, upper) if end is not None]
    possible = list(values(metric, *given_ends))
    better = METRICS[metric].better
    right = given_ends and not (lower is not None and better == "lower")
    right = right and not (upper is not None and better == "higher")
    right = right and (len(given_ends) < 2 or lower < upper)
    for end, passes in ((lower, lambda v: v >= lower), (upper, lambda v: v <= upper)):
        right = right and (end is None or len({passes(v) for v in possible}) == 2)
    # that nothing but the end of the range passes is a bound: a share of 1, a count of 0
    assert (why_not_binding(metric, lower, upper) == "") == bool(right), (possible, lower, upper)


@given(st.data())
def test_what_the_other_tests_draw_binds(data):
    metric = data.draw(gateable)
    assert why_not_binding(metric, *data.draw(bounds.ends(metric))) == ""
