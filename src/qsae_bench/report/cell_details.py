"""Everything a run knows about one cell, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from qsae_bench.metrics import METRICS
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.document import SHARED_DEVICE, CellRecord, Value


def cell_lines(cell: CellRecord) -> Iterator[str]:
    """Verdicts, every metric with its interval and unit, stability, and the worst features."""
    reason = f": {cell.reason}" if cell.reason else ""
    yield from wrapped(f"{cell.model}-{cell.quantization}: {cell.status}{reason}")
    if cell.verdicts:
        yield from _table(
            {
                "verdict": v.status, "metric": v.metric, "layer": "" if v.layer is None else v.layer,
                "threshold": "–" if v.bound is None else f"{v.side} {v.bound:g}",
                "rests on": v.source or v.reason,
            }
            for v in cell.verdicts
        )  # fmt: skip
    yield from _table(_metric_rows(cell.metrics, ""))
    for layer, record in cell.layers.items():
        yield from _table(_metric_rows(record.metrics, layer))
        if record.worst_features and cell.quantization != "reference":
            yield from wrapped(
                f"layer {layer}: features that lost most (weight × (1 − r)), index as in the SAE"
            )
            yield from _table(
                {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in feature.model_dump().items()}
                for feature in record.worst_features
            )
    if cell.shared_device:
        yield from wrapped(f"load and speeds: {SHARED_DEVICE}")
    for warning in cell.warnings:
        yield from wrapped(warning)
    if cell.stability:
        yield "stability: headline metrics on the first so many tokens"
        yield from _table(
            {"tokens": f"{part.tokens:,}"}
            | {key: _interval(value) for key, value in part.metrics.items()}
            | {
                f"{key} {layer}": _interval(value)
                for layer, record in part.layers.items()
                for key, value in record.metrics.items()
            }
            for part in cell.stability
        )


def _metric_rows(metrics: dict[str, Value], layer: str) -> Iterator[dict[str, object]]:
    for key, value in metrics.items():
        shown = "not finite" if value.value is None else f"{value.value:.6g}"
        bounds = value.low is not None and value.high is not None
        yield {
            "metric": key, **({"layer": layer} if layer else {}), "value": shown,
            "low": f"{value.low:.6g}" if bounds else "", "high": f"{value.high:.6g}" if bounds else "",
            "unit": METRICS[key].unit if key in METRICS else "",
        }  # fmt: skip


def _interval(value: Value) -> str:
    if value.value is None or value.low is None or value.high is None:
        return "–"
    return f"{value.value:.4g} ± {(value.high - value.low) / 2:.2g}"


def _table(rows: Iterable[Mapping[str, object]]) -> list[str]:
    return [*table(rows), ""]
