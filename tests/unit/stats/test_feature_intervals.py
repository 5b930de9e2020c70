"""Intervals of feature metrics, against closed forms and by construction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qsae_bench.metrics.features import VECTORS, FeatureSums, feature_values
from qsae_bench.stats import bootstrap as statistics
from qsae_bench.stats.bootstrap import jackknife

BLOCKS = 8


def blocks(seed=0, d_sae=200, noise=0.35):
    """Sums of simulated activations: features differ in how well q follows r."""
    quality = np.random.default_rng(99).uniform(
        0, noise, size=d_sae
    )  # the features' own, whatever the seed
    rng = np.random.default_rng(seed)
    vectors = {name: np.zeros((BLOCKS, d_sae)) for name in VECTORS}
    for block in range(BLOCKS):
        f_r = np.maximum(rng.normal(size=(150, d_sae)) - 0.3, 0)
        f_q = np.where(f_r > 0, np.maximum(f_r + quality * rng.normal(size=f_r.shape), 0), 0)
        both = (f_r > 0) & (f_q > 0)
        values = (f_r, f_q, f_r**2, f_q**2, f_r * f_q, both, (f_r > 0) & ~both, (f_q > 0) & ~both)
        for name, value in zip(VECTORS, values, strict=True):
            vectors[name][block] = value.sum(0)
    return FeatureSums(vectors, np.full(BLOCKS, 150.0), np.ones(d_sae))


def test_jackknife_of_a_mean_is_students_interval(monkeypatch):
    """For equal blocks and a mean the delete-a-group jackknife is t's interval of block means."""
    sums = blocks()

    def mean(sums, leave_out=None):
        vectors, positions = sums.total(leave_out)
        return {"feature_slope_p50": float(vectors["sum_r"][0] / positions)}

    monkeypatch.setattr(statistics, "feature_values", mean)
    found = jackknife(sums, 0.95)["feature_slope_p50"]
    means = sums.vectors["sum_r"][:, 0] / sums.positions
    low, high = stats.t.interval(0.95, BLOCKS - 1, loc=means.mean(), scale=stats.sem(means))
    assert (found.low, found.value, found.high) == pytest.approx((low, means.mean(), high), rel=1e-12)


def test_intervals_cover_the_expected_value():
    """The same features on 80 independent corpora: the interval of each holds the mean of all."""
    draws = [jackknife(blocks(seed=seed, noise=1.2), 0.95)["feature_survival"] for seed in range(80)]
    truth = np.mean([e.value for e in draws])
    assert 0.1 < truth < 0.9
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in draws)
    assert np.mean([e.low <= truth <= e.high for e in draws]) >= 0.9
    assert np.median([e.half_width for e in draws]) < 4 * np.std([e.value for e in draws])


def test_shares_stay_within_their_range_and_counts_have_no_interval():
    found = jackknife(blocks(noise=0.01), 0.95)
    assert found["feature_survival"].high <= 1
    assert found["feature_correlation_p90"].high <= 1
    assert found["features_eligible"].low is None
    assert found["features_newly_dead"].low is None


def test_leaving_a_block_out_is_having_never_had_it():
    sums = blocks()
    for gone in range(BLOCKS):
        keep = [b for b in range(BLOCKS) if b != gone]
        rest = FeatureSums(
            {name: vector[keep] for name, vector in sums.vectors.items()},
            sums.positions[keep], sums.decoder_square,
        )  # fmt: skip
        assert feature_values(sums, gone) == pytest.approx(feature_values(rest), nan_ok=True)
