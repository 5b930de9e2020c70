"""Weigh quality against cost: which quantizations dominate which.

A point dominates another in a plane when it is no worse on both axes and better on at least one; points
that tie do not dominate each other. The points that no other dominates are the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Better, Condition
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.results.document import CellRecord


@dataclass(frozen=True)
class Axis:
    """One axis of a plane: a metric, and which of its directions is better."""

    key: str
    """a metric of which one direction is better"""

    @property
    def better(self) -> Better:
        """The direction that the metric declares."""
        return METRICS[self.key].better

    def loss(self, point: Mapping[str, float]) -> float:
        """Return the value, turned so that less is better."""
        return point[self.key] if self.better == "lower" else -point[self.key]


Plane = tuple[Axis, Axis]
"""quality, cost"""
Points = Mapping[str, Mapping[str, float]]
"""name -> metric -> value; what is missing takes the point out of the planes that need it"""

QUALITY = (Axis("kl_divergence"), Axis("feature_survival"))
BITS = Axis("bits_per_weight")
SPEEDS = (Axis("prefill_tokens_per_second"), Axis("evaluation_tokens_per_second"))
"""the first that any point has is taken, for all points the same"""


def dominates(one: Mapping[str, float], other: Mapping[str, float], plane: Sequence[Axis]) -> bool:
    """Return whether ``one`` is no worse than ``other`` on every axis and better on at least one."""
    losses = [(axis.loss(one), axis.loss(other)) for axis in plane]
    return all(a <= b for a, b in losses) and any(a < b for a, b in losses)


def dominators(points: Points, plane: Sequence[Axis]) -> dict[str, tuple[str, ...]]:
    """Return which points dominate each point that has a value on every axis.

    Returns:
        By name of the point, the names of those that dominate it, the best on the first axis first (then on
        the next, then by name): that one is on the front itself. A point on the front has none.
    """
    placed = {name: p for name, p in points.items() if all(axis.key in p for axis in plane)}

    def order(name: str) -> tuple[object, ...]:
        return (*(axis.loss(placed[name]) for axis in plane), name)

    return {
        name: tuple(sorted((n for n, p in placed.items() if dominates(p, point, plane)), key=order))
        for name, point in placed.items()
    }


def planes(points: Points) -> list[Plane]:
    """Return the planes to show: each quality against bits per weight, and against a speed if one was
    timed."""
    timed = [axis for axis in SPEEDS if any(axis.key in point for point in points.values())]
    return [(quality, cost) for cost in (BITS, *timed[:1]) for quality in QUALITY]


def takes_part(cell: CellRecord) -> bool:
    """Return whether a cell has a place in the planes.

    A reference has lost nothing by definition, so it would only mark the end of every front. A cell that is
    invalid has no quality.
    """
    return cell.quantization != REFERENCE and cell.status == "measured" and not cell.reason


def cost(cell: CellRecord, key: str) -> float | None:
    """Return a cost that is the quantization's own; None for one that is not, or was not measured."""
    value = cell.metrics.get(key)
    return None if value is None or not_own(cell, key) else value.value


def not_own(cell: CellRecord, key: str) -> set[Condition]:
    """Return why a metric of the cell is not the quantization's own; empty where it is."""
    held = {"simulated": cell.simulated, "shared": cell.shared_device}
    return {condition for condition in METRICS[key].not_own_when if held[condition]}


def survival(cell: CellRecord) -> float | None:
    """Return the lowest ``feature_survival`` over the layers; None if no layer has one."""
    found = [record.metrics.get("feature_survival") for record in cell.layers.values()]
    values = [value.value for value in found if value is not None and value.value is not None]
    return min(values) if values else None


def point(cell: CellRecord) -> dict[str, float]:
    """Return a cell's value on every axis where it has one."""
    if not takes_part(cell):
        return {}
    divergence = cell.metrics.get("kl_divergence")
    found = {
        "kl_divergence": divergence.value if divergence else None,
        "feature_survival": survival(cell),
        **{axis.key: cost(cell, axis.key) for axis in (BITS, *SPEEDS)},
    }
    return {key: value for key, value in found.items() if value is not None}
