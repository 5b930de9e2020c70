"""Round weights to nearest in plain torch: the control that every other backend must beat or match.

The weights stay floats that hold the rounded values (simulated quantization): quality is real, speed and
memory are not. Options: ``bits`` 2 to 8; ``group_size`` weights of a row that share a scale (0: a whole
row); ``symmetric`` false adds an integer zero point to each scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.models.backends import LoadRequest, block_linears, simulates
from qsae_bench.models.backends.unquantized import load_published

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SCALE_BITS = 16
OPTION_TYPES = {"bits": int, "group_size": int, "symmetric": bool}


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the reference and round every linear layer of its decoder blocks.

    Raises:
        QsaeError: an option is unknown or wrong, or a row can't be divided into such groups.
    """
    options = dict(request.quantization.options)
    where = f"quantization {request.quantization.name!r}"
    bits, group = options.get("bits", 0), options.get("group_size", 0)
    symmetric = options.get("symmetric", True)
    if (
        any(type(value) is not OPTION_TYPES.get(key) for key, value in options.items())
        or not 2 <= bits <= 8
        or group < 0
    ):
        raise QsaeError(
            f"{where}: backend rtn takes options bits (2 to 8), group_size (0: a whole row) and symmetric "
            f"(true or false), not {options}"
        )
    model = load_published(request)
    for linear in block_linears(model):
        if group and linear.in_features % group:
            raise QsaeError(f"{where}: group_size {group} does not divide a row of {linear.in_features}")
        linear.weight.data = round_to_nearest(linear.weight.data, bits, group, symmetric)
        simulates(linear.weight, stored_bits(linear.weight, bits, group, symmetric))
    return model


def round_to_nearest(
    weight: torch.Tensor, bits: int, group_size: int = 0, symmetric: bool = True
) -> torch.Tensor:
    """Round ``weight`` [out, in] to ``bits``, with one scale per row or group of a row; the dtype stays.

    Symmetric: ``2^(bits-1) - 1`` levels on either side of 0, the last of them at the group's largest
    magnitude. Asymmetric: ``2^bits`` levels from the group's least to its greatest value (0 included), on a
    grid that contains 0 exactly.
    """
    wide = weight.float() if weight.dtype.itemsize < 4 else weight
    grouped = wide.reshape(wide.shape[0], -1, group_size or wide.shape[1])
    if symmetric:
        levels = 2 ** (bits - 1) - 1
        scale = grouped.abs().amax(dim=2, keepdim=True) / levels
        scale = scale.where(scale > 0, 1.0)  # a group of zeros stays zero
        rounded = (grouped / scale).round().clamp(-levels, levels).mul(scale)
    else:
        levels = 2**bits - 1
        low = grouped.amin(dim=2, keepdim=True).clamp(max=0.0)
        high = grouped.amax(dim=2, keepdim=True).clamp(min=0.0)
        scale = (high - low) / levels
        scale = scale.where(scale > 0, 1.0)
        zero = (-low / scale).round()
        rounded = ((grouped / scale).round() + zero).clamp(0, levels).sub(zero).mul(scale)
    return rounded.reshape(weight.shape).to(weight.dtype)


def stored_bits(weight: torch.Tensor, bits: int, group_size: int = 0, symmetric: bool = True) -> int:
    """Return the bits of a packed form: ``bits`` per weight, 16 per scale, and ``bits`` per zero point."""
    groups = weight.numel() // (group_size or weight.shape[1])
    return weight.numel() * bits + groups * (SCALE_BITS + (0 if symmetric else bits))
