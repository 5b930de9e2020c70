"""Derive a threshold's bound from a measured value. Pure.

One rule for every metric. Without any harm its value is what the reference has of it (0 for a
divergence, 1 for an agreement, its own value for an FVU); the harm measured is the distance of the value
from there. The bound allows ``margin`` times that harm::

    max = reference + margin · (value − reference)
    min = reference − margin · (reference − value), or value / margin where that is larger

Where neither direction is better, a distance to either side is harm, and the bound has both ends.

The interval sets no bound, it only says whether the value may: where the interval is not within the bound,
no bound is derived. So a noisier measurement of the same value never gives a looser bound.

The harm counts as at least the metric's ``least_harm``: what is measured at nothing must not fail over
rounding. Where a share has lost so much that ``margin`` times its loss would leave no bound at all, ``value
/ margin`` is one. Bounds are rounded away from the measurement, to the second digit of what they allow.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from qsae_bench.errors import QsaeError
from qsae_bench.gate.binding import why_not_binding
from qsae_bench.gate.thresholds import Side, Threshold
from qsae_bench.metrics import METRICS
from qsae_bench.stats.bootstrap import Estimate

MARGIN = 2.0

EXACT = Context(prec=60)

MOST_LONGER = 1e3
"""times that an interval may be too wide for a longer measurement to be advised"""


@dataclass(frozen=True)
class DerivedBound:
    """Hold a bound and how it came about, or why there is none."""

    threshold: Threshold | None
    """its source is ``2 × the value``, as thresholds.toml has it"""
    why_none: str = ""


def harmful_sides(metric: str) -> tuple[Side, ...]:
    """Return the sides on which a metric does harm: both where neither direction is better."""
    sides: dict[str, tuple[Side, ...]] = {"lower": ("max",), "higher": ("min",)}
    return sides.get(METRICS[metric].better, ("min", "max"))


def derive_bound(
    metric: str,
    measured: Estimate,
    reference: float | None = None,
    margin: float = MARGIN,
    noise: float = 0.0,
    sides: Collection[Side] = (),
) -> DerivedBound:
    """Return the bound that a measurement supports.

    Args:
        measured: finite, with the 95% interval of the cell, or without one where it is exact.
        reference: the reference's value on the same tokens; may be None for a metric that declares what it
            is without harm.
        margin: at least 1.
        noise: how far the numerics alone move the metric, see
            :func:`qsae_bench.gate.verdict.reason_below_noise_floor`; a bound below it could not hold.
        sides: those to bound, of the harmful ones; all of them if it is empty.

    Raises:
        QsaeError: the bound would not be finite.
    """
    assert measured.is_finite and math.isfinite(margin) and margin >= 1
    least_harm = METRICS[metric].least_harm
    assert least_harm is not None, f"{metric} is never gated"
    at = METRICS[metric].harmless if reference is None else reference
    assert at is not None, f"{metric}: no bound without the reference's own value"
    every = harmful_sides(metric)
    what = "the value" if at == 0 else "the change" if len(every) > 1 else (
        "the rise" if every == ("max",) else "the loss"
    )  # fmt: skip
    times = f"{margin:g} × {what}"
    if not math.isfinite(margin * (abs(measured.value) + abs(at))):
        raise QsaeError(f"{metric}: {times} is beyond any number: {measured.value:g} was measured")
    # decimals: 1 - 0.98 is 0.02 then, and not a little more that rounds up
    change = EXACT.subtract(_decimal(measured.value), _decimal(at))
    harm = abs(change) if len(every) > 1 else change if every == ("max",) else -change
    allowed, how = EXACT.multiply(_decimal(margin), harm), times
    least = least_harm.amount(at)
    for floor, name in (
        (least, f"at least {least:.3g}"), (noise, f"at least the noise floor, {noise:.3g}"),
    ):  # fmt: skip
        if allowed < _decimal(floor):
            allowed, how = _decimal(floor), f"{times}, {name}"
    ends: dict[Side, float] = {}
    for side in every:
        if sides and side not in sides:
            continue
        sign, away = (1, ROUND_CEILING) if side == "max" else (-1, ROUND_FLOOR)
        end = _on_grid(EXACT.add(_decimal(at), sign * allowed), allowed, away)
        if every == ("min",) and measured.value > 0 and harm > 0:
            share = EXACT.divide(_decimal(measured.value), _decimal(margin))
            share = _on_grid(share, share, ROUND_FLOOR)
            if share > end and EXACT.subtract(_decimal(at), share) >= _decimal(noise):
                end, how = share, f"the value ÷ {margin:g}"
        # no digit that was dropped may cost the measurement its own bound
        closest = max if side == "max" else min
        ends[side] = closest(float(end), measured.value)
    return _checked(metric, measured, ends, how)


def _checked(metric: str, measured: Estimate, ends: dict[Side, float], how: str) -> DerivedBound:
    """Return the bound of those ends that bind, if the interval lies within it."""
    binding = {
        side: end
        for side, end in ends.items()
        if not why_not_binding(metric, *((end, None) if side == "min" else (None, end)))
    }
    if not binding:
        shown = ", ".join(f"{side} {end:g}" for side, end in ends.items())
        return DerivedBound(None, f"{how} gives {shown}, which bounds nothing")
    found = Threshold.between(metric, binding.get("min"), binding.get("max"), how)
    low = measured.value if measured.low is None else measured.low
    high = measured.value if measured.high is None else measured.high
    least, most = found.allowed
    if not least <= low or not high <= most:
        return DerivedBound(
            None,
            f"[{low:.4g}, {high:.4g}] reaches beyond the bound that its value gives, {found.limit}"
            f"{_longer(measured.value, (low, high), found.allowed)}",
        )
    return DerivedBound(found)


def _longer(value: float, interval: tuple[float, float], allowed: tuple[float, float]) -> str:
    """Say how much longer a measurement takes until the interval (∝ 1/√tokens) is within the bound."""
    ratios = [
        abs(end - value) / abs(bound - value)
        for end, bound in zip(interval, allowed, strict=True)
        if bound != value
    ]
    if len(ratios) < 2 or max(ratios) > MOST_LONGER:
        return ""
    return f"; one {math.ceil(max(ratios) ** 2):,} times as long would do"


def _decimal(value: float) -> Decimal:
    return Decimal(repr(float(value)))


def _on_grid(value: Decimal, scale: Decimal, rounding: str) -> Decimal:
    """Round ``value`` to the place of the second digit of ``scale``, which is above 0."""
    grid = Decimal(1).scaleb(scale.adjusted() - 1)
    return EXACT.multiply(EXACT.divide(value, grid).to_integral_value(rounding), grid)
