"""Call a function of the user's, for quantizations that no other backend supports.

``quantize(model, options) -> model`` is given a freshly loaded reference; a function of three parameters,
``load(model_spec, options, device) -> model``, loads the model itself. The entry names it as ``function =
"module:name"``, where the module is a file next to the entry's file or importable; or an installed package
registers it as an entry point under the backend's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import QsaeError
from qsae_bench.models.backends import LoadRequest
from qsae_bench.models.backends.unquantized import load_published
from qsae_bench.registry.backends import ENTRY_POINTS
from qsae_bench.registry.specs import QuantizationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(request: LoadRequest) -> PreTrainedModel:
    """Load the model through the user's function.

    Raises:
        QsaeError: it can't be imported, takes other parameters, or returns no model.
    """
    import torch

    quantization, options = request.quantization, dict(request.quantization.options)
    # the user's file may import its neighbours; searched last, so that they don't hide what is installed
    sys.path.append(quantization.folder)
    try:
        function = _function(quantization)
        if _parameters(function, quantization) == 2:
            model = function(load_published(request), options)
        else:
            device = "cuda:0" if request.device == "auto" else request.device
            model = function(request.model, options, device)
    finally:
        sys.path.remove(quantization.folder)
    if not isinstance(model, torch.nn.Module):
        raise QsaeError(
            f"quantization {quantization.name!r}: {_name(quantization)} returned "
            f"{type(model).__name__.replace('NoneType', 'None')}, not a model: end it with return model"
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
        return getattr(module_named(module_name, Path(quantization.folder)), function_name)
    except Exception as error:
        where = (
            "; is it on PYTHONPATH, or next to the entry's file?" if isinstance(error, ImportError) else ""
        )
        raise QsaeError(
            f"quantization {quantization.name!r}: {_name(quantization)} can't be imported: "
            f"{type(error).__name__}: {error}{where}"
        ) from None


def module_named(name: str, folder: Path) -> ModuleType:
    """Import the file next to the entry, or what is importable under this name.

    Two entries in different folders may each have a file of the same name.
    """
    file = folder / f"{name}.py"
    if not file.is_file():
        return importlib.import_module(name)
    own = f"qsae_bench_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{name}"
    if own not in sys.modules:
        spec = importlib.util.spec_from_file_location(own, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[own] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[own]
            raise
    return sys.modules[own]


def _parameters(function: Callable[..., Any], quantization: QuantizationSpec) -> int:
    """Return the number of parameters: 2 for ``quantize``, 3 for ``load``, whose third is the device."""
    try:
        signature = inspect.signature(function)
        named = list(signature.parameters)
        for count in (3, 2) if named[2:3] == ["device"] else (2, 3):
            with contextlib.suppress(TypeError):
                signature.bind(*range(count))
                return count
    except (TypeError, ValueError):  # not a function, or one without a signature
        pass
    raise QsaeError(
        f"quantization {quantization.name!r}: {_name(quantization)} must be quantize(model, options) or "
        "load(model_spec, options, device)"
    )
