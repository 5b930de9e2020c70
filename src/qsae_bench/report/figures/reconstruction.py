"""SAEs on the quantized model: FVU, by each of its definitions, and what a flat one is worth."""

from __future__ import annotations

from collections.abc import Sequence

from qsae_bench.metrics.residual import INFORMATIVE, UNINFORMATIVE
from qsae_bench.report.blocks import Figure
from qsae_bench.report.figures.style import (
    GREEN,
    INTERVAL_NOTE,
    ONCE,
    PALETTE,
    ROW,
    SHAPES,
    TEXT,
    Rows,
    Spec,
    by_layer,
    by_verdict,
    drawable,
    interval_layers,
    judged,
    logarithmic,
    numbers,
    panel,
    titled,
    tooltip,
    x_axis,
    y_names,
)
from qsae_bench.report.notes import FVU_DEFINITIONS, relative
from qsae_bench.results.document import CellRecord, Value

SHOWN = ("q", "layer", "value", "low", "high", "limit", "verdict")


def fvu_figure(name: str, cells: Sequence[CellRecord], reference: CellRecord | None) -> Figure | None:
    """FVU by layer and quantization, the reference as a band; and its drift."""
    fvu: Rows = []
    drift: Rows = []
    for cell in cells:
        for layer, record in cell.layers.items():
            own = own_reference(cell, reference, layer)
            band = {f"ref_{key}": number for key, number in numbers(own.get("fvu")).items()}
            fvu.append(judged(cell, "fvu", int(layer), record.metrics.get("fvu")) | band)
            drift.append(judged(cell, "fvu_drift", int(layer), record.metrics.get("fvu_drift")))
    if not any(row["value"] is not None for row in fvu):
        return None
    x = x_axis(titled("fvu"))
    band_layers: list[Spec] = [
        {
            "transform": drawable("ref_low", "ref_high"),
            "mark": {"type": "bar", "size": 15, "color": GREEN, "opacity": 0.22},
            "encoding": {"x": x | {"field": "ref_low"}, "x2": {"field": "ref_high"}},
        },
        {
            "transform": drawable("ref_value"),
            "mark": {"type": "tick", "color": GREEN, "thickness": 1.5, "size": 15},
            "encoding": {"x": x | {"field": "ref_value"}, "tooltip": tooltip("layer", "ref_value")},
        },
    ]
    both = [*fvu, *drift]
    left = [*band_layers, *interval_layers(x, by_verdict(both), (*SHOWN, "ref_value"))]
    right = interval_layers(x_axis(titled("fvu_drift")), by_verdict(both), SHOWN)
    return Figure(
        f"{name}-fvu",
        "FVU of the SAEs by layer and quantization, and its drift from the reference",
        {
            "hconcat": [
                panel(fvu, by_layer(fvu), left, 370, field="row"),
                panel(drift, by_layer(drift), right, 370, named=False, field="row"),
            ],
            "spacing": 30,
        },
        f"{INTERVAL_NOTE}; the green band is the reference's on the same tokens, the tick in the "
        "text's colour the threshold. FVU's own interval is wide, as documents differ; drift is paired.",
    )


def own_reference(cell: CellRecord, reference: CellRecord | None, layer: str) -> dict[str, Value]:
    """The reference's values on the cell's own tokens."""
    source = cell.beside or reference
    record = source.layers.get(layer) if source is not None else None
    return record.metrics if record is not None else {}


def definitions_figure(
    name: str, cells: Sequence[CellRecord], reference: CellRecord | None
) -> Figure | None:
    """The change of FVU in percent of itself, by each definition of its denominator."""
    rows: Rows = []
    for cell in cells:
        for layer, record in cell.layers.items():
            own = own_reference(cell, reference, layer)
            for key in FVU_DEFINITIONS:
                change = relative(record.metrics.get(key), own.get(key))
                if change is not None:
                    rows.append(
                        {
                            "q": cell.quantization,
                            "layer": int(layer),
                            "definition": key,
                            "change": 100 * change,
                        }
                    )
    if not rows:
        return None
    domain = list(FVU_DEFINITIONS)
    encoding: dict[str, Spec] = {
        channel: {
            "field": "definition",
            "type": "nominal",
            "title": None,
            "scale": {"domain": domain, "range": values[:3]},
        }
        for channel, values in (("color", PALETTE), ("shape", SHAPES))
    }
    layers: list[Spec] = [
        {
            "data": ONCE,
            "mark": {"type": "rule", "opacity": 0.4},
            "encoding": {"x": {"datum": 0}, "y": {"value": 0}, "y2": {"value": "height"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
            "encoding": {
                "x": x_axis("change against the reference (%)", zero=True) | {"field": "change"},
                **encoding,
                "tooltip": tooltip("q", "layer", "definition", "change"),
            },
        },
    ]
    return Figure(
        f"{name}-definitions",
        "Change of FVU by its three definitions",
        panel(rows, by_layer(rows), layers, 700, field="row"),
        "fvu divides by the variance around the mean vector (Gemma Scope's), fvu_scalar by that around one "
        "scalar mean, fvu_scalar_bos counts BOS as well (the study's). Where fvu moves and "
        "fvu_scalar_bos does "
        "not, a flat FVU of the study's kind is an artefact of its definition.",
    )


def resolution_figure(name: str, cells: Sequence[CellRecord]) -> Figure | None:
    """The perturbation in units of what the SAE leaves unexplained."""
    rows: Rows = [
        {
            "q": cell.quantization,
            "layer": int(layer),
            "bound": None,
            **numbers(record.metrics.get("resolution_ratio")),
        }
        for cell in cells
        for layer, record in cell.layers.items()
    ]
    rows = [row for row in rows if row["value"] is not None]
    if not rows:
        return None
    log = logarithmic([*rows, {"value": INFORMATIVE}], "value", "low")
    order = [cell.quantization for cell in cells]
    x = x_axis("resolution_ratio (perturbation_nsr / FVU of the reference)", log)
    known = sorted({row["layer"] for row in rows})
    encoding: dict[str, Spec] = {
        channel: {
            "field": "layer",
            "type": "nominal",
            "title": "layer",
            "scale": {"domain": known, "range": [values[i % len(values)] for i in range(len(known))]},
        }
        for channel, values in (("color", PALETTE), ("shape", SHAPES))
    }
    marks: list[Spec] = [
        {
            "data": ONCE,
            "mark": {"type": "rule", "color": TEXT, "strokeDash": [4, 3]},
            "encoding": {"x": {"datum": at}, "y": {"value": 0}, "y2": {"value": "height"}},
        }
        for at in (UNINFORMATIVE, INFORMATIVE)
    ]
    return Figure(
        f"{name}-resolution",
        "How far quantization moved the residual stream, in units of what the SAE can resolve",
        {
            "data": {"values": rows},
            "width": 760,
            "height": {"step": max(ROW, 9 * len(known)), "for": "position"},
            "layer": [
                *marks,
                {
                    "encoding": {
                        "y": y_names(order),
                        "yOffset": {"field": "layer", "type": "nominal", "sort": known},
                    },
                    "layer": interval_layers(x, encoding, ("q", "layer", "value", "low", "high")),
                },
            ],
        },
        f"Left of {UNINFORMATIVE:g} a flat FVU would say nothing: the SAE hardly sees so small a change. "
        f"From {INFORMATIVE:g} on it could have seen it, so a flat FVU is a finding. {INTERVAL_NOTE}.",
    )
