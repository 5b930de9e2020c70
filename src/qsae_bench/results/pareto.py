"""Weigh quality against cost: which quantizations dominate which.

A point dominates another in a plane when it is no worse on both axes and better on at least one; points
that tie do not dominate each other. The points that no other dominates are the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qsae_bench.metrics import GROUPS, METRICS, headline
from qsae_bench.metrics.base import Condition
from qsae_bench.results.document import CellRecord

Plane = tuple[str, str]
"""keys of two metrics, quality and cost; of each one direction is better"""
Points = Mapping[str, Mapping[str, float]]
"""name -> metric -> value; what is missing takes the point out of the planes that need it"""

COSTS = tuple(key for key in headline("pareto") if key in GROUPS["cost"])
QUALITY = tuple(key for key in headline("pareto") if key not in COSTS)
SPEEDS = tuple(key for key in COSTS if METRICS[key].unit == "tokens/s")
"""the first that any point has is taken, for all points the same"""


def _loss(point: Mapping[str, float], key: str) -> float:
    """Return the value, turned so that less is better."""
    return point[key] if METRICS[key].better == "lower" else -point[key]


def dominates(one: Mapping[str, float], other: Mapping[str, float], plane: Sequence[str]) -> bool:
    """Return whether ``one`` is no worse than ``other`` on every axis and better on at least one."""
    losses = [(_loss(one, key), _loss(other, key)) for key in plane]
    return all(a <= b for a, b in losses) and any(a < b for a, b in losses)


def dominators(points: Points, plane: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return which points dominate each point that has a value on every axis.

    Returns:
        By name of the point, the names of those that dominate it, the best on the first axis first (then on
        the next, then by name): that one is on the front itself. A point on the front has none.
    """
    placed = {name: p for name, p in points.items() if all(key in p for key in plane)}

    def order(name: str) -> tuple[object, ...]:
        return (*(_loss(placed[name], key) for key in plane), name)

    return {
        name: tuple(sorted((n for n, p in placed.items() if dominates(p, point, plane)), key=order))
        for name, point in placed.items()
    }


def planes(points: Points) -> list[Plane]:
    """Return the planes to show: each quality against each size, and a speed if one was timed."""
    timed = [key for key in SPEEDS if any(key in point for point in points.values())]
    sizes = (key for key in COSTS if key not in SPEEDS)
    return [(quality, cost) for cost in (*sizes, *timed[:1]) for quality in QUALITY]


def takes_part(cell: CellRecord) -> bool:
    """Return whether a cell has a place in the planes.

    A reference has lost nothing by definition, so it would only mark the end of every front. A cell that is
    invalid has no quality.
    """
    return not cell.is_reference and cell.status == "measured" and not cell.reason


def cost(cell: CellRecord, key: str) -> float | None:
    """Return a cost that is the quantization's own; None for one that is not, or was not measured."""
    value = cell.metrics.get(key)
    return None if value is None or not_own(cell, key) else value.value


def not_own(cell: CellRecord, key: str) -> set[Condition]:
    """Return why a metric of the cell is not the quantization's own; empty where it is."""
    held = {"simulated": cell.simulated, "shared": cell.shared_device}
    return {condition for condition in METRICS[key].not_own_when if held[condition]}


def quality(cell: CellRecord, key: str) -> float | None:
    """Return a metric of the cell, of several layers the worst; None if it was not measured."""
    places = [cell] if METRICS[key].scope == "cell" else cell.layers.values()
    found = [place.metrics[key].value for place in places if key in place.metrics]
    known = [{key: value} for value in found if value is not None]
    return max(known, key=lambda one: _loss(one, key))[key] if known else None


def point(cell: CellRecord) -> dict[str, float]:
    """Return a cell's value on every axis where it has one."""
    if not takes_part(cell):
        return {}
    found = {key: quality(cell, key) for key in QUALITY} | {key: cost(cell, key) for key in COSTS}
    return {key: value for key, value in found.items() if value is not None}
