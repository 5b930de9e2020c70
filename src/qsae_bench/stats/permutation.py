"""Test A − B, paired over the documents that both used. Pure: numpy and scipy only.

A and B hold the same reference columns, so exchanging a document's two sums of rows exchanges what the two
quantizations did to it. Under the null hypothesis that they do the same, every such exchange is as likely
as the observed assignment.

- Metrics of row sums: the interval is the studentized one of A − B, with the same draws for both; p is that
  of a label-swap permutation test (Good 2005, ch. 3; with the observed labelling counted among the
  replicates, Phipson & Smyth 2010), which assumes nothing about the distribution of the rows.
- Feature metrics are not functions of row sums: delete-a-group jackknife of the difference with Student's
  t, as in :mod:`qsae_bench.stats.bootstrap`; where the blocks show no spread, every exchange of whole
  blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Formula, Metric
from qsae_bench.metrics.features import FeatureSums, feature_values
from qsae_bench.metrics.measurement import Columns, Rows
from qsae_bench.stats.bootstrap import (
    LEVEL,
    REPLICATES,
    REPLICATES_AT_ONCE,
    Estimate,
    bootstrap_weights,
    column_sums,
    jackknife_error,
    linear_summands,
    weighted_totals,
    with_norms_of_sums,
)
from qsae_bench.stats.documents import by_document
from qsae_bench.stats.studentized import Studentized

SWAPS = 9_999
"""replicates of the permutation test: p can be as small as 1e-4, so that a correction for a hundred tests
still allows significant results"""

TIE = 1e-9
ROUNDING = 1e-13
"""relative and absolute distance within which a replicate counts as extreme as the difference itself: the
same labelling summed in another order must tie, and so must two cells that do the same"""

Method = Literal["label swap", "jackknife", "block swap"]
Totals = dict[str, np.ndarray]


@dataclass(frozen=True)
class Contrast:
    """Hold a metric of A and of B, and the result of the paired test of A − B."""

    a: float
    b: float
    difference: Estimate
    """A − B; without an interval where the blocks of a jackknife show no spread"""
    p: float | None
    """two-sided; None where a value is not finite, or there are too few blocks"""
    method: Method


@dataclass(frozen=True)
class Resampling:
    """Hold the numbers of replicates; one seed gives every metric and layer of a pair the same draws."""

    swaps: int = SWAPS
    """replicates of the permutation test, see :func:`swaps_for`"""
    replicates: int = REPLICATES
    """replicates of the bootstrap"""
    level: float = LEVEL
    seed: int = 0


def swaps_for(tests: int, alpha: float) -> int:
    """Return the replicates for a smallest p of at most ``alpha`` / 10, corrected for ``tests`` tests."""
    return max(SWAPS, math.ceil(10 * tests / alpha) - 1)


def row_tests(
    a: Rows, b: Rows, metrics: Sequence[Metric], constants: dict[str, float], how: Resampling
) -> dict[str, Contrast]:
    """Return the contrast of each metric with a formula, by key.

    ``a`` and ``b`` are rows of the same sequences in the same order; ``constants`` are values that formulas
    use beside column sums. What is drawn and exchanged is the document, as far as either side knows it.
    """
    documents = b.documents if a.documents is None else a.documents
    a, b = (by_document(replace(rows, documents=documents)) for rows in (a, b))
    n = len(a)
    # a replicate's 0/0 becomes a NaN and is reported as one, so numpy's warning adds nothing
    with np.errstate(all="ignore"):
        every = np.ones((1, n))
        sums_a, sums_b = column_sums(a, every) | constants, column_sums(b, every) | constants
        values = {m.key: (_values(m, sums_a).item(), _values(m, sums_b).item()) for m in metrics}
        summands = _of_both(linear_summands(a), linear_summands(b))
        drawn = {m.key: Studentized(_difference(m), _of_both(sums_a, sums_b), summands) for m in metrics}
        for weights in bootstrap_weights(n, how.replicates, how.seed):
            sums_a, sums_b = column_sums(a, weights) | constants, column_sums(b, weights) | constants
            for one in drawn.values():
                one.add(weights, _of_both(sums_a, sums_b))
        intervals = {m.key: drawn[m.key].interval(how.level, _limits(m)) for m in metrics}
        extreme = dict.fromkeys(values, 0)
        for size, *both in swapped(a, b, how.swaps, how.seed):
            sums_a, sums_b = (sums | constants for sums in both)
            for m in metrics:
                change = np.broadcast_to(_values(m, sums_a) - _values(m, sums_b), size)
                extreme[m.key] += int(as_extreme(change, *values[m.key]).sum())
    found = {}
    for key, (one, other) in values.items():
        p = (1 + extreme[key]) / (1 + how.swaps) if math.isfinite(one - other) else None
        difference = Estimate(one - other, *map(float, intervals[key]))
        found[key] = Contrast(one, other, difference, p, "label swap")
    return found


class _Side(Mapping[str, Any]):
    """Give the sums of A or of B by the names that formulas use."""

    def __init__(self, both: Mapping[str, Any], side: str) -> None:
        self._both, self._side = both, side

    def __getitem__(self, key: str) -> Any:
        return self._both[f"{self._side} {key}"]

    def __iter__(self) -> Iterator[str]:
        return (key[2:] for key in self._both if key.startswith(self._side))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _of_both(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sums of both sides in one mapping, of which a difference is a formula."""
    return {f"{side} {key}": value for side, sums in (("a", a), ("b", b)) for key, value in sums.items()}


