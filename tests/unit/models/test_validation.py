"""What a model can be given: positions, token ids, a checkpoint's tokenizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from builders import one_line
from qsae_bench.errors import QsaeError
from qsae_bench.models.validation import check_ids, check_positions, check_tokenizer, positions_of


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("gpt2", {"n_positions": 1024}, 1024),
        ("llama", {"max_position_embeddings": 2048}, 2048),
        # Llama 3.1 as published: what it states is scaled already, from 8,192 by 8
        ("llama", {"max_position_embeddings": 131072, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0}}, 131072),
        # Qwen 2.5 as its card says to extend it: four times what it was trained on
        ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ("llama", {"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        # Gemma 3 as published: one rope of two is scaled, and the length states it
        ("gemma3_text", {"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
         131072),
        ("bloom", {}, None),
    ],
)  # fmt: skip
def test_positions_that_a_model_has(kind, values, expected):
    config = AutoConfig.for_model(kind, **values)
    assert positions_of(config) == expected
    check_positions("mine", config, expected or 10**6)
    if expected:
        with pytest.raises(QsaeError, match=f"it has {expected:,} positions") as caught:
            check_positions("mine", config, expected + 1)
        assert f"--sequence-length {expected} or less" in one_line(caught.value)


def test_ids_beyond_the_embedding_are_refused():
    config = AutoConfig.for_model("llama", vocab_size=100)
    check_ids("text", config, 99)
    with pytest.raises(QsaeError, match="token id 100, but the model's embedding has 100 rows") as caught:
        check_ids("text", config, 100)
    one_line(caught.value)


def test_a_checkpoints_bos_is_the_models():
    def tokenizer(bos, vocabulary):
        return SimpleNamespace(bos_token_id=bos, get_vocab=lambda: vocabulary)

    words = {"<s>": 0, "a": 1, "b": 2}
    check_tokenizer(tokenizer(0, words), tokenizer(0, words), 3)
    with pytest.raises(QsaeError, match="BOS is 0 in the model's, and 2 in the checkpoint's") as caught:
        check_tokenizer(tokenizer(0, words), tokenizer(2, words), 3)
    one_line(caught.value)
    more = words | {"c": 3}
    check_tokenizer(tokenizer(0, more), tokenizer(0, words), 3)  # no row of the embedding
    with pytest.raises(QsaeError, match="token 'c' is 3 in the model's, and the checkpoint's has no such"):
        check_tokenizer(tokenizer(0, more), tokenizer(0, words), 4)
