"""A cell whose gate is undecided runs on: what that adds, when it stops, and what it costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import Threshold, Thresholds
from qsae_bench.gate.verdict import GatedMetric
from qsae_bench.measure import evaluation
from qsae_bench.measure.corpus.sources import open_text
from qsae_bench.measure.model_context import ModelContext
from qsae_bench.registry.entries import Selection, load_registry
from qsae_bench.run import document

FIRST, MOST = 2032, 8128
TEXT_CHARACTERS = 6_000
GATE = GatedMetric("kl_divergence")
STRADDLED = 1.3e-3
"""a bound on rtn_int4's KLD that no look decides: 1.0e-03 ± 0.3 on 2 032 tokens, 1.8e-03 ± 0.7 on 8 128"""


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture
def cells(registry):
    names = ("reference", "rtn_int4", "rtn_int3")
    chosen = registry.select(Selection(models=("tiny_gemma3",), quantizations=names))
    return {cell.quantization.name: cell for cell in chosen}


@pytest.fixture
def session(registry, sessions):
    def make(bound: float, gates=(GATE,), selection=None, **options):
        path = ("defaults", "rtn_int4")
        threshold = Threshold("kl_divergence", "max", bound, "test", table=".".join(path))
        chosen = registry.select(Selection(models=("tiny_gemma3",), quantizations=("rtn_int4",)))
        settings = {
            "selection": selection or Selection(tokens=FIRST, max_tokens=MOST),
            "gates": dict.fromkeys(chosen, gates),
        }
        return sessions(registry, Thresholds({path: {"kl_divergence": threshold}}), **settings | options)

    return make


def all_columns(measurement):
    for rows in (measurement.rows, *measurement.layers.values()):
        yield from rows.scalars.items()
        yield from rows.vectors.items()


def test_an_extended_cell_is_one_pass_over_all_of_it(session, cells):
    whole = session(1.0, selection=Selection(tokens=MOST), splice=True).measure(cells["rtn_int4"])
    extended = session(STRADDLED, splice=True).measure(cells["rtn_int4"])
    assert extended.looks == (2032, 4064, 8128)
    assert extended.tokens == whole.tokens
    for (name, one), (_, other) in zip(
        all_columns(extended.measurement), all_columns(whole.measurement), strict=True
    ):
        if not name.startswith("ablated"):  # with the first tokens' mean, which the whole's is not
            assert np.array_equal(one, other, equal_nan=True), name
    for layer, sums in extended.measurement.features.items():
        for name, vector in sums.vectors.items():
            np.testing.assert_allclose(vector, whole.measurement.features[layer].vectors[name], rtol=1e-12)
    assert extended.estimates.cell == whole.estimates.cell


def test_a_cell_that_is_decided_stops(session, cells):
    for bound, status in ((1.0, "pass"), (1e-9, "fail")):
        one = session(bound)
        measured = one.measure(cells["rtn_int4"])
        assert measured.looks == (FIRST,) and measured.planned_tokens == MOST
        one.judge_gate(cells["rtn_int4"], GATE)
        assert [(v.status, v.tokens) for v in measured.verdicts] == [(status, measured.tokens)]


def test_what_nobody_asked_for_is_not_run_on_for(session, cells):
    one = session(STRADDLED, gates=(GatedMetric("top1_agreement"),))
    assert one.measure(cells["rtn_int4"]).looks == (FIRST,)
    # until a test does, though its marker was not known before
    failure = one.judge_gate(cells["rtn_int4"], GATE)
    assert failure.status == "inconclusive"
    assert one.measured[cells["rtn_int4"]].looks == (2032, 4064, 8128)
    assert "--max-tokens" in failure.message
    assert "judged by" in failure.message


def test_named_tokens_are_all_unless_a_maximum_is_named(registry, cells):
    model = cells["rtn_int4"].model
    assert registry.corpus_of(model, Selection()).max_tokens == 260_096
    assert registry.corpus_of(model, Selection(tokens=FIRST)).max_tokens == FIRST
    assert registry.corpus_of(model, Selection(tokens=FIRST, max_tokens=MOST)).max_tokens == MOST
    assert registry.corpus_of(model, Selection(max_tokens=40_000)).tokens == 32_512
    with pytest.raises(QsaeError, match="--max-tokens 100: fewer than the 32512 tokens"):
        registry.corpus_of(model, Selection(max_tokens=100))


