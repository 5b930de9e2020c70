"""Make studentized bootstrap intervals of metrics that are functions of column sums. Pure: numpy only.

The bootstrap-t (Efron & Tibshirani 1993, ch. 12.5; Hall 1992): a replicate's distance from the value is
measured in its own standard errors, so that the interval of a skewed sum reaches as far on its long side as
it must. The percentile interval reaches too far on the other: docs/decisions.md has both in numbers.

A standard error comes by linearisation (the delta method): a formula is replaced by its slopes at the
sums, by column, so that it becomes a sum over documents, and the spread of the documents' shares gives the
error. A replicate has slopes of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from qsae_bench.metrics.base import Formula, Limits

STEP = 1e-20
"""imaginary step in units of a column's sum. A derivative by a complex step has no cancellation, so the
step can be so small that its square is nothing"""

NO_SPREAD = 1e-13
"""a standard error below this share of the terms that cancel in it is rounding: the value has no spread.
Nor does a replicate differ that is as close"""

LEAST_ERROR = 0.25
"""a replicate's standard error counts as at least this share of the sample's. Where one document in a
hundred differs from the others, a third of the replicates lack it and have no spread of their own; they
must not stretch the interval without limit"""


class _Reading(dict[str, Any]):
    """Note which sums a formula reads."""

    def __init__(self, sums: Mapping[str, Any]) -> None:
        super().__init__(sums)
        self.read: dict[str, None] = {}

    def __getitem__(self, key: str) -> Any:
        self.read[key] = None
        return super().__getitem__(key)


def columns_read(formula: Formula, sums: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the sums that the formula reads, in the order in which it does."""
    reading = _Reading(sums)
    formula(reading)
    return tuple(reading.read)


def slopes(formula: Formula, sums: Mapping[str, Any], columns: Iterable[str]) -> np.ndarray:
    """Return the derivative of the formula by each column's sum [columns, *shape of a sum].

    By complex steps (Squire & Trapp 1998): a formula is arithmetic, powers, roots, logarithms and
    exponentials, which numpy computes for complex numbers as well.
    """
    found = []
    for column in columns:
        at = np.asarray(sums[column], dtype=float)
        step = STEP * np.where(at == 0, 1.0, np.abs(at))
        moved = {**sums, column: at + 1j * step}
        found.append(np.broadcast_to(np.imag(formula(moved)) / step, at.shape))
    return np.array(found)


class Studentized:
    """Collect a metric's replicates, each with its standard error, and make its interval.

    All arrays may have one more axis, the same in all, that holds so many data sets at once.
    """

    def __init__(self, formula: Formula, sums: Mapping[str, Any], summands: Mapping[str, Any]) -> None:
        """Linearise the formula.

        Args:
            formula: of the metric.
            sums: of all documents, each [1, …], and the constants that formulas use.
            summands: what each document adds to a sum, or to what a sum changes by [documents, …].
        """
        self._formula = formula
        self.value = self._at(sums)[0]
        self._columns = [key for key in columns_read(formula, sums) if key in summands]
        self._slopes = slopes(formula, sums, self._columns)
        terms = np.stack([summands[key] for key in self._columns], axis=1)
        shares = np.einsum("nk...,k...->n...", terms, self._slopes[:, 0])
        self.error = self._error(shares, terms * self._slopes[:, 0])
        self._z = np.concatenate([shares[:, None], terms], axis=1)
        self._drawn: list[np.ndarray] = []
        self._errors: list[np.ndarray] = []

    def add(self, weights: np.ndarray, sums: Mapping[str, Any]) -> None:
        """Add replicates.

        Args:
            weights: how often each replicate drew each document [replicates, documents].
            sums: of each replicate [replicates, …], and the constants.
        """
        # a document's share in a replicate is c·z, with c = 1 and the change of the slopes: its variance
        # needs only sums of z and of products of two z's. (Not of products of terms: these are large and
        # cancel, shares are small)
        change = slopes(self._formula, sums, self._columns) - self._slopes
        c = np.concatenate([np.ones_like(change[:1]), change])
        pairs, columns = self._products
        n, m, *more = columns.shape
        found = (weights @ columns.reshape(n, -1)).reshape(len(weights), m, *more)
        products = c[pairs[0]] * c[pairs[1]]
        products[pairs[0] != pairs[1]] *= 2
        total = np.einsum("mb...,bm...->b...", c, found[:, : len(c)])
        square = np.einsum("mb...,bm...->b...", products, found[:, len(c) :])
        self._drawn.append(self._at(sums))
        self._errors.append(np.sqrt(np.maximum(square - np.square(total) / n, 0.0)))

    def interval(
        self, level: float, limits: tuple[float, float] = Limits.ANY_NUMBER
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval from the replicates that were added, see :func:`studentized_interval`."""
        replicates = np.concatenate(self._drawn), np.concatenate(self._errors)
        return studentized_interval(self.value, self.error, *replicates, level, limits)

    @cached_property
    def _products(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs [2, pairs] of columns of z, and z beside their products [documents, …]."""
        one, other = pairs = np.array(np.triu_indices(self._z.shape[1]))
        return pairs, np.concatenate([self._z, self._z[:, one] * self._z[:, other]], axis=1)

    def _at(self, sums: Mapping[str, Any]) -> np.ndarray:
        """Return the metric at these sums, one value for each, whether or not its columns vary."""
        shape = next(np.shape(sums[key]) for key in sums if np.ndim(sums[key]))
        return np.broadcast_to(np.asarray(self._formula(sums), dtype=float), shape)

    @staticmethod
    def _error(shares: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """Return the standard error of the value; exactly 0 where only rounding is left of it."""
        error = np.sqrt(np.square(shares - shares.mean(axis=0)).sum(axis=0))
        cancelled = np.sqrt(np.square(terms).sum(axis=(0, 1)))
        return np.where(error <= NO_SPREAD * cancelled, 0.0, error)


def studentized_interval(
    value: np.ndarray,
    error: np.ndarray,
    drawn: np.ndarray,
    errors: np.ndarray,
    level: float,
    limits: tuple[float, float] = Limits.ANY_NUMBER,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval, which contains the value and stays within ``limits``.

    Args:
        value: the metric of the sample, a number (or one for each of several data sets).
        error: its standard error. Where it is 0 the slopes say nothing, and the interval is that of the
            replicates' percentiles: the value alone if no replicate differs from it.
        drawn: the metric of each replicate [replicates, …]; one that is NaN makes both ends NaN.
        errors: the standard error of each replicate; one that is not finite counts as the least.
        level: coverage of the interval.
        limits: the smallest and the largest value that the metric can have.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (drawn - value) / np.fmax(errors, LEAST_ERROR * error)
        far_below, far_above = np.quantile(np.where(error > 0, scaled, 0.0), tails, axis=0)
        low, high = value - np.maximum(far_above, 0) * error, value - np.minimum(far_below, 0) * error
    if not np.all(error > 0):
        rounded = np.where(np.abs(drawn - value) <= NO_SPREAD * np.abs(value), value, drawn)
        below, above = np.quantile(rounded, tails, axis=0)
        low, high = np.where(error > 0, low, below), np.where(error > 0, high, above)
    least, most = limits
    return np.minimum(np.maximum(low, least), value), np.maximum(np.minimum(high, most), value)
