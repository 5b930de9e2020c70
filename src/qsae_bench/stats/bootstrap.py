"""Compute every metric of a measurement, with intervals. Pure: numpy and scipy only.

Intervals come from a paired bootstrap over documents (Efron & Tibshirani 1993): a replicate draws whole
documents with replacement, so that reference and cell stay paired and the dependence between the tokens and
the sequences of one document is preserved. Every metric uses the same draws. Metrics of sums have
studentized intervals (:mod:`qsae_bench.stats.studentized`), quantiles over positions those of percentiles.
Feature metrics, which are not functions of row sums, have jackknife intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Scope
from qsae_bench.metrics.features import FeatureSums, feature_values
from qsae_bench.metrics.loss import KL_COLUMN, KL_QUANTILES
from qsae_bench.metrics.measurement import Measurement, Rows
from qsae_bench.stats.documents import by_document, document_count, document_of
from qsae_bench.stats.flat_fvu import drift_resolution
from qsae_bench.stats.studentized import Studentized

REPLICATES = 2000
LEVEL = 0.95
FEWEST_ROWS = 8
"""documents below which a bootstrap interval means little"""
REPLICATES_AT_ONCE = 250
"""replicates whose vector sums [replicates, d_model] are in memory at once"""


@dataclass(frozen=True)
class Estimate:
    """Hold a value and its interval; ``low`` and ``high`` are None where it has no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_finite(self) -> bool:
        """Return whether the value and the ends of the interval are finite."""
        return all(v is None or math.isfinite(v) for v in (self.value, self.low, self.high))

    @property
    def half_width(self) -> float:
        """Return half the width of the interval, 0 where there is none."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimates:
    """Hold all estimates of one measured cell, by metric."""

    cell: Mapping[str, Estimate]
    layers: Mapping[int, Mapping[str, Estimate]]

    def at(self, layer: int | None) -> Mapping[str, Estimate]:
        """Return the estimates of one layer, or with None those of the cell."""
        return self.cell if layer is None else self.layers[layer]


def estimate(
    measurement: Measurement, replicates: int = REPLICATES, level: float = LEVEL, seed: int = 0
) -> Estimates:
    """Return every metric that the measurement's columns allow, with its interval, and its costs.

    Args:
        replicates: bootstrap replicates. 0 gives values without intervals, and only of metrics that are
            functions of column sums.
        level: coverage of the intervals.
        seed: of the draws.
    """
    documents = measurement.rows.documents

    def sampled(rows: Rows, scope: Scope) -> _Sampled:
        return _Sampled(replace(rows, documents=documents), scope, {"d_model": float(measurement.d_model)})

    with np.errstate(all="ignore"):  # a broken model's overflow becomes the status `invalid`
        of_cell = sampled(measurement.rows, "cell")
        of_layers = {layer: sampled(rows, "layer") for layer, rows in measurement.layers.items()}
        for weights in bootstrap_weights(document_count(measurement.rows), replicates, seed):
            for one in (of_cell, *of_layers.values()):
                one.draw(weights)
        cell = of_cell.estimates(level if replicates else None)
        layers = {layer: one.estimates(level if replicates else None) for layer, one in of_layers.items()}
    if not replicates:
        return Estimates(cell, layers)
    cell |= {key: Estimate(value) for key, value in measurement.costs.items()}
    cell |= kl_quantiles(measurement.rows, replicates // 4, level, seed)
    cell["flips_mcnemar_p"] = Estimate(mcnemar_p(measurement.rows))
    for layer, sums in measurement.features.items():
        layers[layer] |= jackknife(sums, level)
    for found in layers.values():
        resolution = drift_resolution(found["fvu_drift"], found["perturbation_nsr"])
        found |= {} if resolution is None else {"drift_resolution": Estimate(resolution)}
    return Estimates(cell, layers)


class _Sampled:
    """Compute the metrics of one set of rows, and of their replicates."""

    def __init__(self, rows: Rows, scope: Scope, constants: dict[str, float]) -> None:
        """Compute the values; ``constants`` are what formulas use beside column sums."""
        self._rows, self._constants = by_document(rows), constants
        sums = column_sums(self._rows, np.ones((1, len(self._rows)))) | constants
        summands = linear_summands(self._rows)
        self._metrics = {
            key: Studentized(metric.formula, sums, summands)
            for key, metric in METRICS.items()
            if metric.scope == scope and metric.formula and metric.needs in ("", *rows.scalars)
        }

    def draw(self, weights: np.ndarray) -> None:
        """Add replicates that drew the documents so often [replicates, documents]."""
        sums = column_sums(self._rows, weights) | self._constants
        for metric in self._metrics.values():
            metric.add(weights, sums)

    def estimates(self, level: float | None) -> dict[str, Estimate]:
        """Return the metrics with intervals of this level, or with None without."""
        found = {}
        for key, metric in self._metrics.items():
            ends = () if level is None else metric.interval(level, METRICS[key].limits)
            found[key] = Estimate(float(metric.value), *map(float, ends))
        return found


def percentile_interval(replicates: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the central ``level`` of the replicates; NaN if any replicate is."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_weights(n: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Yield bootstrap weights [≤ REPLICATES_AT_ONCE, n]: how often a replicate draws each document."""
    rng = np.random.default_rng(seed)
    equal = np.full(n, 1 / n)
    for start in range(0, replicates, REPLICATES_AT_ONCE):
        size = min(REPLICATES_AT_ONCE, replicates - start)
        yield rng.multinomial(n, equal, size=size).astype(np.float64)


