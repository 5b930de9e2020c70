"""Pack the text of a corpus into token sequences with a fingerprint.

A sequence is BOS and consecutive tokens of one document, all of one length, without padding. Of a document
at most a few sequences are taken, spread over it, because sequences of one document resemble each other;
one that equals an earlier one is left out. Shorter documents are dropped, and so is the rest of a document;
what was dropped is counted. Two variations: a chat corpus puts the tokens into a user's turn, and a
concatenated one, the study's, is cut wherever a sequence ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus.sources import Report, open_text
from qsae_bench.measure.corpus.vocabulary import Vocabulary, encode_documents
from qsae_bench.registry.specs import CorpusSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FRUITLESS_DOCUMENTS = 1000
"""so many too short ones before the first sequence end the search: a source may be endless"""

CORPUS_FORMAT = 3
"""Raise it when the same spec would give other ids or another entry of the cache: it is part of the cache's
keys. 2: at most a few sequences of a document, and the number of each sequence's document. 3: how many
of the text's tokens are control tokens"""
FINGERPRINT_FORMAT = 1
"""Raise it when the same ids are to have another fingerprint, so that no stored reference is found"""


@dataclass(frozen=True)
class Corpus:
    """Hold the token sequences that every cell of a model sees."""

    spec: CorpusSpec
    ids: np.ndarray
    """int64 [sequences, length], BOS first (a concatenated corpus has BOS where documents begin)"""
    valid: np.ndarray
    """bool [sequences, length]: True for text, False for special tokens and a chat template's frame; with
    ``every_position`` True everywhere"""
    documents: np.ndarray
    """int64 [sequences], ascending: the number of each sequence's document among those that gave one"""
    fingerprint: str
    dropped: dict[str, int]
    """how many documents and tokens are in no sequence, and how many sequences were left out because they
    equal an earlier one (``repeats``)"""
    source: str = ""
    """what the text was read from, which the spec alone doesn't tell"""
    is_one_document: bool = False
    """whether the whole text is one document, of which pieces count as documents"""
    control_tokens: int = 0
    """number of positions of the text that don't count, because their ids are control tokens to the
    tokenizer: unknown words, an ordinary word that it uses for padding. A part has the whole corpus's"""

    @property
    def predicted_tokens(self) -> int:
        """number of positions whose next token is valid: those that cross-entropy is taken over"""
        return int(self.valid[:, 1:].sum())

    @property
    def document_count(self) -> int:
        """number of documents that the sequences are from"""
        return len(np.unique(self.documents))

    def first(self, sequences: int) -> Corpus:
        """Return the first sequences; the fingerprint stays, so this is for timing, not for measuring."""
        return self._part(slice(sequences))

    def after(self, sequences: int) -> Corpus:
        """Return the sequences that follow the first ones, with a fingerprint of their own."""
        return replace(self._part(slice(sequences, None)), fingerprint=f"{self.fingerprint}+{sequences}")

    def _part(self, rows: slice) -> Corpus:
        return replace(self, ids=self.ids[rows], valid=self.valid[rows], documents=self.documents[rows])


def build_corpus(
    spec: CorpusSpec,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    bos_token: str | None = None,
    report: Report = lambda line: None,
) -> Corpus:
    """Pack as many sequences as ``tokens`` predicted tokens take, or as many as the text gives.

    ``bos_token`` begins sequences where the tokenizer has no BOS of its own.

    Raises:
        CannotRun: the text can't be downloaded here.
        QsaeError: it gives no whole sequence; the tokenizer has no BOS, or no chat template where one is
            asked for.
    """
    vocabulary = Vocabulary.of(tokenizer, spec, bos_token)
    if spec.kind == "random":
        return build_random(spec, len(tokenizer), vocabulary.bos, vocabulary.special, tokens)
    text = open_text(spec, report)
    bos, frame = vocabulary.bos, len(vocabulary.before) + len(vocabulary.after)
    unusable = {"tokens": 0}
    documents = encode_documents(text.documents, tokenizer, bos, unusable)
    if spec.packing == "concatenated":
        ids, begins, dropped = pack_concatenated(documents, bos, spec, _sequences(tokens, spec, 1))
        numbers = _numbers_at_starts(begins, spec.sequences_per_document if text.is_one_document else 0)
    else:
        unframed = replace(spec, sequence_length=spec.sequence_length - frame + 1)
        if text.is_one_document:
            documents = cut_in_pieces(documents, unframed)
        ids, numbers, dropped = pack_documents(documents, bos, unframed, _sequences(tokens, spec, frame))
        ids = _framed(ids, vocabulary)
        begins = np.zeros(ids.shape, dtype=bool)
        begins[:, 0] = True
    _check_bos(ids, begins, bos, spec)
    valid = _valid(ids, vocabulary, spec)
    dropped = {key: count + unusable.get(key, 0) for key, count in dropped.items()}
    digest = fingerprint(spec, ids, valid, vocabulary.special)
    apart = int(begins.sum()) if spec.packing == "concatenated" else len(ids) * frame
    control = 0 if spec.every_position else int((~valid).sum()) - apart
    return Corpus(spec, ids, valid, numbers, digest, dropped, text.source, text.is_one_document, control)


