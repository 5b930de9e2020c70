"""The study's own tables, under ``--protocol study``: its definitions, beside what it published.

Under that protocol every position counts, BOS included, so that ``fvu_scalar_bos``, ``l0``, ``mse`` and
the perturbation are the study's quantities; see docs/study.md for each formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qsae_bench.metrics.residual import read_resolution
from qsae_bench.registry.specs import REFERENCE
from qsae_bench.report.tables import table, wrapped
from qsae_bench.results.document import CellRecord, Value

Published = Mapping[str, Mapping[str, float]]


def study_lines(cells: list[CellRecord], published: Published) -> Iterator[str]:
    """Cross-entropy, SAE quality, perturbation and stability of one model's cells."""
    reference = next((cell for cell in cells if cell.quantization == REFERENCE), None)
    yield "study: cross-entropy (nats/token over every predicted token, BOS targets included)"
    yield from _table([_loss_row(cell, published.get(cell.quantization, {})) for cell in cells])
    yield "study: SAE quality (one scalar mean, BOS included)"
    yield from _table([row for cell in cells for row in _sae_rows(cell)])
    if reference is not None and len(cells) > 1:
        yield "study: how far quantization moved the residual stream, against the SAE's own residual"
        quantized = [cell for cell in cells if cell is not reference]
        yield from _table([row for cell in quantized for row in _perturbation_rows(cell, reference)])
        for cell in quantized:
            ratios = [_number(layer.metrics.get("resolution_ratio")) for layer in cell.layers.values()]
            if ratios and all(ratio is not None for ratio in ratios):
                found = read_resolution([ratio for ratio in ratios if ratio is not None])
                yield from wrapped(f"{cell.quantization}: reading of a flat FVU: {found}")
        yield ""
    if any(cell.stability for cell in cells):
        yield "study: FVU on the first so many tokens (published: 'remarkably consistent', no numbers)"
        yield from _table([row for cell in cells for row in _stability_rows(cell)])


def _loss_row(cell: CellRecord, published: Mapping[str, float]) -> dict[str, str]:
    get = cell.metrics.get
    quantized = cell.quantization != REFERENCE
    known = published.get("cross_entropy_delta_pct")
    return {
        "quantization": cell.quantization,
        "CE": _text(get("cross_entropy"), ".4f"),
        "perplexity": _text(get("perplexity"), ".4f"),
        "ΔCE": _text(get("cross_entropy_delta"), "+.4f") if quantized else "",
        "ΔCE %": _text(get("cross_entropy_delta_pct"), "+.2f") if quantized else "",
        "published ΔCE %": "" if not quantized else "–" if known is None else f"{known:+.1f}",
        "Δperplexity %": _text(get("perplexity_increase_pct"), "+.2f") if quantized else "",
    }


def _sae_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    for layer, record in cell.layers.items():
        get = record.metrics.get
        mse, fvu = _number(get("mse")), _number(get("fvu_scalar_bos"))
        yield {
            "quantization": cell.quantization, "layer": layer,
            "FVU": _text(get("fvu_scalar_bos"), ".6f"), "L0": _text(get("l0"), ".2f"),
            "MSE": _text(get("mse"), ".6g"),
            "variance": f"{mse / fvu:.6g}" if mse is not None and fvu else "–",
            "FVU by Gemma Scope's definition": _text(get("fvu"), ".6f"),
        }  # fmt: skip


def _perturbation_rows(cell: CellRecord, reference: CellRecord) -> Iterator[dict[str, str]]:
    for layer, record in cell.layers.items():
        get = record.metrics.get
        ratio = _number(get("resolution_ratio"))
        own = reference.layers.get(layer)
        error = _number(own.metrics.get("mse")) if own else None
        yield {
            "quantization": cell.quantization, "layer": layer,
            "relative L2": _text(get("perturbation_rel_l2"), ".5f"),
            "token L2": _text(get("perturbation_token_l2"), ".5g"),
            "MSE": "–" if ratio is None or error is None else f"{ratio * error:.6g}",
            "SAE's MSE": "–" if error is None else f"{error:.6g}",
            "ratio": _text(get("resolution_ratio"), ".5f"),
        }  # fmt: skip


def _stability_rows(cell: CellRecord) -> Iterator[dict[str, str]]:
    for layer in cell.layers:
        row = {"quantization": cell.quantization, "layer": layer}
        for part in cell.stability:
            if layer in part.layers:
                row[f"{part.tokens:,}"] = _text(part.layers[layer].metrics.get("fvu_scalar_bos"), ".6f")
        yield row


def _number(value: Value | None) -> float | None:
    return None if value is None else value.value


def _text(value: Value | None, form: str) -> str:
    number = _number(value)
    return "–" if number is None else format(number, form)


def _table(rows: list[dict[str, str]]) -> list[str]:
    return [*table(rows), ""]
