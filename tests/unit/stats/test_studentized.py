"""Studentized intervals against a replicate-by-replicate computation, numerical slopes and simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import layer_rows, loss_rows, synthetic
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Limits
from qsae_bench.metrics.measurement import Rows
from qsae_bench.stats.bootstrap import bootstrap_weights, column_sums, linear_summands
from qsae_bench.stats.studentized import LEAST_ERROR, Studentized, slopes, studentized_interval
from simulated_intervals import divergences, simulated_estimates

DATA = synthetic(seed=3, n=60)
ROWS = {"cell": loss_rows(DATA), "layer": layer_rows(DATA)}
FORMULAS = [key for key, metric in METRICS.items() if metric.formula is not None]


def sums_of(rows: Rows, weights: np.ndarray | None = None) -> dict:
    weights = np.ones((1, len(rows))) if weights is None else weights
    return column_sums(rows, weights) | {"d_model": 6.0}


# -- slopes and standard errors --------------------------------------------------------------------


@pytest.mark.parametrize("key", FORMULAS)
def test_slopes_are_those_of_central_differences(key):
    metric = METRICS[key]
    at = sums_of(ROWS[metric.scope])
    for column, sums in at.items():
        if column == "d_model":
            continue
        step = 1e-6 * (abs(sums) + 1e-3)
        ends = [np.asarray(metric.formula(at | {column: sums + s})) for s in (step, -step)]
        expected = (ends[0] - ends[1]) / (2 * step)
        noise = 1e-9 * float(np.abs(metric.formula(at)).item()) / float(step.item())
        assert slopes(metric.formula, at, [column])[0] == pytest.approx(expected, rel=1e-5, abs=noise), (
            column
        )


def test_a_ratios_standard_error_is_the_textbooks():
    rows = ROWS["cell"]
    found = Studentized(METRICS["cross_entropy"].formula, sums_of(rows), linear_summands(rows))
    nll, tokens = rows.scalars["nll_q"], rows.scalars["tokens"]
    residual = nll - nll.sum() / tokens.sum() * tokens
    # Cochran 1977, eq. 6.13, without the correction for the sample's size
    assert found.error == pytest.approx(math.sqrt((residual**2).sum()) / tokens.sum(), rel=1e-12)


@pytest.mark.parametrize("key", ["fvu", "fvu_drift", "perturbation_nsr", "perplexity_increase_pct"])
def test_the_standard_error_is_the_spread_of_the_replicates(key):
    metric = METRICS[key]
    rows = ROWS[metric.scope]
    found = Studentized(metric.formula, sums_of(rows), linear_summands(rows))
    drawn = [metric.formula(sums_of(rows, w)) for w in bootstrap_weights(len(rows), 4000, seed=1)]
    assert found.error == pytest.approx(np.std(np.concatenate(drawn)), rel=0.1)


# -- the interval ----------------------------------------------------------------------------------


def direct_interval(rows: Rows, weights: np.ndarray, level: float) -> tuple[float, float]:
    """Bootstrap-t of a ratio of sums, replicate by replicate, by numpy's own standard deviation."""

    def value_and_error(nll: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
        value = nll.sum() / tokens.sum()
        return value, np.std(nll - value * tokens) * math.sqrt(len(nll)) / tokens.sum()

    nll, tokens = rows.scalars["nll_q"], rows.scalars["tokens"]
    value, error = value_and_error(nll, tokens)
    scaled = []
    for counts in weights.astype(int):
        again, own = value_and_error(np.repeat(nll, counts), np.repeat(tokens, counts))
        scaled.append((again - value) / own)
    below, above = np.quantile(scaled, [(1 - level) / 2, (1 + level) / 2])
    return value - above * error, value - below * error


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_interval_is_that_of_every_replicate_by_itself(level):
    rows = ROWS["cell"]
    found = Studentized(METRICS["cross_entropy"].formula, sums_of(rows), linear_summands(rows))
    every = list(bootstrap_weights(len(rows), 500, seed=0))
    for weights in every:
        found.add(weights, sums_of(rows, weights))
    expected = direct_interval(rows, np.concatenate(every), level)
    assert tuple(map(float, found.interval(level))) == pytest.approx(expected, rel=1e-9)


def test_many_data_sets_at_once_are_as_one_by_one():
    values = np.random.default_rng(0).gamma(0.5, size=(30, 3))
    together = divergences(values, replicates=300)
    for k, found in enumerate(together):
        (alone,) = divergences(values[:, [k]], replicates=300)
        assert (found.value, found.low, found.high) == pytest.approx(
            (alone.value, alone.low, alone.high), rel=1e-9
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 40), st.floats(0.0, 3.0))
def test_the_interval_contains_the_value_and_stays_within_the_limits(seed, n, spread):
    rng = np.random.default_rng(seed)
    for found in divergences(np.exp(spread * rng.normal(size=(n, 5))), replicates=200):
        assert 0 <= found.low <= found.value <= found.high < math.inf


