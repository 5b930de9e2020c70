"""What a backend must not get wrong: whose model it returns, where, and in which numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.models.architecture import DecoderShapes
from qsae_bench.models.taps import decoder_layers
from qsae_bench.models.weights.inspection import kept_floats

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_model(
    model: PreTrainedModel, blueprint: DecoderShapes, d_model: int, device: str, dtype: torch.dtype
) -> None:
    """Refuse a model that is not the reference's in shape, place or numbers.

    Raises:
        QsaeError: says what differs; the caller adds which cell.
    """
    try:
        embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
        vocabulary, width = embedding.weight.shape
        head = getattr(output, "out_features", None) or output.weight.shape[0]
        blocks = len(decoder_layers(model))
    except (AttributeError, ValueError, NotImplementedError, QsaeError):
        raise QsaeError(
            f"what came back is a {type(model).__name__}, not one of transformers' causal language models"
        ) from None
    for what, found, expected in (
        ("vocabulary", vocabulary, blueprint.vocabulary),
        ("head", head, blueprint.vocabulary),
        ("decoder blocks", blocks, len(blueprint.matrices)),
        ("width", width, d_model),
    ):
        if found != expected:
            raise QsaeError(f"the model that came back has {what} {found}, the reference's is {expected}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        place, asked = tensor.device.type, "cuda" if device == "auto" else device
        if place != asked:
            raise QsaeError(f"the model that came back has {name} on {place}; {asked} was asked for")
    for name, weight in _floats(model, blueprint):
        if weight.dtype != dtype:
            raise QsaeError(
                f"the model that came back has {name} in {_short(weight.dtype)}, not in {_short(dtype)} as "
                "the reference: their difference would be the rounding's, not the recipe's"
            )


def _floats(model: PreTrainedModel, blueprint: DecoderShapes) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that every recipe leaves as floats, and those that this one did."""
    yield "its input embedding", model.get_input_embeddings().weight
    for layer, path, weight in kept_floats(model, blueprint):
        yield f"layer {layer}'s {path}", weight


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tokenizer(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuse a checkpoint whose token ids mean other tokens.

    Raises:
        QsaeError: names the first token that differs.
    """
    mine, theirs = own.get_vocab(), other.get_vocab()
    for token, index in sorted(mine.items(), key=lambda item: item[1]):
        if index < vocabulary and theirs.get(token) != index:
            found = "has no such token" if token not in theirs else f"has it at {theirs[token]}"
            raise QsaeError(
                f"its tokenizer is another: token {token!r} is {index} in the model's own and the "
                f"checkpoint's {found}"
            )
