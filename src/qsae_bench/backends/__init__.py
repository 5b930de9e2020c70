"""One small module a backend; each is imported only when a cell uses it.

A backend module has ``load(request) -> model``: a causal language model in eval mode, on
``request.device``, with its decoder weights quantized as ``request.quantization`` says.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qsae_bench.specs import ModelSpec, QuantizationSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
    module = importlib.import_module(f"qsae_bench.backends.{request.quantization.backend}")
    model: PreTrainedModel = module.load(request)
    return model
