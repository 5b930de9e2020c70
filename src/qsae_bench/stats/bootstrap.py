"""From rows to values with intervals. numpy and scipy only.

Intervals are percentile intervals of a paired bootstrap over sequences (Efron & Tibshirani 1993,
ch. 13): a replicate draws whole rows with replacement, so reference and cell stay paired and the
dependence between tokens of one document is kept. Every metric of a row set sees the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsae_bench.metrics import METRICS
from qsae_bench.metrics.base import Metric
from qsae_bench.metrics.features import FeatureSums, feature_values
from qsae_bench.metrics.loss import KL_COLUMN, KL_QUANTILES
from qsae_bench.metrics.measurement import Measurement, Rows

REPLICATES = 2000
LEVEL = 0.95
FEWEST_ROWS = 8
"""sequences below which a bootstrap interval says little"""
REPLICATES_AT_ONCE = 250
"""replicates whose vector sums [chunk, d_model] are held at once"""


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; ``low`` and ``high`` are None where there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_finite(self) -> bool:
        return all(v is None or math.isfinite(v) for v in (self.value, self.low, self.high))

    @property
    def half_width(self) -> float:
        """Half the interval, 0 where there is none."""
        return 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimates:
    """Everything known about one measured cell, by metric name."""

    cell: Mapping[str, Estimate]
    layers: Mapping[int, Mapping[str, Estimate]]

    def at(self, layer: int | None) -> Mapping[str, Estimate]:
        """The estimates of one layer, or with None those of the cell."""
        return self.cell if layer is None else self.layers[layer]


def estimate(
    measurement: Measurement, replicates: int = REPLICATES, level: float = LEVEL, seed: int = 0
) -> Estimates:
    """Every metric that the measurement's columns give, with its interval, and its costs.

    Without ``replicates`` values only, of metrics that are functions of column sums.
    """
    cell = _group(measurement.rows, measurement, "cell", replicates, level, seed)
    if not replicates:
        layers = {
            layer: _group(rows, measurement, "layer", 0, level, seed)
            for layer, rows in measurement.layers.items()
        }
        return Estimates(cell, layers)
    for key, value in measurement.costs.items():
        cell[key] = Estimate(value)
    cell |= kl_quantiles(measurement.rows, replicates // 4, level, seed)
    cell["flips_mcnemar_p"] = Estimate(mcnemar_p(measurement.rows))
    layers = {
        layer: _group(rows, measurement, "layer", replicates, level, seed)
        for layer, rows in measurement.layers.items()
    }
    for layer, sums in measurement.features.items():
        layers[layer] |= jackknife(sums, level)
    return Estimates(cell, layers)


def _group(
    rows: Rows, measurement: Measurement, scope: str, replicates: int, level: float, seed: int
) -> dict[str, Estimate]:
    constants = {"d_model": float(measurement.d_model)}
    point = column_sums(rows, np.ones((1, len(rows)))) | constants
    drawn = resampled_sums(rows, replicates, seed) | constants if replicates else None
    found: dict[str, Estimate] = {}
    for metric in METRICS.values():
        if metric.scope != scope or metric.formula is None:
            continue
        if not metric.needs or metric.needs in rows.scalars:
            found[metric.key] = _one(metric, point, drawn, level)
    return found


def _one(
    metric: Metric, point: Mapping[str, Any], drawn: Mapping[str, Any] | None, level: float
) -> Estimate:
    assert metric.formula is not None
    with np.errstate(all="ignore"):  # a broken model's overflow is reported as `invalid`, not here
        value = float(np.asarray(metric.formula(point)).item())
        if drawn is None:
            return Estimate(value)
        low, high = percentile_interval(np.asarray(metric.formula(drawn)), level)
    return Estimate(value, low, high)


def percentile_interval(replicates: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central ``level`` of the replicates; NaN if any replicate is."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_weights(n_rows: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap weights [chunk, n_rows]: how often each row is drawn in each replicate."""
    rng = np.random.default_rng(seed)
    equal = np.full(n_rows, 1 / n_rows)
    for start in range(0, replicates, REPLICATES_AT_ONCE):
        size = min(REPLICATES_AT_ONCE, replicates - start)
        yield rng.multinomial(n_rows, equal, size=size).astype(np.float64)


