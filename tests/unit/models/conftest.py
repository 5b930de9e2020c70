"""What the tests of backends share."""

from __future__ import annotations

import pytest
import torch

from qsae_bench.models.loading import load
from qsae_bench.registry.entries import load_registry
from qsae_bench.registry.specs import Cell, QuantizationSpec


@pytest.fixture(scope="module")
def tiny():
    return load_registry().model("tiny_gemma3")


@pytest.fixture(scope="module")
def loaded(tiny):
    """``loaded(name, backend, **options)`` -> the embedded model, quantized."""

    def load_tiny(name, backend, **options):
        return load(Cell(tiny, QuantizationSpec(name, backend, options)), "cpu", torch.float32).model

    return load_tiny
