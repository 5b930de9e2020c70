"""Sequences: BOS + consecutive tokens of one document, and the variations. No downloads.

Most use a tokenizer of single letters; what text may smuggle in is tried on real tokenizers.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import corpus_spec, one_line
from chat_templates import GEMMA
from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus import packing as corpus_module
from qsae_bench.measure.corpus import sources as text_module
from qsae_bench.measure.corpus.packing import (
    Corpus,
    Vocabulary,
    build_corpus,
    build_random,
    concatenate,
    cut,
    special_ids,
)
from qsae_bench.measure.corpus.sources import TextSource
from qsae_bench.tiny import MODEL_DIR

BOS, EOS, CONTROL = 2, 1, 7


"""the shape of Gemma's chat template"""


class Letters:
    """'a' is 100, 'b' 101, ...; '.' is EOS, '^' is BOS, '#' a control token, even spelt out in a text."""

    bos_token_id: int | None = BOS
    all_special_ids = (BOS, EOS, 0)
    added_tokens_decoder = {  # noqa: RUF012
        CONTROL: SimpleNamespace(special=True),
        150: SimpleNamespace(special=False),
    }

    def encode(self, text: str, add_special_tokens: bool, **_: bool) -> list[int]:
        assert not add_special_tokens, "BOS is put there by the corpus, once"
        marks = {".": EOS, "^": BOS, "#": CONTROL}
        return [marks.get(letter, ord(letter) + 3) for letter in text]


@pytest.fixture
def build(monkeypatch):
    """build(texts, tokens=..., **spec) -> Corpus, from these texts."""

    def made(texts, tokens=8, tokenizer=None, bos_token=None, **spec) -> Corpus:
        monkeypatch.setitem(
            text_module.SOURCES, "stub", lambda spec, say: TextSource("a stub", iter(texts))
        )
        return build_corpus(corpus_spec(**spec), tokenizer or Letters(), tokens, bos_token)

    return made


@pytest.fixture(scope="module")
def gemma():
    """The embedded model's tokenizer with turns, as Gemma's instruction-tuned ones have."""
    tokenizer = real_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA
    return tokenizer


def real_tokenizer(**changes):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True, **changes)


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
    right = {"documents": cut, "concatenated": concatenate}[packing]

    def wrong(*arguments):
        ids, *rest = right(*arguments)
        ids[:, 2 if fault == "doubled" else 0] = BOS if fault == "doubled" else 100
        return ids, *rest

    monkeypatch.setattr(corpus_module, right.__name__, wrong)
    with pytest.raises(QsaeError, match="BOS") as caught:
        build(["abcdefgh"], packing=packing)
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
    ids, _ = cut(documents, BOS, corpus_spec(sequence_length=length), wanted)
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
            concatenate(documents, BOS, spec, wanted)
        assert f"{len(stream)} tokens" in one_line(caught.value)
        return
    ids, begins, dropped = concatenate(documents, BOS, spec, wanted)
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


@pytest.mark.parametrize("packing", ["documents", "concatenated"])
def test_special_tokens_spelt_out_in_a_text_are_text(build, gemma, packing):
    text = "the <bos> of a <eos>, <start_of_turn>user says <pad> to <bos><bos>"
    control = gemma.encode(text, add_special_tokens=False)
    assert control.count(BOS) == 3, "what a tokenizer does unless it is told"
    length = len(gemma.encode(text, add_special_tokens=False, split_special_tokens=True)) + 1
    corpus = build([text], tokens=1, tokenizer=gemma, sequence_length=length, packing=packing)
    assert gemma.decode(corpus.ids[0, 1:]) == text
    assert corpus.valid[0].tolist() == [False, *[True] * (length - 1)]
    assert gemma.encode(text, add_special_tokens=False) == control, "the tokenizer is left as it was"