def build_random(
    spec: CorpusSpec, vocab_size: int, bos_id: int, special_ids: Iterable[int], tokens: int
) -> Corpus:
    """Make sequences of BOS and ids drawn uniformly from ``range(vocab_size)`` without the special ones.

    For a model whose weights are random too: there is no text, so packing and chat mean nothing here.
    """
    special = tuple(sorted({*special_ids, bos_id}))
    drawn_from = np.setdiff1d(np.arange(vocab_size), special)
    if drawn_from.size == 0:
        raise QsaeError(f"corpus {spec.name!r}: a vocabulary of {vocab_size} has no id that is not special")
    shape = (_sequences(tokens, spec, 1), spec.sequence_length - 1)
    body = drawn_from[np.random.default_rng(spec.seed).integers(drawn_from.size, size=shape)]
    ids = np.insert(body, 0, bos_id, axis=1)
    valid = _valid(ids, Vocabulary(bos_id, special, (bos_id,)), spec)
    digest = fingerprint(spec, ids, valid, special)
    return Corpus(spec, ids, valid, np.arange(len(ids)), digest, nothing_dropped(), "random ids")


def fingerprint(spec: CorpusSpec, ids: np.ndarray, valid: np.ndarray, special: Iterable[int]) -> str:
    """Hash what models are fed and which positions count: measurements with equal ones are comparable.

    Which sequences are of one document changes no value and is not in it.
    """
    special = list(special)
    described = {
        "format": FINGERPRINT_FORMAT, "kind": spec.kind, "sequence_length": spec.sequence_length,
        "sequences": len(ids), "special": special,
    }  # fmt: skip
    if not np.array_equal(valid, ~np.isin(ids, special)):  # else the special ids determine it
        described["valid"] = hashlib.sha256(np.packbits(valid).tobytes()).hexdigest()
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


# -- packing ----------------------------------------------------------------------------------------


def nothing_dropped() -> dict[str, int]:
    """Return the counts of what is in no sequence, all 0."""
    return {"documents": 0, "tokens": 0, "repeats": 0}


