"""A corpus spec and a tokenizer make token sequences with a fingerprint.

A sequence is BOS + consecutive tokens of one document, all of one length, no padding. Documents
shorter than that are dropped, and the rest of a document too; what that cost is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.specs import CorpusSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FRUITLESS_DOCUMENTS = 1000
"""too short in a row, and nothing yet: a source may be endless, and none of it long enough"""

CORPUS_FORMAT = 1
"""Bump when the same spec would give other ids: it is part of the fingerprint."""


@dataclass(frozen=True)
class Corpus:
    """Token sequences that every cell of a model sees."""

    spec: CorpusSpec
    ids: np.ndarray
    """int64 [sequences, length], BOS first"""
    valid: np.ndarray
    """bool [sequences, length]: not a special token"""
    fingerprint: str
    dropped: dict[str, int]
    """documents and tokens that fitted no sequence"""

    @property
    def predicted_tokens(self) -> int:
        """Positions whose next token is valid: what cross-entropy is taken over."""
        return int(self.valid[:, 1:].sum())

    def first(self, sequences: int) -> Corpus:
        """Its first sequences; the fingerprint stays, so this is for timing, not for a measurement."""
        return replace(self, ids=self.ids[:sequences], valid=self.valid[:sequences])


def build_corpus(spec: CorpusSpec, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Corpus:
    """Cut as many sequences as ``tokens`` predicted tokens take, or as many as the text gives.

    Raises:
        QsaeError: the text gives no whole sequence, or the tokenizer has no BOS.
    """
    if tokenizer.bos_token_id is None:
        raise QsaeError(f"corpus {spec.name!r}: the tokenizer has no BOS token, every sequence needs one")
    wanted = -(-tokens // (spec.sequence_length - 1))
    ids, dropped = cut(_encoded(_documents(spec), tokenizer), tokenizer.bos_token_id, spec, wanted)
    special = special_ids(tokenizer)
    _check_bos(ids, tokenizer.bos_token_id, spec)
    valid = ~np.isin(ids, special)
    described = {
        "format": CORPUS_FORMAT, "kind": spec.kind, "sequence_length": spec.sequence_length,
        "sequences": len(ids), "special": special,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
    return Corpus(spec, ids, valid, digest.hexdigest()[:32], dropped)


def cut(
    documents: Iterable[list[int]], bos: int, spec: CorpusSpec, wanted: int
) -> tuple[np.ndarray, dict[str, int]]:
    """``wanted`` sequences of BOS + consecutive tokens of one document, and what was dropped."""
    body = spec.sequence_length - 1
    sequences: list[list[int]] = []
    dropped = {"documents": 0, "tokens": 0}
    for tokens in documents:
        whole = len(tokens) // body
        take = min(whole, wanted - len(sequences))
        sequences += [[bos, *tokens[i * body : (i + 1) * body]] for i in range(take)]
        if whole == 0:
            dropped["documents"] += 1
        if take == whole:  # what the last document has left over was not needed, not dropped
            dropped["tokens"] += len(tokens) - whole * body
        if len(sequences) == wanted or (not sequences and dropped["documents"] == FRUITLESS_DOCUMENTS):
            break
    if not sequences:
        raise QsaeError(
            f"corpus {spec.name!r}: no document has {body} tokens, the length of one sequence "
            "without BOS; use longer text or a smaller sequence_length"
        )
    return np.asarray(sequences, dtype=np.int64), dropped


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS, EOS, PAD and every other control id of the tokenizer."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})


def _check_bos(ids: np.ndarray, bos: int, spec: CorpusSpec) -> None:
    if not ((ids == bos).sum(axis=1) == 1).all() or not (ids[:, 0] == bos).all():
        raise QsaeError(
            f"corpus {spec.name!r}: a sequence must have exactly one BOS (id {bos}), as its first "
            "token: without it, or with two, models such as Gemma are broken"
        )


def _encoded(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for text in texts:
        yield tokenizer.encode(text, add_special_tokens=False)


def _grammar(spec: CorpusSpec) -> Iterator[str]:
    from qsae_bench.tiny.grammar import documents

    return documents(spec.seed, spec.split)


def _pile10k(spec: CorpusSpec) -> Iterator[str]:
    """NeelNanda/pile-10k, streamed and shuffled as the study does (facts: buffer of 10 000)."""
    import datasets

    try:
        stream: Any = datasets.load_dataset("NeelNanda/pile-10k", split="train", streaming=True)
        for row in stream.shuffle(seed=spec.seed, buffer_size=10_000):
            yield row["text"]
    except (OSError, ConnectionError) as error:
        raise QsaeError(f"corpus {spec.name!r}: can't be downloaded: {error}") from None


SOURCES = {"grammar": _grammar, "pile10k": _pile10k}


def _documents(spec: CorpusSpec) -> Iterator[str]:
    return SOURCES[spec.kind](spec)
