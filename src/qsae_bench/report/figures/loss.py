"""Draw how the output distribution changed, and how the headline metrics settled with more tokens."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import style
from qsae_bench.report.figures.style import ChartRows, Spec
from qsae_bench.results.document import CellRecord

LOSS_METRICS = ("perplexity_increase_pct", "kl_divergence")
TOOLTIP = ("q", "value", "low", "high", "limit", "verdict")


def loss_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Build perplexity change and KLD of each cell, with intervals and thresholds; None without a value."""
    panels: dict[str, ChartRows] = {}
    for metric in LOSS_METRICS:
        having = [cell for cell in cells if metric in cell.metrics]
        rows = [style.judged(cell, metric, None, cell.metrics[metric]) for cell in having]
        if any(row["value"] is not None for row in rows):
            panels[metric] = rows
    if not panels:
        return None
    every = [row for rows in panels.values() for row in rows]
    verdicts = style.by_look("verdict", style.STATUS_LOOKS, every)
    order = [cell.quantization for cell in cells]
    specs: list[Spec] = []
    for metric, rows in panels.items():
        x = style.x_axis(style.titled(metric), style.logarithmic(rows, "value", "low", "bound"))
        layers = style.interval_layers(x, verdicts, TOOLTIP)
        specs.append(style.panel(rows, order, layers, 430, named=not specs))
    return Figure(
        f"{name}-loss",
        "Change of perplexity, and divergence of the next-token distribution, by quantization",
        {"hconcat": specs, "spacing": 30},
        f"{style.INTERVAL_NOTE}; the tick is the threshold. Left is better.",
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
    rows: ChartRows = []
    for cell in cells:
        for part in cell.stability:
            found = {style.titled(key): value for key, value in part.metrics.items()}
            if layer in part.layers and "fvu_drift" in part.layers[layer].metrics:
                found[f"{style.titled('fvu_drift')}, layer {layer}"] = part.layers[layer].metrics[
                    "fvu_drift"
                ]
            rows += [
                {"q": cell.quantization, "panel": place, "tokens": part.tokens, **style.numbers(value)}
                for place, value in found.items()
            ]
    if len({row["tokens"] for row in rows}) < 2:
        return None
    names = style.by_name([cell.quantization for cell in cells])
    scale = {"type": "log", "nice": False, "padding": 8}
    x = style.quantity("tokens", "tokens", scale, format="~s", tickCount=4, labelOverlap=True)
    y = style.quantity("value", None, {"zero": False}, tickCount=5)
    shown = style.tooltip("q", "panel", "tokens", "value", "low", "high")
    marks = style.points({"y": y, "shape": names["shape"], "tooltip": shown}, "value", size=40)
    layers = [
        style.layer("rule", style.spans("y", y), "low", "high", opacity=0.6),
        style.layer("line", {"y": y, "strokeDash": names["strokeDash"]}, "value"),
        {"name": style.HOVER, **marks},
    ]
    resolve = {"scale": {"y": "independent"}, "axis": {"x": "independent"}}
    spec = style.panels(rows, 150, {"x": x, "color": names["color"]}, layers, resolve=resolve)
    return Figure(
        f"{name}-stability",
        "Headline metrics on growing parts of the tokens",
        spec,
        f"{style.INTERVAL_NOTE}; they shrink with the square root of the tokens. Of the layers, the "
        "one whose FVU drifts most.",
    )
