"""One small module a backend; each is imported only when a cell uses it, and its library only then.

A backend module has ``load(request) -> model``: a causal language model in eval mode, on
``request.device``, with its decoder weights quantized as ``request.quantization`` says.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.registry.specs import BACKENDS, ModelSpec, QuantizationSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MODULES = {"none": "unquantized"}
"""backend -> its module here, where that has another name"""

BACKEND_NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"hqq": ("hqq",), "quanto": ("optimum.quanto",), "torchao": ("torchao",)}
)
"""backend -> modules that it imports"""

METHOD_NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bitsandbytes": ("bitsandbytes",), "quanto": ("optimum.quanto",), "torchao": ("torchao",),
        "gptq": ("gptqmodel", "optimum.gptq"), "awq": ("gptqmodel",), "auto-round": ("auto_round",),
        "compressed-tensors": ("compressed_tensors",),
    }
)  # fmt: skip
"""transformers' ``quant_method`` -> modules that it imports; of others it says itself what it lacks"""

EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "hqq": "hqq", "optimum.quanto": "quanto", "torchao": "torchao", "gguf": "gguf",
        "compressed_tensors": "compressed-tensors", "gptqmodel": "gptq", "optimum.gptq": "gptq",
        "auto_round": "auto-round",
    }
)  # fmt: skip
"""module -> the extra of this package that installs it"""


@dataclass(frozen=True)
class LoadRequest:
    """What a backend is asked for."""

    model: ModelSpec
    quantization: QuantizationSpec
    device: str
    """``"cpu"``, ``"cuda"``, or ``"auto"`` for layers spread over several GPUs"""
    dtype: torch.dtype


def device_map(device: str) -> Any:
    """Everything on one device, or spread over several GPUs: what ``from_pretrained`` takes."""
    return "auto" if device == "auto" else {"": device}


def load_with(request: LoadRequest) -> PreTrainedModel:
    """Call the backend that the request's quantization names."""
    backend = request.quantization.backend
    # a name that is not ours is an entry point's, whose function is a user's own
    name = backend if backend in BACKENDS else "python"
    module = importlib.import_module(f"qsae_bench.models.backends.{MODULES.get(name, name)}")
    model: PreTrainedModel = module.load(request)
    return model


def modules_needed(quantization: QuantizationSpec, method: str = "") -> tuple[str, ...]:
    """Modules that a recipe imports: what its entry names, its backend's, its method's."""
    options, needs = quantization.options, list(quantization.requires)
    if quantization.backend == "transformers":
        bits = options.get("load_in_8bit") or options.get("load_in_4bit")
        method = str(options.get("quant_method", "bitsandbytes" if bits else ""))
    needs += [*BACKEND_NEEDS.get(quantization.backend, ()), *METHOD_NEEDS.get(method, ())]
    checkpoints = quantization.checkpoints.values()
    needs += ["gguf"] if any(one.file is not None for one in checkpoints) else []
    return tuple(dict.fromkeys(needs))


def require_modules(quantization: QuantizationSpec, method: str = "") -> None:
    """Raise CannotRun, naming the extra that brings it, if a module is not installed.

    ``method`` is the ``quant_method`` of a checkpoint, known once its config is here.
    """
    for module in modules_needed(quantization, method):
        if not _installed(module):
            extra = EXTRAS.get(module)
            what = f"'qsae-bench[{extra}]'" if extra else module
            raise CannotRun(f"quantization {quantization.name!r} needs {module}: pip install {what}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a dotted name, and its parent is not there
        return False


def simulates(weight: torch.Tensor, stored_bits: int) -> None:
    """Say of a weight that keeps rounded values as floats what a packed form of it would store.

    ``stored_bits`` counts the whole matrix, scales and codebooks included; it is what
    ``bits_per_weight`` then counts. A simulation that doesn't say so counts the floats it keeps.

    Raises:
        QsaeError: it is less than half a bit a weight.
    """
    if 2 * stored_bits < weight.numel():
        raise QsaeError(
            f"simulates(weight, {stored_bits}): that is for a whole matrix of {weight.numel():,} weights, "
            "scales included, not for one weight"
        )
    weight.qsae_simulated_bits = stored_bits  # type: ignore[attr-defined]