def test_a_warm_store_spares_the_reference(session, cells, monkeypatch):
    """Another night's run finds the reference of every look."""
    first = session(STRADDLED)
    before = first.measure(cells["rtn_int4"]).estimates.cell
    monkeypatch.setattr(evaluation, "forward_batches", lambda *_: pytest.fail("the reference ran again"))
    assert session(STRADDLED).measure(cells["rtn_int4"]).estimates.cell == before


def test_loading_again_is_not_the_load_that_is_reported(session, cells, monkeypatch):
    one = session(STRADDLED, reference_store=None)  # cold: the reference is loaded again at each look
    one.measure(cells["reference"])
    one.load(cells["rtn_int4"])
    one.record(cells["rtn_int4"], "load_seconds", 123.0)
    one.measure(cells["rtn_int4"])
    assert one.costs(cells["rtn_int4"])["load_seconds"] == 123.0


def test_text_that_ends_is_the_last_look(session, cells, registry, tmp_path):
    """15 sequences of text: the second look gets 7 of its 8, the third none, and the rest of the error is spent."""
    text = tmp_path / "text.txt"
    documents = open_text(registry.corpus("tiny"), lambda line: None).documents
    text.write_text(" ".join(itertools.islice(documents, 40))[:TEXT_CHARACTERS])
    selection = Selection(
        corpus=f"textfile:{text}", tokens=1016, max_tokens=1_000_000, sequence_length=128,
        sequences_per_document=1,
    )  # fmt: skip
    one = session(STRADDLED, selection=selection)
    measured = one.measure(cells["rtn_int4"])
    assert not measured.invalid_reason
    assert measured.exhausted and measured.is_last_look
    assert measured.looks == (1016, 2032)
    assert 8 < len(measured.measurement.rows) < 16
    assert measured.critical == pytest.approx(2.05, abs=0.05)


def test_the_document_says_what_was_used_and_what_the_reference_was_there(session, cells):
    one = session(STRADDLED)
    for name in ("reference", "rtn_int4"):
        one.require(cells[name])
        one.measure(cells[name])
    reference, cell = document.run_document(one).cells
    assert (reference.tokens, reference.looks, reference.beside) == (FIRST, 1, None)
    assert (cell.tokens, cell.planned_tokens, cell.looks) == (MOST, MOST, 3)
    same = session(1.0, selection=Selection(tokens=MOST)).measure(cells["reference"]).estimates
    assert cell.beside.metrics["perplexity"].value == pytest.approx(
        same.cell["perplexity"].value, rel=1e-12
    )
    for layer, found in cell.beside.layers.items():
        for key, e in found.metrics.items():
            assert e.value == pytest.approx(same.layers[int(layer)][key].value, rel=1e-12), key
    assert "kl_divergence" not in cell.beside.metrics


def test_what_was_measured_stands_where_looking_again_fails(session, cells, monkeypatch):
    """A hub that went away, a device that ran out of memory: no regression is hidden by that."""
    one = session(STRADDLED)

    def fails(self, look):
        raise QsaeError("the hub can't be reached")

    real = ModelContext.part
    monkeypatch.setattr(
        ModelContext, "part", lambda self, look: fails(self, look) if look else real(self, look)
    )
    measured = one.measure(cells["rtn_int4"])
    assert measured.looks == (FIRST,) and measured.stop_reason
    failure = one.judge_gate(cells["rtn_int4"], GATE)
    assert failure.status == "inconclusive"
    assert cells["rtn_int4"] not in one.refused
    one.require(cells["rtn_int4"])
    record = document.run_document(one).cells[-1]
    assert (record.status, record.tokens, len(record.verdicts)) == ("measured", measured.tokens, 1)
    assert any("not more: the hub can't be reached" in line for line in record.warnings)
