"""Headline metrics night by night, with the changes of level that the history marks."""

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
    titled,
    tooltip,
)
from qsae_bench.results.history.queries import Night, Series
from qsae_bench.stats.changepoints import FEWEST_POINTS, LevelChanges, Point, find_level_changes

FEWEST_NIGHTS = 2
MOST_PANELS = 18


def nights_figure(name: str, found: Sequence[Series]) -> Figure | None:
    """One panel a series, those that moved first; series of a single night have nothing to show."""
    several = [one for one in found if len(_finite(one)) >= FEWEST_NIGHTS]
    shown = sorted(several, key=lambda one: not moves(one))[:MOST_PANELS]
    rows: Rows = [row for one in shown for row in _rows(one)]
    if not rows:
        return None
    x: Spec = {
        "field": "night",
        "type": "quantitative",
        "title": "night",
        "scale": {"zero": False, "padding": 8},
        "axis": {"tickMinStep": 1, "tickCount": 5},
    }
    y: Spec = {
        "field": "value",
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False},
        "axis": {"tickCount": 4},
    }
    domain = ["as before", "changed"]
    left = (
        f"; {len(shown)} of {len(several)} series, those that moved first"
        if len(shown) < len(several)
        else ""
    )
    spec: Spec = {
        "data": {"values": rows},
        "columns": 3,
        "facet": {
            "field": "panel",
            "type": "nominal",
            "title": None,
            "sort": list(dict.fromkeys(r["panel"] for r in rows)),
            "header": {"labelLimit": 230},
        },
        "resolve": {"scale": {"y": "independent", "x": "independent"}},
        "spec": {
            "width": 290,
            "height": 100,
            "encoding": {"x": x},
            "layer": [
                {"mark": {"type": "line", "opacity": 0.4, "color": BLUE}, "encoding": {"y": y}},
                {
                    "transform": drawable("low", "high"),
                    "mark": {"type": "rule", "opacity": 0.5},
                    "encoding": {"y": y | {"field": "low"}, "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                    "encoding": {
                        "y": y,
                        "color": {
                            "field": "level",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": domain, "range": [BLUE, ORANGE]},
                        },
                        "shape": {
                            "field": "level",
                            "type": "nominal",
                            "title": None,
                            "scale": {"domain": domain, "range": ["circle", "diamond"]},
                        },
                        "tooltip": tooltip("date", "run", "value", "low", "high", "level", "verdict"),
                    },
                },
            ],
        },
    }
    return Figure(
        f"{name}-history",
        "Headline metrics night by night",
        spec,
        f"On this hardware and corpus{left}. {INTERVAL_NOTE}. A change of level is called from "
        f"{FEWEST_POINTS} nights on.",
    )


def moves(one: Series) -> bool:
    """Whether its level changed, or its newest night is off it."""
    known = _changes(one)
    return bool(known.found) or known.stands_out


def _finite(one: Series) -> list[Night]:
    return [night for night in one.nights if night.estimate.is_finite]


def _changes(one: Series) -> LevelChanges:
    nights = _finite(one)
    return find_level_changes([Point(n.estimate.value, n.estimate.half_width, n.tokens) for n in nights])


def _rows(one: Series) -> Rows:
    at = {change.index for change in _changes(one).found}
    place = "" if one.layer is None else f", layer {one.layer}"
    return [
        {
            "panel": f"{one.quantization}{place}: {titled(one.metric)}",
            "night": index + 1,
            "date": night.started[:16].replace("T", " "),
            "run": night.run_id,
            "value": night.estimate.value,
            "low": night.estimate.low,
            "high": night.estimate.high,
            "level": "changed" if index in at else "as before",
            "verdict": night.status or "not gated",
        }
        for index, night in enumerate(_finite(one))
    ]
