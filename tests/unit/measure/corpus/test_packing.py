"""Sequences: BOS + consecutive tokens of one document, and the variations. No downloads."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import corpus_spec, one_line
from letters import BOS, CONTROL, EOS, Letters, as_text, real_tokenizer
from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus import packing as packing_module
from qsae_bench.measure.corpus.packing import (
    build_corpus,
    build_random,
    cut_in_pieces,
    pack_concatenated,
    pack_documents,
    spread,
)
from qsae_bench.measure.corpus.vocabulary import Vocabulary
from qsae_bench.registry.specs import CorpusSpec


def dropped(**counts: int) -> dict[str, int]:
    return {"documents": 0, "tokens": 0, "repeats": 0} | counts


def test_documents_are_cut_into_sequences_of_one_document_each(build):
    corpus = build(["abcdefghij", "xyz", "klmnopqr"], tokens=16)
    assert as_text(corpus) == ["^abcd", "^efgh", "^klmn", "^opqr"]
    assert corpus.ids.dtype == np.int64
    assert corpus.dropped == dropped(documents=1, tokens=2 + 3)


def test_a_document_of_exactly_one_sequence_loses_nothing(build):
    corpus = build(["abcd"], tokens=4)
    assert as_text(corpus) == ["^abcd"]
    assert corpus.dropped == dropped()


@pytest.mark.parametrize(("tokens", "sequences"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_at_least_the_tokens_asked_for(build, tokens, sequences):
    corpus = build(["abcdefghijklmnop"], tokens=tokens)
    assert len(corpus.ids) == sequences
    assert corpus.predicted_tokens == 4 * sequences >= tokens


def test_what_was_not_needed_is_not_dropped(build):
    corpus = build(["abcdefghijk", "xy"], tokens=4)
    assert as_text(corpus) == ["^abcd"]
    assert corpus.dropped == dropped()


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


def by_hand(documents, length, most, wanted):
    """Plain Python: (number of the document, place in it, sequence) in order; and how many repeats."""
    body, found, seen, repeats, number = length - 1, [], [], 0, 0
    for document in documents:
        pieces = [document[i : i + body] for i in range(0, len(document), body)]
        pieces = [piece for piece in pieces if len(piece) == body]
        count = min(most, len(pieces))
        # the document in `count` equal parts, and of each the piece in which its middle lies
        middles = [Fraction(2 * k + 1, 2 * count) * len(pieces) for k in range(count)]
        gave = False
        for place in (int(middle) for middle in middles):
            if pieces[place] in seen:
                repeats += 1
            elif len(found) == wanted:
                return found, repeats
            else:
                seen.append(pieces[place])
                found.append((number, place * body, [BOS, *pieces[place]]))
                gave = True
        number += gave
    return found, repeats


SMALL_DOCUMENTS = st.lists(st.lists(st.integers(10, 12), max_size=30), max_size=8)
"""few words, so that sequences repeat each other"""


@given(SMALL_DOCUMENTS, st.integers(2, 7), st.integers(1, 5), st.integers(1, 20))
def test_sequences_are_those_that_plain_python_takes(documents, length, most, wanted):
    spec = corpus_spec(sequence_length=length, sequences_per_document=most)
    expected, repeats = by_hand(documents, length, most, wanted)
    if not expected:
        with pytest.raises(QsaeError):
            pack_documents(documents, BOS, spec, wanted)
        return
    ids, numbers, gone = pack_documents(documents, BOS, spec, wanted)
    assert ids.tolist() == [sequence for _, _, sequence in expected]
    assert numbers.tolist() == [number for number, _, _ in expected]
    if len(ids) < wanted:  # everything was read: nothing may vanish uncounted
        assert gone["repeats"] == repeats
        assert ids[:, 1:].size + repeats * (length - 1) + gone["tokens"] == sum(map(len, documents))
        assert gone["documents"] == sum(len(document) < length - 1 for document in documents)


@given(SMALL_DOCUMENTS, st.integers(2, 7), st.integers(1, 5), st.integers(1, 20))
def test_laws_of_sequences(documents, length, most, wanted):
    spec = corpus_spec(sequence_length=length, sequences_per_document=most)
    try:
        ids, numbers, _ = pack_documents(documents, BOS, spec, wanted)
    except QsaeError:
        return
    assert numbers.dtype == np.int64 and numbers[0] == 0
    assert set(np.diff(numbers)) <= {0, 1}, "ascending, none left out"
    assert np.bincount(numbers).max() <= most
    assert len({tuple(row) for row in ids.tolist()}) == len(ids), "no sequence twice"
    for less in range(1, len(ids)):
        short = pack_documents(documents, BOS, spec, less)
        np.testing.assert_array_equal(short[0], ids[:less])
        np.testing.assert_array_equal(short[1], numbers[:less])


@given(st.integers(0, 400), st.integers(1, 9))
def test_sequences_are_spread_over_their_document(whole, most):
    places = spread(whole, most)
    assert len(places) == min(whole, most) and places == sorted(set(places))
    assert all(0 <= place < whole for place in places)
    if len(places) > 1:
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1, "as evenly as whole numbers allow"
        ends = (places[0], whole - 1 - places[-1])
        assert max(ends) <= whole / (2 * len(places)), "no long stretch without one at either end"


def test_no_more_than_asked_for_are_taken_of_a_document(build):
    texts = ["abcdefghijklmnopqrstuvwx", "zyxwvuts"]  # six sequences and two
    corpus = build(texts, tokens=80, sequences_per_document=2)
    assert as_text(corpus) == ["^efgh", "^qrst", "^zyxw", "^vuts"]
    assert corpus.documents.tolist() == [0, 0, 1, 1] and corpus.document_count == 2
    assert corpus.dropped == dropped(tokens=4 * 4)
    assert as_text(build(texts, tokens=80, sequences_per_document=1)) == ["^mnop", "^vuts"]


def test_two_sequences_are_taken_where_nothing_else_is_said():
    assert CorpusSpec("x", "stub", 5, 8, 80, 2).sequences_per_document == 2


def test_a_text_that_says_the_same_again_gives_no_new_sequence(build):
    corpus = build(["abcdefgh", "ijkl", "abcdefgh", "ijklmnop", "ijkl"], tokens=80)
    assert as_text(corpus) == ["^abcd", "^efgh", "^ijkl", "^mnop"]
    assert corpus.documents.tolist() == [0, 0, 1, 2]
    assert corpus.dropped == dropped(repeats=4)


@given(st.lists(st.integers(10, 99), max_size=60), st.integers(2, 7), st.integers(1, 5))
def test_pieces_of_a_document_are_consecutive_and_of_equal_size(document, length, most):
    spec = corpus_spec(sequence_length=length, sequences_per_document=most)
    pieces = list(cut_in_pieces([document], spec))
    assert [token for piece in pieces for token in piece] == document
    whole = [len(piece) // (length - 1) for piece in pieces]
    assert all(count == most for count in whole[:-1]) and whole[-1] <= most
    assert sum(whole) == len(document) // (length - 1), "no sequence is lost at a cut"
    assert whole[-1] > 0 or len(pieces) == 1


def test_pieces_of_a_text_that_is_one_document_count_as_documents(build):
    text = "abcdefghijklmnopqrstuvwxyz"
    corpus = build([text], tokens=80, sequences_per_document=2, is_one_document=True)
    assert as_text(corpus) == ["^abcd", "^efgh", "^ijkl", "^mnop", "^qrst", "^uvwx"]
    assert corpus.documents.tolist() == [0, 0, 1, 1, 2, 2]
    assert corpus.is_one_document and corpus.dropped == dropped(tokens=2)


def test_a_concatenated_sequence_counts_to_the_document_that_it_begins_in(build):
    corpus = build(["abc", "defghijkl", "m", "nopqrst"], tokens=80, packing="concatenated")
    assert as_text(corpus) == ["^abc^", "defgh", "ijkl^", "m^nop"]
    assert corpus.documents.tolist() == [0, 1, 1, 2]
    pieces = build(
        ["abcdefghijklmnopqrstuvwxyz"], tokens=80, packing="concatenated", sequences_per_document=2,
        is_one_document=True,
    )  # fmt: skip
    assert pieces.documents.tolist() == [0, 0, 1, 1, 2]


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


def test_which_sequences_are_of_one_document_is_no_part_of_it(build):
    """It changes no value, and a stored reference of the same ids stays one."""
    apart, together = build(["abcd", "efgh"]), build(["abcdefgh"])
    assert apart.documents.tolist() != together.documents.tolist()
    assert apart.fingerprint == together.fingerprint


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
    ids, _, _ = pack_documents(documents, BOS, corpus_spec(sequence_length=length), wanted)
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
    ids, begins, gone = pack_concatenated(documents, BOS, spec, wanted)
    flat = ids.ravel().tolist()
    assert ids.shape == (min(len(stream) // length, wanted), length)
    assert flat == stream[: ids.size]
    assert begins.ravel().tolist() == [token == BOS for token in flat]
    begun = {token // 100 for token in flat if token != BOS}
    assert flat.count(BOS) - len(begun) in (0, 1), "a BOS for each document; one may have no room for more"
    if len(ids) < wanted:
        assert gone["documents"] == documents.count([])
        assert gone["tokens"] + len(flat) - flat.count(BOS) == sum(map(len, documents))


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
    assert corpus.dropped == dropped()
    assert corpus.valid.tolist() == [[letter != "^" for letter in row] for row in expected]


def test_the_end_of_concatenated_text_is_dropped(build):
    corpus = build(["abcdef", "", "ghi", "j"], tokens=100, packing="concatenated")
    assert as_text(corpus) == ["^abcd", "ef^gh"]
    assert corpus.dropped == dropped(documents=1, tokens=2), "i and j: BOS is no token of a text"


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
