"""Paired tests of feature metrics, against a loop and exact enumeration; rows are tested in test_comparison."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from builders import features_of_two
from qsae_bench.metrics.features import VECTORS, FeatureSums, feature_values
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.comparison import COMPARISON_ALPHA, holm
from qsae_bench.stats.permutation import SWAPS, block_swaps, feature_tests, swaps_for

FEATURES = ("feature_survival", "feature_correlation_p50", "feature_survival_weighted")


def test_feature_tests_against_a_loop():
    a, b = features_of_two(np.random.default_rng(3), noise=1.0, quiet=0.8)
    found = feature_tests(a, b, FEATURES, 0.9)
    for key in FEATURES:
        value = feature_values(a)[key] - feature_values(b)[key]
        left_out = [feature_values(a, k)[key] - feature_values(b, k)[key] for k in range(8)]
        mean = sum(left_out) / 8
        error = math.sqrt(7 / 8 * sum((one - mean) ** 2 for one in left_out))
        half = scipy.stats.t(7).interval(0.9)[1] * error
        one = found[key]
        assert error > 0 and one.method == "jackknife"
        assert (one.a, one.b) == (feature_values(a)[key], feature_values(b)[key])
        assert (one.difference.low, one.difference.high) == pytest.approx(
            (value - half, value + half), rel=1e-9
        )
        assert one.p == pytest.approx(2 * scipy.stats.t(7).cdf(-abs(value) / error), rel=1e-9)
    assert found["feature_correlation_p50"].p < 0.05


def lost_features(a: FeatureSums, which: slice) -> FeatureSums:
    """The same, with features that follow the reference no longer, wherever one looks."""
    vectors = {name: vector.copy() for name, vector in a.vectors.items()}
    vectors["product"][:, which] = (vectors["sum_r"] * vectors["sum_q"] / a.positions[:, None])[:, which]
    return FeatureSums(vectors, a.positions, a.decoder_square)


def test_without_spread_every_exchange_of_blocks_decides():
    """Student's t would be infinite; a normal standard error of 0 must not become proof."""
    a, _ = features_of_two(np.random.default_rng(5), noise=0.0)
    b = lost_features(a, slice(0, 3))
    one = feature_tests(a, b, ["feature_survival"], 0.95)["feature_survival"]
    assert (one.a, one.b) == (1.0, pytest.approx(21 / 24))
    assert (one.difference.low, one.difference.high, one.method) == (None, None, "block swap")
    extreme = 0
    for swap in itertools.product([False, True], repeat=8):
        sides = []
        for own, others in ((a, b), (b, a)):
            mixed = {
                name: np.array([(others if s else own).vectors[name][k] for k, s in enumerate(swap)])
                for name in VECTORS
            }
            sides.append(
                feature_values(FeatureSums(mixed, a.positions, a.decoder_square))["feature_survival"]
            )
        extreme += abs(sides[0] - sides[1]) >= 3 / 24 - 1e-12
    assert one.p == extreme / 256
    assert 1 / 128 <= one.p < 1


def test_equal_features_are_no_difference():
    a, _ = features_of_two(np.random.default_rng(5), noise=0.0)
    found = feature_tests(a, a, FEATURES, 0.95)
    for one in found.values():
        assert (one.difference, one.p) == (Estimate(0.0, 0.0, 0.0), 1.0)
    assert block_swaps(a, a, ["feature_survival"]) == {"feature_survival": 1.0}


@pytest.mark.parametrize("tests", [1, 12, 580, 5000])
def test_the_smallest_p_survives_the_correction(tests):
    """However many tests a comparison has, a difference that no exchange matches must be callable."""
    swaps = swaps_for(tests, COMPARISON_ALPHA)
    assert swaps >= SWAPS
    assert max(holm([1 / (1 + swaps)] * tests)) <= COMPARISON_ALPHA / 10
