"""Define what a run document holds about a cell's weights, sinks, features and timings."""

from __future__ import annotations

from typing import Annotated

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


class FeatureRecord(StrictModel):
    """Describe one of the features that lost most, so that it can be looked up."""

    index: int
    active_reference: int
    active_quantized: int
    correlation: float | None
    slope: float | None
    weight: float | None


class SurvivalRecord(StrictModel):
    """Record which share of the eligible features has at least a given correlation with the reference."""

    correlation: list[float]
    share: list[float]
    weighted: list[float]
    """shares weighted by each feature's part of the reconstruction's energy"""


SHARED_DEVICE = "its device was shared with other workers of this run"
"""a flag of timings; a speed ratio with such a side is not judged"""


class TimingRecord(StrictModel):
    """Record how long one work of a cell took: prefill, decode, the SAE, an evaluation, a bare forward."""

    seconds: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """the duration of each round"""
    median_seconds: float
    spread_seconds: float
    """the distance between the quartiles"""
    rounds: int
    tokens: int
    """tokens processed per round"""
    flags: list[str] = []
    """what disturbed the device during the rounds, such as throttling or another process"""
    invocation: str = ""
    """identifies the command that timed it: a ratio is formed only of two timings of one command"""
