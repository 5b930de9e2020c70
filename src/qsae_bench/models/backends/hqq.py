"""Quantizes with HQQ through its own API, because transformers lists it and refuses it.

Options are those of ``hqq.core.quantize.BaseQuantizeConfig``: ``{ nbits = 4, group_size = 64 }``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsae_bench.errors import QsaeError
from qsae_bench.models.backends import LoadRequest
from qsae_bench.models.backends.linears import replace_linears
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.models.log_filters import silenced

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the model with each linear layer of the decoder blocks as an ``HQQLinear`` on its own device.

    Raises:
        QsaeError: hqq refuses the options.
    """
    with silenced():
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    name, options = request.quantization.name, dict(request.quantization.options)
    try:
        config = BaseQuantizeConfig(**options)
    except (TypeError, AssertionError) as error:
        raise QsaeError(f"quantization {name!r}: hqq does not take {options}: {error}") from None

    def made(linear: torch.nn.Linear) -> torch.nn.Module:
        # HQQLinear changes the config that it is given
        own = {key: dict(part) if isinstance(part, dict) else part for key, part in config.items()}
        return HQQLinear(linear, own, compute_dtype=request.dtype, device=str(linear.weight.device))

    return replace_linears(load_published(request), made)
