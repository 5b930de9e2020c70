"""BOS, control ids and chat templates of tokenizers, and what a text may smuggle in."""

from __future__ import annotations

import numpy as np
import pytest

from builders import corpus_spec, one_line
from chat_templates import GEMMA
from letters import BOS, CONTROL, EOS, Letters, real_tokenizer
from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus.vocabulary import Vocabulary, control_ids, predicted_bytes


def test_special_ids_are_those_of_the_tokenizer_and_its_control_tokens():
    assert control_ids(Letters()) == [0, EOS, BOS, CONTROL]


def test_a_tokenizer_without_bos_is_refused(build):
    without = Letters()
    without.bos_token_id = None
    with pytest.raises(QsaeError, match="no BOS") as caught:
        build(["abcdefgh"], tokenizer=without)
    assert "'stub'" in one_line(caught.value)


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
    assert corpus.dropped == {"documents": 1, "tokens": 9, "repeats": 0}


@pytest.mark.parametrize("packing", ["documents", "concatenated"])
def test_words_that_the_tokenizer_uses_as_control_tokens_are_left_out_and_counted(build, packing):
    """A pad token that is an ordinary word, and unknown words: the text has four of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0, "!": 1, "<bos>": 2, "?": 3}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", unk_token="?", pad_token="!")
    text = "a ! a new ! a a word"
    corpus = build([text], tokenizer=words, sequence_length=9, packing=packing, tokens=1)
    assert corpus.ids.tolist() == [[2, 0, 1, 0, 3, 1, 0, 0, 3]]
    assert (corpus.control_tokens, corpus.predicted_tokens) == (4, 4)
    every = build(
        [text], tokenizer=words, sequence_length=9, packing=packing, tokens=1, every_position=True
    )
    assert (every.control_tokens, every.predicted_tokens) == (0, 8)


def test_a_chat_templates_frame_is_no_text(build, gemma):
    corpus = build(["the cat of a dog " * 20], tokenizer=gemma, sequence_length=20, chat=True, tokens=1)
    assert corpus.control_tokens == 0


def test_a_long_document_is_no_reason_to_warn(build, caplog):
    """Its sequences fit the model's context, and they are what is fed to it."""
    build(["word " * 50], tokenizer=real_tokenizer(model_max_length=16), sequence_length=9)
    assert caplog.records == []


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
    assert corpus.ids[0, 0] not in control_ids(real_tokenizer())
    assert corpus.valid.tolist() == [[False, *[True] * 4]] * len(corpus.ids)


def test_a_tokenizers_own_bos_comes_first(build):
    assert (
        build(["some words of text"], tokenizer=real_tokenizer(), bos_token="<eos>").ids[:, 0] == BOS
    ).all()


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
    ("template", "spec", "reason"),
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
def test_a_frame_that_can_not_be_is_one_line(build, template, spec, reason):
    tokenizer = real_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(QsaeError) as caught:
        build(["many words " * 50], 8, tokenizer, **({"sequence_length": 80, "chat": True} | spec))
    message = one_line(caught.value)
    assert "'stub'" in message and reason in message


TEXTS = ("The naïve café\u2019s  menu: 日本語, 🦜!\n", "plain words, one after the other")


def byte_level():
    """A tokenizer whose tokens are bytes, as GPT-2's and Llama 3's begin."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>")


@pytest.mark.parametrize("make", [byte_level, real_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_the_text_that_is_predicted(make, text):
    tokenizer = make()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    ids = np.array([[tokenizer.bos_token_id, *tokens], [*tokens, tokenizer.bos_token_id]])
    valid = ids != tokenizer.bos_token_id
    first = len(tokenizer.decode(tokens[:1]).encode())
    assert predicted_bytes(tokenizer, ids, valid).tolist() == [
        len(text.encode()), len(text.encode()) - first,
    ]  # fmt: skip
    # a position that does not count has no bytes, and a control id that does count has no text
    valid[0, -1], valid[1, -1] = False, True
    last = len(text.encode()) - len(tokenizer.decode(tokens[:-1]).encode())
    assert predicted_bytes(tokenizer, ids, valid).tolist() == [
        len(text.encode()) - last, len(text.encode()) - first,
    ]  # fmt: skip
