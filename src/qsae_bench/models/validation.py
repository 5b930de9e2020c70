"""Check what a backend returned: the right model, on the right device, in the reference's dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.models.architecture import DecoderShapes
from qsae_bench.models.taps import decoder_layers
from qsae_bench.models.weights.inspection import float_matrices

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tokenizer(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuse a checkpoint whose token ids stand for other tokens.

    Ids beyond the ``vocabulary`` rows of the embedding don't matter.
    """
    mine, theirs = own.get_vocab(), other.get_vocab()
    for token, index in sorted(mine.items(), key=lambda item: item[1]):
        if index < vocabulary and theirs.get(token) != index:
            found = "has no such token" if token not in theirs else f"has it at {theirs[token]}"
            raise QsaeError(
                f"its tokenizer differs from the model's: token {token!r} is {index} in the model's, and "
                f"the checkpoint's {found}"
            )
