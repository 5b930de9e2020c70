"""Check what a backend returned: the right model, on the right device, in the reference's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.models.architecture import DecoderShapes
from qsae_bench.models.taps import decoder_layers
from qsae_bench.models.weights.inspection import float_matrices

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def check_model(
    model: PreTrainedModel, original: DecoderShapes, d_model: int, device: str, dtype: torch.dtype
) -> None:
    """Refuse a model that differs from the reference in shape, device or dtype.

    The message says what differs; the caller adds the cell's name.
    """
    try:
        embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
        vocabulary, width = embedding.weight.shape
        head = getattr(output, "out_features", None) or output.weight.shape[0]
        blocks = len(decoder_layers(model))
    except (AttributeError, ValueError, NotImplementedError, QsaeError):
        raise QsaeError(
            f"the backend returned a {type(model).__name__}, not a causal language model of transformers"
        ) from None
    for quantity, found, expected in (
        ("vocabulary", vocabulary, original.vocabulary),
        ("head", head, original.vocabulary),
        ("decoder blocks", blocks, len(original.matrices)),
        ("width", width, d_model),
    ):
        if found != expected:
            raise QsaeError(f"the returned model has {quantity} {found}, the reference's is {expected}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        place, asked = tensor.device.type, "cuda" if device == "auto" else device
        if place != asked:
            raise QsaeError(f"the returned model has {name} on {place}; {asked} was asked for")
    floats = [("its input embedding", embedding.weight)]
    # every quantization leaves the embedding as floats, and this one these matrices
    floats += [(f"layer {k}'s {path}", weight) for k, path, weight in float_matrices(model, original)]
    for name, weight in floats:
        if weight.dtype != dtype:
            raise QsaeError(
                f"the returned model has {name} in {_dtype_name(weight.dtype)}, not in "
                f"{_dtype_name(dtype)} as the reference: the cast's rounding "
                "would be counted as the quantization's error"
            )


def positions_of(config: PretrainedConfig) -> int | None:
    """Return how many positions a model has, None where its config names no limit.

    A scaled rope reaches as far as its factor makes of the length that it was trained on, if it names that
    length; otherwise what the config states is taken to be scaled already.
    """
    text = config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    if not stated:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    reaches = [int(stated)]
    for table in (rope, *rope.values()):  # one table, or one for each kind of layer
        if isinstance(table, Mapping) and (factor := table.get("factor")):
            dynamic = stated if table.get("rope_type") == "dynamic" else 0
            reaches.append(int(factor * (table.get("original_max_position_embeddings") or dynamic)))
    return max(reaches)


def check_positions(model: str, config: PretrainedConfig, length: int) -> None:
    """Refuse sequences longer than the model has positions: learned ones end, a rope was trained so far."""
    limit = positions_of(config)
    if limit is not None and length > limit:
        raise QsaeError(
            f"model {model!r}: sequences of {length:,} tokens, but it has {limit:,} positions "
            f"(max_position_embeddings): use --sequence-length {limit} or less"
        )


def check_ids(corpus: str, config: PretrainedConfig, largest: int) -> None:
    """Refuse token ids that the model's embedding has no row for."""
    rows = int(config.get_text_config().vocab_size)
    if largest >= rows:
        raise QsaeError(
            f"corpus {corpus!r}: token id {largest:,}, but the model's embedding has {rows:,} rows: the "
            "tokenizer is not this model's"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tokenizer(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuse a checkpoint whose token ids stand for other tokens, or whose sequences begin otherwise.

    Ids beyond the ``vocabulary`` rows of the embedding don't matter.
    """
    if own.bos_token_id != other.bos_token_id:
        raise QsaeError(
            f"its tokenizer differs from the model's: BOS is {own.bos_token_id} in the model's, and "
            f"{other.bos_token_id} in the checkpoint's"
        )
    mine, theirs = own.get_vocab(), other.get_vocab()
    for token, index in sorted(mine.items(), key=lambda item: item[1]):
        if index < vocabulary and theirs.get(token) != index:
            found = "has no such token" if token not in theirs else f"has it at {theirs[token]}"
            raise QsaeError(
                f"its tokenizer differs from the model's: token {token!r} is {index} in the model's, and "
                f"the checkpoint's {found}"
            )
