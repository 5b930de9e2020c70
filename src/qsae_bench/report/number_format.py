"""Numbers with the digits that their intervals support."""

from __future__ import annotations

import math

from qsae_bench.results.document import Value

ROUNDING = 1e-9
"""an interval so narrow, in units of the value, is one of arithmetic"""
LOPSIDED = 2 / 3
"""of the half-width: with less on one side, "±" would reach where the interval does not"""
WITHOUT_INTERVAL = 4
"""significant digits of a number that nothing is known about"""


def supported(value: Value | None, signed: bool = False) -> str:
    """``0.144 ± 0.064``: half the interval with two digits, and the value down to the same place.

    A dash where there is no value.
    """
    if value is None:
        return "–"
    if value.value is None:
        return "not finite"
    sign = "+" if signed else ""
    if value.low is None or value.high is None or value.high == value.low:
        return f"{value.value:{sign}.{WITHOUT_INTERVAL}g}"
    half = (value.high - value.low) / 2
    if half <= ROUNDING * abs(value.value):
        return f"{value.value:{sign}.{WITHOUT_INTERVAL}g}"
    if min(value.high - value.value, value.value - value.low) < LOPSIDED * half:
        return ranged(value, value, signed)
    places = _places(half)
    if -4 <= places <= 8 and max(abs(value.value), half) >= 1e-4:
        shown = max(places, 0)
        return f"{round(value.value, places):{sign},.{shown}f} ± {round(half, places):,.{shown}f}"
    # very small or very large: one power of ten for both
    power = math.floor(math.log10(max(abs(value.value), half)))
    shown = max(places + power, 0)
    scale = 10.0**power
    return f"({value.value / scale:{sign}.{shown}f} ± {half / scale:.{shown}f})e{power:+03d}"


def ranged(value: Value, decided: Value, signed: bool = False) -> str:
    """``0.00160 (0.00135 to 0.00188)``: a value and the interval that decided about it."""
    if value.value is None:
        return "not finite"
    sign = "+" if signed else ""
    low, high = decided.low, decided.high
    if low is None or high is None or (high - low) / 2 <= ROUNDING * abs(value.value):
        return f"{value.value:{sign}.{WITHOUT_INTERVAL}g}"
    places = _places((high - low) / 2)
    most = max(abs(value.value), abs(low), abs(high))
    if most < 1e-4 or not -4 <= places <= 8:
        digits = max(1, math.floor(math.log10(most)) + places)
        return f"{value.value:{sign}.{digits}e} ({low:.{digits}e} to {high:.{digits}e})"
    shown = max(places, 0)
    one, two, three = (round(number, places) for number in (value.value, low, high))
    return f"{one:{sign},.{shown}f} ({two:,.{shown}f} to {three:,.{shown}f})"


def _places(half: float) -> int:
    """Behind the point, of the half-width's second digit."""
    places = 1 - math.floor(math.log10(half))
    if round(half, places) >= 10 ** (2 - places):  # 0.0996 is 0.10, not 0.100
        places -= 1
    return places