def column_sums(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return weighted sums [replicates] of every scalar column, and squared norms of vector sums.

    A vector column ``sum_r`` [n, d] enters formulas only as ``sumsq_r`` = ‖Σ sum_r‖²; so do the sums
    with sinks (``sumsq_all_r``), and the difference of the two sides (``sumsq_shift``, before division).
    """
    return with_norms_of_sums(weighted_totals(rows, weights))


def weighted_totals(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return weighted sums of scalar columns [replicates] and of vectors ``sum_…`` [replicates, d]."""
    columns = [*rows.scalars.items()]
    columns += [(name, column) for name, column in rows.vectors.items() if name.startswith("sum_")]
    # one product per column, not one for the matrix: a result must not depend on the other columns
    return {name: weights @ column for name, column in columns}


def with_norms_of_sums(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``found`` with its vectors replaced by the squared norms that formulas use."""
    sums = {name: total for name, total in found.items() if not name.startswith("sum_")}
    return sums | {name: np.square(total).sum(axis=1) for name, total in _squared_vectors(found).items()}


def linear_summands(rows: Rows) -> dict[str, np.ndarray]:
    """Return what each row adds to each sum [n]; to a squared norm ‖Σx‖², what it adds near the whole sum.

    This is 2 Σx·x_i, also for a replicate: the direction of a mean vector hardly differs between the two.
    Where it does, because the mean is mostly noise (``mean_shift`` of next to no shift), intervals are too
    wide.
    """
    vectors = _squared_vectors(rows.vectors)
    return {**rows.scalars, **{name: 2 * (x @ x.sum(axis=0)) for name, x in vectors.items()}}


def _squared_vectors(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the vectors [n, d] whose sums' squared norms formulas use, by the name of that norm."""
    vectors = {}
    for side in ("r", "q"):
        if f"sum_{side}" in found:
            vectors[f"sumsq_{side}"] = found[f"sum_{side}"]
            if f"sum_sinks_{side}" in found:
                vectors[f"sumsq_all_{side}"] = found[f"sum_{side}"] + found[f"sum_sinks_{side}"]
    if "sum_r" in found and "sum_q" in found:
        vectors["sumsq_shift"] = found["sum_q"] - found["sum_r"]
    return vectors


def kl_quantiles(rows: Rows, replicates: int, level: float, seed: int) -> dict[str, Estimate]:
    """Return quantiles of the KL divergence over scored positions (inverse of the empirical distribution).

    A replicate draws documents, as everywhere, so a position counts as often as its document is drawn.
    """
    if KL_COLUMN not in rows.vectors:
        return {}
    at = rows.vectors[KL_COLUMN]
    sequence, _ = np.nonzero(~np.isnan(at))
    values = at[~np.isnan(at)]
    order = np.argsort(values, kind="stable")
    values, document = values[order], document_of(rows)[sequence[order]]
    shares = np.array(list(KL_QUANTILES.values()))

    def quantiles(weights: np.ndarray) -> np.ndarray:
        cumulative = np.cumsum(weights[document])
        # the slack keeps p·n from exceeding n by rounding when p is 1
        found = np.searchsorted(cumulative, shares * cumulative[-1] * (1 - 1e-12))
        return values[found.clip(max=len(values) - 1)]

    if not len(values):
        return {key: Estimate(float("nan")) for key in KL_QUANTILES}
    documents = document_count(rows)
    point = quantiles(np.ones(documents))
    drawn = [quantiles(w) for chunk in bootstrap_weights(documents, replicates, seed) for w in chunk]
    intervals = [percentile_interval(column, level) for column in np.array(drawn).T]
    return {
        key: Estimate(float(value), *interval)
        for key, value, interval in zip(KL_QUANTILES, point, intervals, strict=True)
    }


def mcnemar_p(rows: Rows) -> float:
    """Return the exact two-sided p of McNemar's test that flips to wrong and to right are equally likely.

    It counts positions, so it treats tokens as independent; it describes the flips and is never gated.
    """
    from scipy.stats import binomtest

    wrong, right = (rows.scalars[key].sum() for key in ("flip_wrong", "flip_right"))
    if not wrong + right:
        return 1.0
    if not math.isfinite(wrong + right):
        return float("nan")
    return float(binomtest(round(wrong), round(wrong + right)).pvalue)


def jackknife(sums: FeatureSums, level: float) -> dict[str, Estimate]:
    """Return feature metrics with intervals from leaving out one block of documents at a time.

    Delete-a-group jackknife (Kott 2001): Student's t with blocks − 1 degrees of freedom.
    """
    from scipy.stats import t

    blocks = int((sums.positions > 0).sum())
    point = feature_values(sums)
    if blocks < 2:
        return {key: Estimate(value) for key, value in point.items()}
    left_out = [feature_values(sums, int(block)) for block in np.flatnonzero(sums.positions)]
    quantile = float(t.ppf((1 + level) / 2, blocks - 1))
    found = {}
    for key, value in point.items():
        if METRICS[key].interval == "none":
            found[key] = Estimate(value)
            continue
        half = quantile * jackknife_error(np.array([one[key] for one in left_out]))
        least, most = METRICS[key].limits
        found[key] = Estimate(value, max(value - half, least), min(value + half, most))
    return found


def jackknife_error(left_out: np.ndarray) -> float:
    """Return the standard error of a value from its values [blocks] with one block left out each."""
    blocks = len(left_out)
    return math.sqrt((blocks - 1) / blocks * float(np.square(left_out - left_out.mean()).sum()))
