"""Sinks planted in the embedded model: the damage of the ordinary positions is told as without them.

The token nearest to 0.3% of the positions gets a long row in the embedding, the head being untied; RMSNorm
takes the length off again before every block, so that little else changes. The quantized cell alone gets one
more, at a token that the text has once.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qsae_bench.gate.thresholds import Thresholds
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, Selection, local_folder
from qsae_bench.report.terminal import summary_lines
from qsae_bench.run import document

TOKENS = 4064
TIMES = 60.0
"""what the rows are multiplied by: it makes norms of 15 to 30 times the median"""
KEYS = ("fvu_drift", "perturbation_nsr", "feature_survival_weighted")

pytestmark = pytest.mark.slow


def untied(spec, folder, long_tokens=()):
    """A copy of the embedded model, whose embedding has long rows and whose head has none."""
    source = local_folder(spec.source)
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.clone()
    embedding[list(long_tokens)] *= TIMES
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    architecture = {**spec.architecture, "tie_word_embeddings": False}
    return dataclasses.replace(spec, name=folder.name, source=str(folder), architecture=architecture)


@pytest.fixture
def measured(sessions, tmp_path):
    """``measured(name, long_tokens, gained)`` -> the cell's result, the session, its corpus."""

    def run(name, long_tokens=(), gained=()):
        registry = load_registry()
        spec = untied(registry.model("tiny_gemma3"), tmp_path / name, long_tokens)
        cell = Cell(spec, registry.quantization("rtn_int3"))
        session = sessions(
            registry,
            Thresholds({}),
            qsae_dir=tmp_path / "q",
            selection=Selection(tokens=TOKENS, max_tokens=TOKENS),
        )
        session.require(cell)
        session.measure(registry.reference_of(cell))
        with torch.no_grad():
            session.load(cell).model.get_input_embeddings().weight[list(gained)] *= TIMES
        return session.measure(cell), session, session.model(cell).corpus

    return run


def test_damage_is_told_as_without_sinks_and_those_gained_are_counted(measured):
    plain, _, corpus = measured("untied")
    assert plain.measurement.sinks is None, "the embedded model has none"
    tokens, counts = np.unique(corpus.ids[corpus.valid], return_counts=True)
    valid = int(corpus.valid.sum())
    many = int(tokens[np.abs(counts / valid - 0.003).argmin()])
    once = int(tokens[counts == 1][0])
    planted, session, _ = measured("sinks", [many], [once])

    rule = planted.measurement.sinks
    assert rule is not None
    of_many = int((corpus.ids[corpus.valid] == many).sum())
    assert 0.002 < of_many / valid < 0.004
    shown = []
    for layer, found in planted.estimates.layers.items():
        other = plain.estimates.layers[layer]
        for key in KEYS:
            assert found[key].value == pytest.approx(other[key].value, rel=0.2), (layer, key)
        counted = (
            found["sink_share"].value * valid,
            *(found[f"sinks_{k}"].value * valid / 1000 for k in ("gained", "lost")),
        )
        assert counted == pytest.approx((of_many, 1, 0), abs=1e-6)
        shown.append((found["fvu_drift_all"].value, found["fvu_drift"].value))
    assert min(every / ordinary for every, ordinary in shown) < 0.5, (
        "with them the drift would look smaller"
    )
    out = " ".join(" ".join(summary_lines(document.run_document(session))).split())
    assert f"sinks: {of_many} of {valid:,} positions" in out
    assert f"rtn_int3: 1 of {valid:,} positions became a sink; left out" in out
    assert "with sinks it would be" in out
