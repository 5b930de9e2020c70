"""Write values as text: with a fixed format, or with the digits that their intervals support."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Condition
from qsae_bench.results.document import CellRecord, Value
from qsae_bench.results.pareto import not_own

MARKS: Mapping[Condition, str] = {"shared": "†", "simulated": "*"}
"""why a cost is not the quantization's own -> the mark behind it, which a note explains"""

ShownColumns = Mapping[str, tuple[str, str]]
"""heading -> metric, and the form of its values as :func:`formatted` takes it"""

NARROWEST_INTERVAL = 1e-9
"""an interval narrower than this, in units of the value, comes from arithmetic"""
LOPSIDED = 2 / 3
"""of the half-width: with less on one side, "±" would reach where the interval does not"""
WITHOUT_INTERVAL = 4
"""significant digits of a number without an interval"""


def cell_values(cell: CellRecord, columns: ShownColumns, layer: str = "") -> dict[str, str]:
    """Return a table's row: the values of a cell, or of one of its layers, under the columns' headings.

    A reference has '' where a metric compares with it. Behind a value whose form ends with ``*`` stand the
    marks that say why it is not the quantization's own.
    """
    metrics = cell.layers[layer].metrics if layer else cell.metrics
    row = {}
    for head, (key, form) in columns.items():
        text = formatted(metrics.get(key), form.rstrip("*"))
        if form.endswith("*") and text != "–":
            text += _marks(cell, key)
        row[head] = "" if cell.is_reference and METRICS[key].sides == "pair" else text
    return row


def layer_rows(cell: CellRecord, columns: ShownColumns) -> Iterator[dict[str, str]]:
    """Yield a row for each layer of a cell."""
    for layer in cell.layers:
        yield {"quantization": cell.quantization, "layer": layer, **cell_values(cell, columns, layer)}


def formatted(value: Value | None, form: str) -> str:
    """Write a value; a dash stands for one that is missing.

    Args:
        form: a format specification; one that ends with ``±`` appends half the interval, ``MB`` is for
            bytes, and ``auto`` or ``+auto`` chooses the digits by the interval (:func:`supported`).
    """
    if form.endswith("auto"):
        return supported(value, signed=form.startswith("+"))
    if value is None:
        return "–"
    if value.value is None:
        return "not finite"
    if form == "MB":
        return f"{value.value / 1e6:,.1f}"
    spec, with_interval, _ = form.partition("±")
    text = format(value.value, spec)
    if with_interval and value.low is not None and value.high is not None:
        text += f" ± {(value.high - value.low) / 2:{spec.lstrip('+')}}"
    return text


def plain_number(number: float | None, form: str = ".4g") -> str:
    """Write a bare number; a dash stands for one that is missing or not finite."""
    return "–" if number is None or not math.isfinite(number) else format(number, form)


def counted(number: int, what: str) -> str:
    """Write a number of things: ``1 gate``, ``2 gates``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_sequences(sequences: int, documents: int | None, is_one_document: bool) -> str:
    """Say how many sequences of how many documents some tokens are, as `` in 4 sequences of 2 documents``.

    Runs of earlier versions don't know their documents, nor the sequences of a cell that was extended.
    """
    kind = "pieces of one document" if is_one_document else "documents"
    of = "documents unknown" if documents is None else f"of {documents:,} {kind}"
    if not sequences:
        return f", {of}"
    return f" in {sequences:,} sequences{',' if documents is None else ''} {of}"


def supported(value: Value | None, signed: bool = False) -> str:
    """Write ``0.144 ± 0.064``: half the interval with two digits, and the value down to the same place.

    A dash where there is no value.
    """
    if value is None:
        return "–"
    if value.value is None:
        return "not finite"
    sign = "+" if signed else ""
    half = 0.0 if value.low is None or value.high is None else (value.high - value.low) / 2
    if value.low is None or value.high is None or half <= NARROWEST_INTERVAL * abs(value.value):
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
    """Write ``0.00160 (0.00135 to 0.00188)``: a value and the interval that decided about it."""
    if value.value is None:
        return "not finite"
    sign = "+" if signed else ""
    low, high = decided.low, decided.high
    if low is None or high is None or (high - low) / 2 <= NARROWEST_INTERVAL * abs(value.value):
        return f"{value.value:{sign}.{WITHOUT_INTERVAL}g}"
    places = _places((high - low) / 2)
    most = max(abs(value.value), abs(low), abs(high))
    if most < 1e-4 or not -4 <= places <= 8:
        digits = max(1, math.floor(math.log10(most)) + places)
        return f"{value.value:{sign}.{digits}e} ({low:.{digits}e} to {high:.{digits}e})"
    shown = max(places, 0)
    one, two, three = (round(number, places) for number in (value.value, low, high))
    return f"{one:{sign},.{shown}f} ({two:,.{shown}f} to {three:,.{shown}f})"


def _marks(cell: CellRecord, key: str) -> str:
    why = not_own(cell, key)
    return "".join(mark for condition, mark in MARKS.items() if condition in why)


def _places(half: float) -> int:
    """Return the decimal place of the half-width's second digit."""
    places = 1 - math.floor(math.log10(half))
    if round(half, places) >= 10 ** (2 - places):  # 0.0996 is 0.10, not 0.100
        places -= 1
    return places
