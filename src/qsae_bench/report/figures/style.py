"""Define colours, shapes and shared parts of the figures.

The colours are four of Okabe & Ito's, a little darker, which colour-blind readers can tell apart, and a
grey; each has a contrast of at least 3:1 against a white page and a dark one (``test_style.py``). Where
there are more names than colours, shapes and dashes tell them apart too. Text takes the colour of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsae_bench.errors import plain
from qsae_bench.metrics import METRICS
from qsae_bench.results.document import CellRecord, Value

Spec = dict[str, Any]
"""a part of a Vega-Lite specification"""
ChartRows = list[dict[str, Any]]
"""inline data of a specification"""

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0a78b8", "#d05a00", "#00926a", "#b9649a", "#6f6f6f"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, GREY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ([1, 0], [7, 3], [2, 2], [8, 2, 2, 2], [12, 4], [4, 6])

STATUS_LOOKS = {
    "pass": (BLUE, "circle"), "fail": (ORANGE, "cross"), "inconclusive": (PURPLE, "diamond"),
    "suspicious": (GREEN, "triangle-up"), "invalid": (ORANGE, "triangle-down"), "unset": (GREY, "square"),
    "not gated": (GREY, "circle"),
}  # fmt: skip
"""verdict -> colour and shape"""

TEXT = "currentColor"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
LABELS: Spec = {
    "labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 11, "titleFontSize": 11,
    "titleFontWeight": "normal",
}  # fmt: skip
CONFIG: Spec = {
    "background": None,
    "padding": 12,
    "font": FONT,
    "aria": False,  # the figure as a whole is described; the values of its marks are in the tables
    "view": {"stroke": TEXT, "strokeOpacity": 0.25},
    "axis": LABELS | {
        "domainColor": TEXT, "domainOpacity": 0.4, "tickColor": TEXT, "tickOpacity": 0.4,
        "gridColor": TEXT, "gridOpacity": 0.13, "labelLimit": 170, "titleLimit": 420,
    },
    "legend": LABELS | {"labelLimit": 200, "orient": "bottom", "columns": 6, "symbolLimit": 40},
    "header": LABELS,
    "title": {"color": TEXT, "fontSize": 12, "fontWeight": "normal", "anchor": "start"},
    "text": {"color": TEXT},
    "rule": {"color": TEXT},
}  # fmt: skip

LINEAR_LABELS = "abs(datum.value) >= 10000 ? format(datum.value, '~s') : format(datum.value, '~g')"
POWER_OF_TEN = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 0.001"
LOG_LABELS = (
    f"{POWER_OF_TEN} ? "
    "format(datum.value, datum.value < 0.001 ? '~e' : datum.value >= 10000 ? '~s' : '~g') : ''"
)
"""how an axis writes its numbers: a logarithmic one labels powers of ten alone"""

ROW = 18
"""height of a row, in pixels"""

INTERVAL_NOTE = "Bars are 95% intervals"

HOVER = "hover"
"""name of a layer whose marks are there only to be pointed at"""

TITLES = {
    "q": "quantization", "t": "r above", "bound": "threshold", "limit": "threshold",
    "ref_value": "reference",
}  # fmt: skip
"""field -> its title in tooltips, where that differs"""

TEXT_FIELDS = {
    "q", "panel", "place", "verdict", "limit", "counted", "definition", "date", "run", "level", "A is",
    "front",
}  # fmt: skip
"""fields that are not numbers"""


def cleaned(spec: Any) -> Any:
    """Copy a specification with every string on one line and free of direction marks."""
    if isinstance(spec, Mapping):
        return {key: cleaned(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [cleaned(value) for value in spec]
    return plain(spec) if isinstance(spec, str) else spec


def without_hover(spec: Any) -> Any:
    """Copy a specification without the tooltips and hover layers that a static figure has no use for."""
    if isinstance(spec, Mapping):
        return {key: without_hover(value) for key, value in spec.items() if key != "tooltip"}
    if isinstance(spec, list):
        hover = [isinstance(one, Mapping) and one.get("name") == HOVER for one in spec]
        return [without_hover(one) for one, only_hover in zip(spec, hover, strict=True) if not only_hover]
    return spec


# -- data -----------------------------------------------------------------------------------------


def titled(metric: str) -> str:
    """Return a metric's name with its unit, as an axis's title: ``kl_divergence (nats)``."""
    unit = METRICS[metric].unit if metric in METRICS else ""
    return f"{metric} ({unit})" if unit else metric


def numbers(value: Value | None) -> dict[str, float | None]:
    """Return the fields ``value``, ``low`` and ``high`` of a row; None where there is no number."""
    return {key: getattr(value, key, None) for key in ("value", "low", "high")}


def judged(cell: CellRecord, metric: str, layer: int | None, value: Value | None) -> dict[str, Any]:
    """Return a row with value, interval, threshold and verdict."""
    verdict = next((v for v in cell.verdicts if v.metric == metric and v.layer == layer), None)
    bound = verdict.bound if verdict else None
    return {
        "q": cell.quantization, **({} if layer is None else {"layer": layer}), **numbers(value),
        "bound": bound,
        "limit": verdict.limit if verdict else "none",
        "verdict": verdict.status if verdict else "not gated",
    }  # fmt: skip


def logarithmic(rows: Iterable[Mapping[str, Any]], *keys: str) -> bool:
    """Tell whether the numbers to be drawn are positive and span more than a factor of 20."""
    found = [row[key] for row in rows for key in keys if row.get(key) is not None]
    return bool(found) and min(found) > 0 and max(found) / min(found) > 20


def by_layer(rows: ChartRows) -> list[str]:
    """Give each row the field ``row`` and return its values, layer by layer.

    The rows of all layers go into one view: a view per layer takes several times as long to draw.
    """
    for row in rows:
        row["row"] = f"layer {row['layer']}  {row['q']}"
    return list(dict.fromkeys(row["row"] for row in sorted(rows, key=lambda row: int(row["layer"]))))


# -- encodings ------------------------------------------------------------------------------------


def scales(field: str, domain: Sequence[Any], title: str | None = None, **ranges: Any) -> dict[str, Spec]:
    """Return an encoding that shows a nominal field in several channels, each with its range."""
    return {
        channel: {
            "field": field, "type": "nominal", "title": title,
            "scale": {"domain": list(domain), "range": list(values)},
        }
        for channel, values in ranges.items()
    }  # fmt: skip


def by_name(names: Sequence[str]) -> dict[str, Spec]:
    """Return the colour, shape and dash of each quantization, the same in every figure."""
    count = len(PALETTE)
    places = range(len(names))
    return scales(
        "q", names,
        color=[PALETTE[i % count] for i in places],
        shape=[SHAPES[(i % count + i // count) % len(SHAPES)] for i in places],
        strokeDash=[DASHES[(i // count) % len(DASHES)] for i in places],
    )  # fmt: skip


def by_look(field: str, looks: Mapping[str, tuple[str, str]], rows: Iterable[Mapping[str, Any]]) -> Spec:
    """Return the colour and shape of each word of a field that occurs in the rows, such as each verdict."""
    occurring = {row[field] for row in rows}
    domain = [word for word in looks if word in occurring]
    colours, shapes = zip(*(looks[word] for word in domain), strict=True)
    return scales(field, domain, None if field == "verdict" else field, color=colours, shape=shapes)


def quantity(field: str, title: str | None, scale: Spec, **axis: Any) -> Spec:
    """Return a channel that shows a number."""
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def x_axis(title: str | None, log: bool = False, zero: bool = False) -> Spec:
    """Return a horizontal channel without a field, for several layers to share."""
    return {
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log"} if log else {"zero": zero, "nice": True},
        "axis": {"tickCount": 5, "labelOverlap": True, "labelExpr": LOG_LABELS if log else LINEAR_LABELS},
    }


def y_names(order: Sequence[str], named: bool = True, field: str = "q") -> Spec:
    """Return a vertical channel with one row per name.

    Args:
        named: whether the names are written; not beside another panel with the same rows.
    """
    axis = {"grid": True, "labels": named, "ticks": named}
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(order)},
        "title": None,
        "axis": axis,
    }


def tooltip(*fields: str) -> list[Spec]:
    """Return what is shown when a mark is pointed at."""
    return [
        {"field": one, "title": TITLES.get(one, one)} | ({} if one in TEXT_FIELDS else {"format": ",.4~g"})
        for one in fields
    ]


# -- marks ----------------------------------------------------------------------------------------


def layer(mark: str, encoding: Mapping[str, Any], *needs: str, **look: Any) -> Spec:
    """Return marks of one kind for the rows that have the fields in ``needs``.

    Without that filter, a missing interval would be drawn as one that begins at 0.
    """
    drawn: Spec = {"mark": {"type": mark, **look}, "encoding": dict(encoding)}
    return (
        {"transform": [{"filter": f"isValid(datum.{key})"} for key in needs], **drawn} if needs else drawn
    )


def points(encoding: Mapping[str, Any], *needs: str, size: int = 60, **look: Any) -> Spec:
    """Return filled points."""
    return layer("point", encoding, *needs, filled=True, size=size, **look)


def spans(channel: str, shape: Spec, low: str = "low", high: str = "high") -> Spec:
    """Return the encoding of marks that reach from one field to another."""
    return {channel: shape | {"field": low}, f"{channel}2": {"field": high}}


def vertical_line(at: float, **look: Any) -> Spec:
    """Return a line over the whole height, drawn once and not once per row."""
    place = {"x": {"datum": at}, "y": {"value": 0}, "y2": {"value": "height"}}
    return {"data": {"values": [{}]}, **layer("rule", place, **look)}


def interval_layers(
    x: Spec, encoding: Mapping[str, Spec], shown: Sequence[str], bounds: bool = True
) -> list[Spec]:
    """Return a bar from ``low`` to ``high``, a tick at ``bound`` if asked for, and a mark at ``value``."""
    bar = layer("rule", spans("x", x), "low", "high", strokeWidth=1.5, opacity=0.7)
    limit = {"x": x | {"field": "bound"}, "tooltip": tooltip("q", "bound")}
    tick = layer("tick", limit, "bound", thickness=2.5, size=15, color=TEXT)
    value = {"x": x | {"field": "value"}, **encoding, "tooltip": tooltip(*shown)}
    mark = points(value, "value", opacity=1)
    return [bar, tick, mark] if bounds else [bar, mark]


# -- views ----------------------------------------------------------------------------------------


def panel(
    rows: ChartRows,
    order: Sequence[str],
    layers: list[Spec],
    width: int,
    named: bool = True,
    field: str = "q",
) -> Spec:
    """Return a view with one row per name."""
    return {
        "data": {"values": rows},
        "width": width,
        "height": {"step": ROW},
        "encoding": {"y": y_names(order, named, field)},
        "layer": layers,
    }


def panels(rows: ChartRows, height: int, encoding: Spec, layers: list[Spec], **about: Any) -> Spec:
    """Return a view for each value of ``panel``, three in a row.

    Args:
        about: further properties of the facet, and ``resolve``.
    """
    order = list(dict.fromkeys(row["panel"] for row in rows))
    resolve = about.pop("resolve")
    return {
        "data": {"values": rows},
        "columns": 3,
        "facet": {"field": "panel", "type": "nominal", "title": None, "sort": order, **about},
        "resolve": resolve,
        "spec": {"width": 290, "height": height, "encoding": encoding, "layer": layers},
    }


def side_by_side(specs: Sequence[Spec], count: int, spacing: int = 25) -> Spec:
    """Return views in rows of ``count``.

    A wrapped concat would do the same, but embedded in a page it draws nothing (Vega-Lite 6.4).
    """
    rows = [{"hconcat": list(specs[i : i + count]), "spacing": 25} for i in range(0, len(specs), count)]
    return {"vconcat": rows, "spacing": spacing}
