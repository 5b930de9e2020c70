"""How figures look: colours, shapes, the parts that several are made of.

The colours are four of Okabe & Ito's, a little darker, which colour-blind readers tell apart, and a grey;
each has a contrast of 3:1 or more against a white page and a dark one (``tests/test_figures.py``). Where
there are more names than colours, shapes and dashes go on telling them apart. Text takes the page's colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsae_bench.errors import plain
from qsae_bench.metrics import METRICS
from qsae_bench.results.document import CellRecord, Value, VerdictRecord

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0a78b8", "#d05a00", "#00926a", "#b9649a", "#6f6f6f"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, GREY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [7, 3], [2, 2], [8, 2, 2, 2], [12, 4], [4, 6])

STATUS_COLOURS = {
    "pass": BLUE,
    "fail": ORANGE,
    "inconclusive": PURPLE,
    "suspicious": GREEN,
    "invalid": ORANGE,
    "unset": GREY,
    "not gated": GREY,
}
STATUS_SHAPES = {
    "pass": "circle",
    "fail": "cross",
    "inconclusive": "diamond",
    "suspicious": "triangle-up",
    "invalid": "triangle-down",
    "unset": "square",
    "not gated": "circle",
}

TEXT = "currentColor"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
CONFIG: Spec = {
    "background": None,
    "padding": 12,
    "font": FONT,
    "aria": False,  # the figure as a whole is described; its marks are in the tables
    "view": {"stroke": TEXT, "strokeOpacity": 0.25},
    "axis": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "domainColor": TEXT,
        "tickColor": TEXT,
        "gridColor": TEXT,
        "gridOpacity": 0.13,
        "domainOpacity": 0.4,
        "tickOpacity": 0.4,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 170,
        "titleLimit": 420,
    },
    "legend": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelLimit": 200,
        "orient": "bottom",
        "columns": 6,
        "symbolLimit": 40,
    },
    "header": {
        "labelColor": TEXT,
        "titleColor": TEXT,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "title": {"color": TEXT, "fontSize": 12, "fontWeight": "normal", "anchor": "start"},
    "text": {"color": TEXT},
    "rule": {"color": TEXT},
}

SHORT = "abs(datum.value) >= 10000 ? format(datum.value, '~s') : format(datum.value, '~g')"
TENTH = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 0.001"
SHORT_LOG = (
    f"{TENTH} ? format(datum.value, datum.value < 0.001 ? '~e' : datum.value >= 10000 ? '~s' : '~g') : ''"
)
"""how an axis writes its numbers"""

ROW = 18
"""height of a row, in pixels"""

INTERVAL_NOTE = "Bars are 95% intervals"


def cleaned(spec: Any) -> Any:
    """The same with every string on one line and without what turns the direction of reading."""
    if isinstance(spec, Mapping):
        return {key: cleaned(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [cleaned(value) for value in spec]
    return plain(spec) if isinstance(spec, str) else spec


ONCE: Spec = {"values": [{}]}
"""data of a line that is drawn once, not once a row"""

HOVER = "hover"
"""name of a layer whose marks are there only to be pointed at"""


def without_hover(spec: Any) -> Any:
    """The same without what only an interactive figure has a use for."""
    if isinstance(spec, Mapping):
        return {key: without_hover(value) for key, value in spec.items() if key != "tooltip"}
    if isinstance(spec, list):
        return [
            without_hover(one)
            for one in spec
            if not (isinstance(one, Mapping) and one.get("name") == HOVER)
        ]
    return spec


def unit_of(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def titled(metric: str) -> str:
    """``kl_divergence (nats)``: an axis's title."""
    unit = unit_of(metric)
    return f"{metric} ({unit})" if unit else metric


def numbers(value: Value | None) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value.value, "low": value.low, "high": value.high}


def verdict_of(cell: CellRecord, metric: str, layer: int | None) -> VerdictRecord | None:
    return next((v for v in cell.verdicts if v.metric == metric and v.layer == layer), None)


def judged(cell: CellRecord, metric: str, layer: int | None, value: Value | None) -> dict[str, Any]:
    """A row of a figure: value, interval, threshold and verdict."""
    verdict = verdict_of(cell, metric, layer)
    return {
        "q": cell.quantization,
        **({} if layer is None else {"layer": layer}),
        **numbers(value),
        "bound": verdict.bound if verdict else None,
        "limit": "none"
        if verdict is None or verdict.bound is None
        else f"{verdict.side} {verdict.bound:g}",
        "verdict": verdict.status if verdict else "not gated",
    }


