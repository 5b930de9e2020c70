"""Numbers with the digits that their intervals support."""

from __future__ import annotations

import math

from qsae_bench.results import Value

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
    places = 1 - math.floor(math.log10(half))  # of the half-width's second digit
    if round(half, places) >= 10 ** (2 - places):  # 0.0996 is 0.10, not 0.100
        places -= 1
    if -4 <= places <= 8 and max(abs(value.value), half) >= 1e-4:
        shown = max(places, 0)
        rounded = round(value.value, places)
        return f"{rounded:{sign},.{shown}f} ± {round(half, places):,.{shown}f}"
    # very small or very large: one power of ten for both
    power = math.floor(math.log10(max(abs(value.value), half)))
    shown = max(places + power, 0)
    scale = 10.0**power
    return f"({value.value / scale:{sign}.{shown}f} ± {half / scale:.{shown}f})e{power:+03d}"
