"""Compute how many tokens a decision takes. Pure.

An interval narrows with the square root of the tokens. A cell whose true value is a distance d from the
bound is decided when its interval excludes the bound: when the estimate lies more than ``critical``
standard errors on its side of it. With a standard error s at ``tokens``, the probability of that is
``power`` at ::

    tokens · (s · (critical + z_power) / d)²

the usual sample size of a one-sided z-test (Lachin 1981, Controlled Clinical Trials 2: 93–113, eq. 1, with
one group). With power one half z is 0: the tokens at which the interval as measured would have narrowed
enough. Under a sequential plan ``critical`` is its last look's value; the earlier looks can only decide
more cells, so the number is slightly too large, never too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsae_bench.gate.thresholds import Threshold
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import Z_95, critical_value, look_sizes

POWER = 0.8
"""probability with which the tokens asked for decide a cell that is truly as measured"""


def _needed_distance(measured: Estimate, power: float, critical: float) -> float:
    """Return how far from the bound a value must lie to be decided; 0 without an interval."""
    from scipy.stats import norm

    return measured.half_width / Z_95 * (critical + float(norm.ppf(power)))


def last_critical_value(first: int, most: int) -> float:
    """Return the critical value of the last look of a plan from ``first`` to ``most`` tokens."""
    return critical_value(look_sizes(first, most), most) if first < most else Z_95


def tokens_to_decide(
    measured: Estimate, bound: float, tokens: int, power: float = POWER, critical: float = Z_95
) -> float:
    """Return the tokens that decide a cell that is truly as measured, with probability ``power``.

    Args:
        measured: the value with its 95% interval on ``tokens`` tokens.
        power: probability of a decision, at least one half.
        critical: standard errors that decide.

    Returns:
        0 where the value has no error, infinity where it lies on the bound.
    """
    needed, distance = _needed_distance(measured, power, critical), abs(measured.value - bound)
    if needed == 0:
        return 0.0
    if distance == 0:
        return math.inf
    ratio = needed / distance
    return tokens * ratio * ratio if ratio < 1e150 else math.inf


def resolvable_distance(
    measured: Estimate, tokens: int, most: int, power: float = POWER, critical: float = Z_95
) -> float:
    """Return how far from the bound, on either side, a cell must lie for ``most`` tokens to decide it."""
    return _needed_distance(measured, power, critical) * math.sqrt(tokens / most)


@dataclass(frozen=True)
class TokenNeed:
    """Hold the number of tokens that a decision at one threshold takes."""

    threshold: Threshold
    measured: Estimate
    tokens: int
    """tokens that the value was measured on"""
    needed: float
    """tokens that decide the cell if it truly is as measured"""
    most: int | None
    """``max_tokens`` of the corpus, where that is known"""
    resolved: float | None
    """the smallest distance from the bound that ``most`` tokens decide"""

    @property
    def decidable(self) -> bool:
        """Return whether ``most`` tokens are enough."""
        return self.most is None or self.needed <= self.most


def token_need(
    threshold: Threshold, measured: Estimate, tokens: int, first: int = 0, most: int | None = None
) -> TokenNeed:
    """Return the tokens one threshold needs under a plan that looks from ``first`` to ``most`` tokens.

    Without a plan the critical value is that of a single look.
    """
    critical = last_critical_value(first or most, most) if most else Z_95
    resolved = resolvable_distance(measured, tokens, most, critical=critical) if most else None
    nearest = threshold.nearest(measured.value)
    needed = tokens_to_decide(measured, nearest, tokens, critical=critical)
    return TokenNeed(threshold, measured, tokens, needed, most, resolved)
