"""Intervals of many simulated data sets at once, by the functions that a run uses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qsae_bench.metrics import METRICS
from qsae_bench.stats.bootstrap import LEVEL, REPLICATES, Estimate, bootstrap_weights
from qsae_bench.stats.studentized import Studentized


def simulated_estimates(
    metric: str, columns: Mapping[str, np.ndarray], replicates: int = REPLICATES, seed: int = 0
) -> list[Estimate]:
    """The metric of each data set with its interval; a column is [documents, data sets]."""
    formula = METRICS[metric].formula
    assert formula is not None
    n = len(next(iter(columns.values())))

    def sums(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {key: weights @ column for key, column in columns.items()}

    found = Studentized(formula, sums(np.ones((1, n))), columns)
    for weights in bootstrap_weights(n, replicates, seed):
        found.add(weights, sums(weights))
    low, high = found.interval(LEVEL, METRICS[metric].limits)
    return [Estimate(*ends) for ends in zip(found.value.tolist(), low.tolist(), high.tolist(), strict=True)]


def divergences(values: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> list[Estimate]:
    """Mean KLD of each data set; ``values`` [documents, data sets] are the documents' own means."""
    columns = {"kl": values, "tokens": np.ones_like(values)}
    return simulated_estimates("kl_divergence", columns, replicates, seed)