def resampled_sums(rows: Rows, replicates: int, seed: int) -> dict[str, np.ndarray]:
    """Column sums of every replicate, each [replicates]."""
    parts = [column_sums(rows, weights) for weights in bootstrap_weights(len(rows), replicates, seed)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def column_sums(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Weighted sums [replicates] of every scalar column, and squared norms of vector sums.

    A vector column ``sum_r`` [n, d] enters formulas only as ``sumsq_r`` = ‖Σ sum_r‖²; so do the
    sums without sinks, and the difference of the two sides (``sumsq_shift``, before division).
    """
    return with_norms_of_sums(weighted_totals(rows, weights))


def weighted_totals(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Weighted sums of every scalar column [replicates] and of every vector ``sum_…`` [replicates, d]."""
    columns = [*rows.scalars.items()]
    columns += [(name, column) for name, column in rows.vectors.items() if name.startswith("sum_")]
    # one product per column, not one for the matrix: the result must not depend on its neighbours
    return {name: weights @ column for name, column in columns}


def with_norms_of_sums(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``totals`` with its vectors replaced by the squared norms that formulas know."""
    sums = {name: total for name, total in found.items() if not name.startswith("sum_")}
    for side in ("r", "q"):
        if f"sum_{side}" in found:
            total = found[f"sum_{side}"]
            sums[f"sumsq_{side}"] = np.square(total).sum(axis=1)
            sums[f"sumsq_nosink_{side}"] = np.square(total - found[f"sum_sink_{side}"]).sum(axis=1)
    if "sum_r" in found and "sum_q" in found:
        sums["sumsq_shift"] = np.square(found["sum_q"] - found["sum_r"]).sum(axis=1)
    return sums


def kl_quantiles(rows: Rows, replicates: int, level: float, seed: int) -> dict[str, Estimate]:
    """Quantiles of the KL divergence over scored positions (inverse of the empirical distribution).

    A replicate draws sequences, as everywhere, so a position counts as often as its sequence does.
    """
    if KL_COLUMN not in rows.vectors:
        return {}
    at = rows.vectors[KL_COLUMN]
    sequence, _ = np.nonzero(~np.isnan(at))
    values = at[~np.isnan(at)]
    order = np.argsort(values, kind="stable")
    values, sequence = values[order], sequence[order]
    shares = np.array(list(KL_QUANTILES.values()))

    def quantiles(weights: np.ndarray) -> np.ndarray:
        cumulative = np.cumsum(weights[sequence])
        # the slack keeps p·n from landing above n's own float when p is 1
        found = np.searchsorted(cumulative, shares * cumulative[-1] * (1 - 1e-12))
        return values[found.clip(max=len(values) - 1)]

    if not len(values):
        return {key: Estimate(float("nan")) for key in KL_QUANTILES}
    point = quantiles(np.ones(len(at)))
    drawn = [quantiles(w) for chunk in bootstrap_weights(len(at), replicates, seed) for w in chunk]
    intervals = [percentile_interval(column, level) for column in np.array(drawn).T]
    return {
        key: Estimate(float(value), *interval)
        for key, value, interval in zip(KL_QUANTILES, point, intervals, strict=True)
    }


def mcnemar_p(rows: Rows) -> float:
    """Exact two-sided p of McNemar's test: are flips to wrong and to right equally likely?

    Counts positions, so it treats tokens as independent; a description of the flips, never gated.
    """
    from scipy.stats import binomtest

    wrong, right = (rows.scalars[key].sum() for key in ("flip_wrong", "flip_right"))
    if not wrong + right:
        return 1.0
    if not math.isfinite(wrong + right):
        return float("nan")
    return float(binomtest(round(wrong), round(wrong + right)).pvalue)


def jackknife(sums: FeatureSums, level: float) -> dict[str, Estimate]:
    """Feature metrics with intervals from leaving out one block of sequences at a time.

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
        spread = np.array([one[key] for one in left_out])
        error = jackknife_error(spread)
        least, most = METRICS[key].limits
        low, high = max(value - quantile * error, least), min(value + quantile * error, most)
        found[key] = Estimate(value, low, high)
    return found


def jackknife_error(left_out: np.ndarray) -> float:
    """Standard error of a value from the values [blocks] with one block left out each."""
    blocks = len(left_out)
    return math.sqrt((blocks - 1) / blocks * float(np.square(left_out - left_out.mean()).sum()))
