"""What a model's cells share: parts of the corpus, the revision, and a reference that is rebuilt when damaged."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from builders import corpus_spec
from qsae_bench.errors import QsaeError
from qsae_bench.measure import model_context
from qsae_bench.measure.model_context import ModelContext, revision
from qsae_bench.measure.store.entry import DamagedEntry
from qsae_bench.metrics.sinks import SinkRule
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Selection

LENGTH = 32
SPEC = load_registry().model("tiny_gemma3")


class ScriptedStore:
    """Opens what it is told to, in order; ``written`` are the keys that were built."""

    def __init__(self, *opened):
        self.opened, self.written = list(opened), []

    def open(self, key, device):
        found = self.opened.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def stored(digest="d", damaged=False):
    def fetch(start, stop):
        if damaged:
            raise DamagedEntry("rows are damaged")

    manifest = SimpleNamespace(digest=digest)
    return SimpleNamespace(
        manifest=manifest, fetch=fetch, sequences=8, sinks=SinkRule(3, 5.0, float(len(digest))),
        knows_sinks=True,
    )  # fmt: skip


@pytest.fixture
def context(tmp_path, monkeypatch):
    def make(*opened, tokens=8 * (LENGTH - 1), max_tokens=16 * (LENGTH - 1), per_document=1):
        selection = Selection(
            tokens=tokens, max_tokens=max_tokens, sequence_length=LENGTH,
            sequences_per_document=per_document,
        )  # fmt: skip
        corpus = load_registry().corpus_of(SPEC, selection)
        store, lines = ScriptedStore(*opened), []
        made = ModelContext(SPEC, corpus, "cpu", store, tmp_path, lines.append)
        monkeypatch.setattr(made, "_build", lambda key, *_: store.written.append(key))
        made.lines, made.scripted = lines, store
        return made

    return make


def reference(context, look=0):
    return context.reference(lambda: None, None, look)


def test_parts_are_the_text_in_order_and_end_with_it(context):
    made = context()
    first, second = made.part(0), made.part(1)
    assert len(first.ids) == len(second.ids) == 8
    whole = context(tokens=16 * (LENGTH - 1)).part(0)
    for name in ("ids", "valid", "documents"):
        parts = [getattr(part, name) for part in (first, second)]
        assert np.array_equal(np.concatenate(parts), getattr(whole, name)), name
    assert second.documents.tolist() == list(range(8, 16)), "numbers go on from one look to the next"
    assert second.fingerprint == f"{whole.fingerprint}+8"


def test_a_document_that_two_looks_share_has_one_number(context):
    made = context(tokens=17 * (LENGTH - 1), max_tokens=34 * (LENGTH - 1), per_document=2)
    assert made.part(0).documents[-1] == made.part(1).documents[0] == 8
    assert made.part(0).document_count == 9


def test_text_that_changed_can_not_be_extended(context, monkeypatch):
    made = context()
    changed = replace(made.part(0), ids=made.part(0).ids + 1)
    monkeypatch.setattr(model_context, "_corpus", lambda *_: changed)
    with pytest.raises(QsaeError, match="text changed while the run went on"):
        made.part(1)


@pytest.mark.parametrize(("tokens", "per_document"), [(LENGTH - 1, 1), (14 * (LENGTH - 1), 2)])
def test_too_few_documents_for_an_interval_are_refused(context, tokens, per_document):
    """Fourteen sequences, two of each document, are seven independent values."""
    with pytest.raises(QsaeError, match="documents are too few for an interval .* raise --tokens"):
        context(tokens=tokens, per_document=per_document)


def test_a_stored_reference_is_opened_once(context):
    made = context(one := stored())
    assert reference(made) is one is reference(made)
    assert made.scripted.written == [] and made.lines == []


def test_a_missing_reference_is_built_and_opened(context):
    made = context(None, None, one := stored())
    assert reference(made) is one
    assert len(made.scripted.written) == 1 and made.lines == []


def test_another_worker_may_build_it_while_this_one_waits(context):
    made = context(None, one := stored())
    assert reference(made) is one
    assert made.scripted.written == []


def test_a_damaged_reference_is_reported_and_built(context):
    made = context(DamagedEntry("x is damaged"), None, one := stored())
    assert reference(made) is one
    assert made.lines == ["x is damaged; it is rebuilt"] and len(made.scripted.written) == 1


def test_one_rule_tells_the_sinks_of_every_part(context):
    made = context(stored("second"), stored("1"))
    assert reference(made, 1).sinks == SinkRule(3, 5.0, 1.0)


@pytest.mark.parametrize("still_damaged", [True, False])
def test_damage_that_shows_while_reading_is_tried_once_more(context, still_damaged):
    """Opened again, it is the damaged one, or another worker has built it since, with an equal manifest."""
    again = stored(damaged=still_damaged)
    more = (again, again, stored("new")) if still_damaged else (again,)
    made = context(stored(), *more)
    tries = []

    def work():
        tries.append(reference(made))
        if len(tries) == 1:
            raise DamagedEntry("rows are damaged")
        return tries[-1]

    found = made.retry_if_damaged(0, work)
    assert found is tries[1] and found is not tries[0]
    assert len(made.scripted.written) == still_damaged
    assert made.lines == ["rows are damaged; it is rebuilt"]


def test_damage_that_stays_is_raised(context):
    made = context()
    with pytest.raises(DamagedEntry, match="twice"):
        made.retry_if_damaged(0, lambda: (_ for _ in ()).throw(DamagedEntry("twice")))


def test_the_revision_is_of_the_weights_content(tmp_path):
    for name, content in (("model.safetensors", b"1"), ("config.json", b"{}"), ("notes.txt", b"x")):
        (tmp_path / name).write_bytes(content)
    local = replace(SPEC, source=str(tmp_path))
    first = revision(local)
    (tmp_path / "notes.txt").write_bytes(b"y")
    assert revision(local) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert revision(local) != first
    assert revision(replace(SPEC, synthetic=True)) == "random weights"


def test_random_weights_get_random_ids(tmp_path):
    made = ModelContext(
        replace(SPEC, synthetic=True), corpus_spec(kind="random", sequence_length=LENGTH, tokens=300),
        "cpu", ScriptedStore(), tmp_path, lambda line: None,
    )  # fmt: skip
    assert made.corpus.source == "random ids"


def test_sequences_longer_than_the_model_has_positions_are_refused(tmp_path):
    """512 are what the embedded model's config states; at 1,024 its nf4 seems 2.5 times as bad."""
    corpus = load_registry().corpus_of(SPEC, Selection(sequence_length=1024))
    with pytest.raises(QsaeError, match="sequences of 1,024 tokens, but it has 512 positions"):
        ModelContext(SPEC, corpus, "cpu", ScriptedStore(), tmp_path, print)
