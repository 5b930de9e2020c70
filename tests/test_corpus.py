"""Sequences: BOS + consecutive tokens of one document. A tokenizer of single letters, no downloads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import corpus_spec, one_line
from qsae_bench import corpus as corpus_module
from qsae_bench.corpus import Corpus, build_corpus, cut, special_ids
from qsae_bench.errors import QsaeError

BOS, EOS, CONTROL = 2, 1, 7


class Letters:
    """'a' is 100, 'b' 101, ...; '.' is EOS, '^' is BOS, '#' a control token, as text may hold them."""

    bos_token_id: int | None = BOS
    all_special_ids = (BOS, EOS, 0)
    added_tokens_decoder = {  # noqa: RUF012
        CONTROL: SimpleNamespace(special=True),
        150: SimpleNamespace(special=False),
    }

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens, "BOS is put there by the corpus, once"
        marks = {".": EOS, "^": BOS, "#": CONTROL}
        return [marks.get(letter, ord(letter) + 3) for letter in text]


@pytest.fixture
def build(monkeypatch):
    """build(texts, tokens=..., **spec) -> Corpus, from these texts."""

    def made(texts, tokens=8, tokenizer=None, **spec) -> Corpus:
        monkeypatch.setitem(corpus_module.SOURCES, "stub", lambda spec: iter(texts))
        return build_corpus(corpus_spec(**spec), tokenizer or Letters(), tokens)

    return made


def as_text(corpus: Corpus) -> list[str]:
    return [
        "".join(chr(i - 3) if i >= 100 else "^" if i == BOS else "?" for i in row) for row in corpus.ids
    ]


def test_documents_are_cut_into_sequences_of_one_document_each(build):
    corpus = build(["abcdefghij", "xyz", "klmnopqr"], tokens=16)
    assert as_text(corpus) == ["^abcd", "^efgh", "^klmn", "^opqr"]
    assert corpus.ids.dtype == np.int64
    assert corpus.dropped == {"documents": 1, "tokens": 2 + 3}


def test_a_document_of_exactly_one_sequence_loses_nothing(build):
    corpus = build(["abcd"], tokens=4)
    assert as_text(corpus) == ["^abcd"]
    assert corpus.dropped == {"documents": 0, "tokens": 0}


@pytest.mark.parametrize(("tokens", "sequences"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_at_least_the_tokens_asked_for(build, tokens, sequences):
    corpus = build(["abcdefghijklmnop"], tokens=tokens)
    assert len(corpus.ids) == sequences
    assert corpus.predicted_tokens == 4 * sequences >= tokens


def test_what_was_not_needed_is_not_dropped(build):
    corpus = build(["abcdefghijk", "xy"], tokens=4)
    assert as_text(corpus) == ["^abcd"]
    assert corpus.dropped == {"documents": 0, "tokens": 0}


def test_reading_stops_when_there_is_enough(build):
    def texts():
        yield "abcdefgh"
        raise AssertionError("one document too many was read")

    assert len(build(texts(), tokens=8).ids) == 2


def test_an_extended_corpus_starts_with_the_shorter_one(build):
    texts = ["abcdefghij", "klmnopqr", "stuvwxyz"]
    short, longer = build(texts, tokens=8), build(texts, tokens=20)
    assert len(longer.ids) > len(short.ids)
    np.testing.assert_array_equal(longer.ids[: len(short.ids)], short.ids)


@given(
    st.lists(st.lists(st.integers(10, 99), max_size=30), max_size=8),
    st.integers(2, 7),
    st.integers(1, 20),
)
def test_every_token_is_in_a_sequence_or_counted(documents, length, wanted):
    spec = corpus_spec(sequence_length=length)
    possible = sum(len(document) // (length - 1) for document in documents)
    if possible == 0:
        with pytest.raises(QsaeError):
            cut(documents, BOS, spec, wanted)
        return
    ids, dropped = cut(documents, BOS, spec, wanted)
    assert ids.shape == (min(possible, wanted), length)
    assert (ids[:, 0] == BOS).all()
    if possible < wanted:  # everything was read: nothing may vanish uncounted
        assert ids[:, 1:].size + dropped["tokens"] == sum(map(len, documents))
        assert dropped["documents"] == sum(len(document) < length - 1 for document in documents)
    bodies = [tuple(row) for row in ids[:, 1:].tolist()]
    assert all(
        any(body == tuple(d[i : i + length - 1]) for d in documents for i in range(0, len(d), length - 1))
        for body in bodies
    )


def test_special_tokens_are_not_valid(build):
    corpus = build(["a.b#cdef"], tokens=8)
    assert corpus.valid.tolist() == [
        [False, True, False, True, False],
        [False, True, True, True, True],
    ]
    assert corpus.predicted_tokens == 6


def test_special_ids_are_those_of_the_tokenizer_and_its_control_tokens():
    assert special_ids(Letters()) == [0, EOS, BOS, CONTROL]


def test_the_fingerprint_is_of_what_is_fed_to_the_model(build, monkeypatch):
    texts = ["abcdefghijkl", "mnopqrst"]
    prints = {
        "same": build(texts).fingerprint,
        "content": build(["abcdefghijkX", "mnopqrst"], tokens=12).fingerprint,
        "original of content": build(texts, tokens=12).fingerprint,
        "length": build(texts, sequence_length=4).fingerprint,
        "more": build(texts, tokens=16).fingerprint,
    }
    other = Letters()
    other.all_special_ids = (BOS, EOS, 0, 3)
    prints["special ids"] = build(texts, tokenizer=other).fingerprint
    assert len(set(prints.values())) == len(prints), prints
    assert build(texts).fingerprint == prints["same"]
    assert build(texts, name="renamed", batch_size=7).fingerprint == prints["same"]


def test_order_of_sequences_is_part_of_the_fingerprint(build):
    assert build(["abcd", "efgh"]).fingerprint != build(["efgh", "abcd"]).fingerprint


@pytest.mark.parametrize("text", ["^abcdefg", "ab^cdefg"])
def test_a_second_bos_is_refused(build, text):
    with pytest.raises(QsaeError, match="exactly one BOS") as caught:
        build([text])
    assert "'stub'" in one_line(caught.value)


def test_a_tokenizer_without_bos_is_refused(build):
    without = Letters()
    without.bos_token_id = None
    with pytest.raises(QsaeError, match="no BOS") as caught:
        build(["abcdefgh"], tokenizer=without)
    assert "'stub'" in one_line(caught.value)


@pytest.mark.parametrize("texts", [[], [""], ["abc", "xyz"]])
def test_text_shorter_than_a_sequence_is_refused(build, texts):
    with pytest.raises(QsaeError) as caught:
        build(texts)
    message = one_line(caught.value)
    assert "'stub'" in message and "4 tokens" in message and "sequence_length" in message
