"""From rows to values with intervals, against scipy, direct float64 formulas and simulated truth."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar

from builders import Synthetic, cosines, feature_sums, measurement, self_measurement, synthetic
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.features import BLOCKS
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.stats import bootstrap
from qsae_bench.stats.bootstrap import (
    Estimate,
    Estimates,
    bootstrap_weights,
    column_sums,
    estimate,
    jackknife,
    percentile_interval,
)

LAYER = 3
FEW = 20
"""replicates where only the point values are looked at"""


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return synthetic(seed=1)


@pytest.fixture(scope="module")
def estimates(data) -> Estimates:
    return estimate(measurement(data, (LAYER,)))


# -- values against direct formulas ---------------------------------------------------------------


def test_loss_values_against_direct_formulas(data, estimates):
    r, q = data.nll_r[data.scored], data.nll_q[data.scored]
    right_r, right_q, delta_p = (a[data.scored] for a in (data.right_r, data.right_q, data.delta_p))
    expected = {
        "cross_entropy": q.mean(),
        "perplexity": np.exp(q.mean()),
        "cross_entropy_delta": q.mean() - r.mean(),
        "cross_entropy_delta_pct": 100 * (q.mean() - r.mean()) / r.mean(),
        "perplexity_increase_pct": 100 * (np.exp(q.mean()) / np.exp(r.mean()) - 1),
        "kl_divergence": data.kl[data.scored].mean(),
        "flips_to_wrong": (right_r & ~right_q).mean(),
        "flips_to_right": (~right_r & right_q).mean(),
        "delta_p_mean": delta_p.mean(),
        "delta_p_rms": np.sqrt((delta_p**2).mean()),
        "nonfinite_share": 0.0,
    }
    found = {key: estimates.cell[key].value for key in expected}
    assert found == pytest.approx(expected, rel=1e-10)


def test_reconstruction_values_against_direct_formulas(data, estimates):
    valid, every = data.ordinary, data.valid

    def fvu(side, mask, centre=None):
        x, error = side.x[mask], side.x[mask] - side.x_hat[mask]
        centre = x.mean(axis=0) if centre is None else centre
        return (error**2).sum() / ((x - centre) ** 2).sum()

    q, everywhere = data.q, np.ones_like(valid)
    x_r = data.r.x[valid]
    variance_r = ((x_r - x_r.mean(axis=0)) ** 2).sum()
    variance_q = ((q.x[valid] - q.x[valid].mean(axis=0)) ** 2).sum()
    error_q = ((q.x[valid] - q.x_hat[valid]) ** 2).sum()
    moved = q.x[valid] - x_r
    variance_all = ((data.r.x[every] - data.r.x[every].mean(axis=0)) ** 2).sum()
    expected = {
        "fvu": fvu(q, valid),
        "fvu_drift": fvu(q, valid) - fvu(data.r, valid),
        "fvu_fixed": error_q / variance_r,
        "fvu_all": fvu(q, every),
        "fvu_drift_all": fvu(q, every) - fvu(data.r, every),
        "fvu_scalar_bos": fvu(q, everywhere, q.x.mean()),
        "fvu_scalar": fvu(q, every, q.x[every].mean()),
        "mse": ((q.x[valid] - q.x_hat[valid]) ** 2).mean(),
        "fvu_denominator": variance_q,
        "l0": (q.features[valid] > 0).sum(axis=1).mean(),
        "l0_ratio": (q.features[valid] > 0).sum() / (data.r.features[valid] > 0).sum(),
        "l2_ratio": np.linalg.norm(q.x_hat[valid], axis=1).mean()
        / np.linalg.norm(q.x[valid], axis=1).mean(),
        "reconstruction_cosine": cosines(q.x[valid], q.x_hat[valid]).mean(),
        "sink_share": data.sinks.sum() / every.sum(),
        "sinks_gained": 1000 / every.sum(),
        "sinks_lost": 1000 / every.sum(),
        "perturbation_nsr_all": ((q.x - data.r.x)[every] ** 2).sum() / variance_all,
        "perturbation_nsr": (moved**2).sum(1).mean() / (variance_r / valid.sum()),
        "perturbation_rel_l2": np.linalg.norm(moved) / np.linalg.norm(x_r),
        "perturbation_token_l2": np.linalg.norm(moved, axis=1).mean(),
        "mean_shift": (moved.mean(axis=0) ** 2).sum() / (variance_r / valid.sum()),
        "residual_cosine": cosines(q.x[valid], x_r).mean(),
        "resolution_ratio": (moved**2).sum() / variance_r / fvu(data.r, valid),
        "cross_fvu": ((x_r - q.x_hat[valid]) ** 2).sum() / variance_r,
        "cross_fvu_all": ((data.r.x - q.x_hat)[every] ** 2).sum() / variance_all,
        "decoded_drift": ((q.x_hat[valid] - data.r.x_hat[valid]) ** 2).sum() / variance_r,
    }
    found = {key: estimates.layers[LAYER][key].value for key in expected}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_kl_quantiles_are_those_of_the_positions(data, estimates):
    kl = data.kl[data.scored]
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    for name, share in shares.items():
        found = estimates.cell[f"kl_divergence_{name}"]
        assert found.value == np.quantile(kl, share, method="inverted_cdf")
        assert found.low is not None and found.high is not None
        assert found.low <= found.value <= found.high


def test_flips_are_tested_as_statsmodels_does(data, estimates):
    wrong = int((data.right_r & ~data.right_q)[data.scored].sum())
    right = int((~data.right_r & data.right_q)[data.scored].sum())
    expected = mcnemar([[0, wrong], [right, 0]], exact=True).pvalue
    assert estimates.cell["flips_mcnemar_p"].value == pytest.approx(expected, rel=1e-9)


def test_costs_have_a_value_and_no_interval(data):
    found = estimate(measurement(data, costs={"load_seconds": 1.5}), FEW)
    assert found.cell["load_seconds"] == Estimate(1.5)


def test_every_interval_is_ordered_and_of_a_known_metric(estimates):
    for scope, found in (("cell", estimates.cell), ("layer", estimates.layers[LAYER])):
        assert found
        for key, e in found.items():
            assert METRICS[key].scope == scope
            if e.low is not None and e.high is not None:
                assert e.low <= e.high, key


# -- intervals ------------------------------------------------------------------------------------

BOOTSTRAP_DRAWS = 20_000


@pytest.mark.parametrize("statistic", ["mean", "ratio", "exp_difference"])
def test_replicates_agree_with_scipys_bootstrap(statistic):
    rng = np.random.default_rng(5)
    n = 60
    tokens = rng.integers(50, 128, size=n).astype(float)
    nll_r = tokens * rng.gamma(20.0, 0.1, size=n)
    nll_q = nll_r + tokens * rng.normal(0.1, 0.2, size=n)
    samples = {"tokens": tokens, "nll_r": nll_r, "nll_q": nll_q, "rows": np.ones(n)}

    def of(s):
        if statistic == "mean":
            return s["nll_q"] / s["rows"]
        if statistic == "ratio":
            return s["nll_q"] / s["tokens"]
        return np.exp((s["nll_q"] - s["nll_r"]) / s["tokens"])

    drawn = [of(column_sums(Rows(samples), w)) for w in bootstrap_weights(n, BOOTSTRAP_DRAWS, seed=3)]
    ours = percentile_interval(np.concatenate(drawn))
    theirs = scipy.stats.bootstrap(
        tuple(samples.values()),
        lambda *columns, axis=-1: of({k: c.sum(axis=axis) for k, c in zip(samples, columns, strict=True)}),
        paired=True, vectorized=True, method="percentile", n_resamples=BOOTSTRAP_DRAWS, batch=2000,
        rng=np.random.default_rng(17),
    )  # fmt: skip
    # a 2.5% quantile of B normal draws has standard error sqrt(.025 · .975 / B) / φ(1.96) deviations
    error = math.sqrt(0.025 * 0.975 / BOOTSTRAP_DRAWS) / scipy.stats.norm.pdf(1.96) * theirs.standard_error
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=5 * math.sqrt(2) * error)
    assert 10 * error < ours[1] - ours[0], "else the comparison says nothing"


def fvu_and_error(data: Synthetic, pick: np.ndarray) -> tuple[float, float]:
    """FVU of the rows ``pick``, and its standard error from each row's own error and variance."""
    mask = data.ordinary[pick][..., None]
    x, x_hat = data.q.x[pick], data.q.x_hat[pick]
    mean = (x * mask).sum((0, 1)) / mask.sum()
    error, variance = (((one**2) * mask).sum((1, 2)) for one in (x - x_hat, x - mean))
    value = error.sum() / variance.sum()
    return value, math.sqrt(((error - value * variance) ** 2).sum()) / variance.sum()


