"""A run document with three quantizations and two layers, for tests of figures and pages."""

from __future__ import annotations

import pytest

from documents import run_document


@pytest.fixture(scope="session")
def document():
    return run_document(["m"], ["int8", "nf4", "fp4"], (3, 9))


@pytest.fixture(scope="session")
def cells(document):
    """Its quantized cells."""
    return [cell for cell in document.cells if cell.quantization != "reference"]
