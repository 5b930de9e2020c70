"""Token sequences on disk: text is fetched and tokenized once a tokenizer, then a network is not needed.

An entry is one file, ``<key>.safetensors``: ids, valid, and in its metadata the fingerprint, what was
dropped and the source. It is written beside its place and renamed into it, and checked when it is read.
Generated corpora are not kept: they are made faster than a model's files are opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.measure.corpus.packing import CORPUS_FORMAT, Corpus, Vocabulary, build_corpus, fingerprint
from qsae_bench.measure.corpus.sources import PILE, PILE_SUBSTITUTE, Say, content_digest
from qsae_bench.registry.specs import CorpusSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHED_KINDS = ("pile10k", "wikitext2", "textfile")

METADATA = "corpus"


class DamagedCorpus(QsaeError):
    """An entry exists and can't be trusted."""


def load_corpus(
    spec: CorpusSpec,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    folder: Path | None,
    bos_token: str | None = None,
    say: Say = lambda line: None,
) -> Corpus:
    """:func:`build_corpus`, or the equal corpus that it left in ``folder`` earlier (None: keep nothing).

    ``say`` hears in one line what went another way than usual: a substitute for the text's source, a
    damaged entry that is built again, one that could not be kept.

    Raises:
        QsaeError: as :func:`build_corpus`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # one in plain Python has no backend, and nothing says all of what it does: not kept
    if folder is None or backend is None or spec.kind not in CACHED_KINDS:
        return build_corpus(spec, tokenizer, tokens, bos_token, say)
    vocabulary = Vocabulary.of(tokenizer, spec, bos_token)
    path = folder / f"{key_of(spec, backend.to_str(), vocabulary, tokens)}.safetensors"
    try:
        if path.is_file():
            corpus = read(path, spec, vocabulary)
            if corpus.source == PILE_SUBSTITUTE:
                say(f"corpus {spec.name!r}: from {PILE_SUBSTITUTE}; remove {path} to try {PILE} again")
            return corpus
    except DamagedCorpus as error:
        say(f"{error}; it is built again")
    corpus = build_corpus(spec, tokenizer, tokens, bos_token, say)
    try:
        write(path, corpus)
    except OSError as error:
        say(f"corpus cache {folder}: can't be written: {error.strerror or error}; nothing is kept")
    return corpus


def key_of(spec: CorpusSpec, rules: str, vocabulary: Vocabulary, tokens: int) -> str:
    """Hash of everything that changes the corpus. ``rules``: the tokenizer's own serialized form.

    The entry's name, ``tokens`` as it has them, ``max_tokens`` and the batch size change nothing.

    Raises:
        QsaeError: the text's file can't be read.
    """
    # what the last call set that truncated or padded; encoding a corpus does neither
    stated = json.loads(rules) | {"truncation": None, "padding": None}
    parts: dict[str, Any] = {
        "format": CORPUS_FORMAT, "kind": spec.kind, "sequence_length": spec.sequence_length,
        "seed": spec.seed, "split": spec.split, "packing": spec.packing,
        "every_position": spec.every_position, "chat": spec.chat, "tokens": tokens,
        "vocabulary": asdict(vocabulary), "tokenizer": _sha256(json.dumps(stated, sort_keys=True)),
    }  # fmt: skip
    if spec.kind == "textfile":
        parts |= {"path": spec.path, "content": content_digest(spec)}
    return _sha256(json.dumps(parts, sort_keys=True))[:32]


def write(path: Path, corpus: Corpus) -> None:
    """Put the corpus in place in one rename, so that no reader sees half of it.

    Raises:
        OSError: the disk is full or the folder can't be written.
    """
    from safetensors.numpy import save

    about = json.dumps(
        {"fingerprint": corpus.fingerprint, "dropped": corpus.dropped, "source": corpus.source},
        sort_keys=True,
    )
    content = save(
        {"ids": corpus.ids, "valid": corpus.valid}, metadata={METADATA: about, "sha256": _sha256(about)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def read(path: Path, spec: CorpusSpec, vocabulary: Vocabulary) -> Corpus:
    """The corpus that :func:`write` left there.

    Raises:
        DamagedCorpus: it can't be read, or is not what its fingerprint says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            ids, valid = file.get_tensor("ids"), file.get_tensor("valid")
        if metadata["sha256"] != _sha256(metadata[METADATA]):
            raise DamagedCorpus(f"corpus cache: {path} is damaged (checksum differs)")
        about = json.loads(metadata[METADATA])
        corpus = Corpus(spec, ids, valid, about["fingerprint"], about["dropped"], about["source"])
    except OSError as error:
        raise DamagedCorpus(f"corpus cache: {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise DamagedCorpus(f"corpus cache: {path} is damaged (not a corpus)") from None
    if fingerprint(spec, ids, valid, vocabulary.special) != corpus.fingerprint:
        raise DamagedCorpus(f"corpus cache: {path} is damaged (its fingerprint differs)")
    return corpus


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
