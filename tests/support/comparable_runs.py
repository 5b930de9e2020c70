"""Runs of made-up cells to be compared, and ``qsae-bench compare`` on them."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import Synthetic, feature_sums, measurement, synthetic
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.metrics.features import FeatureSums
from qsae_bench.metrics.measurement import Measurement
from qsae_bench.results.document import RunDocument, value_record
from qsae_bench.results.run_files import write_run
from qsae_bench.stats.bootstrap import estimate
from running import typed

LAYERS = (1, 3)
SEQUENCES = 24
NOISE = {"reference": 0.0, "nf4": 0.2, "fp4": 0.3, "int8": 0.02, "rtn_int4": 0.25}
COSTS = {
    "reference": {"bits_per_weight": 16.0, "weight_bytes": 8e6, "prefill_tokens_per_second": 900.0},
    "nf4": {"bits_per_weight": 4.25, "weight_bytes": 2e6, "prefill_tokens_per_second": 700.0, "load_seconds": 2.0},
    "fp4": {"bits_per_weight": 4.25, "weight_bytes": 2e6, "prefill_tokens_per_second": 800.0, "load_seconds": 1.0},
    "int8": {"bits_per_weight": 8.5, "weight_bytes": 4e6, "prefill_tokens_per_second": 300.0},
    "rtn_int4": {"bits_per_weight": 4.5, "weight_bytes": 8e6, "prefill_tokens_per_second": 900.0},
}  # fmt: skip


def quantized(data: Synthetic, noise: float, seed: int) -> Synthetic:
    rng = np.random.default_rng(seed)

    def near(x):
        return x + noise * rng.normal(size=x.shape)

    q = dataclasses.replace(data.r, x=near(data.r.x), x_hat=near(data.r.x_hat))
    return dataclasses.replace(
        data, q=q, nll_q=near(data.nll_r) + noise, kl=noise * rng.gamma(2.0, 0.1, size=data.kl.shape)
    )


def noisy_features(noise: float, length: int = 100, d_sae: int = 40) -> FeatureSums:
    rng = np.random.default_rng(4)
    r = np.maximum(rng.normal(size=(8, length, d_sae)), 0)
    strength = noise * np.linspace(0, 4, d_sae)
    q = np.where(r > 0, np.maximum(r + strength * np.random.default_rng(5).normal(size=r.shape), 0), 0)
    return feature_sums(r, q)


def measured(name: str, model: str = "tiny", noise: float | None = None, seed: int = 1) -> Measurement:
    noise = NOISE.get(name, 0.2) if noise is None else noise
    data = quantized(synthetic(seed, n=SEQUENCES), noise, sum(map(ord, name)))
    features = dict.fromkeys(LAYERS, noisy_features(noise))
    return measurement(data, LAYERS, model=model, quantization=name, features=features)


def record(one: Measurement, **changes) -> dict:
    found = estimate(one, replicates=20)
    costs = COSTS.get(one.quantization, {})
    return {
        "model": one.model, "quantization": one.quantization, "status": "measured",
        "metrics": {k: value_record(e).model_dump() for k, e in found.cell.items()}
        | {key: {"value": value} for key, value in costs.items()},
        "layers": {
            str(layer): {"metrics": {k: value_record(e).model_dump() for k, e in estimates.items()}}
            for layer, estimates in found.layers.items()
        },
    } | changes  # fmt: skip


def written(
    folder: Path, measurements: list[Measurement], more: list[dict] = (), changes=None, **document
) -> Path:
    """A run's folder; ``changes``: of the records, by quantization."""
    models = list(dict.fromkeys(one.model for one in measurements))
    corpus = {
        "name": "stub", "fingerprint": measurements[0].corpus_fingerprint, "sequences": SEQUENCES,
        "sequence_length": 12, "tokens": 240, "batch_size": 4, "dropped_documents": 0, "dropped_tokens": 0,
    }  # fmt: skip
    made = {
        "schema_version": 1, "metrics_version": METRICS_VERSION, "run_id": folder.name, "started": "", "finished": "", "command": "pytest",
        "environment": {"cpu": "one"}, "corpus": dict.fromkeys(models, corpus),
        "cells": [record(one, **(changes or {}).get(one.quantization, {})) for one in measurements] + list(more),
    } | document  # fmt: skip
    rows = {f"{one.model}-{one.quantization}": one for one in measurements}
    path = write_run(folder.parent / "made", RunDocument.model_validate(made), rows)
    shutil.copytree(path, folder)
    return folder


CELLS = [measured(name) for name in NOISE]
SIMULATED = {"rtn_int4": {"quantized": {"share": 1.0, "simulated": True}}}


@functools.cache
def first_run() -> Path:
    """The run at hand, made once a process: every quantization of NOISE, one of them simulated."""
    home = tempfile.mkdtemp(prefix="qsae-compare-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return written(Path(home) / "first", CELLS, changes=SIMULATED)


@functools.cache
def second_run() -> Path:
    """Another day: nf4 got better, fp4 was not measured."""
    cells = [measured("reference"), measured("nf4", noise=0.05), measured("int8")]
    home = first_run().parent / "again"
    return written(home / "second", cells, environment={"cpu": "two"})


def compare(*arguments: object, at: Path | None = None) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of ``qsae-bench compare`` on the run at hand."""
    return typed("compare", *arguments, "--run", at or first_run())


def as_json(*arguments: object, at: Path | None = None) -> Any:
    """What ``qsae-bench compare`` prints as JSON."""
    status, out, err = compare(*arguments, "--format", "json", at=at)
    assert (status, err) == (0, "")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def refused(*arguments: object, at: Path | None = None) -> str:
    """The one line with which ``qsae-bench compare`` refuses."""
    status, out, error = compare(*arguments, at=at)
    assert (status, out) == (2, "")
    assert error.startswith("qsae-bench: ") and len(error.splitlines()) == 1
    return error