def test_estimates_own_interval_is_the_bootstrap_t(data, estimates):
    """One metric with a vector column, resampled here row by row."""
    rng = np.random.default_rng(11)
    n = len(data.valid)
    value, error = fvu_and_error(data, np.arange(n))
    scaled = []
    for _ in range(2000):
        again, own = fvu_and_error(data, rng.integers(0, n, size=n))
        scaled.append((again - value) / own)
    above, below = np.quantile(scaled, [0.025, 0.975])
    found = estimates.layers[LAYER]["fvu"]
    # the two have other draws, and a replicate's direction of the mean is taken from the whole (see
    # linear_summands): of these 40 documents the mean is small beside their spread, so that this widens it
    assert (found.low, found.high) == pytest.approx(
        (value - below * error, value - above * error), abs=0.5 * error
    )


def with_documents(whole: Measurement, documents: np.ndarray) -> Measurement:
    return dataclasses.replace(
        whole,
        rows=dataclasses.replace(whole.rows, documents=documents),
        layers={k: dataclasses.replace(rows, documents=documents) for k, rows in whole.layers.items()},
    )


def test_the_unit_that_is_drawn_is_the_document(data):
    """Each sequence twice is no more text: the interval is that of the documents, not narrower."""
    once = measurement(data, (LAYER,))
    n = len(once.rows)
    doubled = np.repeat(np.arange(n), 2)
    naive_rows = taken(once, doubled)
    twice = with_documents(naive_rows, doubled)
    expected, found, naive = (estimate(one) for one in (once, twice, naive_rows))
    for ours, theirs, plain in (
        (found.cell, expected.cell, naive.cell),
        (found.layers[LAYER], expected.layers[LAYER], naive.layers[LAYER]),
    ):
        for key, e in ours.items():
            if e.low is None or METRICS[key].interval == "jackknife" or key == "fvu_denominator":
                continue
            other = theirs[key]
            assert (e.low, e.high) == pytest.approx((other.low, other.high), rel=1e-6, abs=1e-12), key
        for key in {"kl_divergence", "fvu"} & ours.keys():
            assert plain[key].half_width < 0.9 * ours[key].half_width


