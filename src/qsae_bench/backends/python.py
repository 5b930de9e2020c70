"""A backend that nothing else supports: one function of the user's own.

``quantize(model, options) -> model`` is given a freshly loaded reference; a function of three
parameters, ``load(model_spec, options, device) -> model``, loads the model itself. It is named in the
entry as ``function = "module:name"``, the module importable or a file beside the entry's own, or
registered by an installed package as an entry point under the backend's name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qsae_bench.backends import LoadRequest, none
from qsae_bench.errors import QsaeError
from qsae_bench.specs import ENTRY_POINTS, QuantizationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Call the user's function.

    Raises:
        QsaeError: it can't be imported, takes other parameters, or returns no model.
    """
    import torch

    quantization, options = request.quantization, dict(request.quantization.options)
    with _beside(quantization.folder):
        function = _function(quantization)
        if _parameters(function, quantization) == 2:
            model = function(none.load(request), options)
        else:
            place = "cuda:0" if request.device == "auto" else request.device
            model = function(request.model, options, place)
    if not isinstance(model, torch.nn.Module):
        raise QsaeError(
            f"quantization {quantization.name!r}: {_name(quantization)} returned "
            f"{'no model' if model is None else type(model).__name__}, not a model"
        )
    return model


def _name(quantization: QuantizationSpec) -> str:
    return quantization.function or f"entry point {quantization.backend}"


def _function(quantization: QuantizationSpec) -> Callable[..., Any]:
    try:
        if quantization.function is None:
            (point,) = importlib.metadata.entry_points(group=ENTRY_POINTS, name=quantization.backend)
            return point.load()
        module_name, _, function_name = quantization.function.partition(":")
        return getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise QsaeError(
            f"quantization {quantization.name!r}: {_name(quantization)} can't be imported: "
            f"{type(error).__name__}: {error}; is its module on PYTHONPATH or beside the entry's file?"
        ) from None


def _parameters(function: Callable[..., Any], quantization: QuantizationSpec) -> int:
    """2 for ``quantize``, 3 for ``load``."""
    try:
        signature = inspect.signature(function)
        for count in (2, 3):
            with contextlib.suppress(TypeError):
                signature.bind(*range(count))
                return count
    except (TypeError, ValueError):  # not a function, or one that tells nothing of itself
        pass
    raise QsaeError(
        f"quantization {quantization.name!r}: {_name(quantization)} must be quantize(model, options) or "
        "load(model_spec, options, device)"
    )


@contextlib.contextmanager
def _beside(folder: str) -> Iterator[None]:
    """The entry's own folder is looked through last: it must not hide an installed module."""
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
