"""Train the tiny model's tokenizer: byte-level BPE on the grammar's text, with one `<bos>` in front."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from qsae_bench.tiny.grammar import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
"""Special tokens with the ids 0, 1 and 2, in Gemma's order."""

VOCAB_SIZE = 2560
TRAINING_DOCUMENTS = 6000


def train_tokenizer(
    seed: int, *, vocab_size: int = VOCAB_SIZE, count: int = TRAINING_DOCUMENTS
) -> PreTrainedTokenizerFast:
    """Train on `count` documents of the split "tokenizer".

    The vocabulary may come out smaller than `vocab_size`, when the text has no more pairs to merge.
    All 256 bytes are in it, so that any text survives encoding and decoding unchanged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    # Digits apart, as Gemma splits them: a sum is then learnt digit by digit instead of by heart.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(islice(documents(seed, "tokenizer"), count), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        # "Tidying" spaces before punctuation would make decoding inexact.
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
