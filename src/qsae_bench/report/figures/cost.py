"""Draw what a quantization costs, and the quality that it has for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsae_bench.metrics import METRICS, headline
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import style
from qsae_bench.report.figures.style import BLUE, TEXT, ChartRows, Spec
from qsae_bench.results import pareto
from qsae_bench.results.document import CellRecord

UNITS = {"bytes": ("MB", 1e6), "s": ("s", 1.0)}
"""unit of a cost -> the one that it is drawn in, and how large that is"""
MOST_LABELS = 8
"""names written beside marks; more would overlap, and the legend has them"""


def pareto_figure(name: str, quantizations: Sequence[tuple[str, CellRecord]]) -> Figure | None:
    """Build KLD and survival against bits per weight and speed; None without a point in any plane.

    Args:
        quantizations: label and cell of each; the line joins those that no other dominates.
    """
    points = {label: pareto.point(cell) for label, cell in quantizations}
    placed = [(plane, _placed(points, plane)) for plane in pareto.planes(points)]
    names = style.by_name([label for label, _ in quantizations])
    specs = [_plane(plane, rows, names) for plane, rows in placed if rows]
    if not specs:
        return None
    return Figure(
        f"{name}-pareto",
        "Quality against cost",
        style.side_by_side(specs, 2),
        "The line joins the quantizations that no other beats on both axes: low KLD, high survival (of the "
        "lowest layer), few bits, many tokens/s are better. Values without their intervals; simulated "
        "quantizations have no speed.",
    )


def _placed(points: pareto.Points, plane: pareto.Plane) -> ChartRows:
    quality, cost = plane
    return [
        {
            "q": label, "quality": points[label][quality], "cost": points[label][cost],
            "front": not dominated_by,
        }
        for label, dominated_by in pareto.dominators(points, plane).items()
    ]  # fmt: skip


def _plane(plane: pareto.Plane, rows: ChartRows, names: Mapping[str, Spec]) -> Spec:
    quality, cost = plane
    x = style.x_axis(style.titled(cost)) | {"field": "cost"}
    scale = {"type": "log"} if style.logarithmic(rows, "quality") else {"zero": False}
    y = style.quantity("quality", style.titled(quality), scale, tickCount=5)
    step = "step-after" if METRICS[cost].better == "lower" else "step-before"
    line = {"type": "line", "interpolate": step, "opacity": 0.45, "color": TEXT}
    front: Spec = {"transform": [{"filter": "datum.front"}], "mark": line}
    looks = {"color": names["color"], "shape": names["shape"]}
    shown = style.tooltip("q", "cost", "quality", "front")
    layers = [front, style.points({**looks, "tooltip": shown}, size=70, opacity=1)]
    if len(rows) <= MOST_LABELS:
        place = {"align": "left", "dx": 7, "dy": -6, "fontSize": 10, "limit": 120}
        layers.append(style.layer("text", {"text": {"field": "q"}}, **place))
    return {
        "data": {"values": rows}, "width": 400, "height": 220,
        "encoding": {"x": x, "y": y}, "layer": layers,
    }  # fmt: skip


def cost_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Build speed with the spread of its rounds, memory, and load time; None if nothing was taken."""
    order = [cell.quantization for cell in cells]
    speed: ChartRows = [row for cell in cells for row in _speeds(cell)]
    other: ChartRows = [
        {"q": cell.quantization, "panel": f"{key.rpartition('_')[0]} ({unit})", "value": known / size}
        for key in headline("beside")
        for unit, size in [UNITS.get(METRICS[key].unit, ("", 0.0))]
        for cell in cells
        if unit and (known := pareto.cost(cell, key)) is not None
    ]
    panels = [_panel(rows, order) for rows in (speed, other) if rows]
    if not panels:
        return None
    return Figure(
        f"{name}-cost",
        "Speed and memory",
        {"vconcat": panels, "spacing": 20},
        "Speeds are medians of rounds; the line spans their quartiles. Compare within this run only: "
        "another run's machine may be busier, or another one.",
    )


def _speeds(cell: CellRecord) -> ChartRows:
    rows: ChartRows = []
    for key in headline("beside"):
        known = pareto.cost(cell, key)
        if known is None or METRICS[key].unit != "tokens/s":
            continue
        work = key.removesuffix("_tokens_per_second")
        row: dict[str, Any] = {"q": cell.quantization, "panel": f"{work} (tokens/s)", "value": known}
        timing = cell.timings.get(work)
        if timing is not None and timing.median_seconds > 0:
            half = timing.spread_seconds / timing.median_seconds / 2
            row |= {"low": known * max(0.0, 1 - half), "high": known * (1 + half), "rounds": timing.rounds}
        rows.append(row)
    return rows


def _panel(rows: ChartRows, order: Sequence[str]) -> Spec:
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    x = style.x_axis(None, zero=True)
    bar = {"x": x | {"field": "value"}, "tooltip": style.tooltip("q", "panel", "value", "rounds")}
    bars = style.layer("bar", bar, color=BLUE, opacity=0.55, height={"band": 0.7})
    spreads = style.layer("rule", style.spans("x", x), "low", "high", color=TEXT, strokeWidth=1.5)
    return {
        "data": {"values": rows},
        "facet": {"column": {"field": "panel", "type": "nominal", "title": None, "sort": panels}},
        "resolve": {"scale": {"x": "independent"}},
        "spec": {
            "width": 270, "height": {"step": style.ROW}, "encoding": {"y": style.y_names(order)},
            "layer": [bars, spreads],
        },
    }  # fmt: skip
