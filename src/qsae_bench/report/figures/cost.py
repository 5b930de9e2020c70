"""What a recipe costs, and what quality it has for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import (
    BLUE,
    ROW,
    TEXT,
    Rows,
    Spec,
    by_name,
    drawable,
    logarithmic,
    titled,
    tooltip,
    x_axis,
    y_names,
)
from qsae_bench.results import pareto
from qsae_bench.results.document import CellRecord

SPEEDS = {
    "prefill_tokens_per_second": "prefill",
    "decode_tokens_per_second": "decode",
    "evaluation_tokens_per_second": "evaluation",
}
"""metric -> the work whose rounds were timed"""
SIZES = ("weight_bytes", "peak_memory_bytes")
MB = 1e6
MOST_NAMES = 8
"""beside marks; more would lie on each other, and the legend has them"""
NAMES: Spec = {
    "mark": {"type": "text", "align": "left", "dx": 7, "dy": -6, "fontSize": 10, "limit": 120},
    "encoding": {"text": {"field": "q"}},
}


def pareto_figure(name: str, recipes: Sequence[tuple[str, CellRecord]]) -> Figure | None:
    """KLD and survival against bits a weight and speed; the line joins those that no other dominates."""
    points = {label: pareto.point(cell) for label, cell in recipes}
    planes = [plane for plane in pareto.planes(points) if _placed(points, plane)]
    if not planes:
        return None
    names = by_name([label for label, _ in recipes])
    specs = [_plane(points, plane, names) for plane in planes]
    # not a wrapped concat: embedded in a page, that draws nothing (Vega-Lite 6.4)
    pairs = [{"hconcat": specs[i : i + 2], "spacing": 25} for i in range(0, len(specs), 2)]
    return Figure(
        f"{name}-pareto",
        "Quality against cost",
        {"vconcat": pairs, "spacing": 25},
        "The line joins the recipes that no other beats on both axes: low KLD, high survival (of the "
        "lowest "
        "layer), few bits, many tokens/s are better. Values without their intervals; simulated "
        "recipes have "
        "no speed.",
    )


def _placed(points: pareto.Points, plane: pareto.Plane) -> Rows:
    quality, cost = plane
    dominated = pareto.dominators(points, plane)
    return [
        {
            "q": label,
            "quality": points[label][quality.key],
            "cost": points[label][cost.key],
            "front": not by,
        }
        for label, by in dominated.items()
    ]


def _plane(points: pareto.Points, plane: pareto.Plane, names: Mapping[str, Spec]) -> Spec:
    quality, cost = plane
    rows = _placed(points, plane)
    x = x_axis(titled(cost.key)) | {"field": "cost"}
    log = logarithmic(rows, "quality")
    y: Spec = {
        "field": "quality",
        "type": "quantitative",
        "title": titled(quality.key),
        "scale": {"type": "log"} if log else {"zero": False},
        "axis": {"tickCount": 5},
    }
    return {
        "data": {"values": rows},
        "width": 400,
        "height": 220,
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {
                    "type": "line",
                    "interpolate": "step-after" if cost.better == "lower" else "step-before",
                    "opacity": 0.45,
                    "color": TEXT,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    "color": names["color"],
                    "shape": names["shape"],
                    "tooltip": tooltip("q", "cost", "quality", "front"),
                },
            },
            *([NAMES] if len(rows) <= MOST_NAMES else []),
        ],
    }


def cost_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Speed with the spread of its rounds, and memory."""
    order = [cell.quantization for cell in cells]
    speed: Rows = [row for cell in cells for row in _speeds(cell)]
    size: Rows = [
        {"q": cell.quantization, "panel": f"{key.removesuffix('_bytes')} (MB)", "value": known / MB}
        for cell in cells
        for key in SIZES
        if (known := pareto.cost(cell, key)) is not None
    ]
    load: Rows = [
        {"q": cell.quantization, "panel": "load (s)", "value": known}
        for cell in cells
        if (known := pareto.cost(cell, "load_seconds")) is not None
    ]
    panels = [_panel(rows, order) for rows in (speed, [*size, *load]) if rows]
    if not panels:
        return None
    return Figure(
        f"{name}-cost",
        "Speed and memory",
        {"vconcat": panels, "spacing": 20},
        "Speeds are medians of rounds; the line is as long as the range between their quartiles. "
        "Compare within "
        "this run only: another night's machine is another machine.",
    )


def _speeds(cell: CellRecord) -> Rows:
    rows: Rows = []
    for key, work in SPEEDS.items():
        known = pareto.cost(cell, key)
        if known is None:
            continue
        row: dict[str, Any] = {"q": cell.quantization, "panel": f"{work} (tokens/s)", "value": known}
        timing = cell.timings.get(work)
        if timing is not None and timing.median_seconds > 0:
            half = timing.spread_seconds / timing.median_seconds / 2
            row |= {"low": known * max(0.0, 1 - half), "high": known * (1 + half), "rounds": timing.rounds}
        rows.append(row)
    return rows


def _panel(rows: Rows, order: Sequence[str]) -> Spec:
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    x = x_axis("", zero=True) | {
        "title": None,
    }
    return {
        "data": {"values": rows},
        "facet": {"column": {"field": "panel", "type": "nominal", "title": None, "sort": panels}},
        "resolve": {"scale": {"x": "independent"}},
        "spec": {
            "width": 270,
            "height": {"step": ROW},
            "encoding": {"y": y_names(order)},
            "layer": [
                {
                    "mark": {"type": "bar", "color": BLUE, "opacity": 0.55, "height": {"band": 0.7}},
                    "encoding": {
                        "x": x | {"field": "value"},
                        "tooltip": tooltip("q", "panel", "value", "rounds"),
                    },
                },
                {
                    "transform": drawable("low", "high"),
                    "mark": {"type": "rule", "color": TEXT, "strokeWidth": 1.5},
                    "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}},
                },
            ],
        },
    }
