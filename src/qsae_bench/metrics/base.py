"""Define what a metric is, and gather and sum the columns that formulas read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

Sums = Mapping[str, Any]
"""column -> its sum over sequences: a float, or an array of bootstrap replicates"""

Formula = Callable[[Sums], Any]

Scope = Literal["cell", "layer"]
Sides = Literal["model", "pair", "reference"]
Better = Literal["lower", "higher", "neither"]
IntervalKind = Literal["bootstrap-t", "percentile", "jackknife", "rounds", "none"]
View = Literal["comparison", "beside", "pareto", "stability", "study", "history", "failure"]
Condition = Literal["simulated", "shared"]
Merge = Literal["rows", "first", "highest", "mean"]


class Limits:
    """Hold the smallest and the largest value that a metric can have."""

    FRACTION = (0.0, 1.0)
    CORRELATION = (-1.0, 1.0)
    NOT_NEGATIVE = (0.0, math.inf)
    ANY_NUMBER = (-math.inf, math.inf)


@dataclass(frozen=True)
class Tolerance:
    """Hold the amount of a change that means nothing: the larger of an absolute and a relative one."""

    absolute: float = 0.0
    """in the metric's unit"""
    relative: float = 0.0
    """share of the reference's value"""
    of: str = ""
    """the metric whose reference value ``relative`` multiplies; '' for the metric itself"""

    def amount(self, reference: float) -> float:
        """Return the tolerance in the metric's unit, given the reference's value."""
        return max(self.absolute, self.relative * abs(reference))


class Least:
    """Hold the smallest harm that a threshold allows for, by kind of metric."""

    NATS = Tolerance(1e-6)
    NATS_PER_TOKEN = Tolerance(1e-4)
    PERCENT = Tolerance(0.01)
    """a hundredth of a percent of perplexity is 1e-4 nats a token"""
    COUNT = Tolerance(1.0)
    SHARE = Tolerance(0.01)
    """of a share or a ratio of which more is better"""
    RELATIVE = Tolerance(1e-6, relative=1e-3)
    """of everything else: a thousandth of the reference's value"""


RESOLUTION = 1e-3
"""of the reference's own loss or FVU: what numerics move without anybody's fault, where no noise floor was
measured. A weight's rounding alone can lower FVU by a few parts in ten thousand, and mean nothing"""


class LogitHead(Protocol):
    """Map head inputs to logits; :class:`qsae_bench.models.taps.Head` is the one in use."""

    @property
    def vocabulary(self) -> int: ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...

    def product(self, hidden: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Hold everything that is known about one metric; docs/metrics.md describes each in words.

    No field that states a fact has a default: a metric that leaves one out cannot be constructed. Whoever
    needs a fact about a metric reads it here; a list of keys anywhere else would be wrong for the next one.
    """

    key: str
    """name in the run document, thresholds.toml and every table"""
    unit: str
    """'' for a plain number"""
    scope: Scope
    """one value a cell, or one a layer with an SAE"""
    sides: Sides
    """what it describes: one ``model`` (the reference has a value of its own), the ``pair`` of a cell and
    its reference, or the ``reference`` alone (every quantization of a model then has the same value)"""
    better: Better
    """``neither`` where both directions can be harm"""
    limits: tuple[float, float]
    """the smallest and largest value that it can have; an interval does not leave them"""
    harmless: float | None
    """value of a cell that lost nothing; None: whatever the reference has on the same tokens"""
    least_harm: Tolerance | None
    """smallest harm that a threshold from a measurement allows for, so that what was measured at nothing
    does not fail over rounding; None for a diagnostic that no threshold may bound"""
    suspicious: Tolerance | None
    """how far below ``harmless`` a value means nothing; one significantly lower is better than the
    reference can be. None where no value is suspicious, such as for a distance, which is never below 0"""
    headline_in: tuple[View, ...]
    """where it is shown without being named: the tests of ``qsae-bench compare``, what it shows ``beside``
    them without a test, the axes of quality against cost (``pareto``), the stability over tokens (and that
    of ``--protocol study``), the charts of the history in a report, and the message of a ``failure``, which
    compares metrics of one model with the run in which the gate passed"""
    interval: IntervalKind
    """how its interval is made: ``bootstrap-t`` or ``percentile`` of a bootstrap over documents,
    ``jackknife`` over blocks of them, order statistics of timed ``rounds``, or ``none``. More tokens narrow
    the first three only"""
    not_own_when: tuple[Condition, ...]
    """when the value is not the quantization's own: ``simulated`` (it keeps rounded values as floats), or
    ``shared`` (other workers of the run used the device meanwhile). '()' for all that is no cost"""
    over_shards: Merge
    """how the values of a cell's shards become the cell's: computed from all their ``rows``, the ``first``
    shard's, which also does what is timed, the ``highest``, or the ``mean``"""
    formula: Formula | None
    """maps column sums to the value; None where that needs more than sums: quantiles over positions,
    feature vectors, weights, timings"""
    needs: str = ""
    """column that only some runs have; without it the metric is left out"""

    @property
    def gateable(self) -> bool:
        """Whether a threshold may bound it."""
        return self.least_harm is not None


of_rows = partial(
    Metric, suspicious=None, headline_in=(), interval="bootstrap-t", not_own_when=(), over_shards="rows"
)
"""declares a metric that is a function of column sums, with the facts that most of them share"""


def finite(number: float | None) -> float | None:
    """Return a number that JSON can hold; None for one that is missing or not finite."""
    return number if number is not None and math.isfinite(number) else None


def ratio(numerator: Any, denominator: Any) -> Any:
    """Return ``numerator / denominator``; 0/0 and x/0 give NaN and inf without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


class ColumnBuffer:
    """Collect the columns of a number of rows that arrive in pieces, on the device where they are made.

    All columns of a kind share one tensor, allocated with the first piece. Small tensors that stay,
    allocated between large ones that are freed, would keep the heap from closing its gaps, so that the
    process grew with the corpus; and one copy per column would be as many kernels to launch on a GPU.
    """

    def __init__(self, length: int) -> None:
        """Prepare for ``length`` rows."""
        self._length = length
        self._kinds: dict[Any, tuple[list[str], torch.Tensor]] = {}
        """(dtype, shape of a row) -> columns, and their values [columns, length, *row]"""

    def add(self, start: int, piece: Mapping[str, torch.Tensor]) -> None:
        """Store the rows from ``start`` on; every piece has the same columns and dtypes."""
        import torch

        kinds: dict[Any, list[str]] = {}
        for key, rows in piece.items():
            kinds.setdefault((rows.dtype, rows.shape[1:]), []).append(key)
        for kind, keys in kinds.items():
            rows = torch.stack([piece[key] for key in keys])
            if kind not in self._kinds:
                self._kinds[kind] = (keys, rows.new_empty((len(keys), self._length, *kind[1])))
            known, values = self._kinds[kind]
            assert known == keys
            values[:, start : start + rows.shape[1]] = rows

    @property
    def columns(self) -> dict[str, torch.Tensor]:
        """The columns [length, *row] by name."""
        return {
            key: column
            for keys, values in self._kinds.values()
            for key, column in zip(keys, values, strict=True)
        }


def masked_sums(values: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum values [batch, length] where ``mask`` holds, to float64 sums per sequence [batch]."""
    import torch

    stacked = torch.stack(list(values.values())).double()
    sums = torch.where(mask, stacked, 0.0).sum(dim=2)
    return dict(zip(values, sums, strict=True))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert bf16 and fp16 to float32; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
