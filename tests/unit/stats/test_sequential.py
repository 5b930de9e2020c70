"""The group sequential design: published boundaries, another library's integral, and simulated gates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm, t

from builders import threshold
from qsae_bench.gate.verdict import decide
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import (
    Z_95,
    boundaries,
    critical_value,
    error_spent,
    look_sizes,
    repeated_interval,
)
from simulated_intervals import divergences


def test_looks_double_up_to_the_most():
    assert look_sizes(256, 2048) == (256, 512, 1024, 2048)
    assert look_sizes(100, 1000) == (100, 200, 400, 800, 1000)
    assert look_sizes(100, 100) == (100,)
    assert look_sizes(100, 101) == (100, 101)


@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_looks_grow_and_end_at_the_most(first, more):
    sizes = look_sizes(first, first + more)
    assert sizes[0] == first and sizes[-1] == first + more
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(sizes))


def test_one_look_is_the_plain_interval():
    assert critical_value([512], 512) == pytest.approx(Z_95, abs=1e-12)
    assert critical_value([512], 4096, last=True) == pytest.approx(Z_95, abs=1e-12)
    assert norm.ppf(0.975) == pytest.approx(Z_95, abs=1e-12)


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        # Lan & DeMets' O'Brien-Fleming-type spending, five equal looks, two-sided 5%: the values that
        # ldbounds and gsDesign print
        (
            lambda share: 4 * norm.sf(norm.isf(0.05 / 4) / share**0.5),
            (4.8769, 3.3570, 2.6803, 2.2898, 2.0310),
        ),
        # their Pocock-type spending
        (
            lambda share: 0.05 * np.log(1 + (np.e - 1) * share),
            (2.4380, 2.4268, 2.4101, 2.3966, 2.3859),
        ),
    ],
    ids=["O'Brien-Fleming", "Pocock"],
)  # fmt: skip
def test_boundaries_are_the_published_ones(spent, expected):
    shares = [k / 5 for k in range(1, 6)]
    found = boundaries(tuple(shares), tuple(float(spent(share)) for share in shares))
    assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("sizes", [(256, 512, 1024, 2048), (100, 200, 400, 800, 1000), (100, 101)])
def test_boundaries_spend_what_they_should(sizes):
    """scipy's integral of the joint distribution of all looks' Z: cov(Z_i, Z_j) = sqrt(n_i / n_j)."""
    n = np.array(sizes, dtype=float)
    covariance = np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    for last in range(1, len(n) + 1):
        edge = np.array([critical_value(sizes[: k + 1], sizes[-1]) for k in range(last)])
        joint = multivariate_normal(cov=covariance[:last, :last], allow_singular=True)
        # of one dimension, scipy's has no lower limit
        stays = 1 - 2 * norm.sf(edge[0]) if last == 1 else joint.cdf(edge, lower_limit=-edge)
        assert 1 - stays == pytest.approx(error_spent(sizes[last - 1] / sizes[-1]), abs=2e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(1, 40), st.integers(1, 400))
def test_boundaries_never_go_below_one_look(n_looks, first, most_more):
    sizes = look_sizes(first, first * 2 ** (n_looks - 2) + most_more)
    found = [critical_value(sizes[: k + 1], sizes[-1]) for k in range(len(sizes))]
    assert min(found) >= Z_95 - 1e-6
    assert critical_value(sizes[:1], sizes[-1], last=True) <= found[0]


def test_a_corpus_that_ends_early_spends_the_rest():
    short = critical_value((100, 200), 1000, last=True)
    assert Z_95 < short < critical_value((100, 200), 1000)


def test_intervals_are_stretched_about_the_value():
    wide = repeated_interval(Estimate(2.0, 1.0, 3.0), 2 * Z_95)
    assert (wide.low, wide.high) == pytest.approx((0.0, 4.0))
    assert repeated_interval(Estimate(2.0, 1.0, 4.0), Z_95) == Estimate(2.0, 1.0, 4.0)
    assert repeated_interval(Estimate(2.0), 3.0) == Estimate(2.0)
    # a jackknife's interval is Student's: the same tail there is further out
    student = repeated_interval(Estimate(0.0, -t.isf(0.025, 7), t.isf(0.025, 7)), 3.0, degrees=7)
    assert student.high == pytest.approx(t.isf(norm.sf(3.0), 7))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_arm_that_skewness_lengthens_grows_faster(sign):
    """Cornish & Fisher's quantile of a skewed variable: z + a (z² − 1), here with the −1 in the value."""
    a = 0.2
    ends = [sign * (z + a * z * z) for z in (-Z_95, Z_95)]
    wide = repeated_interval(Estimate(0.0, min(ends), max(ends)), 3.5)
    assert (wide.high if sign > 0 else -wide.low) == pytest.approx(3.5 + a * 3.5**2)
    short = -wide.low if sign > 0 else wide.high
    assert short == pytest.approx((Z_95 - a * Z_95**2) * 3.5 / Z_95)
    assert short > 3.5 - a * 3.5**2


RUNS = 400
FIRST, MOST = 64, 256
"""documents; tests/nightly/test_intervals.py has more of both"""
REPLICATES = 600

ROWS = {
    "normal": lambda rng, shape: 1 + rng.normal(size=shape) / 5,
    "skewness 1.4": lambda rng, shape: rng.gamma(2.0, 0.5, size=shape),
    "skewness 2.8": lambda rng, shape: rng.gamma(0.5, 2.0, size=shape),
}
"""all of mean 1"""


def decisions(rng: np.random.Generator, bound: float, draw) -> list[tuple[str, int]]:
    """(verdict, documents) of simulated gates on the mean of rows."""
    sizes = look_sizes(FIRST, MOST)
    rows = draw(rng, (MOST, RUNS))
    looks = [divergences(rows[:size], REPLICATES) for size in sizes]
    critical = [critical_value(sizes[: k + 1], MOST) for k in range(len(sizes))]
    found = []
    for estimates in zip(*looks, strict=True):
        for estimate, size, z in zip(estimates, sizes, critical, strict=True):
            judged = repeated_interval(estimate, z)
            status = decide("kl_divergence", estimate, threshold(bound), size, judged=judged).status
            if status != "inconclusive":
                break
        found.append((status, size))
    return found


@pytest.mark.parametrize("name", ROWS)
def test_looking_again_keeps_the_error_at_five_percent(name):
    """Gates whose truth lies exactly on the bound: either decision is an error."""
    found = decisions(np.random.default_rng(6), 1.0, ROWS[name])
    passed, failed = (sum(s == verdict for s, _ in found) / RUNS for verdict in ("pass", "fail"))
    print(f"{name}: of {RUNS} gates on the bound {100 * passed:.2f}% pass, {100 * failed:.2f}% fail")
    assert passed + failed <= 0.065
    assert failed <= 0.04


def test_plain_intervals_would_not():
    """What looking again at 95% intervals comes to: about twice the error."""
    rows = ROWS["normal"](np.random.default_rng(6), (2000, 2048))
    outside = [
        abs(rows[:, :n].mean(1) - 1) > Z_95 * rows[:, :n].std(1) / n**0.5 for n in look_sizes(256, 2048)
    ]
    assert np.any(outside, axis=0).mean() > 0.1


def test_clear_cases_are_decided_early():
    rng = np.random.default_rng(7)
    for bound, verdict in ((1.6, "pass"), (0.6, "fail")):
        found = decisions(rng, bound, ROWS["skewness 1.4"])
        assert sum(status == verdict for status, _ in found) >= 0.99 * RUNS
        assert np.mean([size for _, size in found]) < 0.5 * MOST
