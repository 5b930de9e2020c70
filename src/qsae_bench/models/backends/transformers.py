"""Quantizes with any ``quantization_config`` that the installed transformers accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.models.backends import LoadRequest
from qsae_bench.models.backends.unquantized import load_published

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Quantize while loading, as ``from_pretrained(quantization_config=...)`` does.

    4-bit bitsandbytes computes in the request's dtype unless the entry says otherwise: that is the
    reference's own dtype, so that nothing but the rounding of the weights is compared.

    Raises:
        QsaeError: transformers refuses the options.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    options: dict[str, Any] = dict(request.quantization.options)
    if options.get("quant_method") == "hqq":
        raise QsaeError(
            f'quantization {request.quantization.name!r}: transformers refuses hqq: use backend = "hqq"'
        )
    if options.get("load_in_4bit"):
        options.setdefault("bnb_4bit_compute_dtype", str(request.dtype).removeprefix("torch."))
    try:
        config = AutoQuantizationConfig.from_dict(options)
    except (TypeError, ValueError, AssertionError) as error:
        raise QsaeError(f"quantization {request.quantization.name!r}: {error}") from None
    return load_published(request, quantization_config=config)
