"""What no working model shows, and what says nothing of an SAE or of its features."""

from __future__ import annotations

import pytest

from qsae_bench.gate.sanity import signs_of_ruin, why_too_few, why_unexplained
from qsae_bench.metrics import METRICS
from qsae_bench.metrics.features import FEWEST_ELIGIBLE, OF_ELIGIBLE
from qsae_bench.stats.bootstrap import Estimate


@pytest.mark.parametrize(
    ("values", "signs"),
    [
        ({"kl_divergence": 0.1, "top1_agreement": 0.85}, []),
        ({"kl_divergence": 1.0, "top1_agreement": 0.2}, []),
        ({"kl_divergence": 1.38, "top1_agreement": 0.48}, ["kl_divergence 1.38"]),
        (
            {"kl_divergence": 11.4, "top1_agreement": 0.0247},
            ["kl_divergence 11.4", "top1_agreement 0.0247"],
        ),
        ({"top1_agreement": 0.19, "fvu": 3.0}, ["top1_agreement 0.19"]),
        ({}, []),
    ],
)
def test_signs_of_ruin(values, signs):
    assert signs_of_ruin(values) == signs


def test_an_sae_that_explains_nothing_says_nothing():
    foreign = {"fvu": Estimate(1.19), "l0": Estimate(0.1)}
    for metric in ("fvu_drift", "feature_survival", "splice_excess", "l0_ratio"):
        assert why_unexplained(metric, foreign).startswith(
            "the SAE explains nothing of the reference (fvu 1.19, l0 0.1)"
        )
    assert why_unexplained("perturbation_nsr", foreign) == why_unexplained("kl_divergence", foreign) == ""
    assert why_unexplained("fvu_drift", {"fvu": Estimate(0.99)}) == why_unexplained("fvu_drift", {}) == ""


def test_too_few_features_say_nothing():
    few, enough = ({"features_eligible": Estimate(float(n))} for n in (4, FEWEST_ELIGIBLE))
    assert why_too_few(few).startswith("4 features are active on 20 positions of the reference, and 20")
    assert why_too_few(enough) == why_too_few({}) == ""
    assert (
        {"feature_survival", "feature_slope_p50", "feature_correlation_p10"} <= OF_ELIGIBLE <= set(METRICS)
    )
    assert not OF_ELIGIBLE & {"features_eligible", "feature_jaccard", "features_newly_dead"}


def test_all_of_the_fewest_surviving_excludes_no_more_than_a_loss_of_a_seventh():
    """If 14% were lost, all of 20 would survive in 5 of 100 samples: so many lost are not excluded."""
    assert pytest.approx(0.05, abs=0.001) == (1 - 0.139) ** FEWEST_ELIGIBLE
