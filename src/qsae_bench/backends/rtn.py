"""Round-to-nearest: the plain-torch control that every other backend must beat or match.

Symmetric, one scale per output channel, ``2^(bits-1) - 1`` positive levels. The weights stay
floats holding the rounded values (simulated quantization), so quality is real and speed is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsae_bench.backends import LoadRequest, none
from qsae_bench.errors import QsaeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the reference and round every linear layer of its decoder blocks."""
    import torch

    from qsae_bench.taps import decoder_layers

    bits = request.quantization.options.get("bits")
    if set(request.quantization.options) != {"bits"} or type(bits) is not int or not 2 <= bits <= 8:
        raise QsaeError(
            f"quantization {request.quantization.name!r}: backend rtn takes options = "
            f"{{ bits = 2..8 }}, not {dict(request.quantization.options)}"
        )
    model = none.load(request)
    for layer in decoder_layers(model):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = round_to_nearest(module.weight.data, bits)
                packed = stored_bits(module.weight, bits)
                module.weight.qsae_simulated_bits = packed  # type: ignore[attr-defined]
    return model


def round_to_nearest(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """``weight`` [out, in] rounded to ``bits`` per row; same dtype, no new object if all zero."""
    levels = 2 ** (bits - 1) - 1
    wide = weight.float() if weight.dtype.itemsize < 4 else weight
    scale = wide.abs().amax(dim=1, keepdim=True) / levels
    scale = scale.where(scale > 0, 1.0)  # an all-zero row stays zero
    return (wide / scale).round().clamp(-levels, levels).mul(scale).to(weight.dtype)


def stored_bits(weight: torch.Tensor, bits: int) -> int:
    """What a packed form would store: ``bits`` a weight and a 16-bit scale a row."""
    return weight.numel() * bits + weight.shape[0] * 16