@pytest.mark.parametrize(("level", "tail"), [(0.95, 0.025), (0.5, 0.25)])
def test_percentile_interval_takes_both_tails(level, tail):
    low, high = percentile_interval(np.arange(10_001) / 10_000, level)
    assert (low, high) == pytest.approx((tail, 1 - tail))


def test_one_replicate_that_is_no_number_shows():
    low, high = percentile_interval(np.array([1.0, np.nan, 2.0]))
    assert math.isnan(low) and math.isnan(high)


def test_draws_are_whole_samples_of_the_rows_size():
    weights = np.concatenate(list(bootstrap_weights(7, 600, seed=0)))
    assert weights.shape == (600, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights >= 0).all() and (weights == np.round(weights)).all()
    # each count is Binomial(7, 1/7)
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=5 * math.sqrt(6 / 7 / 600))
    assert weights.var() == pytest.approx(6 / 7, rel=0.15)
    np.testing.assert_array_equal(weights, np.concatenate(list(bootstrap_weights(7, 600, seed=0))))
    assert not np.array_equal(weights, np.concatenate(list(bootstrap_weights(7, 600, seed=1))))


# -- what may not matter --------------------------------------------------------------------------


def check_same_values(found: Estimates, expected: Estimates) -> None:
    for ours, theirs in ((found.cell, expected.cell), (found.layers[LAYER], expected.layers[LAYER])):
        assert ours.keys() == theirs.keys()
        for key, e in ours.items():
            if key != "drift_resolution":  # an interval's width, which is of the draws
                assert e.value == pytest.approx(theirs[key].value, rel=1e-10, abs=1e-12), key


