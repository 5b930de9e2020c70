"""Draw A against B: every tested difference with its interval, one panel per metric."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import style
from qsae_bench.report.figures.style import BLUE, GREY, ORANGE, PURPLE, ChartRows, Spec
from qsae_bench.stats.comparison import Difference

VERDICT_LOOKS = {
    "better": (BLUE, "circle"),
    "worse": (ORANGE, "cross"),
    "differs": (PURPLE, "diamond"),
    "no difference shown": (GREY, "square"),
}
"""verdict -> colour and shape"""
TOOLTIP = ("place", "value", "low", "high", "p (Holm)", "A is")


def difference_figure(name: str, found: Sequence[Difference]) -> Figure | None:
    """Build one panel per metric with one row per layer; None if nothing was tested."""
    panels: dict[str, ChartRows] = {}
    for one in found:
        estimate = one.tested.difference
        if one.verdict in VERDICT_LOOKS and estimate.is_finite:
            panels.setdefault(one.metric, []).append(
                {
                    "place": "the cell" if one.layer is None else f"layer {one.layer}",
                    "value": estimate.value, "low": estimate.low, "high": estimate.high,
                    "p (Holm)": one.adjusted_p, "A is": one.verdict,
                }
            )  # fmt: skip
    if not panels:
        return None
    encoding = style.by_look("A is", VERDICT_LOOKS, [row for rows in panels.values() for row in rows])
    specs = [_panel(metric, rows, encoding) for metric, rows in panels.items()]
    return Figure(
        f"{name}-differences",
        "A − B by metric and layer",
        style.side_by_side(specs, 3, spacing=20),
        f"{style.INTERVAL_NOTE} of the paired difference, not corrected; the verdicts are, by Holm. The "
        "line is 0.",
    )


def _panel(metric: str, rows: ChartRows, encoding: Spec) -> Spec:
    x = style.x_axis(style.titled(metric), zero=True)
    places = [row["place"] for row in rows]
    return {
        "data": {"values": rows},
        "width": 270,
        "height": {"step": style.ROW},
        "encoding": {"y": {"field": "place", "type": "nominal", "title": None, "sort": places}},
        "layer": [
            style.vertical_line(0, opacity=0.4),
            *style.interval_layers(x, encoding, TOOLTIP, bounds=False),
        ],
    }
