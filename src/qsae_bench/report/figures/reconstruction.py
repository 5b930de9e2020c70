"""Draw how well SAEs reconstruct the quantized model: FVU by each definition, and what a flat one means."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures import style
from qsae_bench.report.figures.style import GREEN, PALETTE, SHAPES, ChartRows
from qsae_bench.report.notes import FVU_DEFINITIONS, relative
from qsae_bench.results.document import CellRecord, Value

TOOLTIP = ("q", "layer", "value", "low", "high", "limit", "verdict")


def fvu_figure(name: str, cells: Sequence[CellRecord], reference: CellRecord | None) -> Figure | None:
    """Build FVU by layer and quantization, the reference as a band, and its drift; None without a value."""
    fvu: ChartRows = []
    drift: ChartRows = []
    for cell in cells:
        for layer, record in cell.layers.items():
            own = own_reference(cell, reference, layer)
            band = {f"ref_{key}": number for key, number in style.numbers(own.get("fvu")).items()}
            fvu.append(style.judged(cell, "fvu", int(layer), record.metrics.get("fvu")) | band)
            drift.append(style.judged(cell, "fvu_drift", int(layer), record.metrics.get("fvu_drift")))
    if not any(row["value"] is not None for row in fvu):
        return None
    x = style.x_axis(style.titled("fvu"))
    middle = {"x": x | {"field": "ref_value"}, "tooltip": style.tooltip("layer", "ref_value")}
    band = style.spans("x", x, "ref_low", "ref_high")
    left = [
        style.layer("bar", band, "ref_low", "ref_high", size=15, color=GREEN, opacity=0.22),
        style.layer("tick", middle, "ref_value", color=GREEN, thickness=1.5, size=15),
    ]
    verdicts = style.by_look("verdict", style.STATUS_LOOKS, [*fvu, *drift])
    left += style.interval_layers(x, verdicts, (*TOOLTIP, "ref_value"))
    right = style.interval_layers(style.x_axis(style.titled("fvu_drift")), verdicts, TOOLTIP)
    views = [
        style.panel(fvu, style.by_layer(fvu), left, 370, field="row"),
        style.panel(drift, style.by_layer(drift), right, 370, named=False, field="row"),
    ]
    return Figure(
        f"{name}-fvu",
        "FVU of the SAEs by layer and quantization, and its drift from the reference",
        {"hconcat": views, "spacing": 30},
        f"{style.INTERVAL_NOTE}; the green band is the reference's on the same tokens, the tick in the "
        "text's colour the threshold. FVU's own interval is wide, as documents differ; drift is paired.",
    )


def own_reference(cell: CellRecord, reference: CellRecord | None, layer: str) -> dict[str, Value]:
    """Return the reference's values at a layer on the cell's own tokens."""
    source = cell.beside or reference
    record = source.layers.get(layer) if source is not None else None
    return record.metrics if record is not None else {}


def definitions_figure(
    name: str, cells: Sequence[CellRecord], reference: CellRecord | None
) -> Figure | None:
    """Build the change of FVU in percent of itself, by each definition of its denominator."""
    rows: ChartRows = [
        {"q": cell.quantization, "layer": int(layer), "definition": key, "change": 100 * change}
        for cell in cells
        for layer, record in cell.layers.items()
        for key in FVU_DEFINITIONS
        if (change := relative(record.metrics.get(key), own_reference(cell, reference, layer).get(key)))
        is not None
    ]
    if not rows:
        return None
    encoding = style.scales("definition", FVU_DEFINITIONS, color=PALETTE[:3], shape=SHAPES[:3])
    x = style.x_axis("change against the reference (%)", zero=True) | {"field": "change"}
    shown = style.tooltip("q", "layer", "definition", "change")
    marks = style.points({"x": x, **encoding, "tooltip": shown}, opacity=0.9)
    layers = [style.vertical_line(0, opacity=0.4), marks]
    return Figure(
        f"{name}-definitions",
        "Change of FVU by its three definitions",
        style.panel(rows, style.by_layer(rows), layers, 700, field="row"),
        "fvu divides by the variance around the mean vector (Gemma Scope's), fvu_scalar by that around one "
        "scalar mean, fvu_scalar_bos counts BOS as well (the study's). Where fvu moves and fvu_scalar_bos "
        "does not, a flat FVU of the study's kind is an artefact of its definition.",
    )


def resolution_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """Build the smallest drift that shows, in units of the perturbation; None without a value."""
    rows: ChartRows = [
        {
            "q": cell.quantization,
            "layer": int(layer),
            **style.numbers(record.metrics.get("drift_resolution")),
        }
        for cell in cells
        for layer, record in cell.layers.items()
    ]
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        return None
    log = style.logarithmic([*rows, {"value": 1.0}], "value")
    x = style.x_axis("drift_resolution (half-width of fvu_drift's interval / perturbation_nsr)", log)
    layers = sorted({row["layer"] for row in rows})
    ranges = {
        channel: list(islice(cycle(values), len(layers)))
        for channel, values in (("color", PALETTE), ("shape", SHAPES))
    }
    encoding = style.scales("layer", layers, "layer", **ranges)
    names = style.y_names([cell.quantization for cell in cells])
    marks = {
        "encoding": {"y": names, "yOffset": {"field": "layer", "type": "nominal", "sort": layers}},
        "layer": style.interval_layers(x, encoding, ("q", "layer", "value"), bounds=False),
    }
    line = style.vertical_line(1, color=style.TEXT, strokeDash=[4, 3])
    return Figure(
        f"{name}-resolution",
        "The smallest drift of FVU that these tokens can show, in units of the perturbation",
        {
            "data": {"values": rows},
            "width": 760,
            "height": {"step": max(style.ROW, 9 * len(layers)), "for": "position"},
            "layer": [line, marks],
        },
        "Left of 1 a drift as large as the perturbation itself would have shown, so that a flat FVU can be "
        "a finding; right of it, it could not have been otherwise.",
    )
