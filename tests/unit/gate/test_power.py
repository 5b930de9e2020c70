"""Tokens that a decision takes, against simulated cells that are measured and decided."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import threshold
from qsae_bench.gate import power
from qsae_bench.gate.verdict import decide
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import Z_95, critical_value, look_sizes

BOUND, TRUE, SPREAD = 0.5, 0.2, 12.0
"""a metric whose tokens have this standard deviation"""
CELLS = 20_000


def as_measured(tokens: int) -> Estimate:
    half = Z_95 * SPREAD / math.sqrt(tokens)
    return Estimate(TRUE, TRUE - half, TRUE + half)


def decided(tokens: int, seed: int) -> float:
    """The share of simulated cells that ``tokens`` decide, judged as the gate judges them."""
    rng = np.random.default_rng(seed)
    error = SPREAD / math.sqrt(tokens)
    statuses = [
        decide(
            "kl_divergence", Estimate(v, v - Z_95 * error, v + Z_95 * error), threshold(BOUND), tokens
        ).status
        for v in rng.normal(TRUE, error, size=CELLS // 10)
    ]
    return statuses.count("pass") / len(statuses)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("measured_on", [500, 4000])
def test_so_many_tokens_decide_so_many_cells(share, measured_on):
    needed = power.tokens_to_decide(as_measured(measured_on), BOUND, measured_on, share)
    assert decided(round(needed), seed=measured_on) == pytest.approx(share, abs=0.03)


def test_power_one_half_is_when_the_interval_as_measured_would_end_at_the_bound():
    needed = power.tokens_to_decide(as_measured(1000), BOUND, 1000, power=0.5)
    assert as_measured(round(needed)).high == pytest.approx(BOUND, rel=1e-3)


def sequential(first: int, most: int, true: float, seed: int) -> float:
    """The share of cells decided by ``most`` tokens, looked at as the plan looks: token sums, step by step."""
    rng = np.random.default_rng(seed)
    sizes = look_sizes(first, most)
    sums, before = np.zeros(CELLS), 0
    open_cells = np.ones(CELLS, dtype=bool)
    for number, size in enumerate(sizes, start=1):
        sums += rng.normal(true * (size - before), SPREAD * math.sqrt(size - before), size=CELLS)
        before = size
        critical = critical_value(sizes[:number], most)
        open_cells &= np.abs(sums / size - BOUND) <= critical * SPREAD / math.sqrt(size)
    return 1 - open_cells.mean()


@pytest.mark.parametrize("first", [250, 1000, 8000])
def test_under_a_sequential_plan_it_is_enough_and_not_much_too_much(first):
    most = 8000
    critical = power.last_critical_value(first, most)
    away = power.resolvable_distance(as_measured(1000), 1000, most, critical=critical)
    for true in (BOUND - away, BOUND + away):
        share = sequential(first, most, true, seed=first)
        assert 0.79 < share < 0.86
    # and half as far is not enough
    assert sequential(first, most, BOUND + away / 2, seed=1) < 0.5


def test_one_look_has_the_plain_critical_value_and_more_looks_a_little_more():
    assert power.last_critical_value(5000, 5000) == Z_95
    assert Z_95 < power.last_critical_value(32512, 260096) < Z_95 * 1.1


def test_the_two_questions_are_each_others_inverse():
    measured, tokens, most = as_measured(2000), 2000, 90_000
    away = power.resolvable_distance(measured, tokens, most)
    assert power.tokens_to_decide(measured, TRUE + away, tokens) == pytest.approx(most)


finite = st.floats(-1e6, 1e6)


@given(finite, st.floats(0, 1e6), finite, st.integers(1, 10**9), st.sampled_from([0.5, 0.8, 0.99]))
def test_any_numbers_give_a_number(value, half, bound, tokens, share):
    needed = power.tokens_to_decide(Estimate(value, value - half, value + half), bound, tokens, share)
    assert needed >= 0 and not math.isnan(needed)


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.integers(1, 10**7))
def test_four_times_the_tokens_halve_what_is_told_apart(half, distance, tokens):
    measured = Estimate(0.0, -half, half)
    one, four = (power.resolvable_distance(measured, tokens, n) for n in (tokens, 4 * tokens))
    assert one == pytest.approx(2 * four)
    near, far = (power.tokens_to_decide(measured, d, tokens) for d in (distance, 2 * distance))
    assert near == pytest.approx(4 * far)


def test_what_has_no_error_is_decided_and_what_lies_on_the_bound_never():
    assert power.tokens_to_decide(Estimate(0.5), 0.4, 1000) == 0
    assert power.tokens_to_decide(Estimate(0.5), 0.5, 1000) == 0
    assert power.tokens_to_decide(Estimate(0.5, 0.4, 0.6), 0.5, 1000) == math.inf
    assert power.tokens_to_decide(Estimate(0.5, 0.0, 1.0), math.nextafter(0.5, 1), 1000) > 1e15
    assert power.tokens_to_decide(Estimate(1e-300, -1.0, 1.0), 0.0, 1000) == math.inf


def test_a_need_knows_whether_the_corpus_is_long_enough():
    close = power.token_need(threshold(TRUE + 0.01), as_measured(1000), 1000, first=1000, most=8000)
    assert not close.decidable and close.resolved > 0.01
    wide = power.token_need(threshold(TRUE + 5), as_measured(1000), 1000, first=1000, most=8000)
    assert wide.decidable and wide.needed < 1000
    unknown = power.token_need(threshold(TRUE + 0.01), as_measured(1000), 1000)
    assert unknown.decidable and unknown.resolved is None and unknown.needed > 8000
