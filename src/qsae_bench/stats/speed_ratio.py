"""Compute ratios of the speeds of two workloads, with 95% intervals. Pure: numpy only.

The intervals are order statistics, not a bootstrap: what they cover is known exactly for any number of
rounds and any continuous noise, and no random draw is involved. (At five rounds a side a percentile
bootstrap of the medians is as wide and covers as much; at four it covers 93%, these 97%.)

- Two workloads timed one after the other (a cell and its reference): the interval of Moses (Hollander,
  Wolfe & Chicken 2014, 4.3), which inverts the Mann-Whitney test over all pairs of a round of one and a
  round of the other. It is exact where one side's seconds are distributed as the other's times a factor.
  Where one side varies fifteen times as much as the other, its 97% are 94% (simulated in
  tests/unit/stats/test_speed_ratio.py).
- Two workloads timed in turns: the interval of the sign test over the pairs' ratios, see
  :func:`paired_ratio`.

Both cover how rounds differ from each other. Neither covers what is the same for all rounds of one side,
such as another program that slows the machine during one of the two timings. That is flagged
(:mod:`qsae_bench.measure.device_state`), and the margin of a threshold has to cover it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from qsae_bench.stats.bootstrap import LEVEL, Estimate

FEWEST_PAIRS = 6
"""rounds in turns below which even the range of all ratios covers less than 95%"""


def speed_ratio(own: Sequence[float], reference: Sequence[float]) -> Estimate:
    """Return the ratio of two median speeds, with its 95% interval.

    Args:
        own: tokens per second of every round.
        reference: the same of the reference; the number of rounds may differ.

    Returns:
        The estimate. It has no interval where the rounds are too few: four a side are needed, see
        :func:`coverage`.
    """
    value = float(np.median(own)) / float(np.median(reference))
    outside = pairs_outside(len(own), len(reference))
    if outside is None:
        return Estimate(value)
    ratios = np.sort(np.divide.outer(own, reference), axis=None)
    return Estimate(value, float(ratios[outside]), float(ratios[len(ratios) - 1 - outside]))


def pairs_outside(n: int, m: int, level: float = LEVEL) -> int | None:
    """Return how many of the n·m sorted ratios lie below the interval, and as many above it.

    None if even the range of all ratios covers less than ``level``.
    """
    below = np.cumsum(mann_whitney(n, m))
    allowed = int(np.searchsorted(below, (1 - level) / 2, side="right"))
    return allowed - 1 if allowed else None


def coverage(n: int, m: int) -> float:
    """Return the probability that the interval of n and m rounds contains the ratio; 0 if there is none."""
    outside = pairs_outside(n, m)
    return 0.0 if outside is None else 1 - 2 * float(mann_whitney(n, m)[: outside + 1].sum())


@lru_cache(maxsize=64)
def mann_whitney(n: int, m: int) -> np.ndarray:
    """Return the probability of every U in 0..n·m under equal distributions, as an array [n·m + 1].

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


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """Return the median of ``above[i] / below[i]`` of two workloads timed in turns, with its 95% interval.

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
