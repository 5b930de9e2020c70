"""Where a series changed its level. Pure: numpy and ruptures.

PELT (Killick, Fearnhead & Eckley 2012) with the cost of a change in mean, and a penalty in units of the
series's own night-to-night noise. That noise is estimated from first differences, which a change of
level hardly touches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FEWEST_POINTS = 8
"""with fewer, the noise is too uncertain for a penalty that keeps the false alarms rare"""

PENALTY, PENALTY_FEW = 13.0, 180.0
"""the penalty is (PENALTY + PENALTY_FEW / n) σ²: of white noise, 99% of series of 8 to 90 points have no
partition that pays for it. The second term is for the noise estimate's own error at few points"""

NEWEST_LIMIT, NEWEST_LIMIT_FEW = 2.5, 20.0
"""the newest point stands out beyond (LAST + LAST_FEW / n) σ, which 1% of white noise does"""

NORMAL_PER_MAD = 1.4826
"""a normal distribution's standard deviation over its median absolute deviation"""

INTERVAL_STEP, VALUE_STEP = 1e-3, 1e-9
"""a series of bit-identical nights has no noise to measure with: this share of the interval's half-width,
or of the value, is then the step that counts as one"""


@dataclass(frozen=True)
class Point:
    """One night's value."""

    value: float
    half_width: float = 0.0
    """of its interval, 0 where it has none"""
    tokens: int = 0


@dataclass(frozen=True)
class LevelChange:
    """A new level from the point ``index`` on."""

    index: int
    before: float
    """median of the level that ended"""
    after: float


@dataclass(frozen=True)
class LevelChanges:
    """What is known about the levels of a series."""

    found: tuple[LevelChange, ...]
    noise: float
    """standard deviation from night to night"""
    stands_out: bool
    """the newest point is off its level; whether that lasts, the next night shows"""
    too_few: bool
    """fewer points than anything can be said about"""


def find_level_changes(points: Sequence[Point]) -> LevelChanges:
    """The changes of level in a series, oldest point first; every value finite."""
    if len(points) < FEWEST_POINTS:
        return LevelChanges((), math.nan, stands_out=False, too_few=True)
    values = np.array([point.value for point in points])
    sigma = estimate_noise(points)
    kept, starts = _levels(values, sigma)
    bounds = [*starts, len(kept)]
    found: list[LevelChange] = []
    level = kept[: bounds[0]]
    for start, end in pairwise(bounds):
        part = kept[start:end]
        before, after = float(np.median(values[level])), float(np.median(values[part]))
        if abs(after - before) > _sampling([points[i] for i in level], [points[i] for i in part]):
            found.append(LevelChange(part[0], before, after))
            level = part
        else:
            level = level + part
    newest, others = len(points) - 1, [i for i in level if i != len(points) - 1]
    off = abs(values[newest] - float(np.median(values[others])))
    limit = (NEWEST_LIMIT + NEWEST_LIMIT_FEW / len(points)) * sigma
    limit = max(limit, _sampling([points[i] for i in others], [points[newest]]))
    return LevelChanges(tuple(found), sigma, stands_out=bool(off > limit), too_few=False)


def estimate_noise(points: Sequence[Point]) -> float:
    """Standard deviation of the noise, never 0 unless every value is 0 and without interval."""
    values = np.array([point.value for point in points])
    steps = np.abs(np.diff(values))
    measured = NORMAL_PER_MAD * float(np.median(steps)) / math.sqrt(2)
    least = INTERVAL_STEP * float(np.median([point.half_width for point in points]))
    return max(measured, least, VALUE_STEP * float(np.median(np.abs(values))))


def _levels(values: np.ndarray, sigma: float) -> tuple[list[int], list[int]]:
    """The points that make up levels, and where among them each level but the first begins.

    A level of one night is an outlier: such points are taken out, and the rest is looked at again.
    """
    kept = list(range(len(values)))
    while True:
        starts = _partition(values[kept], sigma)
        bounds = [0, *starts, len(kept)]
        lengths = np.diff(bounds)
        alone = {kept[bounds[k]] for k in np.flatnonzero(lengths == 1)}
        if not alone:
            return kept, starts
        kept = [i for i in kept if i not in alone]


def _partition(values: np.ndarray, sigma: float) -> list[int]:
    """Where each level but the first begins, by PELT."""
    import ruptures

    if len(values) < 2:
        return []
    if sigma == 0:  # zeros but for a few: any of those is a step
        sigma = INTERVAL_STEP * float(np.max(np.abs(values))) or 1.0
    scaled = (values - np.median(values)) / sigma
    penalty = PENALTY + PENALTY_FEW / len(values)
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(scaled)  # PELT with l2, in C
    return [int(end) for end in search.predict(pen=penalty)[:-1]]


def _sampling(before: Sequence[Point], after: Sequence[Point]) -> float:
    """What two levels measured on different numbers of tokens may differ by: other text, not another model.

    0 on the same tokens: what repeats then is the same text, and the noise has said it all.
    """
    if len({point.tokens for point in (*before, *after)}) == 1:
        return 0.0
    return math.hypot(*(float(np.median([p.half_width for p in part])) for part in (before, after)))
