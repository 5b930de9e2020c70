"""Find out what a corpus needs to know about a tokenizer: BOS, control ids, and what stands around a
text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qsae_bench.errors import QsaeError
from qsae_bench.registry.specs import CorpusSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "QSAE-TEXT-GOES-HERE"
"""the text that a chat template is rendered with; no template contains it"""

DATE = "26 Jul 2024"
"""for templates that would write today's, and other ids every day; Llama's own default"""


@dataclass(frozen=True)
class Vocabulary:
    """Hold the ids of a tokenizer that a corpus needs."""

    bos: int
    special: tuple[int, ...]
    """BOS, EOS, PAD and every other control id, ascending"""
    before: tuple[int, ...]
    """ids before a sequence's text: BOS, and with a chat template what opens a user's turn"""
    after: tuple[int, ...] = ()
    """ids after it: what closes the turn"""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, spec: CorpusSpec, bos_token: str | None = None
    ) -> Vocabulary:
        """Read them off a tokenizer; ``bos_token`` serves where it has no BOS of its own.

        Raises:
            QsaeError: there is no BOS either way, or no usable chat template for a chat corpus.
        """
        bos = _bos_id(tokenizer, spec, bos_token)
        before, after = _chat_frame(tokenizer, spec, bos) if spec.chat else ((bos,), ())
        return cls(bos, tuple(sorted({*control_ids(tokenizer), bos})), before, after)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return BOS, EOS, PAD and every other control id of the tokenizer."""
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


def encode_documents(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerBase, bos: int, unusable: dict[str, int]
) -> Iterator[list[int]]:
    """Yield the token ids of each text. ``<bos>`` and the like, spelt out in a text, are text, no control
    ids.

    Some tokenizers have such a word in their ordinary vocabulary as well. A document that yields BOS even
    so becomes empty, and its tokens are added to ``unusable``.
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


def predicted_bytes(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the UTF-8 bytes of the text that each sequence predicts, float64 [sequences].

    That is what the valid tokens after the first say. A letter that a sequence's end cuts in two, and a
    leading space that a tokenizer drops, make it a few bytes wrong.
    """
    texts = [
        tokenizer.decode(
            one[1:][counts[1:]].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        for one, counts in zip(ids, valid, strict=True)
    ]
    return np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.float64)


def _chat_frame(
    tokenizer: PreTrainedTokenizerBase, spec: CorpusSpec, bos: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after a user's text; the assistant's turn is neither opened nor
    included."""
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