def logarithmic(rows: Iterable[Mapping[str, Any]], *keys: str) -> bool:
    """Whether every number that would be drawn is positive, and they span more than a factor of 20."""
    found = [row[key] for row in rows for key in keys if row.get(key) is not None]
    return bool(found) and min(found) > 0 and max(found) / min(found) > 20


def by_name(names: Sequence[str], field: str = "q") -> dict[str, Spec]:
    """``color``, ``shape`` and ``strokeDash`` that stand for quantizations, the same in every figure."""
    count = len(PALETTE)
    domain = list(names)
    colours = [PALETTE[i % count] for i in range(len(domain))]
    shapes = [SHAPES[(i % count + i // count) % len(SHAPES)] for i in range(len(domain))]
    dashes = [DASHES[(i // count) % len(DASHES)] for i in range(len(domain))]
    return {
        channel: {
            "field": field,
            "type": "nominal",
            "title": None,
            "scale": {"domain": domain, "range": values},
        }
        for channel, values in (("color", colours), ("shape", shapes), ("strokeDash", dashes))
    }


def by_verdict(rows: Iterable[Mapping[str, Any]]) -> dict[str, Spec]:
    """``color`` and ``shape`` that stand for verdicts, of those that occur."""
    found = {row["verdict"] for row in rows}
    domain = [status for status in STATUS_COLOURS if status in found]
    return {
        channel: {
            "field": "verdict",
            "type": "nominal",
            "title": None,
            "scale": {"domain": domain, "range": [table[status] for status in domain]},
        }
        for channel, table in (("color", STATUS_COLOURS), ("shape", STATUS_SHAPES))
    }


def x_axis(title: str, log: bool = False, zero: bool = False, **axis: Any) -> Spec:
    scale = {"type": "log"} if log else {"zero": zero, "nice": True}
    return {
        "type": "quantitative",
        "title": title,
        "scale": scale,
        "axis": {"tickCount": 5, "labelOverlap": True, "labelExpr": SHORT_LOG if log else SHORT, **axis},
    }


def y_names(order: Sequence[str], named: bool = True, field: str = "q") -> Spec:
    """A row a name; ``named`` False beside another panel of the same rows."""
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(order)},
        "title": None,
        "axis": {"grid": True, "labels": named, "ticks": named},
    }


TITLES = {
    "q": "quantization",
    "t": "r above",
    "bound": "threshold",
    "limit": "threshold",
    "ref_value": "reference",
}


WORDS = frozenset(
    {
        "q",
        "panel",
        "place",
        "verdict",
        "limit",
        "counted",
        "definition",
        "date",
        "run",
        "level",
        "A is",
        "front",
    }
)
"""fields that are no numbers"""


def tooltip(*fields: str) -> list[Spec]:
    return [
        {"field": one, "title": TITLES.get(one, one)} | ({} if one in WORDS else {"format": ",.4~g"})
        for one in fields
    ]


def drawable(*keys: str) -> list[Spec]:
    """Leave out rows that have no such number: a missing interval is not one that begins at 0."""
    return [{"filter": f"isValid(datum.{key})"} for key in keys]


def interval_layers(
    x: Spec, encoding: Mapping[str, Spec], shown: Sequence[str], size: int = 60
) -> list[Spec]:
    """A bar from ``low`` to ``high``, a tick at ``bound``, and a mark at ``value``."""
    return [
        {
            "transform": drawable("low", "high"),
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
            "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}},
        },
        {
            "transform": drawable("bound"),
            "mark": {"type": "tick", "thickness": 2.5, "size": 15, "color": TEXT},
            "encoding": {"x": x | {"field": "bound"}, "tooltip": tooltip("q", "bound")},
        },
        {
            "transform": drawable("value"),
            "mark": {"type": "point", "filled": True, "size": size, "opacity": 1},
            "encoding": {"x": x | {"field": "value"}, **encoding, "tooltip": tooltip(*shown)},
        },
    ]


def by_layer(rows: Rows) -> list[str]:
    """Give each row its ``row``, layer by layer; their names in order, each once.

    One view of many rows: a view for each layer takes several times as long to draw.
    """
    for row in rows:
        row["row"] = f"layer {row['layer']}  {row['q']}"
    return list(dict.fromkeys(row["row"] for row in sorted(rows, key=lambda row: int(row["layer"]))))


def panel(
    rows: Rows,
    order: Sequence[str],
    layers: list[Spec],
    width: int,
    named: bool = True,
    field: str = "q",
) -> Spec:
    """A row a name."""
    return {
        "data": {"values": rows},
        "width": width,
        "height": {"step": ROW},
        "encoding": {"y": y_names(order, named, field)},
        "layer": layers,
    }
