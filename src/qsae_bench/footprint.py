"""What a model's weights take: bytes in all, and bits a decoder weight.

``bits_per_weight`` follows exllamav3's convention: stored bits of the ≥ 2-D weights of the decoder
blocks, scales and codebooks included, divided by their original element count; embeddings, head,
norms and biases are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qsae_bench.taps import decoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def weight_bytes(model: PreTrainedModel) -> int:
    """Stored bytes of all parameters and quantization state, shared tensors counted once."""
    seen: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            for tensor in (parameter.data, *_state(module, parameter)):
                seen[tensor.data_ptr()] = max(seen.get(tensor.data_ptr(), 0), tensor.nbytes)
    return sum(seen.values())


def bits_per_weight(model: PreTrainedModel) -> float:
    """Stored bits ÷ original elements over the decoder blocks' matrices."""
    bits = elements = 0
    for layer in decoder_layers(model):
        for module, weight in _matrices(layer):
            simulated = getattr(weight, "qsae_simulated_bits", None)
            if simulated is None:
                bits += 8 * (weight.data.nbytes + sum(t.nbytes for t in _state(module, weight)))
            else:  # rounded values kept in floats: what a packed form would store
                bits += simulated
            elements += _original_elements(weight)
    return bits / elements


def _matrices(layer: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, torch.nn.Parameter]]:
    for module in layer.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and (weight.ndim >= 2 or getattr(weight, "quant_state", None)):
            yield module, weight


def _original_elements(weight: Any) -> int:
    state = getattr(weight, "quant_state", None)  # bitsandbytes 4-bit packs two weights a byte
    return int(state.shape.numel() if state is not None else weight.numel())


def _state(module: torch.nn.Module, weight: Any) -> list[torch.Tensor]:
    """Quantization state that bitsandbytes keeps beside a parameter."""
    import torch

    found: list[Any] = []
    state = getattr(weight, "quant_state", None)
    if state is not None:
        found += [state.absmax, state.code, state.offset]
        if getattr(state, "state2", None) is not None:  # bitsandbytes drops it when it repacks for a CPU
            found += [state.state2.absmax, state.state2.code]
    else:
        found.append(getattr(weight, "SCB", None))
        if found[-1] is None:
            found.append(getattr(getattr(module, "state", None), "SCB", None))
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]
