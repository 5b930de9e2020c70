"""Draw headline metrics run by run, with the changes of level that the history marks."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import (
    BLUE,
    INTERVAL_NOTE,
    ORANGE,
    Rows,
    Spec,
    drawable,
    quantity,
    scales,
    titled,
    tooltip,
)
from qsae_bench.results.history.queries import RunValue, Series
from qsae_bench.stats.changepoints import FEWEST_POINTS, LevelChanges, Point, find_level_changes

FEWEST_RUNS = 2
"""a series of fewer has nothing to show"""
MOST_PANELS = 18
LEVEL_LOOKS = {"as before": (BLUE, "circle"), "changed": (ORANGE, "diamond")}
"""level -> colour and shape"""
TOOLTIP = ("date", "run", "value", "low", "high", "level", "verdict")


def history_figure(name: str, found: Sequence[Series]) -> Figure | None:
    """Build one panel per series, those whose level changed first; None without any series to show."""
    several = [one for one in found if len(_finite(one)) >= FEWEST_RUNS]
    shown = sorted(several, key=lambda one: not has_changed(one))[:MOST_PANELS]
    rows: Rows = [row for one in shown for row in _rows(one)]
    if not rows:
        return None
    y = quantity("value", None, {"zero": False}, tickCount=4)
    colours, shapes = zip(*LEVEL_LOOKS.values(), strict=True)
    levels = scales("level", list(LEVEL_LOOKS), color=colours, shape=shapes)
    lines: Spec = {"mark": {"type": "line", "opacity": 0.4, "color": BLUE}, "encoding": {"y": y}}
    intervals: Spec = {
        "transform": drawable("low", "high"),
        "mark": {"type": "rule", "opacity": 0.5},
        "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
    }
    marks: Spec = {
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
        "encoding": {"y": y, **levels, "tooltip": tooltip(*TOOLTIP)},
    }
    x = quantity("number", "run", {"zero": False, "padding": 8}, tickMinStep=1, tickCount=5)
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    header = {"labelLimit": 230}
    spec: Spec = {
        "data": {"values": rows},
        "columns": 3,
        "facet": {"field": "panel", "type": "nominal", "title": None, "sort": panels, "header": header},
        "resolve": {"scale": {"y": "independent", "x": "independent"}},
        "spec": {"width": 290, "height": 100, "encoding": {"x": x}, "layer": [lines, intervals, marks]},
    }
    cut = len(shown) < len(several)
    which = f"; {len(shown)} of {len(several)} series, those that changed first" if cut else ""
    return Figure(
        f"{name}-history",
        "Headline metrics run by run",
        spec,
        f"On this hardware and corpus{which}. {INTERVAL_NOTE}. A change of level is reported from "
        f"{FEWEST_POINTS} runs on.",
    )


def has_changed(one: Series) -> bool:
    """Tell whether the level of a series changed, or its newest run is off it."""
    known = _changes(one)
    return bool(known.found) or known.stands_out


def _finite(one: Series) -> list[RunValue]:
    return [night for night in one.runs if night.estimate.is_finite]


def _changes(one: Series) -> LevelChanges:
    estimates = [(night.estimate, night.tokens) for night in _finite(one)]
    return find_level_changes(
        [Point(estimate.value, estimate.half_width, tokens) for estimate, tokens in estimates]
    )


def _rows(one: Series) -> Rows:
    changed = {change.index for change in _changes(one).found}
    place = "" if one.layer is None else f", layer {one.layer}"
    return [
        {
            "panel": f"{one.quantization}{place}: {titled(one.metric)}",
            "number": index + 1,
            "date": night.started[:16].replace("T", " "),
            "run": night.run_id,
            "value": night.estimate.value,
            "low": night.estimate.low,
            "high": night.estimate.high,
            "level": "changed" if index in changed else "as before",
            "verdict": night.status or "not gated",
        }
        for index, night in enumerate(_finite(one))
    ]
