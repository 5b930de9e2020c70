"""Read a flat FVU: is it a finding about the SAE, or could it not have been otherwise?

FVU depends on how activations are distributed, not on *which* activation belongs to which position: a
residual stream that is moved by one position has the same FVU and none of the same features. So a flat FVU
is called a finding only where the tokens could have shown a drift as large as the perturbation, and where
``cross_fvu`` and ``feature_survival``, which compare position by position, agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

from qsae_bench.metrics.base import finite
from qsae_bench.metrics.features import SURVIVES

FlatFvu = Literal["a finding", "blind", "unresolved", "not flat"]

FLAT = 0.1
"""a drift is flat if its interval includes 0, or stays below this share of the perturbation"""
KEPT = 0.9
"""of the variance that the SAE explains of the reference: what its reconstruction from the cell's
activations still explains of it, at least, where ``cross_fvu`` agrees"""
SURVIVAL = SURVIVES
"""share of features that survive, at least, where ``feature_survival`` agrees"""


class Known(Protocol):
    """Hold a value with its interval: an estimate, or what a run document has of one."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def drift_resolution(drift: Known, perturbation_nsr: Known) -> float | None:
    """Return the half-width of ``fvu_drift``'s interval over the perturbation.

    It is None where there was no perturbation, or one of the two is not known.
    """
    low, high, moved = drift.low, drift.high, perturbation_nsr.value
    if low is None or high is None or not moved:
        return None
    return finite((high - low) / 2 / moved)


def read_flat_fvu(found: Mapping[str, Known]) -> FlatFvu | None:
    """Return what a layer's FVU says about the quantized model; None where a value that decides is missing.

    Args:
        found: the layer's metrics by key.
    """
    drift, moved, fvu = found.get("fvu_drift"), found.get("perturbation_nsr"), found.get("fvu")
    cross, survival = found.get("cross_fvu"), found.get("feature_survival")
    if drift is None or moved is None or fvu is None or cross is None or survival is None:
        return None
    values = (drift.value, drift.low, drift.high, moved.value, fvu.value, cross.value, survival.value)
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values) or not moved.value:
        return None
    change, low, high, nsr, fvu_q, cross_fvu, survived = known
    if not low <= 0 <= high and max(abs(low), abs(high)) > FLAT * nsr:
        return "not flat"
    resolution = drift_resolution(drift, moved)
    if resolution is None or resolution >= 1:
        return "unresolved"
    explained = 1 - (fvu_q - change)
    agrees = 1 - cross_fvu >= KEPT * explained and survived >= SURVIVAL
    return "a finding" if agrees else "blind"
