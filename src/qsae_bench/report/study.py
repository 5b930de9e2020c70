"""Print the study's own tables, under ``--protocol study``: its definitions, beside what it published.

Under that protocol every position counts, BOS included, so that ``fvu_scalar_bos``, ``l0``, ``mse`` and
the perturbation are the study's quantities; see docs/study.md for each formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qsae_bench.metrics.residual import read_resolution
from qsae_bench.report.number_format import ShownColumns, cell_values, formatted
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.document import CellRecord, Value

Published = Mapping[str, Mapping[str, float]]

STUDY_LOSS: ShownColumns = {
    "CE": ("cross_entropy", ".4f"), "perplexity": ("perplexity", ".4f"),
    "ΔCE": ("cross_entropy_delta", "+.4f"), "ΔCE %": ("cross_entropy_delta_pct", "+.2f"),
    "Δperplexity %": ("perplexity_increase_pct", "+.2f"),
}  # fmt: skip
STUDY_SAE: ShownColumns = {"FVU": ("fvu_scalar_bos", ".6f"), "L0": ("l0", ".2f"), "MSE": ("mse", ".6g")}
STUDY_PERTURBATION: ShownColumns = {
    "relative L2": ("perturbation_rel_l2", ".5f"), "token L2": ("perturbation_token_l2", ".5g"),
}  # fmt: skip


def study_lines(cells: list[CellRecord], published: Published) -> Iterator[str]:
    """Yield cross-entropy, SAE quality, perturbation and stability of one model's cells."""
    reference = next((cell for cell in cells if cell.is_reference), None)
    yield "study: cross-entropy (nats/token over every predicted token, BOS targets included)"
    yield from _table([_loss_row(cell, published.get(cell.quantization, {})) for cell in cells])
    yield "study: SAE quality (one scalar mean, BOS included)"
    yield from _table([_sae_row(cell, layer) for cell in cells for layer in cell.layers])
    if reference is not None and len(cells) > 1:
        yield "study: how far quantization moved the residual stream, against the SAE's own residual"
        quantized = [cell for cell in cells if cell is not reference]
        yield from _table([_perturbation_row(q, layer, reference) for q in quantized for layer in q.layers])
        for cell in quantized:
            ratios = [_number(layer.metrics.get("resolution_ratio")) for layer in cell.layers.values()]
            known = [ratio for ratio in ratios if ratio is not None]
            if known and len(known) == len(ratios):
                found = read_resolution(known)
                yield from wrapped(f"{cell.quantization}: reading of a flat FVU: {found}")
        yield ""
    if any(cell.stability for cell in cells):
        yield "study: FVU on the first so many tokens (published: 'remarkably consistent', no numbers)"
        yield from _table([row for cell in cells for row in _stability_rows(cell)])


def _loss_row(cell: CellRecord, published: Mapping[str, float]) -> dict[str, str]:
    known = published.get("cross_entropy_delta_pct")
    figure = "" if cell.is_reference else "–" if known is None else f"{known:+.1f}"
    row = {"quantization": cell.quantization, **cell_values(cell, STUDY_LOSS)}
    return row | {"published ΔCE %": figure, "Δperplexity %": row.pop("Δperplexity %")}


def _sae_row(cell: CellRecord, layer: str) -> dict[str, str]:
    metrics = cell.layers[layer].metrics
    mse, fvu = _number(metrics.get("mse")), _number(metrics.get("fvu_scalar_bos"))
    return {
        "quantization": cell.quantization, "layer": layer, **cell_values(cell, STUDY_SAE, layer),
        "variance": f"{mse / fvu:.6g}" if mse is not None and fvu else "–",
        "FVU by Gemma Scope's definition": formatted(metrics.get("fvu"), ".6f"),
    }  # fmt: skip


def _perturbation_row(cell: CellRecord, layer: str, reference: CellRecord) -> dict[str, str]:
    metrics = cell.layers[layer].metrics
    ratio = _number(metrics.get("resolution_ratio"))
    own = reference.layers.get(layer)
    error = _number(own.metrics.get("mse")) if own else None
    return {
        "quantization": cell.quantization, "layer": layer, **cell_values(cell, STUDY_PERTURBATION, layer),
        "MSE": "–" if ratio is None or error is None else f"{ratio * error:.6g}",
        "SAE's MSE": "–" if error is None else f"{error:.6g}",
        "ratio": formatted(metrics.get("resolution_ratio"), ".5f"),
    }  # fmt: skip


def _stability_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    for layer in cell.layers:
        row = {"quantization": cell.quantization, "layer": layer}
        for part in cell.stability:
            if layer in part.layers:
                value = part.layers[layer].metrics.get("fvu_scalar_bos")
                row[f"{part.tokens:,}"] = formatted(value, ".6f")
        yield row


def _number(value: Value | None) -> float | None:
    return None if value is None else value.value


def _table(rows: list[dict[str, str]]) -> list[str]:
    return [*table(rows), ""]