def test_a_document_that_yields_bos_all_the_same_is_dropped_and_counted(build):
    """A tokenizer whose ordinary vocabulary has the word, too."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<bos>": 2, "?": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="?")
    corpus = build(["a b <bos> a b a b a b", "b b a a"], tokenizer=words)
    assert corpus.ids.tolist() == [[2, 1, 1, 0, 0]]
    assert corpus.dropped == {"documents": 1, "tokens": 9}


def test_a_long_document_is_no_reason_to_warn(build, caplog):
    """Its sequences fit the model's context, and they are what is fed to it."""
    build(["word " * 50], tokenizer=real_tokenizer(model_max_length=16), sequence_length=9)
    assert caplog.records == []


# -- BOS of a tokenizer that names none -------------------------------------------------------------


def test_bos_of_the_model_entry_begins_sequences_where_the_tokenizer_has_none(build):
    tokenizer = real_tokenizer(bos_token=None)
    assert tokenizer.bos_token_id is None
    text = "words, and <eos> between words " * 4
    corpus = build([text], tokenizer=tokenizer, bos_token="<eos>")
    assert (corpus.ids[:, 0] == EOS).all() and (corpus.ids == EOS).sum() == len(corpus.ids)
    assert not corpus.valid[:, 0].any() and corpus.valid[:, 1:].all()
    for wrong in (None, "<nonesuch>"):
        with pytest.raises(QsaeError, match="bos_token") as caught:
            build([text], tokenizer=tokenizer, bos_token=wrong)
        one_line(caught.value)


def test_a_bos_that_is_an_ordinary_token_counts_as_special_all_the_same(build):
    corpus = build(["words and words " * 4], tokenizer=real_tokenizer(bos_token=None), bos_token="Z")
    assert corpus.ids[0, 0] not in special_ids(real_tokenizer())
    assert corpus.valid.tolist() == [[False, *[True] * 4]] * len(corpus.ids)


def test_a_tokenizers_own_bos_comes_first(build):
    assert (
        build(["some words of text"], tokenizer=real_tokenizer(), bos_token="<eos>").ids[:, 0] == BOS
    ).all()


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


def test_a_template_without_bos_gets_one(build):
    without = real_tokenizer()
    without.chat_template = GEMMA.replace("{{ bos_token }}", "")
    corpus = build(["many words " * 50], 1, without, sequence_length=80, chat=True)
    assert corpus.ids[0, 0] == BOS and (corpus.ids == BOS).sum() == len(corpus.ids)


def test_a_template_that_writes_the_date_writes_the_same_each_day(build):
    dated = real_tokenizer()
    dated.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ bos_token + date_string + messages[0]['content'] }}"
    )
    corpus = build(["many words " * 50], 1, dated, sequence_length=40, chat=True)
    assert "26 Jul 2024many words" in dated.decode(corpus.ids[0])


def test_a_frame_that_fills_the_sequence_leaves_no_room(build, gemma):
    frame = Vocabulary.of(gemma, corpus_spec(chat=True, sequence_length=99))
    size = len(frame.before) + len(frame.after)
    assert build(["many words"], 1, gemma, sequence_length=size + 1, chat=True).valid.sum() == 1
    with pytest.raises(QsaeError, match="no room"):
        build(["many words"], 1, gemma, sequence_length=size, chat=True)


@pytest.mark.parametrize(
    ("template", "spec", "says"),
    [
        (None, {}, "chat template"),
        ("{{ raise_exception('no system\nturn') }}", {}, "no system"),
        ("{{ 1 / 0 }}", {}, "division by zero"),
        ("{% for %}", {}, "can't be rendered"),
        ("{{ bos_token }}nothing", {}, "0 times"),
        ("{{ messages[0].content }} {{ messages[0].content }}", {}, "2 times"),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", {}, "more than the one BOS"),
        (GEMMA, {"sequence_length": 5}, "no room in sequence_length 5"),
        (GEMMA, {"packing": "concatenated"}, "packing"),
    ],
)
def test_a_frame_that_can_not_be_is_one_line(build, template, spec, says):
    tokenizer = real_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(QsaeError) as caught:
        build(["many words " * 50], 8, tokenizer, **({"sequence_length": 80, "chat": True} | spec))
    message = one_line(caught.value)
    assert "'stub'" in message and says in message


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
