"""Load quantized models by backends, whose modules are imported only when a cell uses them.

A backend's entry in :data:`qsae_bench.registry.backends.BACKENDS` names a function ``load(request) ->
model``, which returns a causal language model on ``request.device`` with its decoder weights quantized as
``request.quantization`` says. Its library is imported inside that function.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsae_bench.errors import CannotRun, QsaeError
from qsae_bench.models.taps import decoder_layers
from qsae_bench.registry.backends import BACKENDS, EXTRAS, GGUF, METHODS, Needs
from qsae_bench.registry.specs import ModelSpec, QuantizationSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadRequest:
    """Hold what a backend is asked to load."""

    model: ModelSpec
    quantization: QuantizationSpec
    device: str
    """``"cpu"``, ``"cuda"``, or ``"auto"`` for layers spread over several GPUs"""
    dtype: torch.dtype


def device_map(device: str) -> Any:
    """Return what ``from_pretrained`` takes: everything on one device, or spread over several GPUs."""
    return "auto" if device == "auto" else {"": device}


def load_with(request: LoadRequest) -> PreTrainedModel:
    """Call the loader of the backend that the request's quantization names."""
    # a name that is not in the table is an installed entry point's, which the python backend finds
    backend = BACKENDS.get(request.quantization.backend, BACKENDS["python"])
    module, _, function = backend.load.partition(":")
    load = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    model: PreTrainedModel = load(request)
    return model


def modules_needed(quantization: QuantizationSpec, method: str = "") -> Needs:
    """Return the modules that a quantization imports, each with the extra that installs it, "" for none.

    ``method`` is the ``quant_method`` of a checkpoint, known once its config is here.
    """
    options = quantization.options
    if quantization.backend == "transformers":
        bits = options.get("load_in_8bit") or options.get("load_in_4bit")
        method = str(options.get("quant_method", "bitsandbytes" if bits else ""))
    backend = BACKENDS.get(quantization.backend, BACKENDS["python"])
    needs = {module: EXTRAS.get(module, "") for module in quantization.requires}
    needs |= {**backend.needs, **METHODS.get(method, {})}
    if any(checkpoint.file is not None for checkpoint in quantization.checkpoints.values()):
        needs |= GGUF
    return needs


def require_modules(quantization: QuantizationSpec, method: str = "") -> None:
    """Raise CannotRun if a module of :func:`modules_needed` is missing; names the extra to install."""
    for module, extra in modules_needed(quantization, method).items():
        if not _is_installed(module):
            package = f"'qsae-bench[{extra}]'" if extra else module
            raise CannotRun(f"quantization {quantization.name!r} needs {module}: pip install {package}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a dotted name whose parent is not there
        return False


def simulates(weight: torch.Tensor, stored_bits: int, without: str = "") -> None:
    """Declare what a packed form would store of a weight that keeps rounded values as floats.

    ``bits_per_weight`` then counts these bits; without the declaration it counts the floats. They are those
    of the whole matrix, scales and codebooks included: less than half a bit per weight is refused.
    ``without`` says what the method does besides and this doesn't, such as rounding activations: reports
    then don't call its quality real, and repeat it.
    """
    if 2 * stored_bits < weight.numel():
        raise QsaeError(
            f"simulates(weight, {stored_bits}): that is for a whole matrix of {weight.numel():,} weights, "
            "scales included, not for one weight"
        )
    weight.qsae_simulated_bits = stored_bits  # type: ignore[attr-defined]
    weight.qsae_simulated_without = without  # type: ignore[attr-defined]


def block_linears(model: PreTrainedModel) -> Iterator[torch.nn.Linear]:
    """Yield every linear layer of the decoder blocks: those that a weight quantizer changes."""
    import torch

    for block in decoder_layers(model):
        yield from (module for module in block.modules() if isinstance(module, torch.nn.Linear))


def replace_linears(
    model: PreTrainedModel, made: Callable[[torch.nn.Linear], torch.nn.Module]
) -> PreTrainedModel:
    """Replace each linear layer of the decoder blocks by ``made(linear)``, and return the model."""
    import torch

    for block in decoder_layers(model):
        for path, module in list(block.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent, _, name = path.rpartition(".")
                setattr(block.get_submodule(parent), name, made(module))
    return model
