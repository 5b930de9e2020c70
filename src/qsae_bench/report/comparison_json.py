"""Write a comparison as JSON: everything that its tables have, at full precision.

Strict JSON; null stands for what is not finite, was not measured, or is not its own: costs of a simulated
quantization, speeds beside other workers::

    schema_version 1, level, alpha, correction {method, tests}, swaps, bootstrap_replicates
    comparisons[]  model, a, b {run, run_id, quantization, simulated, shared_device},
                   corpus, sequences, documents, tokens, notes[],
                   differences[] {metric, layer, unit, better, a, b, difference, low, high, p, p_adjusted,
                                  method, replicates, verdict}
                   costs[] {metric, unit, a, b, ratio}
    overview[]     model,
                   recipes[] {name, run, run_id, quantization, simulated, takes_part, metrics {}, costs {}}
                   planes[] {quality, cost, dominated_by {name: [names]}}
    left_out[]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qsae_bench.metrics import METRICS, headline
from qsae_bench.metrics.base import finite
from qsae_bench.report.comparison import OVERVIEW
from qsae_bench.results import pareto
from qsae_bench.results.cell_pairs import RunCell
from qsae_bench.results.compare import Compared, Comparison
from qsae_bench.stats import comparison
from qsae_bench.stats.bootstrap import LEVEL, REPLICATES
from qsae_bench.stats.comparison import Difference


def json_lines(outcome: Comparison) -> list[str]:
    """Write a comparison as strict JSON without characters that a terminal would act on."""
    text = json.dumps(as_document(outcome), indent=1, allow_nan=False, ensure_ascii=False)
    # what moves the cursor or turns the direction of reading: the same text, escaped
    inert = (c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    return "".join(inert).split("\n")


def as_document(outcome: Comparison) -> dict[str, Any]:
    """Return the document of this module's docstring; ``planes`` leaves out points that miss an axis."""
    tested = [d for one in outcome.compared for d in one.differences if d.tested.p is not None]
    return {
        "schema_version": 1, "level": LEVEL, "alpha": comparison.COMPARISON_ALPHA,
        "correction": {"method": "Holm", "tests": len(tested)}, "swaps": outcome.swaps,
        "bootstrap_replicates": REPLICATES,
        "comparisons": [_comparison(one, outcome.swaps) for one in outcome.compared],
        "overview": [_overview(model, sides) for model, sides in outcome.overview],
        "left_out": list(outcome.left_out),
    }  # fmt: skip


def _comparison(one: Compared, swaps: int) -> dict[str, Any]:
    a, b = one.pair.a, one.pair.b
    return {
        "model": a.cell.model,
        "a": _side(a), "b": _side(b), "corpus": a.corpus.model_dump() if a.corpus else None,
        "sequences": one.sequences, "documents": one.documents, "tokens": one.tokens,
        "notes": list(one.notes),
        "differences": [_difference(d, swaps) for d in one.differences],
        "costs": [
            _cost(key, a, b) for key in headline("beside") if key in a.cell.metrics or key in b.cell.metrics
        ],
    }  # fmt: skip


def _side(side: RunCell) -> dict[str, Any]:
    return {
        "run": side.run.folder.name, "run_id": side.run.document.run_id,
        "quantization": side.cell.quantization, "simulated": side.cell.simulated,
        "shared_device": side.cell.shared_device,
    }  # fmt: skip


def _difference(d: Difference, swaps: int) -> dict[str, Any]:
    metric, t = METRICS[d.metric], d.tested
    return {
        "metric": d.metric, "layer": d.layer, "unit": metric.unit, "better": metric.better,
        "a": finite(t.a), "b": finite(t.b), "difference": finite(t.difference.value),
        "low": finite(t.difference.low), "high": finite(t.difference.high),
        "p": t.p, "p_adjusted": d.adjusted_p, "method": t.method,
        "replicates": swaps if t.method == "label swap" else None, "verdict": d.verdict,
    }  # fmt: skip


def _cost(key: str, a: RunCell, b: RunCell) -> dict[str, Any]:
    one, other = (pareto.cost(side.cell, key) for side in (a, b))
    ratio = one / other if one is not None and other else None
    return {"metric": key, "unit": METRICS[key].unit, "a": one, "b": other, "ratio": ratio}


def _overview(model: str, sides: Sequence[tuple[str, RunCell]]) -> dict[str, Any]:
    points = {name: pareto.point(side.cell) for name, side in sides}
    return {
        "model": model,
        "recipes": [_quantization(name, side) for name, side in sides],
        "planes": [
            {
                "quality": plane[0], "cost": plane[1],
                "dominated_by": {k: list(v) for k, v in pareto.dominators(points, plane).items()},
            }
            for plane in pareto.planes(points)
        ],
    }  # fmt: skip


def _quantization(name: str, side: RunCell) -> dict[str, Any]:
    known, survival = side.cell.metrics, pareto.quality(side.cell, "feature_survival")
    metrics = {key: known[key].model_dump() for key, _ in OVERVIEW.values() if key in known}
    return {
        "name": name, **_side(side), "takes_part": pareto.takes_part(side.cell),
        "metrics": metrics | {"feature_survival": {"value": survival}},
        "costs": {key: pareto.cost(side.cell, key) for key in headline("beside") if key in known},
    }  # fmt: skip
