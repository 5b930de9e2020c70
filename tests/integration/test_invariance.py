"""Laws of a pass: batches, shards, order and chunk size change no metric beyond 1e-9 relative.

Models run in float64 here: in float32 a matrix product rounds differently for another batch shape,
which is the noise floor's business, not a law of the accumulators.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stand_ins
from qsae_bench.measure.evaluation import evaluate
from qsae_bench.measure.store.local import LocalStore
from qsae_bench.metrics import loss
from qsae_bench.metrics.measurement import merge
from qsae_bench.metrics.sinks import SinkRule
from qsae_bench.models.taps import Subject
from qsae_bench.stats.bootstrap import estimate

SEQUENCES = 9
SINK_NORM = 1.5
"""such that some positions are sinks"""
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pass over everything in float64, and what is needed to repeat parts of it."""
    torch.set_default_dtype(torch.float64)
    try:
        model = stand_ins.gemma3().double()
        other = stand_ins.damaged(model, 0.05)
        saes = {layer: stand_ins.jumprelu(layer).double() for layer in stand_ins.LAYERS}
        for sae in saes.values():
            sae.dtype = torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    corpus = stand_ins.corpus(SEQUENCES, 20)
    folder = tmp_path_factory.mktemp("invariance")

    def run(order, batch_size):
        part = replace(
            corpus, ids=corpus.ids[order], valid=corpus.valid[order], documents=corpus.documents[order],
            spec=replace(corpus.spec, batch_size=batch_size),
        )  # fmt: skip
        store = LocalStore(folder, 1 << 40)
        # a sound one stays: equal keys mean equal content
        shutil.rmtree(store.folder / "part", ignore_errors=True)
        store.write("part", stand_ins.reference_pass(model, part))
        stored = store.open("part", "cpu")
        stored.sinks = SinkRule(stand_ins.LAYERS[0], 1.1, SINK_NORM)  # a part's rule is not the whole's
        return evaluate(stand_ins.cell(), part, stored, saes, "cpu", Subject(other, torch.device("cpu")))

    return run, numbers(run(np.arange(SEQUENCES), 4))


def numbers(measurement):
    estimates = estimate(measurement, replicates=5)
    found = {k: e.value for k, e in estimates.cell.items()}
    for layer, values in estimates.layers.items():
        found |= {f"{layer} {k}": e.value for k, e in values.items() if k != "drift_resolution"}
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    wrong = {
        key: (found[key], expected[key])
        for key in expected
        if found[key] != pytest.approx(expected[key], rel=1e-9, abs=1e-13)
    }
    assert not wrong


@QUICK
@given(batch_size=st.integers(1, SEQUENCES))
def test_batch_size(whole, batch_size):
    run, expected = whole
    assert_same(numbers(run(np.arange(SEQUENCES), batch_size)), expected)


@QUICK
@given(order=st.permutations(range(SEQUENCES)))
def test_order_of_sequences(whole, order):
    run, expected = whole
    assert_same(numbers(run(np.array(order), 4)), expected)


@QUICK
@given(cuts=st.sets(st.integers(1, SEQUENCES - 1), max_size=3))
def test_shards(whole, cuts):
    run, expected = whole
    shards = np.split(np.arange(SEQUENCES), sorted(cuts))
    assert_same(numbers(merge([run(shard, 4) for shard in shards])), expected)


@QUICK
@given(chunk=st.integers(1, 80))
def test_chunk_of_positions(whole, chunk):
    run, expected = whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "chunk_positions", lambda *_: chunk)
        assert_same(numbers(run(np.arange(SEQUENCES), 4)), expected)
