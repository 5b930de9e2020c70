"""Rounds of timed work, and ratios of two of them with intervals. Pure: seconds in, numbers out.

The intervals are order statistics, not a bootstrap: what they cover is known exactly for any number of
rounds and any continuous noise, and there is no draw in them. (At five rounds a side a percentile bootstrap
of the medians is as wide and covers as much; at four it covers 93%, these 97%.)

- Two works timed one after the other (a cell and its reference): the interval of Moses (Hollander, Wolfe &
  Chicken 2014, 4.3), which inverts the Mann-Whitney test over all pairs of a round of one and a round of
  the other. It is exact where one side's seconds are distributed as the other's times a factor. Where
  one side varies fifteen times as much as the other, its 97% are 94% (tests/test_timing.py).
- Two works timed in turns: the interval of the sign test over the pairs' ratios, see :func:`paired_ratio`.

Both cover how rounds differ from each other. Neither covers what is the same for all rounds of one side: a
machine that another program slows for one of the two timings. That is flagged (:mod:`device_state`), and
the margin of a threshold has to cover it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qsae_bench.stats.bootstrap import LEVEL, Estimate

INVOCATION = f"{time.time_ns():x}"
"""marks what is timed since the command was given. Forked processes share it; a run that is resumed has
another, for the machine may be in another state by then"""


BESIDE = "its device was shared with other workers of this run"
"""a flag; a ratio with such a side decides nothing"""


@dataclass(frozen=True)
class TimedRounds:
    """How long one work took, round by round."""

    seconds: tuple[float, ...]
    """of every round, in the order in which they ran"""
    tokens: int
    """that a round works on"""
    flags: tuple[str, ...] = ()
    """what disturbed the device meanwhile, if anything did"""

    def __post_init__(self) -> None:
        if not self.seconds or not all(math.isfinite(s) and s > 0 for s in self.seconds):
            raise ValueError(f"rounds must take some time: {self.seconds}")

    @property
    def is_shared(self) -> bool:
        return BESIDE in self.flags

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))

    @property
    def spread_seconds(self) -> float:
        """Between the quartiles of the rounds (linear interpolation)."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(high - low)

    @property
    def tokens_per_second(self) -> float:
        """Of the median round."""
        return self.tokens / self.median_seconds


def speed_ratio(own: TimedRounds, reference: TimedRounds) -> Estimate:
    """Tokens a second of ``own`` over those of ``reference``: the ratio of medians, and its 95% interval.

    No interval where there are too few rounds for one: four a side are needed, see :func:`coverage`.
    """
    value = own.tokens_per_second / reference.tokens_per_second
    n, m = len(own.seconds), len(reference.seconds)
    outside = pairs_outside(n, m)
    if outside is None:
        return Estimate(value)
    speeds = [own.tokens / s for s in own.seconds], [reference.tokens / s for s in reference.seconds]
    ratios = np.sort(np.divide.outer(*speeds), axis=None)
    return Estimate(value, float(ratios[outside]), float(ratios[n * m - 1 - outside]))


def pairs_outside(n: int, m: int, level: float = LEVEL) -> int | None:
    """How many of the n·m sorted ratios lie below the interval, and above; None if even all cover less."""
    below = np.cumsum(mann_whitney(n, m))
    allowed = int(np.searchsorted(below, (1 - level) / 2, side="right"))
    return allowed - 1 if allowed else None


def coverage(n: int, m: int) -> float:
    """The chance that :func:`speed_ratio`'s interval of n and m rounds holds the ratio; 0 without one."""
    outside = pairs_outside(n, m)
    return 0.0 if outside is None else 1 - 2 * float(mann_whitney(n, m)[: outside + 1].sum())


@lru_cache(maxsize=64)
def mann_whitney(n: int, m: int) -> np.ndarray:
    """Probability of every U in 0..n·m when both sides are alike [n·m + 1].

    U is a sum of n parts of at most m each, in order: its counts are the coefficients of the Gaussian
    binomial (n + m over n), built up factor by factor.
    """
    counts = [1] + [0] * (n * m)  # Python's integers: the differences are exact
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):  # times (1 - q^(m + i))
            counts[u] -= counts[u - m - i]
        for u in range(i, n * m + 1):  # over (1 - q^i)
            counts[u] += counts[u - i]
    probabilities = np.array([count / math.comb(n + m, n) for count in counts])
    probabilities.flags.writeable = False
    return probabilities


FEWEST_PAIRS = 6
"""turns below which even all their ratios cover less than 95%"""


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """The median of ``above[i] / below[i]``, of works timed in turns, and its 95% interval.

    Each pair saw the same state of the machine, so a slow moment cancels. The interval is that of the sign
    test: the k-th lowest to the k-th highest ratio, k from the binomial distribution. It holds for any
    distribution; six turns give the lowest to the highest, 96.9%. Below six there is none.
    """
    ratios = np.sort(np.divide(above, below))
    n = len(ratios)
    value = float(np.median(ratios))
    tail, k = 0.0, 0
    while k < n // 2 and (tail := tail + math.comb(n, k) / 2**n) <= (1 - LEVEL) / 2:
        k += 1
    if not k:
        return Estimate(value)
    return Estimate(value, float(ratios[k - 1]), float(ratios[n - k]))
