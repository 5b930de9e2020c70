"""Define what a run document holds about the token sequences of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qsae_bench.results.strict_model import StrictModel

if TYPE_CHECKING:
    from qsae_bench.measure.corpus.packing import Corpus


class CorpusRecord(StrictModel):
    """Describe the token sequences that a model was measured on."""

    name: str
    fingerprint: str
    sequences: int
    sequence_length: int
    tokens: int
    batch_size: int
    dropped_documents: int
    dropped_tokens: int
    source: str = ""
    """where the text came from, if that can differ"""
    documents: int | None = None
    """documents that the sequences are from; runs from before the field don't know"""
    sequences_per_document: int = 0
    """how many were taken of one at most; 0: all"""
    is_one_document: bool = False
    """whether the text is one document, of which pieces count as documents"""
    dropped_repeats: int = 0
    """sequences that were left out because they equal an earlier one"""
    control_tokens: int = 0
    """positions of the text that no metric counts: their ids are control tokens to the tokenizer"""

    @property
    def text(self) -> str:
        """Return the name of the text: of a user's file, ``textfile:`` and the file's name."""
        return f"{self.name}:{self.source}" if self.name == "textfile" and self.source else self.name

    @classmethod
    def of(cls, corpus: Corpus) -> CorpusRecord:
        """Describe a corpus; of a file only the name is recorded."""
        path = Path(corpus.source)
        return cls(
            name=corpus.spec.name,
            fingerprint=corpus.fingerprint,
            sequences=len(corpus.ids),
            sequence_length=corpus.spec.sequence_length,
            tokens=corpus.predicted_tokens,
            batch_size=corpus.spec.batch_size,
            source=path.name if path.is_absolute() else corpus.source,
            dropped_documents=corpus.dropped["documents"],
            dropped_tokens=corpus.dropped["tokens"],
            documents=corpus.document_count,
            sequences_per_document=corpus.spec.sequences_per_document if corpus.spec.is_capped else 0,
            is_one_document=corpus.is_one_document,
            dropped_repeats=corpus.dropped["repeats"],
            control_tokens=corpus.control_tokens,
        )
