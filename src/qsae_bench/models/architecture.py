"""Describes an unquantized model's decoder: the shapes of its matrices, without their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from qsae_bench.models.taps import decoder_layers
from qsae_bench.registry.specs import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DecoderShapes:
    """Holds the shapes of an unquantized causal language model's decoder."""

    vocabulary: int
    """rows of the input embedding"""
    matrices: tuple[Mapping[str, Mapping[str, Shape]], ...]
    """for each decoder block: module -> parameter of at least two dimensions -> its shape"""
    inputs: tuple[Mapping[str, int], ...]
    """for each block: module that is a linear layer -> width of its input"""
    others: frozenset[str]
    """modules of a block without a matrix: norms, rotary tables, activations"""

    @classmethod
    def of(cls, model: PreTrainedModel) -> DecoderShapes:
        """Return the shapes of a model whose weights may be on the meta device."""
        import torch
        from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers, transposed

        blocks, inputs, others = [], [], set()
        for block in decoder_layers(model):
            found: dict[str, dict[str, Shape]] = {}
            widths: dict[str, int] = {}
            for path, module in block.named_modules():
                own = dict(module.named_parameters(recurse=False))
                if matrices := {k: tuple(p.shape) for k, p in own.items() if p.ndim >= 2}:
                    found[path] = matrices
                    if isinstance(module, Conv1D):
                        widths[path] = own["weight"].shape[0]
                    elif isinstance(module, torch.nn.Linear):
                        widths[path] = own["weight"].shape[1]
                elif not list(module.children()):
                    others.add(path)
            blocks.append(found)
            inputs.append(widths)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        return cls(vocabulary, tuple(blocks), tuple(inputs), frozenset(others))


@lru_cache(maxsize=4)
def decoder_shapes(model: ModelSpec) -> DecoderShapes:
    """Return the shapes of the model as published, from its config alone."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from qsae_bench.models.config import config_of

    config = config_of(model).get_text_config()
    with torch.device("meta"):
        return DecoderShapes.of(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config))
