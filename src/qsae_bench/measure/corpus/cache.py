"""Cache token sequences on disk: text is fetched and tokenized once a tokenizer, then no network is needed.

An entry is one file, ``<key>.safetensors``: ids, valid and documents, and in its metadata the fingerprint,
what was dropped and the source. It is checked when it is read. Generated corpora are not cached: they are
made faster than a model's files are opened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.files import put
from qsae_bench.measure.corpus.packing import CORPUS_FORMAT, Corpus, build_corpus, fingerprint
from qsae_bench.measure.corpus.sources import PILE, PILE_SUBSTITUTE, Report, content_digest
from qsae_bench.measure.corpus.vocabulary import Vocabulary
from qsae_bench.registry.specs import CorpusSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHED_KINDS = ("pile10k", "wikitext2", "textfile")

METADATA = "corpus"
"""key of the entry's description in the file's metadata"""


class DamagedCorpus(QsaeError):
    """Report that an entry exists and can't be trusted."""


def load_corpus(
    spec: CorpusSpec,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    folder: Path | None,
    bos_token: str | None = None,
    report: Report = lambda line: None,
) -> Corpus:
    """Return what :func:`build_corpus` returns, or the equal corpus that was cached in ``folder`` earlier.

    Without a folder nothing is cached. ``report`` is called with one line about what did not go as usual: a
    substitute for the text's source, a damaged entry that is built again, one that could not be written.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # one in plain Python has no backend, and nothing describes all that it does: not cached
    if folder is None or backend is None or spec.kind not in CACHED_KINDS:
        return build_corpus(spec, tokenizer, tokens, bos_token, report)
    vocabulary = Vocabulary.of(tokenizer, spec, bos_token)
    path = folder / f"{corpus_key(spec, backend.to_str(), vocabulary, tokens)}.safetensors"
    try:
        if path.is_file():
            corpus = read_corpus(path, spec, vocabulary)
            if corpus.source == PILE_SUBSTITUTE:
                report(f"corpus {spec.name!r}: from {PILE_SUBSTITUTE}; remove {path} to try {PILE} again")
            return corpus
    except DamagedCorpus as error:
        report(f"{error}; it is built again")
    corpus = build_corpus(spec, tokenizer, tokens, bos_token, report)
    try:
        write_corpus(path, corpus)
    except OSError as error:
        report(f"corpus cache {folder}: can't be written: {error.strerror or error}; nothing is cached")
    return corpus


def corpus_key(spec: CorpusSpec, rules: str, vocabulary: Vocabulary, tokens: int) -> str:
    """Hash everything that changes the corpus.

    The spec's name, its ``tokens``, ``max_tokens`` and batch size change nothing. ``rules`` is the
    tokenizer's own serialized form; ``tokens`` are to be predicted.
    """
    # the last call that truncated or padded set these; encoding a corpus does neither
    settings = json.loads(rules) | {"truncation": None, "padding": None}
    parts: dict[str, Any] = {
        "format": CORPUS_FORMAT, "kind": spec.kind, "sequence_length": spec.sequence_length,
        "seed": spec.seed, "split": spec.split, "packing": spec.packing,
        "sequences_per_document": spec.sequences_per_document,
        "every_position": spec.every_position, "chat": spec.chat, "tokens": tokens,
        "vocabulary": asdict(vocabulary), "tokenizer": _sha256(json.dumps(settings, sort_keys=True)),
    }  # fmt: skip
    if spec.kind == "textfile":
        parts |= {"path": spec.path, "content": content_digest(spec)}
    return _sha256(json.dumps(parts, sort_keys=True))[:32]


def write_corpus(path: Path, corpus: Corpus) -> None:
    """Write an entry, so that no reader sees half of it."""
    from safetensors.numpy import save

    same = ("fingerprint", "dropped", "source", "is_one_document", "control_tokens")
    fields = {name: getattr(corpus, name) for name in same}
    about = json.dumps(fields | {"documents": _digest(corpus.documents)}, sort_keys=True)
    content = save(
        {"ids": corpus.ids, "valid": corpus.valid, "documents": corpus.documents},
        metadata={METADATA: about, "sha256": _sha256(about)},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path, content)


def read_corpus(path: Path, spec: CorpusSpec, vocabulary: Vocabulary) -> Corpus:
    """Read the entry that :func:`write_corpus` wrote; raises DamagedCorpus if it is not as it was."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            ids, valid, documents = (file.get_tensor(name) for name in ("ids", "valid", "documents"))
        if metadata["sha256"] != _sha256(metadata[METADATA]):
            raise DamagedCorpus(f"corpus cache: {path} is damaged (checksum differs)")
        about = json.loads(metadata[METADATA])
        if about.pop("documents") != _digest(documents):
            raise DamagedCorpus(f"corpus cache: {path} is damaged (its documents differ)")
        corpus = Corpus(spec, ids, valid, documents, **about)
    except OSError as error:
        raise DamagedCorpus(f"corpus cache: {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise DamagedCorpus(f"corpus cache: {path} is damaged (not a corpus)") from None
    if fingerprint(spec, ids, valid, vocabulary.special) != corpus.fingerprint:
        raise DamagedCorpus(f"corpus cache: {path} is damaged (its fingerprint differs)")
    return corpus


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers, dtype="<i8").tobytes()).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
