"""Fixtures shared by tests that run a pass."""

from __future__ import annotations

import pytest


@pytest.fixture
def paired(tmp_path):
    """``paired(model_r, model_q, corpus, saes)`` -> (measurement, stored reference), through the store."""
    import torch

    import stand_ins
    from qsae_bench.evaluation import evaluate, forward_batches
    from qsae_bench.reference import ReferenceStore
    from qsae_bench.taps import Head, Subject

    def run(model_r, model_q, corpus, saes, key="key", **options):
        store = ReferenceStore(tmp_path / "references", 1 << 40)
        layers = tuple(saes)
        stored = store.open(key, "cpu")
        if stored is None:
            with torch.inference_mode():
                batches = forward_batches(Subject(model_r, torch.device("cpu")), corpus, layers)
                store.write(key, batches, torch.from_numpy(corpus.valid), Head.of(model_r), {})
            stored = store.open(key, "cpu")
        subject = Subject(model_q, torch.device("cpu")) if model_q is not None else None
        name = "reference" if model_q is None else "damaged"
        cell = stand_ins.cell(name, width=model_r.config.hidden_size)
        return evaluate(cell, corpus, stored, saes, "cpu", subject, **options), stored

    return run


@pytest.fixture
def sessions(tmp_path):
    """``sessions(registry, thresholds, **options)`` opens one, and closes it after the test.

    What they say is in ``sessions.said``.
    """
    from qsae_bench.session import Options, Session

    opened = []

    def make(registry, thresholds, **options):
        settings = {"qsae_dir": tmp_path, "command": "test", "say": make.said.append}
        made = Session(Options(registry, thresholds, **settings | options))
        opened.append(made)
        return made

    make.said = []
    yield make
    for one in opened:
        one.close()
