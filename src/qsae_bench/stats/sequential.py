"""Plan several looks at a cell without raising the error rate: a group sequential design. Pure.

A cell is judged on its first tokens, and again each time their number has doubled, until every gate is
decided or the corpus ends. Each look is one more chance to be wrong, so the error is spent over the looks:
by the time a share t of the maximum tokens has been seen, α · t² in all (Kim & DeMets 1987, the power
family; between Pocock's and O'Brien & Fleming's boundaries). The critical values follow by the recursion of
Armitage, McPherson & Rowe (1969) in the form of Lan & DeMets (1983), in which no look needs to know the
later ones.

A look reports the repeated confidence interval (Jennison & Turnbull 1989): the 95% interval with its arms
stretched to that look's critical value. The intervals of all looks together cover the truth with 95%
probability, whenever one stops and for whatever reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from qsae_bench.stats.bootstrap import Estimate

SEQUENTIAL_ALPHA = 0.04
"""error spent over all looks, two-sided: half of it for failing a cell that meets its bound, half for
passing one that does not. Less than 5%, because the intervals of a hundred skewed documents err somewhat
more often than their level says (tests/nightly/test_intervals.py)"""
SHOWN_DOCUMENTS = 100
"""documents from which on simulated gates erred as rarely as they say on rows as skewed as KLD's, see
docs/decisions.md; on fewer they pass more often what lies on its bound"""
SPENDING_EXPONENT = 2.0
"""exponent of the spending function. 1 would spend like Pocock, 3 like O'Brien & Fleming; with 2 most
cells, which are far from their bounds, are decided at the first look, and the last look still has nearly
the plain 95% interval"""
GRID_POINTS, MOST_GRID_POINTS = 257, 2049
"""points of the grid on which the recursion integrates, at least and at most: more where a look adds
little"""
Z_95 = 1.959963984540054
"""critical value of a single look, in standard errors: the half-width of a normal 95% interval"""


def look_sizes(first: int, most: int) -> tuple[int, ...]:
    """Return the sizes at which to look: ``first``, doubled repeatedly, and finally ``most``."""
    sizes = [first]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return tuple(sizes)


def error_spent(share: float) -> float:
    """Return the error spent by the time ``share`` of the maximum tokens has been seen."""
    return float(SEQUENTIAL_ALPHA * min(share, 1.0) ** SPENDING_EXPONENT)


def critical_value(sizes: Sequence[int], most: int, last: bool = False) -> float:
    """Return the number of standard errors that decides at the latest look.

    Args:
        sizes: amount of data at each look so far, this one included; in any unit.
        most: amount of data at the last planned look, in the same unit.
        last: no more data can follow although less than ``most`` was seen; the rest of the error is spent.
    """
    if len(sizes) == 1 and (last or sizes[0] >= most):
        return Z_95
    spent = [error_spent(size / most) for size in sizes]
    if last:
        spent[-1] = SEQUENTIAL_ALPHA
    return boundaries(tuple(map(float, sizes)), tuple(spent))[-1]


@lru_cache(maxsize=256)
def boundaries(sizes: tuple[float, ...], spent: tuple[float, ...]) -> tuple[float, ...]:
    """Return the critical value c_k of every look: |Z_j| ≥ c_j at some j ≤ k has probability ``spent[k]``.

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
    """Return an odd number of points from −edge to edge, several per standard deviation of a step."""
    wanted = int(8 * edge / step) // 2 * 2 + 1
    return np.linspace(-edge, edge, min(max(wanted, GRID_POINTS), MOST_GRID_POINTS))


def repeated_interval(estimate: Estimate, critical: float, degrees: int = 0) -> Estimate:
    """Return the estimate with the arms of its 95% interval stretched to a look's critical value.

    Of a bootstrap interval, half the sum of the arms grows with the critical value, and half their
    difference, which comes of skewness, with its square (Cornish & Fisher's expansion to that order). The
    shorter arm grows as if there were no skewness: the expansion would make it shrink far out.

    Args:
        critical: the critical value that the look has.
        degrees: degrees of freedom of the Student's t behind the interval; 0 for a bootstrap interval.
    """
    if estimate.low is None or estimate.high is None or critical == Z_95:
        return estimate
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    if degrees:
        from scipy.stats import norm, t

        factor = float(t.isf(norm.sf(critical), degrees) / t.isf(norm.sf(Z_95), degrees))
        return _with_arms(estimate, factor * below, factor * above)
    factor = critical / Z_95
    more = factor * (factor - 1) * (above - below) / 2
    return _with_arms(estimate, factor * below + max(-more, 0.0), factor * above + max(more, 0.0))


def _with_arms(estimate: Estimate, below: float, above: float) -> Estimate:
    return replace(estimate, low=estimate.value - below, high=estimate.value + above)


@dataclass(frozen=True)
class LookPlan:
    """Hold at how many tokens a model's cells are looked at; known before a cell is measured."""

    looks: tuple[int, ...]
    """tokens at each planned look"""
    is_short: bool
    """whether the text ended before the requested number of tokens"""
    revision: str
    """what identifies the model's weights"""