def pack_documents(
    documents: Iterable[list[int]], bos: int, spec: CorpusSpec, wanted: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Pack ``wanted`` sequences of BOS and consecutive tokens of one document; count what was dropped.

    Which sequences a document gives depends on it and on those before it, not on ``wanted``: a longer
    corpus begins with the shorter one.

    Returns:
        Ids [sequences, length]; the number of each one's document [sequences], counting those that gave
        one; and the numbers of what was dropped.
    """
    body = spec.sequence_length - 1
    sequences: list[list[int]] = []
    numbers: list[int] = []
    seen: set[tuple[int, ...]] = set()
    dropped = nothing_dropped()
    for tokens in documents:
        whole = len(tokens) // body
        number = numbers[-1] + 1 if numbers else 0
        places = spread(whole, spec.sequences_per_document)
        repeats = 0
        for place in places:
            text = tuple(tokens[place * body : (place + 1) * body])
            if text in seen:
                repeats += 1
            elif len(sequences) < wanted:
                seen.add(text)
                sequences.append([bos, *text])
                numbers.append(number)
            else:  # what the last document has left over was not needed, not dropped
                break
        else:
            dropped["documents"] += whole == 0
            dropped["repeats"] += repeats
            dropped["tokens"] += len(tokens) - len(places) * body
        if len(sequences) == wanted or (not sequences and dropped["documents"] == FRUITLESS_DOCUMENTS):
            break
    if not sequences:
        raise QsaeError(
            f"corpus {spec.name!r}: no document has {body} tokens, what one sequence holds of it; "
            "use longer text or a smaller sequence_length"
        )
    return np.asarray(sequences, dtype=np.int64), np.asarray(numbers, dtype=np.int64), dropped


def spread(whole: int, most: int) -> list[int]:
    """Return which of a document's ``whole`` sequences are taken: at most ``most``, evenly placed.

    The document is divided into as many equal parts as sequences are taken, and each is from the middle of
    its part.
    """
    count = min(whole, most)
    return [(2 * k + 1) * whole // (2 * count) for k in range(count)]


def cut_in_pieces(documents: Iterable[list[int]], spec: CorpusSpec) -> Iterator[list[int]]:
    """Cut documents into pieces of as many whole sequences as are taken of one document."""
    size = spec.sequences_per_document * (spec.sequence_length - 1)
    for tokens in documents:
        last = max(len(tokens) // (spec.sequence_length - 1) * (spec.sequence_length - 1), 1)
        starts = range(0, last, size)
        # what fills no sequence stays with the last piece, which would else be a document that gives none
        yield from (tokens[start : start + size if start + size < last else None] for start in starts)


def _numbers_at_starts(begins: np.ndarray, piece: int) -> np.ndarray:
    """Return the number of the document that each concatenated sequence begins in, counting those.

    Args:
        begins: where a document begins, bool [sequences, length].
        piece: so many consecutive sequences count as a document, for a text that is one; 0 otherwise.
    """
    if piece:
        return np.arange(len(begins)) // piece
    at_start = np.cumsum(begins.ravel())[:: begins.shape[1]]
    return np.unique(at_start, return_inverse=True)[1].reshape(-1)


def pack_concatenated(
    documents: Iterable[list[int]], bos: int, spec: CorpusSpec, wanted: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Cut ``wanted`` sequences from BOS + document + BOS + document …, as the study does.

    Returns:
        Ids [sequences, length]; where a document begins, of the same shape (the places of BOS); and what
        was dropped: documents without a token, and the tokens after the last whole sequence.
    """
    length = spec.sequence_length
    stream: list[int] = []
    starts: list[int] = []
    dropped = nothing_dropped()
    for tokens in documents:
        if tokens:
            starts.append(len(stream))
            stream += [bos, *tokens]
        else:
            dropped["documents"] += 1
        if len(stream) >= wanted * length or (not stream and dropped["documents"] == FRUITLESS_DOCUMENTS):
            break
    whole = min(len(stream) // length, wanted)
    if whole == 0:
        raise QsaeError(
            f"corpus {spec.name!r}: its text has {len(stream)} tokens, a sequence takes {length}; "
            "use longer text or a smaller sequence_length"
        )
    begins = np.zeros(len(stream), dtype=bool)
    begins[starts] = True
    end = whole * length
    if whole < wanted:  # else the rest was not needed, not dropped
        dropped["tokens"] = len(stream) - end - int(begins[end:].sum())
    ids = np.asarray(stream[:end], dtype=np.int64).reshape(whole, length)
    return ids, begins[:end].reshape(whole, length), dropped


def _sequences(tokens: int, spec: CorpusSpec, frame: int) -> int:
    """Return how many sequences it takes, when each has ``frame`` positions that hold no text."""
    return -(-tokens // (spec.sequence_length - frame))


def _framed(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Put the rest of what stands around a text around rows of BOS and text."""
    rest, after = (
        np.tile(np.asarray(part, dtype=np.int64), (len(ids), 1))
        for part in (vocabulary.before[1:], vocabulary.after)
    )
    return np.hstack([ids[:, :1], rest, ids[:, 1:], after])


def _valid(ids: np.ndarray, vocabulary: Vocabulary, spec: CorpusSpec) -> np.ndarray:
    if spec.every_position:
        return np.ones(ids.shape, dtype=bool)
    valid = ~np.isin(ids, vocabulary.special)
    if spec.chat:  # the frame's words, "user" among them, are ordinary tokens and yet no text
        valid[:, : len(vocabulary.before)] = False
        valid[:, ids.shape[1] - len(vocabulary.after) :] = False
    return valid


def _check_bos(ids: np.ndarray, begins: np.ndarray, bos: int, spec: CorpusSpec) -> None:
    rule = f"a sequence must have exactly one BOS (id {bos}), as its first token"
    if spec.packing == "concatenated":
        rule = f"BOS (id {bos}) must stand where documents begin, and nowhere else"
    if not np.array_equal(ids == bos, begins):
        raise QsaeError(
            f"corpus {spec.name!r}: {rule}: without it, or with two, models such as Gemma are broken"
        )
