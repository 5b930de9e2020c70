"""Derive a threshold's bound from a measured interval. Pure.

One rule for every metric. Without any harm its value is what the reference has of it (0 for a
divergence, 1 for an agreement, its own value for an FVU); the harm measured is the distance from there to
the worse end of the interval. The bound allows ``margin`` times that harm::

    max = reference + margin · (high − reference)
    min = reference − margin · (reference − low), or low / margin where that is larger

The harm counts as at least the metric's ``least_harm``: what is measured at nothing must not fail over
rounding. Where a share has lost so much that ``margin`` times its loss would leave no bound at all, ``low /
margin`` is one. Bounds are rounded away from the measurement, to the second digit of what they allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from qsae_bench.errors import QsaeError
from qsae_bench.gate.thresholds import Side
from qsae_bench.metrics import METRICS
from qsae_bench.stats.bootstrap import Estimate

MARGIN = 2.0

EXACT = Context(prec=60)


@dataclass(frozen=True)
class DerivedBound:
    """Hold a bound and how it came about."""

    bound: float
    how: str
    """``2 × high``, as thresholds.toml has it for a source"""


def harmful_side(metric: str) -> Side | None:
    """Return the side on which a metric does harm; None where neither is better."""
    sides: dict[str, Side] = {"lower": "max", "higher": "min"}
    return sides.get(METRICS[metric].better)


def derive_bound(
    metric: str,
    side: Side,
    measured: Estimate,
    reference: float | None = None,
    margin: float = MARGIN,
    noise: float = 0.0,
) -> DerivedBound:
    """Return the bound that a measurement supports.

    Args:
        measured: finite, with the 95% interval of the cell, or without one where it is exact.
        reference: the reference's value on the same tokens; may be None for a metric that declares what it
            is without harm.
        margin: at least 1, so that the bound holds for what was measured.
        noise: how far the numerics alone move the metric, see
            :func:`qsae_bench.gate.verdict.reason_below_noise_floor`; a bound below it could not hold.

    Raises:
        QsaeError: the bound would not be finite.
    """
    assert measured.is_finite and math.isfinite(margin) and margin >= 1
    least_harm = METRICS[metric].least_harm
    assert least_harm is not None, f"{metric} is never gated"
    at = METRICS[metric].harmless if reference is None else reference
    assert at is not None, f"{metric}: no bound without the reference's own value"
    upper = side == "max"
    end = measured.high if upper else measured.low
    worse = measured.value if end is None else end
    end_name = "the value" if end is None else "high" if upper else "low"
    times = f"{margin:g} × {end_name}" if at == 0 else (
        f"{margin:g} × the {'rise' if upper else 'loss'} at {end_name}"
    )  # fmt: skip
    if not math.isfinite(margin * (abs(worse) + abs(at))):
        raise QsaeError(f"{metric}: {times} is beyond any number: {worse:g} was measured")
    # decimals: 1 - 0.98 is 0.02 then, and not a little more that rounds up
    harm = EXACT.subtract(_decimal(worse), _decimal(at))
    allowed, how = EXACT.multiply(_decimal(margin), harm if side == "max" else -harm), times
    least = least_harm.amount(at)
    for floor, what in (
        (least, f"at least {least:.3g}"), (noise, f"at least the noise floor, {noise:.3g}"),
    ):  # fmt: skip
        if allowed < _decimal(floor):
            allowed, how = _decimal(floor), f"{times}, {what}"
    sign, away = (1, ROUND_CEILING) if side == "max" else (-1, ROUND_FLOOR)
    bound = _on_grid(EXACT.add(_decimal(at), sign * allowed), allowed, away)
    if side == "min" and worse > 0:
        share = EXACT.divide(_decimal(worse), _decimal(margin))
        share = _on_grid(share, share, ROUND_FLOOR)
        if share > bound and EXACT.subtract(_decimal(at), share) >= _decimal(noise):
            return DerivedBound(float(share), f"{end_name} ÷ {margin:g}")
    # no digit that was dropped may cost the measurement its own bound
    return DerivedBound(max(float(bound), worse) if side == "max" else min(float(bound), worse), how)


def _decimal(value: float) -> Decimal:
    return Decimal(repr(float(value)))


def _on_grid(value: Decimal, scale: Decimal, rounding: str) -> Decimal:
    """Round ``value`` to the place of the second digit of ``scale``, which is above 0."""
    grid = Decimal(1).scaleb(scale.adjusted() - 1)
    return EXACT.multiply(EXACT.divide(value, grid).to_integral_value(rounding), grid)
