"""Define what a run document holds about a cell's weights and its sinks."""

from __future__ import annotations

from pydantic import Field

from qsae_bench.results.strict_model import StrictModel


class QuantizedRecord(StrictModel):
    """Record what the quantization did to the decoder's weights."""

    share: float
    """of the weights that are quantized, from 0 to 1"""
    simulated: bool
    """rounded values kept as floats: speed and weight_bytes are the reference's"""
    without: str = ""
    """what the method does besides and the simulation doesn't, such as rounding activations; where there is
    nothing, its quality is real"""
    skipped: list[str] = Field(default_factory=list)
    """modules left as they were, such as ``mlp.down_proj in layers 3–5``"""
    declared_bits: float = 0.0
    """bits per weight of its registry entry (``stored_bits``); 0 where that has none"""
    worst_matrix: str = ""
    """``layer.path`` of the matrix whose gain is furthest from 1, see metrics/weights.py"""
    worst_gain: float | None = None


class SinksRecord(StrictModel):
    """Record which positions were left out: those longer than a multiple of the median norm at a layer.

    Of the valid positions, sinks of the reference are counted, those of the cell alone (``gained``) and
    those of the reference alone (``lost``).
    """

    layer: int
    multiple: float
    positions: int
    reference: int
    gained: int
    lost: int
