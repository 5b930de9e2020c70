"""Find where a series of runs changed its level. Pure: numpy and ruptures.

PELT (Killick, Fearnhead & Eckley 2012) with the cost of a change in mean, and a penalty in units of the
series's own run-to-run noise. That noise is estimated from first differences, which a change of level
hardly affects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FEWEST_POINTS = 8
"""points below which the noise is too uncertain for a penalty that keeps false alarms rare"""

PENALTY, PENALTY_FEW = 13.0, 180.0
"""the penalty is (PENALTY + PENALTY_FEW / n) σ²: of white noise, 99% of series of 8 to 90 points have no
partition that is worth it. The second term covers the noise estimate's own error at few points"""

NEWEST_LIMIT, NEWEST_LIMIT_FEW = 2.5, 20.0
"""the newest point stands out beyond (NEWEST_LIMIT + NEWEST_LIMIT_FEW / n) σ, as 1% of white noise does"""

NORMAL_PER_MAD = 1.4826
"""ratio of a normal distribution's standard deviation to its median absolute deviation"""

INTERVAL_STEP, VALUE_STEP = 1e-3, 1e-9
"""a series of bit-identical values has no noise to compare with; a step then counts from this share of the
interval's half-width, or of the value"""


@dataclass(frozen=True)
class Point:
    """Hold one run's value."""

    value: float
    half_width: float = 0.0
    """half the width of its interval, 0 where it has none"""
    tokens: int = 0
    """tokens that it was measured on"""


@dataclass(frozen=True)
class LevelChange:
    """Describe a new level that begins at the point ``index``."""

    index: int
    before: float
    """median of the level before"""
    after: float
    """median of the new level"""


@dataclass(frozen=True)
class LevelChanges:
    """Hold the changes of level in a series, and whether its newest point is off its level."""

    found: tuple[LevelChange, ...]
    noise: float
    """standard deviation from run to run"""
    stands_out: bool
    """whether the newest point is off its level; the next run shows whether that lasts"""
    too_few: bool
    """whether there are fewer than :data:`FEWEST_POINTS` points, so that nothing is reported"""


def find_level_changes(points: Sequence[Point]) -> LevelChanges:
    """Return the changes of level in a series; ``points`` are finite, the oldest first."""
    if len(points) < FEWEST_POINTS:
        return LevelChanges((), math.nan, stands_out=False, too_few=True)
    values = np.array([point.value for point in points])
    sigma = estimate_noise(points)
    remaining, starts = _levels(values, sigma)
    bounds = [*starts, len(remaining)]
    found: list[LevelChange] = []
    level = remaining[: bounds[0]]
    for start, end in pairwise(bounds):
        part = remaining[start:end]
        before, after = float(np.median(values[level])), float(np.median(values[part]))
        limit = _sampling_difference([points[i] for i in level], [points[i] for i in part])
        if abs(after - before) > limit:
            found.append(LevelChange(part[0], before, after))
            level = part
        else:
            level = level + part
    others = [i for i in level if i != len(points) - 1]
    off = abs(values[-1] - float(np.median(values[others])))
    limit = (NEWEST_LIMIT + NEWEST_LIMIT_FEW / len(points)) * sigma
    limit = max(limit, _sampling_difference([points[i] for i in others], [points[-1]]))
    return LevelChanges(tuple(found), sigma, stands_out=bool(off > limit), too_few=False)


def estimate_noise(points: Sequence[Point]) -> float:
    """Return the standard deviation of the noise; 0 only if every value is 0 and without an interval."""
    values = np.array([point.value for point in points])
    steps = np.abs(np.diff(values))
    measured = NORMAL_PER_MAD * float(np.median(steps)) / math.sqrt(2)
    least = INTERVAL_STEP * float(np.median([point.half_width for point in points]))
    return max(measured, least, VALUE_STEP * float(np.median(np.abs(values))))


def _levels(values: np.ndarray, sigma: float) -> tuple[list[int], list[int]]:
    """Return the indices of the points that make up levels, and where among these a new level begins.

    A level of a single point is an outlier: such points are removed, and the rest is partitioned again.
    """
    remaining = list(range(len(values)))
    while True:
        starts = _partition(values[remaining], sigma)
        bounds = [0, *starts, len(remaining)]
        lengths = np.diff(bounds)
        alone = {remaining[bounds[k]] for k in np.flatnonzero(lengths == 1)}
        if not alone:
            return remaining, starts
        remaining = [i for i in remaining if i not in alone]


def _partition(values: np.ndarray, sigma: float) -> list[int]:
    """Return where each level after the first begins, by PELT."""
    import ruptures

    if len(values) < 2:
        return []
    if sigma == 0:  # nearly all are 0: any other value is a step
        sigma = INTERVAL_STEP * float(np.max(np.abs(values))) or 1.0
    scaled = (values - np.median(values)) / sigma
    penalty = PENALTY + PENALTY_FEW / len(values)
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(scaled)  # PELT with l2, in C
    return [int(end) for end in search.predict(pen=penalty)[:-1]]


def _sampling_difference(before: Sequence[Point], after: Sequence[Point]) -> float:
    """Return how far two levels may differ because they were measured on different numbers of tokens.

    0 on the same tokens: the text is the same then, and the noise covers every other difference.
    """
    if len({point.tokens for point in (*before, *after)}) == 1:
        return 0.0
    return math.hypot(*(float(np.median([p.half_width for p in part])) for part in (before, after)))
