"""Draw which features still fire where they did: the share of them above each correlation."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.metrics.features import DAMAGED, SURVIVES
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import style
from qsae_bench.report.figures.style import ChartRows, Spec
from qsae_bench.results.document import CellRecord

SHARES = ("of features", "of their weight")


def survival_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Build the survival curves of each layer, weighted and not; None without any curve."""
    rows: ChartRows = [
        {
            "q": cell.quantization, "layer": int(layer), "t": curve.correlation,
            SHARES[0]: curve.share, SHARES[1]: curve.weighted,
        }
        for cell in cells
        for layer, record in cell.layers.items()
        if (curve := record.survival_curve) is not None
    ]  # fmt: skip
    if not rows:
        return None
    names = style.by_name([cell.quantization for cell in cells])
    correlation = {"type": "pow", "exponent": 3, "domain": [0, 1]}
    labels = {"values": [0, 0.5, 0.7, 0.8, 0.9, 0.95, 1], "labelExpr": "format(datum.value, '~g')"}
    x = style.quantity("t", "correlation r above", correlation, **labels)
    y = style.quantity("share", "share", {"zero": False}, tickCount=4)
    at = {"x": x | {"field": "at"}, "y": {"value": 0}, "y2": {"value": "height"}}
    cuts = style.layer("rule", at, color=style.TEXT, strokeDash=[3, 3], opacity=0.5)
    cuts["data"] = {"values": [{"at": DAMAGED}, {"at": SURVIVES}]}
    widths: Spec = {
        "field": "counted", "type": "ordinal", "title": None, "sort": list(SHARES),
        "scale": {"domain": list(SHARES), "range": [2.2, 0.8]},
    }  # fmt: skip
    looks = {"color": names["color"], "strokeDash": names["strokeDash"], "strokeWidth": widths}
    curves = style.layer("line", {"x": x, "y": y, **looks})
    shown = style.tooltip("q", "layer", "counted", "t", "share")
    pointed_at = {"name": style.HOVER, **style.points({"x": x, "y": y, "tooltip": shown}, opacity=0)}
    header = {"labelExpr": "'layer ' + datum.value"}
    columns = len({row["layer"] for row in rows})
    spec: Spec = {
        "data": {"values": rows},
        "transform": [
            {"flatten": ["t", *SHARES]},
            {"fold": list(SHARES), "as": ["counted", "share"]},
            {"filter": "isValid(datum.share)"},
        ],
        "facet": {"column": {"field": "layer", "type": "ordinal", "title": None, "header": header}},
        "spec": {
            "width": max(150, min(330, 900 // columns)),
            "height": 200,
            "layer": [cuts, curves, pointed_at],
        },
    }
    return Figure(
        f"{name}-survival",
        "Survival curves: the share of features whose correlation with the reference is above r",
        spec,
        "Of features active on 20 or more positions of the reference; thin: weighted by what each adds to "
        f"the reconstruction. Dashed: {DAMAGED:g} (damaged below) and {SURVIVES:g} (survives above).",
    )
