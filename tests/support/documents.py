"""Run documents of any size, with numbers of a plausible shape and every kind of status."""

from __future__ import annotations

import math
import random

from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.metrics.features import CURVE
from qsae_bench.results.document import RunDocument

LAYER_METRICS = (
    "fvu", "fvu_scalar", "fvu_scalar_bos", "fvu_drift", "fvu_fixed", "l0", "feature_survival", "resolution_ratio",
    "perturbation_nsr", "feature_survival_weighted",
)  # fmt: skip
GATED = ("fvu_drift", "feature_survival")
VERDICTS = ("pass", "fail", "inconclusive", "suspicious", "invalid", "unset")
GONE = ("skipped", "oom", "error", "crashed")


def value(number, width=0.1):
    half = abs(number) * width
    return {"value": number, "low": number - half, "high": number + half}


def layer_record(rng, scale, quantized):
    fvu = 0.08 * (1 + scale)
    metrics = {
        "fvu": value(fvu), "fvu_scalar": value(fvu * 0.9), "fvu_scalar_bos": value(fvu * 0.5), "l0": value(45.0),
        "fvu_fixed": value(fvu),
    }  # fmt: skip
    if not quantized:
        return {"metrics": metrics}
    metrics |= {
        "fvu_drift": value(0.002 * scale), "feature_survival": value(1 - 0.1 * scale, 0.01), "resolution_ratio": value(scale / 5),
        "perturbation_nsr": value(scale / 50), "feature_survival_weighted": value(1 - 0.05 * scale, 0.01),
    }  # fmt: skip
    shares = [1 - (t ** (4 / (scale + 0.1))) * 0.9 for t in CURVE]
    return {
        "metrics": metrics,
        "survival_curve": {"correlation": list(CURVE), "share": shares, "weighted": [math.sqrt(s) for s in shares]},
        "worst_features": [
            {
                "index": rng.randrange(16384), "active_reference": rng.randrange(20, 9000), "active_quantized": rng.randrange(9000),
                "correlation": rng.random(), "slope": rng.random(), "weight": rng.random(),
            }
            for _ in range(20)
        ],
    }  # fmt: skip


def verdict(metric, layer, status="pass", **changes):
    judged = {"pass": (0.1, 0.2), "fail": (0.4, 0.6), "inconclusive": (0.2, 0.4)}.get(status)
    return {
        "metric": metric, "layer": layer, "status": status, "side": "max", "bound": 0.3, "source": "measured; margin 2",
        "provisional": False, "tokens": 32512, "reason": "" if status == "pass" else f"why it is {status}",
        "judged": judged and {"value": sum(judged) / 2, "low": judged[0], "high": judged[1]}, "looks": 1,
    } | changes  # fmt: skip


def cell(model, quantization, scale, layers, status="pass", rng=None):
    """One cell; ``status`` is a verdict of its first gate, or what became of the cell."""
    rng = rng or random.Random(0)
    if status in GONE:
        reason = f"{model} at {quantization} is {status}: this machine lacks a thing or two"
        return {"model": model, "quantization": quantization, "status": status, "reason": reason}
    quantized = quantization != "reference"
    metrics = {
        "perplexity": value(9.0 * (1 + scale / 100), 0.02),
        "bits_per_weight": {"value": 16 / (1 + 3 * scale)},
    }
    record = {
        "model": model, "quantization": quantization, "status": "measured", "tokens": 32512, "planned_tokens": 260096, "looks": 1,
        "layers": {str(layer): layer_record(rng, scale, quantized) for layer in layers},
        "metrics": metrics | {
            "prefill_tokens_per_second": {"value": 1e4 * (1 + scale * rng.random())}, "load_seconds": {"value": 12.5 + rng.random()},
            "decode_tokens_per_second": {"value": 800 * (1 + scale * rng.random())}, "evaluation_tokens_per_second": {"value": 4e3 * (1 + rng.random())},
            "weight_bytes": {"value": 8e9 / (1 + scale)}, "peak_memory_bytes": {"value": 1.2e10},
        },
        "timings": {
            "prefill": {"seconds": [0.9, 1.0, 1.2], "median_seconds": 1.0, "spread_seconds": 0.15, "rounds": 3, "tokens": 10000}
        },
    }  # fmt: skip
    if quantized:
        record["metrics"] |= {
            "perplexity_increase_pct": value(scale), "kl_divergence": value(0.01 * scale**2 + 1e-6), "top1_agreement": value(1 - scale / 20, 0.01)
        }  # fmt: skip
        record["stability"] = [
            {
                "tokens": 32512 // part,
                "metrics": {"perplexity_increase_pct": value(scale, 0.1 * math.sqrt(part)), "kl_divergence": value(0.01 * scale**2 + 1e-6, 0.1 * math.sqrt(part))},
                "layers": {str(layer): {"metrics": {"fvu_drift": value(0.002 * scale, 0.1 * math.sqrt(part))}} for layer in layers},
            }
            for part in (8, 4, 2, 1)
        ]  # fmt: skip
        record["verdicts"] = [
            verdict("kl_divergence", None, status),
            verdict("perplexity_increase_pct", None),
        ]
        record["verdicts"] += [verdict(metric, layer) for layer in layers for metric in GATED]
    return record


def run_document(models=("m",), quantizations=("int8", "nf4"), layers=(3,), statuses=None, **changes):
    """A validated document; ``statuses`` (model, quantization) -> status of a cell, ``pass`` otherwise."""
    rng = random.Random(1)
    cells = []
    for model in models:
        cells.append(cell(model, "reference", 0.0, layers, rng=rng))
        for index, quantization in enumerate(quantizations):
            status = (statuses or {}).get((model, quantization), "pass")
            cells.append(cell(model, quantization, 0.05 * (index + 1), layers, status, rng))
    about = {
        "schema_version": 1, "metrics_version": METRICS_VERSION, "run_id": "20261124T020000Z-ab12", "started": "2026-11-24T02:00:00+00:00",
        "finished": "2026-11-24T03:10:00+00:00", "command": "pytest benchmarks", "cells": cells,
        "environment": {"python": "3.11.7", "cpu": "a CPU", "gpus": [], "versions": {"torch": "2.13.0"}, "device": "cpu"},
        "corpus": {
            model: {
                "name": "tiny", "fingerprint": "f" * 64, "sequences": 256, "sequence_length": 128, "tokens": 32512,
                "batch_size": 16, "dropped_documents": 3, "dropped_tokens": 100,
            }
            for model in models
        },
        "saes": {model: {str(layer): f"release/layer_{layer}" for layer in layers} for model in models},
        "neuronpedia": {models[0]: {str(layers[0]): f"gemma-3-12b/{layers[0]}-gemmascope-2-res-16k"}},
    }  # fmt: skip
    return RunDocument.model_validate(about | changes)
