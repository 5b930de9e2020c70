"""A cell is worse than accepted where the difference is shown, harmful, and of a size that means something."""

from __future__ import annotations

import pytest

from qsae_bench.gate.accepted import (
    AgainstAccepted,
    in_short,
    least_relevant,
    message,
    relative_change,
    worse_metrics,
)
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.comparison import Difference
from qsae_bench.stats.permutation import Contrast


def difference(metric, accepted, now, p=1e-4, layer=None):
    change = now - accepted
    tested = Contrast(now, accepted, Estimate(change, change * 0.9, change * 1.1), p, "label swap")
    return Difference(metric, layer, tested)


def worse(*found, noise=None):
    return [(d.metric, d.layer) for d in worse_metrics(found, noise or {})]


@pytest.mark.parametrize(
    ("metric", "accepted", "now", "is_worse"),
    [
        ("kl_divergence", 1e-3, 1.2e-3, True),
        ("kl_divergence", 1.2e-3, 1e-3, False),  # better
        ("kl_divergence", 1e-3, 1.005e-3, False),  # by half a percent
        ("kl_divergence", 0.0, 1e-7, False),  # from nothing to rounding
        ("kl_divergence", 0.0, 1e-5, True),
        ("top1_agreement", 0.95, 0.93, True),
        ("top1_agreement", 0.93, 0.95, False),
        ("top1_agreement", 0.95, 0.945, False),  # less than a hundredth
        ("perturbation_nsr", 3.004e-3, 3.006e-3, False),
        ("perturbation_nsr", 3.004e-3, 3.5e-3, True),
        ("fvu_drift", -1e-3, 1e-3, True),
        ("l0_ratio", 1.0, 1.5, False),  # neither direction is better
    ],
)
def test_direction_and_size(metric, accepted, now, is_worse):
    assert bool(worse(difference(metric, accepted, now))) is is_worse


def test_a_difference_must_be_shown_for_all_metrics_together():
    large = difference("kl_divergence", 1e-3, 2e-3, p=0.004)
    others = [difference("perturbation_nsr", 0.1, 0.1, p=1.0, layer=k) for k in range(2)]
    assert worse(large, others[0]) == [("kl_divergence", None)]  # 2 × 0.004
    assert worse(large, *others) == []  # 3 × 0.004


def test_a_metric_that_could_not_be_tested_decides_nothing():
    assert worse(difference("kl_divergence", 1e-3, float("nan"), p=None)) == []


def test_a_measured_noise_floor_is_believed():
    found = difference("kl_divergence", 1e-3, 1.2e-3), difference("fvu_drift", 0.002, 0.003, layer=3)
    assert worse(*found, noise={("kl_divergence", None): 3e-4}) == [("fvu_drift", 3)]
    assert worse(*found, noise={("fvu_drift", 3): 3e-4, ("fvu_drift", 4): 1.0}) == [
        ("kl_divergence", None), ("fvu_drift", 3),
    ][::-1]  # fmt: skip


def test_the_surest_comes_first_and_then_the_largest():
    found = [
        difference("kl_divergence", 1e-3, 1.2e-3), difference("fvu_drift", 0.002, 0.003, layer=3),
        difference("perturbation_nsr", 0.003, 0.03, p=1e-3, layer=3),
    ]  # fmt: skip
    assert worse(*found) == [("fvu_drift", 3), ("kl_divergence", None), ("perturbation_nsr", 3)]


def test_a_change_is_measured_by_the_harm_that_was_accepted():
    loss = difference("top1_agreement", 0.96, 0.95)
    assert relative_change(loss) == pytest.approx(0.25)
    assert least_relevant(loss, 0.0) == 0.01
    assert least_relevant(difference("kl_divergence", 0.02, 0.03), 0.0) == pytest.approx(2e-4)
    assert relative_change(difference("kl_divergence", 0.0, 1e-5)) == float("inf")


def compared(*found):
    return AgainstAccepted(
        "20260101T030000Z-0001", "2026-01-01T03:00:00+00:00", 8128, 12, worse_metrics(found, {}), moved="the setup: torch",
    )  # fmt: skip


def test_the_message_says_what_is_worse_and_what_to_do():
    found = compared(
        difference("kl_divergence", 1e-3, 1.2e-3), difference("fvu_drift", 0.002, 0.003, layer=3)
    )
    text = message("tiny-nf4", found, "compare it", "accept it")
    assert text.splitlines() == [
        "tiny-nf4: WORSE THAN ACCEPTED in 2 of 12 metrics tested",
        "  accepted   run 20260101T030000Z-0001 of 2026-01-01; both on the same 8,128 tokens",
        "  worse      fvu_drift of layer 3  0.002 → 0.003: +0.001 ± 0.0001 fraction, Holm p 0.0002",
        "  worse      kl_divergence         0.001 → 0.0012: +0.0002 ± 2e-05 nats, Holm p 0.0002",
        "  moved      the setup: torch",
        "  more       compare it",
        "  accept it  accept it",
    ]
    assert in_short(found) == (
        "worse than accepted: fvu_drift of layer 3 0.002 → 0.003 and 1 more (of 12 tested); against run "
        "20260101T030000Z-0001 of 2026-01-01"
    )


def test_what_is_not_worse_has_nothing_to_say():
    found = compared(difference("kl_divergence", 1e-3, 1e-3))
    assert (found.is_worse, in_short(found)) == (False, "")
