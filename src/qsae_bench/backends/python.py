"""A backend that nothing supports yet: one function of the user's own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qsae_bench.backends import LoadRequest, none
from qsae_bench.errors import QsaeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """``quantize(model, options) -> model`` on a freshly loaded reference."""
    quantization = request.quantization
    assert quantization.function is not None
    module_name, _, function_name = quantization.function.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise QsaeError(
            f"quantization {quantization.name!r}: function {quantization.function!r} can't be "
            f"imported: {error}; is its folder on PYTHONPATH?"
        ) from None
    model: PreTrainedModel | None = function(none.load(request), dict(quantization.options))
    if model is None:
        raise QsaeError(f"quantization {quantization.name!r}: {quantization.function} returned no model")
    return model
