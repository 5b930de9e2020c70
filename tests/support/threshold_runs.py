"""Runs, and a thresholds file that they update."""

from __future__ import annotations

import tomllib

from qsae_bench.gate.threshold_file import parse_thresholds
from qsae_bench.gate.thresholds import Thresholds, table_name
from qsae_bench.metrics import METRICS_VERSION
from qsae_bench.results.document import RunDocument
from qsae_bench.results.threshold_edit import edited_text
from qsae_bench.results.threshold_update import UpdateOptions, update_from

CELL = {
    "kl_divergence": (0.2, 0.1, 0.25),
    "top1_agreement": (0.95, 0.94, 0.96),
    "perplexity": (4.3, 4.2, 4.4),
}
LAYER = {"fvu_drift": (0.002, 0.001, 0.003), "fvu": (0.08, 0.079, 0.081)}
OWN = {"kl_divergence": (0, 0, 0), "top1_agreement": (1, 1, 1), "perplexity": (4.2, 4.1, 4.3)}
OWN_LAYER = {"fvu_drift": (0, 0, 0), "fvu": (0.076, 0.075, 0.077)}


def values(found):
    return {
        key: dict(zip(("value", "low", "high"), [e if e is None else float(e) for e in ends], strict=False))
        for key, ends in found.items()
    }


def verdict(metric, layer=None, status="pass", reason=""):
    return {
        "metric": metric, "layer": layer, "status": status, "side": "max", "bound": 1.0, "source": "s",
        "provisional": False, "tokens": 32512, "reason": reason,
    }  # fmt: skip


def cell(quantization="nf4", metrics=None, layer=None, model="tiny_gemma3", gated=(), **changes):
    judged = [*[verdict(m) for m in ("kl_divergence", "top1_agreement")], verdict("fvu_drift", 3), *gated]
    return {
        "model": model, "quantization": quantization, "status": "measured", "metrics": values(metrics or CELL),
        "layers": {"3": {"metrics": values(layer or LAYER)}}, "verdicts": judged, "tokens": 32512,
    } | changes  # fmt: skip


REFERENCE = cell("reference", OWN, OWN_LAYER, verdicts=[])
GPU = {
    "cpu": "AMD EPYC", "gpus": [{"name": "NVIDIA H200", "memory_bytes": 1}], "driver": "580.1", "cuda": "13.0",
    "versions": {"torch": "2.13.0", "numpy": "2", "transformers": "5.23.0", "bitsandbytes": "0.50.2"},
}  # fmt: skip
CORPUS = {
    "name": "tiny", "fingerprint": "f", "sequences": 256, "sequence_length": 128, "tokens": 32512,
    "batch_size": 16, "dropped_documents": 0, "dropped_tokens": 0,
}  # fmt: skip


def run(*cells, **changes) -> RunDocument:
    made = {
        "schema_version": 1, "metrics_version": METRICS_VERSION, "run_id": "20261124T120000Z-abcd",
        "started": "2026-11-24T11:59:00+00:00",
        "finished": "2026-11-24T12:00:00+00:00", "command": "pytest benchmarks", "environment": GPU,
        "corpus": {"tiny_gemma3": CORPUS}, "cells": list(cells) or [REFERENCE, cell()],
    } | changes  # fmt: skip
    return RunDocument.model_validate(made)


FILE = """\
# what everybody agreed on
schema = 1   # of this file

[defaults.nf4]   # any model
kl_divergence = { max = 0.4, provisional = true, source = "a publication" }
top1_agreement = { min = 0.8, source = "a publication" }

# -- ours ------------------------------------------------------------------------
# measured by hand

[tiny_gemma3.nf4]
kl_divergence = { max = 0.6, source = "by hand" }   # ask Ann
[tiny_gemma3.nf4.layer3]
fvu_drift   =   {max = 0.007, source = 'by hand'}

# -- theirs ----------------------------------------------------------------------

[gemma3_12b.nf4]
kl_divergence = { max = 0.1, source = "guessed" }
"""


def parse(text: str) -> Thresholds:
    return parse_thresholds(tomllib.loads(text), "t.toml")


def updated(document: RunDocument | None = None, file: str = FILE, **options):
    """(the update, the text that it makes of the file)."""
    found = update_from(document or run(), parse(file), UpdateOptions(**options))
    return found, edited_text(file, found.needed, "t.toml")


def bounds(text: str) -> dict[str, float]:
    return {
        f"{table_name(path)} {metric}": entry.bound
        for path, entries in parse(text).tables.items() for metric, entry in entries.items()
    }  # fmt: skip


HARDWARE = (
    FILE
    + """
[defaults.nf4.hardware."NVIDIA H100"]
kl_divergence = { max = 0.3, source = "there" }
[tiny_gemma3.nf4.hardware."NVIDIA H200"]
top1_agreement = { min = 0.9, source = "there" }
"""
)
