"""A corpus spec and a tokenizer make token sequences with a fingerprint.

A sequence is BOS + consecutive tokens of one document, all of one length, no padding. Documents
shorter than that are dropped, and the rest of a document too; what that cost is counted. Two
variations: a chat corpus has the tokens stand in a user's turn, and a concatenated one, the study's,
is cut wherever a sequence ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus.sources import Say, open_text
from qsae_bench.registry.specs import CorpusSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FRUITLESS_DOCUMENTS = 1000
"""too short in a row, and nothing yet: a source may be endless, and none of it long enough"""

CORPUS_FORMAT = 1
"""Bump when the same spec would give other ids: it is part of the fingerprint, and of a cache's keys."""

PLACEHOLDER = "QSAE-TEXT-GOES-HERE"
"""what a chat template is rendered around; no template has it"""

DATE = "26 Jul 2024"
"""for templates that would write today's, and other ids every day; Llama's own default"""


@dataclass(frozen=True)
class Corpus:
    """Token sequences that every cell of a model sees."""

    spec: CorpusSpec
    ids: np.ndarray
    """int64 [sequences, length], BOS first (a concatenated corpus has BOS where documents begin)"""
    valid: np.ndarray
    """bool [sequences, length]: text, neither a special token nor a chat template's frame; with
    ``every_position`` True everywhere"""
    fingerprint: str
    dropped: dict[str, int]
    """documents and tokens that fitted no sequence"""
    source: str = ""
    """what the text was read from, where that is not the spec's to say"""

    @property
    def predicted_tokens(self) -> int:
        """Positions whose next token is valid: what cross-entropy is taken over."""
        return int(self.valid[:, 1:].sum())

    def first(self, sequences: int) -> Corpus:
        """Its first sequences; the fingerprint stays, so this is for timing, not for a measurement."""
        return replace(self, ids=self.ids[:sequences], valid=self.valid[:sequences])


@dataclass(frozen=True)
class Vocabulary:
    """What a corpus needs to know of a tokenizer, apart from how it splits text."""

    bos: int
    special: tuple[int, ...]
    """BOS, EOS, PAD and every other control id, ascending"""
    before: tuple[int, ...]
    """ids in front of a sequence's text: BOS, and with a chat template what opens a user's turn"""
    after: tuple[int, ...] = ()
    """ids behind it: what closes the turn"""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, spec: CorpusSpec, bos_token: str | None = None
    ) -> Vocabulary:
        """``bos_token`` begins sequences where the tokenizer has no BOS of its own.

        Raises:
            QsaeError: there is no BOS either way, or no usable chat template for a chat corpus.
        """
        bos = _bos_id(tokenizer, spec, bos_token)
        before, after = _chat_frame(tokenizer, spec, bos) if spec.chat else ((bos,), ())
        return cls(bos, tuple(sorted({*special_ids(tokenizer), bos})), before, after)


def build_corpus(
    spec: CorpusSpec,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    bos_token: str | None = None,
    say: Say = lambda line: None,
) -> Corpus:
    """Cut as many sequences as ``tokens`` predicted tokens take, or as many as the text gives.

    ``say`` hears in one line what is not as the spec has it, yet no error: another source of text.

    Raises:
        QsaeError: the text can't be read or gives no whole sequence; the tokenizer has no BOS, or no
            chat template where one is asked for. CannotRun where this machine can't get at the text.
    """
    vocabulary = Vocabulary.of(tokenizer, spec, bos_token)
    if spec.kind == "random":
        return build_random(spec, len(tokenizer), vocabulary.bos, vocabulary.special, tokens)
    text = open_text(spec, say)
    bos, frame = vocabulary.bos, len(vocabulary.before) + len(vocabulary.after)
    unusable = {"documents": 0, "tokens": 0}
    documents = _encoded(text.documents, tokenizer, bos, unusable)
    if spec.packing == "concatenated":
        ids, begins, dropped = concatenate(documents, bos, spec, _sequences(tokens, spec, 1))
    else:
        unframed = replace(spec, sequence_length=spec.sequence_length - frame + 1)
        ids, dropped = cut(documents, bos, unframed, _sequences(tokens, spec, frame))
        ids = _framed(ids, vocabulary)
        begins = np.zeros(ids.shape, dtype=bool)
        begins[:, 0] = True
    _check_bos(ids, begins, bos, spec)
    valid = _valid(ids, vocabulary, spec)
    dropped = {key: dropped[key] + unusable[key] for key in dropped}
    digest = fingerprint(spec, ids, valid, vocabulary.special)
    return Corpus(spec, ids, valid, digest, dropped, text.source)


