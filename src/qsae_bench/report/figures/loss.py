"""Draw how the output distribution changed, and how the headline metrics settled with more tokens."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import (
    HOVER,
    INTERVAL_NOTE,
    Rows,
    Spec,
    by_name,
    by_verdict,
    drawable,
    interval_layers,
    judged,
    logarithmic,
    numbers,
    panel,
    quantity,
    titled,
    tooltip,
    x_axis,
)
from qsae_bench.results.document import CellRecord

LOSS_METRICS = ("perplexity_increase_pct", "kl_divergence")
TOOLTIP = ("q", "value", "low", "high", "limit", "verdict")


def loss_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Build perplexity change and KLD of each cell, with intervals and thresholds; None without a value."""
    panels: dict[str, Rows] = {}
    for metric in LOSS_METRICS:
        rows = [
            judged(cell, metric, None, cell.metrics[metric]) for cell in cells if metric in cell.metrics
        ]
        if any(row["value"] is not None for row in rows):
            panels[metric] = rows
    if not panels:
        return None
    verdicts = by_verdict([row for rows in panels.values() for row in rows])
    order = [cell.quantization for cell in cells]
    specs: list[Spec] = []
    for metric, rows in panels.items():
        x = x_axis(titled(metric), logarithmic(rows, "value", "low", "bound"))
        specs.append(panel(rows, order, interval_layers(x, verdicts, TOOLTIP), 430, named=not specs))
    return Figure(
        f"{name}-loss",
        "Change of perplexity, and divergence of the next-token distribution, by quantization",
        {"hconcat": specs, "spacing": 30},
        f"{INTERVAL_NOTE}; the tick is the threshold. Left is better.",
    )


def _most_moved(cells: Sequence[CellRecord]) -> str:
    """Return the layer whose FVU drifts most in any cell, '' without any; the others settle alike."""
    drifts = [
        (abs(drift.value), layer)
        for cell in cells
        for layer, record in cell.layers.items()
        if (drift := record.metrics.get("fvu_drift")) is not None and drift.value is not None
    ]
    return max(drifts)[1] if drifts else ""


def stability_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Build the headline metrics on growing parts of the tokens; None if fewer than two were measured."""
    layer = _most_moved(cells)
    rows: Rows = []
    for cell in cells:
        for part in cell.stability:
            found = {titled(key): value for key, value in part.metrics.items()}
            if layer in part.layers and "fvu_drift" in part.layers[layer].metrics:
                found[f"{titled('fvu_drift')}, layer {layer}"] = part.layers[layer].metrics["fvu_drift"]
            rows += [
                {"q": cell.quantization, "panel": place, "tokens": part.tokens, **numbers(value)}
                for place, value in found.items()
            ]
    if len({row["tokens"] for row in rows}) < 2:
        return None
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    names = by_name([cell.quantization for cell in cells])
    x = quantity(
        "tokens", "tokens", {"type": "log", "nice": False, "padding": 8},
        format="~s", tickCount=4, labelOverlap=True,
    )  # fmt: skip
    y = quantity("value", None, {"zero": False}, tickCount=5)
    intervals: Spec = {
        "transform": drawable("low", "high"),
        "mark": {"type": "rule", "opacity": 0.6},
        "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
    }
    lines: Spec = {
        "transform": drawable("value"),
        "mark": {"type": "line"},
        "encoding": {"y": y, "strokeDash": names["strokeDash"]},
    }
    marks: Spec = {
        "name": HOVER,
        "transform": drawable("value"),
        "mark": {"type": "point", "filled": True, "size": 40},
        "encoding": {
            "y": y, "shape": names["shape"],
            "tooltip": tooltip("q", "panel", "tokens", "value", "low", "high"),
        },
    }  # fmt: skip
    spec: Spec = {
        "data": {"values": rows},
        "columns": 3,
        "facet": {"field": "panel", "type": "nominal", "title": None, "sort": panels},
        "resolve": {"scale": {"y": "independent"}, "axis": {"x": "independent"}},
        "spec": {
            "width": 290,
            "height": 150,
            "encoding": {"x": x, "color": names["color"]},
            "layer": [intervals, lines, marks],
        },
    }
    return Figure(
        f"{name}-stability",
        "Headline metrics on growing parts of the tokens",
        spec,
        f"{INTERVAL_NOTE}; they shrink with the square root of the tokens. Of the layers, the "
        "one whose FVU drifts most.",
    )
