"""Make token sequences of the tiny corpus, framed as the evaluation frames them."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

from qsae_bench.tiny.grammar import documents

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SEQUENCE_LENGTH = 128
_DOCUMENTS_AT_ONCE = 500


def token_sequences(
    tokenizer: PreTrainedTokenizerFast, seed: int, split: str, count: int, length: int = SEQUENCE_LENGTH
) -> np.ndarray:
    """Return `count` sequences, int32 [count, length]: `<bos>` and `length - 1` tokens of one document.

    The remainder of a document, shorter than a sequence, is dropped: a sequence never crosses documents.
    """
    import numpy as np

    stream = documents(seed, split)
    out = np.empty((count, length), dtype=np.int32)
    out[:, 0] = tokenizer.bos_token_id
    body, filled = length - 1, 0
    while filled < count:
        texts = list(islice(stream, _DOCUMENTS_AT_ONCE))
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            for start in range(0, len(ids) - body + 1, body):
                if filled < count:
                    out[filled, 1:] = ids[start : start + body]
                    filled += 1
    return out


def cross_entropy(model: PreTrainedModel, sequences: np.ndarray, batch_size: int = 32) -> float:
    """Return the mean negative log-likelihood over the predicted positions, in nats per token."""
    import torch
    from torch.nn.functional import cross_entropy as nll

    total, batches = 0.0, torch.from_numpy(sequences).long().split(batch_size)
    with torch.inference_mode():
        for ids in batches:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += nll(
                logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum"
            ).item()
    return total / (sequences.shape[0] * (sequences.shape[1] - 1))


def unigram_entropy(sequences: np.ndarray) -> float:
    """Return the entropy of the token frequencies without BOS, in nats per token.

    A model without context would reach it.
    """
    import numpy as np

    counts = np.bincount(sequences[:, 1:].ravel())
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    assert math.isfinite(entropy)
    return entropy
