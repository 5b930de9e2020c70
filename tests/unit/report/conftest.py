"""A run document with three quantizations and two layers, and figures that cost nothing to draw."""

from __future__ import annotations

import pytest

from documents import run_document
from qsae_bench.report.figures import drawing


@pytest.fixture(scope="session")
def document():
    return run_document(["m"], ["int8", "nf4", "fp4"], (3, 9))


@pytest.fixture(scope="session")
def cells(document):
    """Its quantized cells."""
    return [cell for cell in document.cells if cell.quantization != "reference"]


@pytest.fixture
def plain_figures(monkeypatch):
    """Figures are small and cost nothing, where their drawing is not what is tested."""
    monkeypatch.setattr(drawing, "svg", lambda figure: "<svg ><g/></svg>")
    monkeypatch.setattr(drawing, "svg_and_png", lambda figure: ("<svg/>", b"png"))
    monkeypatch.setattr(drawing, "library", lambda folder: f"library in {folder}")
