"""Draw headline metrics run by run, with the changes of level that the history marks."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import style
from qsae_bench.report.figures.style import BLUE, ORANGE, ChartRows
from qsae_bench.report.history import finite_runs, has_changed, level_changes
from qsae_bench.results.history.queries import Series
from qsae_bench.stats.changepoints import FEWEST_POINTS

FEWEST_RUNS = 2
"""a series of fewer has nothing to show"""
MOST_PANELS = 18
LEVEL_LOOKS = {"as before": (BLUE, "circle"), "changed": (ORANGE, "diamond")}
"""level -> colour and shape"""
TOOLTIP = ("date", "run", "value", "low", "high", "level", "verdict")


def history_figure(name: str, found: Sequence[Series]) -> Figure | None:
    """Build one panel per series, those whose level changed first; None without any series to show."""
    several = [one for one in found if len(finite_runs(one)) >= FEWEST_RUNS]
    shown = sorted(several, key=lambda one: not has_changed(one))[:MOST_PANELS]
    rows: ChartRows = [row for one in shown for row in _rows(one)]
    if not rows:
        return None
    y = style.quantity("value", None, {"zero": False}, tickCount=4)
    colours, shapes = zip(*LEVEL_LOOKS.values(), strict=True)
    levels = style.scales("level", list(LEVEL_LOOKS), color=colours, shape=shapes)
    layers = [
        style.layer("line", {"y": y}, opacity=0.4, color=BLUE),
        style.layer("rule", style.spans("y", y), "low", "high", opacity=0.5),
        style.points({"y": y, **levels, "tooltip": style.tooltip(*TOOLTIP)}, size=45, opacity=1),
    ]
    x = style.quantity("number", "run", {"zero": False, "padding": 8}, tickMinStep=1, tickCount=5)
    scales = {"scale": {"y": "independent", "x": "independent"}}
    spec = style.panels(rows, 100, {"x": x}, layers, header={"labelLimit": 230}, resolve=scales)
    cut = len(shown) < len(several)
    which = f"; {len(shown)} of {len(several)} series, those that changed first" if cut else ""
    return Figure(
        f"{name}-history",
        "Headline metrics run by run",
        spec,
        f"On this hardware and corpus{which}. {style.INTERVAL_NOTE}. A change of level is reported from "
        f"{FEWEST_POINTS} runs on.",
    )


def _rows(one: Series) -> ChartRows:
    changed = {change.index for change in level_changes(one).found}
    place = "" if one.layer is None else f", layer {one.layer}"
    return [
        {
            "panel": f"{one.quantization}{place}: {style.titled(one.metric)}", "number": index + 1,
            "date": run.started[:16].replace("T", " "), "run": run.run_id, "value": run.estimate.value,
            "low": run.estimate.low, "high": run.estimate.high,
            "level": "changed" if index in changed else "as before", "verdict": run.status or "not gated",
        }
        for index, run in enumerate(finite_runs(one))
    ]  # fmt: skip