def build_random(
    spec: CorpusSpec, vocab_size: int, bos_id: int, special_ids: Iterable[int], tokens: int
) -> Corpus:
    """Sequences of BOS + ids drawn uniformly from ``range(vocab_size)`` without the special ones.

    For a model whose weights are random too: there is no text, so packing and chat mean nothing here.

    Raises:
        QsaeError: every id is special.
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
    return Corpus(spec, ids, valid, digest, {"documents": 0, "tokens": 0}, "random ids")


def fingerprint(spec: CorpusSpec, ids: np.ndarray, valid: np.ndarray, special: Iterable[int]) -> str:
    """Hash of what models are fed and which positions count: equal ones make measurements comparable."""
    special = list(special)
    described = {
        "format": CORPUS_FORMAT, "kind": spec.kind, "sequence_length": spec.sequence_length,
        "sequences": len(ids), "special": special,
    }  # fmt: skip
    if not np.array_equal(valid, ~np.isin(ids, special)):  # else the special ids say it already
        described["valid"] = hashlib.sha256(np.packbits(valid).tobytes()).hexdigest()
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
    return digest.hexdigest()[:32]


# -- packing ----------------------------------------------------------------------------------------


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
            f"corpus {spec.name!r}: no document has {body} tokens, what one sequence holds of it; "
            "use longer text or a smaller sequence_length"
        )
    return np.asarray(sequences, dtype=np.int64), dropped


def concatenate(
    documents: Iterable[list[int]], bos: int, spec: CorpusSpec, wanted: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """``wanted`` sequences cut from BOS + document + BOS + document …, as the study has it.

    Returns ids and, of the same shape, where a document begins (the places of BOS), and what was
    dropped: documents without a token, and the tokens after the last whole sequence.
    """
    length = spec.sequence_length
    stream: list[int] = []
    starts: list[int] = []
    dropped = {"documents": 0, "tokens": 0}
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
    """How many it takes, when each has ``frame`` positions that hold no text."""
    return -(-tokens // (spec.sequence_length - frame))


def _framed(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """BOS + text, with the rest of what stands around it."""
    rest, after = (
        np.tile(np.asarray(part, dtype=np.int64), (len(ids), 1))
        for part in (vocabulary.before[1:], vocabulary.after)
    )
    return np.hstack([ids[:, :1], rest, ids[:, 1:], after])


def _valid(ids: np.ndarray, vocabulary: Vocabulary, spec: CorpusSpec) -> np.ndarray:
    if spec.every_position:
        return np.ones(ids.shape, dtype=bool)
    valid = ~np.isin(ids, vocabulary.special)
    if spec.chat:  # its words, "user" among them, are ordinary tokens and yet no text
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


# -- what the tokenizer says ------------------------------------------------------------------------


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """BOS, EOS, PAD and every other control id of the tokenizer."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)})


def _bos_id(tokenizer: PreTrainedTokenizerBase, spec: CorpusSpec, bos_token: str | None) -> int:
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    if bos_token is None:
        raise QsaeError(
            f"corpus {spec.name!r}: the tokenizer has no BOS token, every sequence needs one: "
            "name one as the model's bos_token"
        )
    found = tokenizer.get_vocab().get(bos_token)
    if found is None:
        raise QsaeError(
            f"corpus {spec.name!r}: the tokenizer has no token {bos_token!r}: correct bos_token"
        )
    return int(found)


def _encoded(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, bos: int, unusable: dict[str, int]
) -> Iterator[list[int]]:
    """Token ids of each text. ``<bos>`` and the like, spelt out in a text, are text and not control ids.

    Some tokenizers have such a word in their ordinary vocabulary as well. A document that yields BOS
    even so comes out empty, and its tokens are counted as ``unusable``.
    """
    for text in texts:
        # verbose: a document may be longer than the model's context, its sequences are not
        tokens: list[int] = tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        if bos in tokens:
            unusable["tokens"] += len(tokens)
            tokens = []
        yield tokens


def _chat_frame(
    tokenizer: PreTrainedTokenizerBase, spec: CorpusSpec, bos: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after the content of one user's turn; no answer is opened, none is read."""
    where = f"corpus {spec.name!r}: the chat template"
    if spec.packing != "documents":
        raise QsaeError(f'{where} frames single documents: packing must be "documents"')
    if not getattr(tokenizer, "chat_template", None):
        raise QsaeError(
            f"corpus {spec.name!r}: chat = true needs a tokenizer with a chat template; this one has none: "
            "use an instruction-tuned model"
        )
    turn = [{"role": "user", "content": PLACEHOLDER}]
    try:
        whole = tokenizer.apply_chat_template(turn, tokenize=False, date_string=DATE)
    except Exception as error:  # a template is a program of the model's author, and may raise anything
        raise QsaeError(f"{where} can't be rendered: {(str(error).splitlines() or ['?'])[0]}") from None
    parts = str(whole).split(PLACEHOLDER)
    if len(parts) != 2:
        raise QsaeError(f"{where} has a user's text {len(parts) - 1} times, not once")
    before, after = (
        tuple(tokenizer.encode(part, add_special_tokens=False, split_special_tokens=False))
        for part in parts
    )
    if before[:1] != (bos,):
        before = (bos, *before)
    if (before + after).count(bos) != 1:
        raise QsaeError(f"{where} has more than the one BOS (id {bos}) that a sequence begins with")
    if len(before) + len(after) >= spec.sequence_length:
        raise QsaeError(
            f"{where} takes {len(before) + len(after)} tokens, which leaves no room in sequence_length "
            f"{spec.sequence_length}"
        )
    return before, after
