"""The vocabulary: every metric of metrics.md, its unit, and its formula over column sums.

Each module holds one group: the columns it reads off a batch (torch, imported where used) and the
metrics those columns give (plain arithmetic that works on floats and on bootstrap replicates alike).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qsae_bench.metrics import cost, features, loss, reconstruction, residual, splice, weights
from qsae_bench.metrics.base import Metric

GROUPS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        module.__name__.rpartition(".")[2]: frozenset(metric.key for metric in module.METRICS)
        for module in (loss, residual, reconstruction, features, splice, weights, cost)
    }
)
"""group (its module's name) -> the keys in it"""

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.key: metric
        for module in (loss, residual, reconstruction, features, splice, weights, cost)
        for metric in module.METRICS
    }
)
