"""A tokenizer of single letters, the embedded model's, and the letters of a corpus."""

from __future__ import annotations

from types import SimpleNamespace

from qsae_bench.measure.corpus.packing import Corpus
from qsae_bench.tiny import MODEL_DIR

BOS, EOS, CONTROL = 2, 1, 7


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


def real_tokenizer(**changes):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True, **changes)


def as_text(corpus: Corpus) -> list[str]:
    return [
        "".join(chr(i - 3) if i >= 100 else "^" if i == BOS else "?" for i in row) for row in corpus.ids
    ]