def taken(whole: Measurement, index) -> Measurement:
    return dataclasses.replace(
        whole,
        rows=whole.rows.take(index),
        layers={layer: rows.take(index) for layer, rows in whole.layers.items()},
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(24)))
def test_order_of_rows_changes_no_metric(seed, order):
    whole = measurement(synthetic(seed, n=24), (LAYER,))
    check_same_values(estimate(taken(whole, np.array(order)), FEW), estimate(whole, FEW))


# -- a cell against itself ------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 70), st.integers(2, 40))
def test_the_reference_against_itself_differs_by_exactly_nothing(seed, n, d):
    found = estimate(self_measurement(synthetic(seed, n=n, d=d, length=4)), replicates=100)
    nothing = Estimate(0.0, 0.0, 0.0)
    for key in ("cross_entropy_delta", "cross_entropy_delta_pct", "perplexity_increase_pct"):
        assert found.cell[key] == nothing, key
    layer = found.layers[LAYER]
    for key in ("fvu_drift", "mean_shift", "splice_excess"):
        assert layer[key] == nothing, key
    assert layer["l0_ratio"] == Estimate(1.0, 1.0, 1.0)
    assert layer["fvu_fixed"] == layer["fvu"]


def test_equal_seeds_give_equal_intervals(data, estimates):
    assert estimate(measurement(data, (LAYER,))) == estimates


def test_half_width():
    assert Estimate(1.0, 0.5, 2.5).half_width == 1.0
    assert Estimate(1.0).half_width == 0.0
    assert Estimate(1.0, None, 2.0).half_width == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_makes_an_estimate_not_finite(bad):
    assert Estimate(1.0, 0.5, 1.5).is_finite and Estimate(1.0).is_finite
    assert not Estimate(bad).is_finite
    assert not Estimate(1.0, bad, 1.5).is_finite
    assert not Estimate(1.0, 0.5, bad).is_finite


# -- features --------------------------------------------------------------------------------------


def activations(seed=0, d_sae=200, noise=0.35):
    """Sums of simulated activations: features differ in how well q follows r."""
    quality = np.random.default_rng(99).uniform(0, noise, size=d_sae)  # the same whatever the seed
    rng = np.random.default_rng(seed)
    r, q = [], []
    for _ in range(BLOCKS):
        f_r = np.maximum(rng.normal(size=(150, d_sae)) - 0.3, 0)
        r.append(f_r)
        q.append(np.where(f_r > 0, np.maximum(f_r + quality * rng.normal(size=f_r.shape), 0), 0))
    return feature_sums(np.stack(r), np.stack(q))


def test_jackknife_of_a_mean_is_students_interval(monkeypatch):
    """For equal blocks and a mean the delete-a-group jackknife is t's interval of block means."""
    sums = activations()

    def mean(sums, leave_out=None):
        vectors, positions = sums.total(leave_out)
        return {"feature_slope_p50": float(vectors["sum_r"][0] / positions)}

    monkeypatch.setattr(bootstrap, "feature_values", mean)
    found = jackknife(sums, 0.95)["feature_slope_p50"]
    means = sums.vectors["sum_r"][:, 0] / sums.positions
    low, high = scipy.stats.t.interval(0.95, BLOCKS - 1, loc=means.mean(), scale=scipy.stats.sem(means))
    assert (found.low, found.value, found.high) == pytest.approx((low, means.mean(), high), rel=1e-12)


def test_intervals_cover_the_expected_value():
    """The same features on 80 independent corpora: the interval of each holds the mean of all."""
    draws = [jackknife(activations(seed=seed, noise=1.2), 0.95)["feature_survival"] for seed in range(80)]
    truth = np.mean([e.value for e in draws])
    assert 0.1 < truth < 0.9
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in draws)
    assert np.mean([e.low <= truth <= e.high for e in draws]) >= 0.9
    assert np.median([e.half_width for e in draws]) < 4 * np.std([e.value for e in draws])


def test_shares_stay_within_their_range_and_counts_have_no_interval():
    found = jackknife(activations(noise=0.01), 0.95)
    assert found["feature_survival"].high <= 1
    assert found["feature_correlation_p90"].high <= 1
    assert found["features_eligible"].low is None
    assert found["features_newly_dead"].low is None
