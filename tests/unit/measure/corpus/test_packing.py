"""Sequences: BOS + consecutive tokens of one document, and the variations. No downloads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import corpus_spec, one_line
from letters import BOS, CONTROL, EOS, Letters, as_text, real_tokenizer
from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus import packing as packing_module
from qsae_bench.measure.corpus.packing import build_corpus, build_random, pack_concatenated, pack_documents
from qsae_bench.measure.corpus.vocabulary import Vocabulary


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
    st.lists(st.lists(st.integers(10, 99), max_size=30), max_size=8), st.integers(2, 7), st.integers(1, 20)
)
def test_every_token_is_in_a_sequence_or_counted(documents, length, wanted):
    spec = corpus_spec(sequence_length=length)
    possible = sum(len(document) // (length - 1) for document in documents)
    if possible == 0:
        with pytest.raises(QsaeError):
            pack_documents(documents, BOS, spec, wanted)
        return
    ids, dropped = pack_documents(documents, BOS, spec, wanted)
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
    assert corpus.valid.tolist() == [[False, True, False, True, False], [False, True, True, True, True]]
    assert corpus.predicted_tokens == 6


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


def test_fingerprints_of_earlier_runs_still_hold(build):
    """Made by the first version: stored references and run documents name it."""
    assert build(["abcdefghijkl", "mnopqrst"]).fingerprint == "36265fd6c40da1561a30ecbf3d561a6f"


def test_what_counts_is_part_of_the_fingerprint(build):
    every, plain = (build(["abcdefgh"], every_position=flag) for flag in (True, False))
    np.testing.assert_array_equal(every.ids, plain.ids)
    assert every.fingerprint != plain.fingerprint
    packed = build(["abcd", "efgh"], packing="concatenated")
    np.testing.assert_array_equal(packed.ids, build(["abcd", "efgh"]).ids)
    assert packed.fingerprint == build(["abcd", "efgh"]).fingerprint, "the same ids, the same fingerprint"


def test_order_of_sequences_is_part_of_the_fingerprint(build):
    assert build(["abcd", "efgh"]).fingerprint != build(["efgh", "abcd"]).fingerprint


@pytest.mark.parametrize("fault", ["doubled", "dropped"])
@pytest.mark.parametrize("packing", ["documents", "concatenated"])
def test_a_bos_that_does_not_begin_a_document_is_refused(build, monkeypatch, fault, packing):
    """Neither packing can do that; this is what stands between a slip in it and a broken model."""
    right = {"documents": pack_documents, "concatenated": pack_concatenated}[packing]

    def wrong(*arguments):
        ids, *rest = right(*arguments)
        ids[:, 2 if fault == "doubled" else 0] = BOS if fault == "doubled" else 100
        return ids, *rest

    monkeypatch.setattr(packing_module, right.__name__, wrong)
    with pytest.raises(QsaeError, match="BOS") as caught:
        build(["abcdefgh"], packing=packing)
    assert "'stub'" in one_line(caught.value)


@pytest.mark.parametrize("texts", [[], [""], ["abc", "xyz"]])
def test_text_shorter_than_a_sequence_is_refused(build, texts):
    with pytest.raises(QsaeError) as caught:
        build(texts)
    message = one_line(caught.value)
    assert "'stub'" in message and "4 tokens" in message and "sequence_length" in message


def test_where_the_text_came_from_is_told(build):
    assert build(["abcdefgh"]).source == "a stub"


# -- laws of the packings ---------------------------------------------------------------------------

DOCUMENTS = st.lists(st.integers(0, 25), max_size=8).map(
    lambda lengths: [[100 * (k + 1) + i for i in range(n)] for k, n in enumerate(lengths)]
)
"""token 100 k + i is the i-th of document k - 1, so that each says where it comes from"""


@given(DOCUMENTS, st.integers(2, 7), st.integers(1, 20))
def test_a_sequence_is_of_one_document_and_every_document_is_in_order(documents, length, wanted):
    body = length - 1
    expected = [
        [BOS, *document[start : start + body]]
        for document in documents
        for start in range(0, len(document) - body + 1, body)
    ]
    if not expected:
        return
    ids, _ = pack_documents(documents, BOS, corpus_spec(sequence_length=length), wanted)
    assert ids.tolist() == expected[:wanted]
    assert all(len(set(row // 100)) == 1 for row in ids[:, 1:])
    for k in {row[1] // 100 for row in ids}:
        kept = [token for row in ids[:, 1:] for token in row if token // 100 == k]
        assert kept == documents[k - 1][: len(kept)]


@given(DOCUMENTS, st.integers(2, 7), st.integers(1, 20))
def test_concatenated_documents_are_one_stream(documents, length, wanted):
    stream = [token for document in documents if document for token in (BOS, *document)]
    spec = corpus_spec(sequence_length=length, packing="concatenated")
    if len(stream) < length:
        with pytest.raises(QsaeError, match="sequence_length") as caught:
            pack_concatenated(documents, BOS, spec, wanted)
        assert f"{len(stream)} tokens" in one_line(caught.value)
        return
    ids, begins, dropped = pack_concatenated(documents, BOS, spec, wanted)
    flat = ids.ravel().tolist()
    assert ids.shape == (min(len(stream) // length, wanted), length)
    assert flat == stream[: ids.size]
    assert begins.ravel().tolist() == [token == BOS for token in flat]
    begun = {token // 100 for token in flat if token != BOS}
    assert flat.count(BOS) - len(begun) in (0, 1), "a BOS for each document; one may have no room for more"
    if len(ids) < wanted:
        assert dropped["documents"] == documents.count([])
        assert dropped["tokens"] + len(flat) - flat.count(BOS) == sum(map(len, documents))


@pytest.mark.parametrize(
    ("needed", "expected"),
    [(["abcdefgh", "ij"], ["^abcd", "efgh^"]), (["abcd", "efgh"], ["^abcd", "^efgh"])],
    ids=["a rest", "no rest"],
)
def test_concatenated_text_is_read_no_further_than_needed(build, needed, expected):
    def texts():
        yield from needed
        raise AssertionError("one document too many was read")

    corpus = build(texts(), tokens=8, packing="concatenated")
    assert as_text(corpus) == expected
    assert corpus.dropped == {"documents": 0, "tokens": 0}
    assert corpus.valid.tolist() == [[letter != "^" for letter in row] for row in expected]


def test_the_end_of_concatenated_text_is_dropped(build):
    corpus = build(["abcdef", "", "ghi", "j"], tokens=100, packing="concatenated")
    assert as_text(corpus) == ["^abcd", "ef^gh"]
    assert corpus.dropped == {"documents": 1, "tokens": 2}, "i and j: BOS is no token of a text"


@pytest.mark.parametrize("packing", ["documents", "concatenated"])
def test_an_endless_source_of_nothing_ends(build, packing):
    def nothing():
        while True:
            yield ""

    with pytest.raises(QsaeError, match="sequence_length"):
        build(nothing(), packing=packing)


def test_every_position_counts_where_asked_for(build):
    corpus = build(["a.b#cdef"], every_position=True)
    assert corpus.valid.all() and corpus.valid.shape == (2, 5)
    assert corpus.predicted_tokens == 8


# -- what text may smuggle in -----------------------------------------------------------------------


# -- chat -------------------------------------------------------------------------------------------


def test_a_chat_sequence_is_one_users_turn(build, gemma):
    texts = ["the first text has so many words that it takes more than one turn", "the second one", "x"]
    (mark,) = gemma.encode("Q", add_special_tokens=False)
    turn = gemma.apply_chat_template([{"role": "user", "content": "Q"}], return_dict=False)
    before, after = turn[: turn.index(mark)], turn[turn.index(mark) + 1 :]
    length = len(before) + 6 + len(after)
    corpus = build(texts, tokens=50, tokenizer=gemma, sequence_length=length, chat=True)
    bodies = {text: gemma.encode(text, add_special_tokens=False) for text in texts}
    expected = [
        before + body[start : start + 6] + after
        for body in bodies.values()
        for start in range(0, len(body) - 5, 6)
    ]
    assert corpus.ids.tolist() == expected and len(expected) >= 3
    assert corpus.ids.dtype == np.int64
    assert corpus.valid.tolist() == [
        [False] * len(before) + [True] * 6 + [False] * len(after) for _ in expected
    ]
    assert corpus.predicted_tokens == 6 * len(expected)
    whole = gemma.decode(corpus.ids[0])
    assert whole.startswith("<bos><start_of_turn>user\nthe first") and whole.endswith("<end_of_turn>\n")


@pytest.mark.parametrize("tokens", [1, 6, 7, 12])
def test_a_chat_corpus_has_the_tokens_asked_for(build, gemma, tokens):
    frame = Vocabulary.of(gemma, corpus_spec(chat=True, sequence_length=99))
    size = len(frame.before) + len(frame.after)
    corpus = build(["many words " * 50], tokens, gemma, sequence_length=size + 6, chat=True)
    assert len(corpus.ids) == -(-tokens // 6)
    assert corpus.predicted_tokens >= tokens


# -- random ids -------------------------------------------------------------------------------------


def test_random_ids_are_uniform_over_what_is_not_special():
    spec = corpus_spec(kind="random", sequence_length=501)
    corpus = build_random(spec, 12, BOS, [EOS, 0, CONTROL], 20_000)
    assert corpus.ids.shape == (40, 501) and corpus.ids.dtype == np.int64
    assert (corpus.ids[:, 0] == BOS).all()
    np.testing.assert_array_equal(corpus.valid, np.arange(501)[None] > np.zeros((40, 1)))
    counts = np.bincount(corpus.ids[:, 1:].ravel(), minlength=12)
    assert set(np.flatnonzero(counts)) == set(range(12)) - {BOS, EOS, 0, CONTROL}
    assert np.abs(counts[counts > 0] - 2500).max() < 5 * np.sqrt(2500)


def test_random_ids_follow_their_seed_and_longer_ones_start_alike():
    def ids(tokens, seed):
        return build_random(corpus_spec(kind="random", seed=seed), 262_208, BOS, [], tokens).ids

    np.testing.assert_array_equal(ids(40, 1), ids(40, 1))
    np.testing.assert_array_equal(ids(400, 1)[:10], ids(40, 1))
    assert (ids(40, 1)[:, 1:] != ids(40, 2)[:, 1:]).mean() > 0.9


def test_a_random_corpus_of_a_tokenizer_uses_its_vocabulary():
    corpus = build_corpus(corpus_spec(kind="random", every_position=True), real_tokenizer(), 4000)
    assert corpus.valid.all() and corpus.source == "random ids"
    assert corpus.ids.max() < 2560 and corpus.ids[:, 1:].min() > BOS


def test_a_vocabulary_of_special_ids_only_is_refused():
    with pytest.raises(QsaeError) as caught:
        build_random(corpus_spec(kind="random"), 3, BOS, [0, 1], 8)
    one_line(caught.value)
