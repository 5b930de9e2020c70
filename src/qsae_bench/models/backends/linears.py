"""Finds and replaces the linear layers that a weight quantizer changes: those of the decoder blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from qsae_bench.models.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def block_linears(model: PreTrainedModel) -> Iterator[torch.nn.Linear]:
    """Yield every linear layer of the decoder blocks."""
    import torch

    for block in decoder_layers(model):
        yield from (module for module in block.modules() if isinstance(module, torch.nn.Linear))


def replace_linears(
    model: PreTrainedModel, make: Callable[[torch.nn.Linear], torch.nn.Module]
) -> PreTrainedModel:
    """Replace each linear layer of the decoder blocks by ``make(linear)``, and return the model."""
    import torch

    for block in decoder_layers(model):
        for path, module in list(block.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent, _, name = path.rpartition(".")
                setattr(block.get_submodule(parent), name, make(module))
    return model
