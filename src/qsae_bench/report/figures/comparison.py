"""A against B: every tested difference with its interval, on an axis of its metric's own."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import (
    BLUE,
    GREY,
    INTERVAL_NOTE,
    ONCE,
    ORANGE,
    PURPLE,
    ROW,
    Rows,
    Spec,
    drawable,
    titled,
    tooltip,
    x_axis,
)
from qsae_bench.stats.comparison import Difference

VERDICTS = {
    "better": (BLUE, "circle"),
    "worse": (ORANGE, "cross"),
    "differs": (PURPLE, "diamond"),
    "no difference shown": (GREY, "square"),
}


def difference_figure(name: str, found: Sequence[Difference]) -> Figure | None:
    """One panel a metric, a row a layer."""
    panels: dict[str, Rows] = {}
    for one in found:
        e = one.tested.difference
        if one.verdict in VERDICTS and e.is_finite:
            place = "the cell" if one.layer is None else f"layer {one.layer}"
            panels.setdefault(one.metric, []).append(
                {
                    "place": place,
                    "value": e.value,
                    "low": e.low,
                    "high": e.high,
                    "p (Holm)": one.adjusted_p,
                    "A is": one.verdict,
                }
            )
    if not panels:
        return None
    occurring = {row["A is"] for rows in panels.values() for row in rows}
    domain = [verdict for verdict in VERDICTS if verdict in occurring]
    encoding: dict[str, Spec] = {
        channel: {
            "field": "A is",
            "type": "nominal",
            "title": "A is",
            "scale": {"domain": domain, "range": [VERDICTS[verdict][index] for verdict in domain]},
        }
        for index, channel in enumerate(("color", "shape"))
    }
    specs = [_panel(metric, rows, encoding) for metric, rows in panels.items()]
    pairs = [{"hconcat": specs[i : i + 3], "spacing": 25} for i in range(0, len(specs), 3)]
    return Figure(
        f"{name}-differences",
        "A − B by metric and layer",
        {"vconcat": pairs, "spacing": 20},
        f"{INTERVAL_NOTE} of the paired difference, not corrected; the verdicts are, by Holm. The "
        "line is 0.",
    )


def _panel(metric: str, rows: Rows, encoding: dict[str, Spec]) -> Spec:
    x = x_axis(titled(metric), zero=True)
    return {
        "data": {"values": rows},
        "width": 270,
        "height": {"step": ROW},
        "encoding": {
            "y": {
                "field": "place",
                "type": "nominal",
                "title": None,
                "sort": [row["place"] for row in rows],
            }
        },
        "layer": [
            {
                "data": ONCE,
                "mark": {"type": "rule", "opacity": 0.4},
                "encoding": {"x": {"datum": 0}, "y": {"value": 0}, "y2": {"value": "height"}},
            },
            {
                "transform": drawable("low", "high"),
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
                "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {
                    "x": x | {"field": "value"},
                    **encoding,
                    "tooltip": tooltip("place", "value", "low", "high", "p (Holm)", "A is"),
                },
            },
        ],
    }