# -- where a standard error says nothing -----------------------------------------------------------


def test_documents_that_are_all_alike_leave_no_uncertainty():
    (found,) = divergences(np.full((30, 1), 0.1), replicates=200)
    assert (found.low, found.value, found.high) == (found.value,) * 3 == pytest.approx((0.1,) * 3)


def test_replicates_without_spread_stretch_the_interval_to_a_limit_only():
    """A third of the replicates lack the one document that differs."""
    values = np.zeros((100, 1))
    values[7] = 1.0
    (found,) = divergences(values)
    assert found.low == 0
    error = math.sqrt(0.01 * 0.99 / 100)
    assert found.high == pytest.approx(0.01 + 0.01 / LEAST_ERROR)
    assert found.high < 0.01 + 6 * error


def test_flat_slopes_leave_the_interval_to_the_percentiles():
    drawn = np.arange(1001) / 1000
    low, high = studentized_interval(np.array(0.0), np.array(0.0), drawn, np.ones(1001), 0.95)
    assert (float(low), float(high)) == pytest.approx((0.0, 0.975))


def test_a_replicate_that_is_no_number_shows():
    drawn = np.array([1.0, np.nan, 2.0])
    for error in (0.0, 1.0):
        ends = studentized_interval(np.array(1.0), np.array(error), drawn, np.ones(3), 0.95)
        assert all(math.isnan(end) for end in ends)


def test_an_error_that_is_no_number_counts_as_the_least():
    drawn, errors = np.array([-1.0, 0.0, 1.0] * 100), np.array([math.nan, 1.0, 1.0] * 100)
    low, high = studentized_interval(np.array(0.0), np.array(1.0), drawn, errors, 0.95, Limits.ANY_NUMBER)
    assert (float(low), float(high)) == pytest.approx((-1.0, 1 / LEAST_ERROR))


# -- how often it is wrong -------------------------------------------------------------------------

DATA_SETS = 400


@pytest.mark.parametrize(
    ("name", "draw", "truth"),
    [
        ("normal", lambda rng, shape: 1 + rng.normal(size=shape) / 3, 1.0),
        ("lognormal", lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
    ],
    ids=["normal", "lognormal"],
)
def test_both_errors_are_small(name, draw, truth):
    """The percentile interval passes 7.0% of lognormal gates that lie on their bound, at 100 documents."""
    found = divergences(draw(np.random.default_rng(4), (100, DATA_SETS)), replicates=1000)
    passes = sum(e.high < truth for e in found) / DATA_SETS
    fails = sum(e.low > truth for e in found) / DATA_SETS
    print(f"{name}: {100 * passes:.1f}% false pass, {100 * fails:.1f}% false fail")
    assert passes <= 0.055 and fails <= 0.04


@pytest.mark.parametrize(
    ("metric", "truth"), [("cross_entropy", 2.05), ("perplexity_increase_pct", 100 * math.expm1(0.05))]
)
def test_intervals_cover_the_truth_as_often_as_they_say(metric, truth):
    """150 documents with an own level each, of differing length; E nll_r = 2, E (nll_q − nll_r) = 0.05."""
    rng = np.random.default_rng(2024)
    shape = (150, 2 * DATA_SETS)
    tokens = rng.integers(90, 128, size=shape).astype(float)
    level, change = rng.gamma(16.0, 2 / 16, size=shape), rng.normal(0.05, 0.1, size=shape)
    columns = {"tokens": tokens, "nll_r": tokens * level, "nll_q": tokens * (level + change)}
    found = simulated_estimates(metric, columns, replicates=1000)
    assert 0.93 <= sum(e.low <= truth <= e.high for e in found) / shape[1] <= 0.97


def test_documents_of_unequal_size_are_covered():
    """One or two sequences a document, which share the document's level."""
    rng = np.random.default_rng(5)
    shape = (100, DATA_SETS)
    tokens = 127.0 * rng.integers(1, 3, size=shape)
    columns = {"kl": tokens * rng.gamma(0.5, 2.0, size=shape), "tokens": tokens}
    found = simulated_estimates("kl_divergence", columns, replicates=1000)
    assert 0.92 <= sum(e.low <= 1.0 <= e.high for e in found) / DATA_SETS <= 0.98