def _difference(metric: Metric) -> Formula:
    """Return the formula of A − B over the sums of both sides."""
    formula = metric.formula
    assert formula is not None
    return lambda both: formula(_Side(both, "a")) - formula(_Side(both, "b"))


def _limits(metric: Metric) -> tuple[float, float]:
    """Return the smallest and the largest difference that two values of the metric can have."""
    widest = metric.limits[1] - metric.limits[0]
    return -widest, widest


def _values(metric: Metric, sums: Mapping[str, np.ndarray | float]) -> np.ndarray:
    """Return the metric of every replicate, or [1] where no column that the formula reads varies."""
    assert metric.formula is not None
    return np.asarray(metric.formula(sums))


def as_extreme(changes: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return which replicates of A − B are at least as far from 0 as ``a − b``, ties included."""
    bound = abs(a - b) * (1 - TIE) - ROUNDING * max(1.0, abs(a), abs(b))
    # not "≥": a replicate that is NaN counts against the difference
    return ~(np.abs(changes) < bound)


def swapped(a: Rows, b: Rows, replicates: int, seed: int) -> Iterator[tuple[int, Totals, Totals]]:
    """Yield chunks of replicates: their number, and the column sums of both sides.

    In a replicate the two rows of each document have changed sides with probability ½.

    With k_i = 1 where document i kept its side, A's sum is Σb + Σk(a − b) and B's Σa − Σk(a − b): only
    columns that differ need a product, and vectors are squared after they are summed.
    """
    n = len(a)
    of_a, of_b = weighted_totals(a, np.ones((1, n))), weighted_totals(b, np.ones((1, n)))
    gaps = Rows(_gaps(a.scalars, b.scalars, of_a), _gaps(a.vectors, b.vectors, of_a))
    rng = np.random.default_rng(seed)
    for start in range(0, replicates, REPLICATES_AT_ONCE):
        size = min(REPLICATES_AT_ONCE, replicates - start)
        moved = weighted_totals(gaps, rng.integers(0, 2, size=(size, n)).astype(np.float64))
        new_a = of_b | {key: of_b[key] + total for key, total in moved.items()}
        new_b = of_a | {key: of_a[key] - total for key, total in moved.items()}
        yield size, with_norms_of_sums(new_a), with_norms_of_sums(new_b)


def _gaps(a: Columns, b: Columns, wanted: Columns) -> dict[str, np.ndarray]:
    return {
        key: a[key] - b[key]
        for key in wanted
        if key in a and key in b and not np.array_equal(a[key], b[key])
    }


def feature_tests(a: FeatureSums, b: FeatureSums, keys: Sequence[str], level: float) -> dict[str, Contrast]:
    """Return the contrast of each feature metric, by key; both sides hold the same blocks of documents."""
    from scipy.stats import t

    blocks = [int(block) for block in np.flatnonzero(a.positions)]
    point_a, point_b = feature_values(a), feature_values(b)
    left_out = [(feature_values(a, block), feature_values(b, block)) for block in blocks]
    found, without_spread = {}, []
    for key in keys:
        value = point_a[key] - point_b[key]
        changes = np.array([one[key] - other[key] for one, other in left_out])
        difference, p = Estimate(value), None
        if len(blocks) >= 2 and np.isfinite([value, *changes]).all():
            error = jackknife_error(changes)
            if error <= ROUNDING < abs(value):
                without_spread.append(key)
            else:
                half = float(t.ppf((1 + level) / 2, len(blocks) - 1)) * error
                least, most = _limits(METRICS[key])
                difference = Estimate(value, max(value - half, least), min(value + half, most))
                small = abs(value) <= ROUNDING
                p = 1.0 if small else float(2 * t.sf(abs(value) / error, len(blocks) - 1))
        found[key] = Contrast(point_a[key], point_b[key], difference, p, "jackknife")
    for key, p in block_swaps(a, b, without_spread).items():
        found[key] = replace(found[key], p=p, method="block swap")
    return found


def block_swaps(a: FeatureSums, b: FeatureSums, keys: Sequence[str]) -> dict[str, float]:
    """Return the exact two-sided p over every exchange of whole blocks, by key.

    Used for a difference that is the same whichever block is left out: Student's t would be infinite then,
    but eight blocks are no proof. An exchange and its mirror image differ in sign only, so half of them are
    enough; with eight blocks p is at least 1/128.
    """
    if not keys:
        return {}
    blocks = np.flatnonzero(a.positions)
    point_a, point_b = feature_values(a), feature_values(b)
    extreme = dict.fromkeys(keys, 0)
    labellings = 2 ** (len(blocks) - 1)
    for labelling in range(labellings):
        moved = np.zeros((len(a.positions), 1), dtype=bool)
        moved[blocks, 0] = [labelling >> place & 1 for place in range(len(blocks))]
        one, other = (feature_values(_exchanged(*sides, moved)) for sides in ((a, b), (b, a)))
        for key in keys:
            change = np.array(one[key] - other[key])
            extreme[key] += int(as_extreme(change, point_a[key], point_b[key]))
    return {key: count / labellings for key, count in extreme.items()}


def _exchanged(own: FeatureSums, others: FeatureSums, moved: np.ndarray) -> FeatureSums:
    vectors = {name: np.where(moved, others.vectors[name], vector) for name, vector in own.vectors.items()}
    # the two leave out other positions where their sinks are others
    positions = np.where(moved[:, 0], others.positions, own.positions)
    return FeatureSums(vectors, positions, own.decoder_square)
