"""Corpora of made-up texts, and a tokenizer with a chat template."""

from __future__ import annotations

import pytest

from builders import corpus_spec
from chat_templates import GEMMA
from letters import Letters, real_tokenizer
from qsae_bench.measure.corpus import sources
from qsae_bench.measure.corpus.packing import Corpus, build_corpus
from qsae_bench.measure.corpus.sources import TextSource


@pytest.fixture
def build(monkeypatch):
    """build(texts, tokens=..., **spec) -> Corpus, from these texts."""

    def made(texts, tokens=8, tokenizer=None, bos_token=None, is_one_document=False, **spec) -> Corpus:
        source = TextSource("a stub", iter(texts), is_one_document)
        monkeypatch.setitem(sources.SOURCES, "stub", lambda spec, report: source)
        return build_corpus(corpus_spec(**spec), tokenizer or Letters(), tokens, bos_token)

    return made


@pytest.fixture(scope="module")
def gemma():
    """The embedded model's tokenizer with turns, as Gemma's instruction-tuned ones have."""
    tokenizer = real_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA
    return tokenizer
