"""Looking several times without deciding wrongly more often: a group sequential design. Pure.

A cell is judged on its first tokens, and again each time that they have doubled, until every gate is
decided or the corpus ends. Each look is one more chance to be wrong, so the error is spent over the looks:
by the share t of the most tokens that has been seen, α · t² in all (Kim & DeMets 1987, the power family;
between Pocock's and O'Brien & Fleming's boundaries). The critical values follow from that by the recursion
of Armitage, McPherson & Rowe (1969), as Lan & DeMets (1983) put it: no look needs to know the later ones.

What is reported at a look is the repeated confidence interval (Jennison & Turnbull 1989): the 95% interval
with both arms stretched to that look's critical value. All looks' intervals together cover the truth with
95%, whenever one stops and for whatever reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from qsae_bench.stats.bootstrap import Estimate

SEQUENTIAL_ALPHA = 0.04
"""spent over several looks, two-sided: half of it for a bound that is met and called broken, half for the
reverse. Less than 5%, because the percentile bootstrap of a few hundred lopsided sequences errs up to 1.2
times as often as its level says: with 4% the gate as a whole stays within 5% (tests/test_sequential.py)"""
SPENDING_EXPONENT = 2.0
"""1 would spend like Pocock, 3 like O'Brien & Fleming: most cells are far from their bounds and decide at
once, and the last look still has nearly the plain 95% interval"""
GRID_POINTS, MOST_GRID_POINTS = 257, 2049
"""of the grid on which the recursion integrates: more where a look adds little"""
Z_95 = 1.959963984540054
"""the critical value of a single look: the 95% interval as it is"""


def look_sizes(first: int, most: int) -> tuple[int, ...]:
    """Sizes at which to look: ``first``, doubling, and at last ``most``."""
    sizes = [first]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return tuple(sizes)


def error_spent(share: float) -> float:
    """The error spent when so large a share of the most tokens has been seen."""
    return float(SEQUENTIAL_ALPHA * min(share, 1.0) ** SPENDING_EXPONENT)


def critical_value(sizes: Sequence[int], most: int, last: bool = False) -> float:
    """Standard errors that decide at the latest look.

    Args:
        sizes: what had been seen at each look so far, this one included; any unit.
        most: what would be seen at the last look that was planned.
        last: nothing more can be seen, though less than ``most`` was: the rest of the error is spent.
    """
    if len(sizes) == 1 and (last or sizes[0] >= most):
        return Z_95
    spent = [error_spent(size / most) for size in sizes]
    if last:
        spent[-1] = SEQUENTIAL_ALPHA
    return boundaries(tuple(map(float, sizes)), tuple(spent))[-1]


@lru_cache(maxsize=256)
def boundaries(sizes: tuple[float, ...], spent: tuple[float, ...]) -> tuple[float, ...]:
    """Critical values c_k of every look: the chance of |Z_j| ≥ c_j at some j ≤ k is ``spent[k]`` at most.

    Z_k is the standardised sum of the first ``sizes[k]`` observations.
    """
    from scipy.integrate import simpson
    from scipy.optimize import brentq
    from scipy.stats import norm

    found = [float(norm.isf(spent[0] / 2))]
    edge = found[0] * math.sqrt(sizes[0])
    grid = _grid(edge, math.sqrt(sizes[1] - sizes[0]) if len(sizes) > 1 else edge)
    density = norm.pdf(grid, scale=math.sqrt(sizes[0]))
    for before, size, lost, now in zip(sizes, sizes[1:], spent, spent[1:], strict=False):
        step = math.sqrt(size - before)

        def exit_at(c: float, density: np.ndarray, grid: np.ndarray, step: float, size: float) -> float:
            b = c * math.sqrt(size)
            out = norm.sf((b - grid) / step) + norm.cdf((-b - grid) / step)
            return float(simpson(density * out, x=grid))

        given = (density, grid, step, size)
        c = float(brentq(lambda c, g=given, d=now - lost: exit_at(c, *g) - d, 0.0, 40.0))
        found.append(c)
        edge = c * math.sqrt(size)
        fresh = _grid(edge, step)
        moved = norm.pdf((fresh[:, None] - grid[None, :]) / step) / step
        density, grid = simpson(moved * density[None, :], x=grid, axis=1), fresh
    return tuple(found)


def _grid(edge: float, step: float) -> np.ndarray:
    """Points from −edge to edge, several within one standard deviation of what a look adds; oddly many."""
    wanted = int(8 * edge / step) // 2 * 2 + 1
    return np.linspace(-edge, edge, min(max(wanted, GRID_POINTS), MOST_GRID_POINTS))


def repeated_interval(estimate: Estimate, critical: float, degrees: int = 0) -> Estimate:
    """The estimate with the arms of its 95% interval stretched to a look's critical value.

    ``degrees`` of freedom: those of the Student's t that made the interval; 0 for a bootstrap's, whose arms
    are stretched as a normal distribution's.
    """
    if estimate.low is None or estimate.high is None or critical == Z_95:
        return estimate
    factor = critical / Z_95
    if degrees:
        from scipy.stats import norm, t

        factor = float(t.isf(norm.sf(critical), degrees) / t.isf(norm.sf(Z_95), degrees))
    return replace(
        estimate,
        low=estimate.value - factor * (estimate.value - estimate.low),
        high=estimate.value + factor * (estimate.high - estimate.value),
    )


@dataclass(frozen=True)
class LookPlan:
    """What is known of a model's corpus and weights before a cell of it is measured."""

    looks: tuple[int, ...]
    """tokens to look at a cell with, see :mod:`qsae_bench.stats.sequential`"""
    is_short: bool
    """the text ended before the tokens that were asked for"""
    revision: str
    """what identifies the model's weights"""
