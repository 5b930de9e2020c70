"""How many tokens a decision takes. Pure.

An interval narrows with the square root of the tokens. A cell whose true value is a distance d from the
bound is decided when its interval leaves the bound out: when the estimate is more than ``critical``
standard errors on its own side of it. With an error s at ``tokens``, the chance of that is ``power`` at ::

    tokens · (s · (critical + z_power) / d)²

the usual sample size of a one-sided z-test (Lachin 1981, Controlled Clinical Trials 2: 93–113, eq. 1, with
one group). With power one half z is 0, and that is the plain question when the interval as measured would
have narrowed enough. Under a sequential plan ``critical`` is its last look's value; the looks before it can
only decide more cells, so the number is a little too large, never too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qsae_bench.gate.thresholds import Threshold
from qsae_bench.stats.bootstrap import Estimate
from qsae_bench.stats.sequential import Z_95, critical_value, look_sizes

POWER = 0.8


def normal_quantile(power: float) -> float:
    """The normal quantile of ``power``, a probability of at least one half."""
    from scipy.stats import norm

    return float(norm.ppf(power))


def standard_error(measured: Estimate) -> float:
    """From the half-width of its 95% interval; 0 where there is none."""
    return measured.half_width / Z_95


def last_critical_value(first: int, most: int) -> float:
    """The critical value of the last look of a plan from ``first`` to ``most`` tokens."""
    return critical_value(look_sizes(first, most), most) if first < most else Z_95


def tokens_to_decide(
    measured: Estimate, bound: float, tokens: int, power: float = POWER, critical: float = Z_95
) -> float:
    """Tokens with which a cell that is truly as measured is decided with probability ``power``.

    0 where the value has no error, infinite where it lies on the bound.
    """
    error, distance = standard_error(measured), abs(measured.value - bound)
    if error == 0:
        return 0.0
    if distance == 0:
        return math.inf
    ratio = error * (critical + normal_quantile(power)) / distance
    return tokens * ratio * ratio if ratio < 1e150 else math.inf


def resolvable_distance(
    measured: Estimate, tokens: int, most: int, power: float = POWER, critical: float = Z_95
) -> float:
    """How far from the bound, on either side, a cell must lie for ``most`` tokens to decide it."""
    return standard_error(measured) * (critical + normal_quantile(power)) * math.sqrt(tokens / most)


@dataclass(frozen=True)
class TokenNeed:
    """What deciding at one threshold takes."""

    threshold: Threshold
    measured: Estimate
    tokens: int
    """on which it was measured"""
    needed: float
    """tokens that decide it, if it is as measured"""
    most: int | None
    """``max_tokens``, where that is known"""
    resolved: float | None
    """the smallest distance from the bound that ``most`` tokens decide"""

    @property
    def decidable(self) -> bool:
        """False where not even ``most`` tokens decide it."""
        return self.most is None or self.needed <= self.most


def token_need(
    threshold: Threshold, measured: Estimate, tokens: int, first: int = 0, most: int | None = None
) -> TokenNeed:
    """Tokens for one threshold, under the plan that looks from ``first`` to ``most`` tokens.

    Without a plan the critical value is that of a single look.
    """
    critical = last_critical_value(first or most, most) if most else Z_95
    resolved = resolvable_distance(measured, tokens, most, critical=critical) if most else None
    needed = tokens_to_decide(measured, threshold.bound, tokens, critical=critical)
    return TokenNeed(threshold, measured, tokens, needed, most, resolved)
