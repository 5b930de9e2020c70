"""Run documents of made-up nights, for the history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.results.document import RunDocument, text_of
from qsae_bench.results.history.schema import runs
from qsae_bench.results.history.store import History

VERSIONS = {"qsae-bench": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "pytest": "9.2.0"}


def value(middle: float | None, width: float = 0.0) -> dict[str, Any]:
    if middle is None:
        return {"value": None}
    return {"value": middle, "low": middle - width, "high": middle + width}


def verdict(
    metric: str, status: str = "pass", layer: int | None = None, bound: float = 1.0
) -> dict[str, Any]:
    return {
        "metric": metric, "layer": layer, "status": status, "side": "max", "bound": bound,
        "source": "a test", "provisional": False, "tokens": 2032, "reason": "",
    }  # fmt: skip


def night(
    number: int = 1,
    kl: float | None = 0.01,
    status: str = "pass",
    *,
    gpu: str = "NVIDIA H200",
    fingerprint: str = "ab" * 16,
    versions: dict[str, str] | None = None,
    reference_fvu: float = 0.08,
    fvu: float = 0.085,
    reference_loss: float = 1.5,
    loss: float = 1.52,
    reference_reason: str = "",
    bound: float = 1.0,
    tokens: int = 2032,
    **changes: Any,
) -> RunDocument:
    """One night: a reference and one nf4 cell, gated on kl_divergence and, at layer 3, on fvu_drift."""
    run_id = f"202601{number:02d}T030000Z-{number:04x}"

    def layers(own: float) -> dict[str, Any]:
        drift = own - reference_fvu
        found = {"fvu": value(own, 0.002), "l0": value(40.0, 0.5), "fvu_drift": value(drift, 0.0004)}
        return {"3": {"metrics": found}}

    cells = [
        {
            "model": "tiny", "quantization": "reference", "status": "measured", "reason": reference_reason,
            "metrics": {"cross_entropy": value(reference_loss, 0.05), "kl_divergence": value(0.0)},
            "layers": layers(reference_fvu), "tokens": tokens, "revision": "abc",
        },
        {
            "model": "tiny", "quantization": "nf4", "status": "measured",
            "metrics": {
                "cross_entropy": value(loss, 0.05), "kl_divergence": value(kl, 0.002),
                "load_seconds": {"value": 2.5 + number % 3},
            },
            "layers": layers(fvu), "tokens": tokens, "revision": "abc",
            "verdicts": [
                verdict("kl_divergence", status, bound=bound), verdict("fvu_drift", status, 3, bound),
            ],
        },
    ]  # fmt: skip
    fields: dict[str, Any] = {
        "schema_version": 1,
        "metrics_version": METRICS_VERSION,
        "run_id": run_id,
        "started": f"2026-01-{number:02d}T03:00:00+00:00",
        "finished": f"2026-01-{number:02d}T03:10:00+00:00",
        "command": "pytest benchmarks",
        "environment": {"gpus": [{"name": gpu}], "driver": "580.1", "versions": VERSIONS | (versions or {})},
        "corpus": {
            "tiny": {
                "name": "tiny", "fingerprint": fingerprint, "sequences": 16, "sequence_length": 128,
                "tokens": 2032, "batch_size": 16, "dropped_documents": 0, "dropped_tokens": 0,
            }
        },
        "cells": cells,
    }  # fmt: skip
    return RunDocument.model_validate(fields | changes)


def put(folder: Path, document: RunDocument) -> Path:
    """A run's folder in ``folder``."""
    place = folder / document.run_id
    place.mkdir(parents=True)
    (place / "run.json").write_text(text_of(document), encoding="utf-8")
    return place


def tree(document: RunDocument) -> Any:
    return json.loads(text_of(document))


def run_ids(history: History) -> list[str]:
    """Every run that is kept, in order of its id."""
    with history.reading() as connection:
        return sorted(connection.execute(sa.select(runs.c.run_id)).scalars())
